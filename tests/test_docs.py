"""The documentation: its links lead somewhere, its tutorial runs, and the site is built without a warning."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import dropjax

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
)
FENCED = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)


def links(page: str) -> list[str]:
    """Where the links and images of a Markdown page lead, code left out."""
    prose = re.sub(r"`[^`\n]*`", "", FENCED.sub("", page))
    return re.findall(r"\]\(([^)\s]+)\)", prose)


def anchors(page: str) -> set[str]:
    """The headings of a Markdown page as links name them, on the usual forge as on the site."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def missing(page: Path) -> list[str]:
    """Those of a page's links within the project that lead to no file, or to no heading of it."""
    lost = []
    for link in links(page.read_text(encoding="utf-8")):
        if re.match(r"\w+:", link):
            continue
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        if path.startswith("dropjax/"):  # wherever the package is installed
            target = Path(dropjax.__file__).parents[1] / path
        if not target.exists() or (heading and heading not in anchors(target.read_text(encoding="utf-8"))):
            lost.append(link)
    return lost


def cells(page: str) -> list[str]:
    """The code of a notebook that is written as a MyST page."""
    return re.findall(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def test_links_lead_somewhere():
    assert {str(page.relative_to(ROOT)): lost for page in PAGES if (lost := missing(page))} == {}


def test_links_that_lead_nowhere_are_found(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b`, c\n[1](#a-b-c) [2](#a) [3](none.md) [4](page.md#a-b-c) [5](https://x) `[6](no.md)`\n```\n[7](no.md)\n```\n"
    )
    assert missing(page) == ["#a", "none.md"]


def test_every_page_of_the_site_is_in_its_contents():
    listed = re.findall(r"^[a-z_]+$", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(["index", *listed]) == sorted(page.stem for page in (ROOT / "docs").glob("*.md"))


def test_fractions_have_braces():
    # \tfrac12 x is ½x in TeX, and 12/x to the site's reader of TeX.
    for page in PAGES:
        assert re.findall(r"\\[td]?frac(?!\{).*", page.read_text(encoding="utf-8")) == [], page


@pytest.mark.slow
def test_the_tutorial_runs():
    code = "\n".join(cells((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")))
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "MPLBACKEND": "agg"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "the answer: True" in done.stdout
    assert "not_solved - no order reproduces pred" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(find_spec("myst_nb") is None, reason="needs the extra docs")
def test_the_site_is_built_without_a_warning(tmp_path: Path):
    build = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-D", "nb_execution_mode=off"]
    quiet = ["-D", "suppress_warnings=myst-nb.lexer"]  # a notebook that was not executed does not say its language
    done = subprocess.run([*build, *quiet, ROOT / "docs", tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "<math" in (tmp_path / "method.html").read_text(encoding="utf-8")
    assert "http" not in "".join(
        re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="([^"]+)"', (tmp_path / "index.html").read_text())
    )


def test_everything_exported_is_documented():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\.\. auto\w+:: (\w+)$", page, re.MULTILINE))
    assert listed == set(dropjax.__all__) - {"__version__"}
