"""Sphinx's settings. `scripts/build_docs.sh` builds the site into docs/_build/html; nothing is fetched while it does."""

import sys
from pathlib import Path

import dropjax

sys.path.insert(0, str(Path(__file__).parent))

project = "dropjax"
author = "the dropjax developers"
version = release = dropjax.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "site_extension"]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!dropjax\.).*"),  # other libraries' names: their inventories would have to be fetched
    (r"py:class", r"dropjax\.(.*\.T|core\.options\.OptionChanges|.*\.(Table|Keep|FitOutcome))"),  # in signatures alone
]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

default_role = "code"  # docstrings write `name` as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "separated"  # fields are listed one by one
autodoc_default_options = {"members": True, "undoc-members": True}
python_maximum_signature_line_length = 90

html_math_renderer = "mathml"
html_theme = "furo"
html_title = "dropjax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_show_copyright = False
html_show_sphinx = False
