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
    """The targets of the links and images of a Markdown page, without those in code."""
    prose = re.sub(r"`[^`\n]*`", "", FENCED.sub("", page))
    return re.findall(r"\]\(([^)\s]+)\)", prose)


def anchors(page: str) -> set[str]:
    """The headings of a Markdown page as links name them, on the usual forge as on the site."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def missing(page: Path) -> list[str]:
    """The links of a page within the project whose file or heading does not exist."""
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


def test_included_pages_link_to_what_is_there_from_the_site_too():
    # The site looks for a link's file from the page that includes the text.
    for page in (ROOT / "docs").glob("*.md"):
        for path in re.findall(r"^```\{include\} (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            local = [
                link for link in links((page.parent / path).read_text(encoding="utf-8")) if not re.match(r"\w+:|#", link)
            ]
            assert [link for link in local if not (page.parent / link.partition("#")[0]).exists()] == [], path


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


def paths(svg: str) -> list[tuple[str, float, float]]:
    """The colour of each line of the picture of straightening, and the heights at which it begins and ends."""
    found = re.findall(r'<path d="M\S+ (\S+?)C[^"]* (\S+?)" stroke="(\S+)"/>', svg)
    return [(colour, float(start), float(end)) for start, end, colour in found]


@pytest.mark.slow
def test_the_readmes_picture_is_what_its_command_draws(tmp_path: Path):
    command = [sys.executable, ROOT / "scripts" / "draw_straightening.py", tmp_path / "drawn.svg"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    drawn = (tmp_path / "drawn.svg").read_text(encoding="utf-8")
    kept = (ROOT / "docs" / "_static" / "straightening.svg").read_text(encoding="utf-8")
    assert drawn.partition("<path")[0] == kept.partition("<path")[0]
    # Between its ends a line may take another way: another machine rounds otherwise.
    assert paths(drawn) == paths(kept)
    assert abs(drawn.count("<text") - kept.count("<text")) <= 4
    ends = [end for _, _, end in paths(kept)]
    assert ends == sorted(ends) and len(ends) == 48 and [start for _, start, _ in paths(kept)] != ends
    assert ">48</text>" in drawn and re.search(r">MSE 0\.\d+ → \S+e-1[3-6]</text>", drawn)


def test_everything_exported_is_documented():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\.\. auto\w+:: (\w+)$", page, re.MULTILINE))
    assert listed == set(dropjax.__all__) - {"__version__"}
