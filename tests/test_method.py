"""docs/method.md against the code: each number points to one function, and that function cites it."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (Eq\. \d+|D\d+) \| .+ \| `([\w.]+)` \|$", PAGE, re.MULTILINE)


def cited(text: str) -> set[str]:
    """Numbers that a docstring cites, ranges such as "Eqs. 5 and 10 to 15" written out."""
    found = {f"D{n}" for n in re.findall(r"\bD(\d+) in docs/method\.md", text)}
    for numbers in re.findall(r"Eqs?\. (\d+(?:(?:,| and| to) \d+)*)", text):
        for first, last in re.findall(r"(\d+)(?: to (\d+))?", numbers):
            found |= {f"Eq. {n}" for n in range(int(first), int(last or first) + 1)}
    return found


def test_citations_are_read():
    assert cited("(paper, Eqs. 5 and 10 to 12); D3 in docs/method.md") == {"Eq. 5", "Eq. 10", "Eq. 11", "Eq. 12", "D3"}
    assert cited("Eq. 1, and 2 of them") == {"Eq. 1"}


def test_every_equation_and_derivation_has_one_row():
    numbers = [number for number, _ in ROWS]
    assert numbers[:21] == [f"Eq. {n}" for n in range(1, 22)]
    assert numbers[21:] == [f"D{n}" for n in range(1, len(numbers) - 20)]
    sections = re.findall(r"^### (D\d+)\. ", PAGE, re.MULTILINE)
    assert sections == numbers[21:]


@pytest.mark.parametrize(("number", "name"), ROWS, ids=[number for number, _ in ROWS])
def test_the_function_is_there_and_cites_the_number(number, name):
    module, function = name.rsplit(".", 1)
    found = getattr(importlib.import_module(module), function)
    assert callable(found)
    assert number in cited(found.__doc__)


def test_the_code_cites_no_derivation_that_the_page_lacks():
    numbers = {number for number, _ in ROWS}
    for path in (ROOT / "dropjax").rglob("*.py"):
        assert {of for of in cited(path.read_text(encoding="utf-8")) if of[0] == "D"} <= numbers, path
