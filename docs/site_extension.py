"""What the site needs beside Sphinx's own: formulas as MathML, the commands' help, and names that are links."""

import importlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from numpy.typing import ArrayLike
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import stringify_annotation

import dropjax

INCLUDED = {
    "../CHANGELOG.md": "changelog.md",
    "../benchmarks/FINDINGS.md": "findings.md",
    "../benchmarks/RECOVERY.md": "recovery.md",
    "../benchmarks/SCALING.md": "scaling.md",
}
"""Files outside docs/, and the pages that include them. Links to the files are links to the pages on the site."""
SHORT = 28
"""The most characters of code that are kept on one line."""
EQUATION = re.compile(r"^\| (?:Eq\. \d+|D\d+) \| .+ \| `([\w.]+)` \|$", re.MULTILINE)


def link_to_pages(app: Sphinx, name: str, source: list[str]) -> None:
    """Turns links to included files into links to the pages that include them."""
    for file, page in INCLUDED.items():
        source[0] = source[0].replace(f"]({file}", f"]({page}")


def visit_inline_math(translator, node: nodes.math) -> None:
    """Writes a formula in a line as MathML, which browsers draw without a script or a font."""
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def visit_display_math(translator, node: nodes.math_block) -> None:
    """Writes a formula of its own as MathML, in a box that scrolls where the page is narrow."""
    translator.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


class CommandHelp(SphinxDirective):
    """`{command-help} NAME`: what `dropjax NAME --help` prints."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The help as a block of text, as wide as a page."""
        os.environ["COLUMNS"] = "92"
        command = importlib.import_module(f"dropjax.{self.arguments[0]}.__main__")
        self.env.note_dependency(command.__file__)
        text = command.parser().format_help()
        return [nodes.literal_block(text, text, language="text")]


class MethodFunctions(SphinxDirective):
    """`{method-functions}`: the functions that method.md names, each once, and the records that they take and return."""

    def run(self) -> list[nodes.Node]:
        """What autodoc writes of each of them."""
        page = Path(self.env.srcdir) / "method.md"
        self.env.note_dependency(str(page))
        names = dict.fromkeys(EQUATION.findall(page.read_text(encoding="utf-8")))
        records = dict.fromkeys(record for name in names for record in _records(name))
        lines = [f".. autofunction:: {name}" for name in names] + [f".. autoclass:: {name}" for name in records]
        text = "\n\n".join(lines)
        return self.parse_text_to_nodes(f"```{{eval-rst}}\n{text}\n```")


def _records(name: str) -> list[str]:
    """Full names of the project's classes in a function's signature, but for those that `dropjax` itself offers."""
    module, function = name.rsplit(".", 1)
    annotations = getattr(importlib.import_module(module), function).__annotations__.values()
    own = [a for a in annotations if isinstance(a, type) and a.__module__.startswith("dropjax.")]
    return [f"{a.__module__}.{a.__name__}" for a in own if not hasattr(dropjax, a.__name__)]


class ShortCode(SphinxTransform):
    """Keeps short code in a sentence on one line: browsers would break `--method` behind its first two characters."""

    default_priority = 6

    def apply(self, **kwargs) -> None:
        """Marks each piece of code that fits a phone's line."""
        for literal in self.document.findall(nodes.literal):
            if len(literal.astext()) <= SHORT:
                literal["classes"].append("short")


class LinkedNames(SphinxTransform):
    """Makes a link of a name in code, `dropjax.order` say, wherever the site documents what it names."""

    default_priority = 5

    def apply(self, **kwargs) -> None:
        """Wraps each full name; one that is documented nowhere stays as it was."""
        for literal in list(self.document.findall(nodes.literal)):
            name = literal.astext()
            if re.fullmatch(r"dropjax(\.\w+)+", name) and not isinstance(literal.parent, pending_xref | nodes.reference):
                link = pending_xref(
                    "", refdomain="py", reftype="obj", reftarget=name, refdoc=self.env.docname, refwarn=False
                )
                literal.replace_self(link)
                link += literal
                _let_break(literal, name)


def _let_break(literal: nodes.literal, name: str) -> None:
    """Lets a line end behind the dots of a name, where it is long and the page is narrow."""
    first, *others = name.split(".")
    literal.clear()
    literal += nodes.Text(first)
    for part in others:
        literal += [nodes.Text("."), nodes.raw("", "<wbr>", format="html"), nodes.Text(part)]


def leave_unlinked(app: Sphinx, env, node: pending_xref, content: nodes.Node) -> nodes.Node | None:
    """Leaves a name of `LinkedNames` as it was where nothing documents it."""
    return content if node.get("refwarn") is False else None


def as_text(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Takes |x| and * of docstrings as what they are in mathematics, and indented lines, or lines in columns, as a table."""
    lines[:] = [re.sub(r"(`[^`]*`)|([|*])", lambda found: found[1] or f"\\{found[2]}", line) for line in lines]
    for at in reversed(range(1, len(lines))):
        if re.match(r"    |\S.*\S {3,}\S", lines[at]) and not lines[at - 1]:
            block = at + next((n for n, line in enumerate(lines[at:]) if not line), len(lines) - at)
            lines[at:block] = ["::", "", *("    " + line.replace("\\", "") for line in lines[at:block])]


def shorten(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, returned: str | None
) -> tuple[str, str | None] | None:
    """Writes ArrayLike for what it stands for, which is long."""
    if not signature:
        return None
    return signature.replace(stringify_annotation(ArrayLike, "smart"), "~numpy.typing.ArrayLike"), returned


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers all of it."""
    pages: Iterable[tuple[str, type]] = (("command-help", CommandHelp), ("method-functions", MethodFunctions))
    for name, directive in pages:
        app.add_directive(name, directive)
    app.add_transform(LinkedNames)
    app.add_transform(ShortCode)
    app.connect("source-read", link_to_pages)
    app.connect("missing-reference", leave_unlinked)
    app.connect("autodoc-process-docstring", as_text)
    app.connect("autodoc-process-signature", shorten)
    app.add_html_math_renderer("mathml", (visit_inline_math, None), (visit_display_math, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
