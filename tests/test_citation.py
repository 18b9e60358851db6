"""What to cite: entries of one form, of the facts in CITATION.cff, and of the methods that a solve used."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import random_puzzle, written_solution

import dropjax
from dropjax.core.solution import Stage

CFF = (Path(__file__).resolve().parents[1] / "CITATION.cff").read_text(encoding="utf-8")


def entries(text: str) -> dict[str, dict[str, str]]:
    """Each entry's fields by its key. A text that is not BibTeX of this form fails here."""
    found = {}
    for entry in text.rstrip("\n").split("\n\n"):
        head, *lines, end = entry.splitlines()
        match = re.fullmatch(r"@(?:misc|article)\{(\w+),", head)
        assert match and end == "}" and match[1] not in found
        fields = [re.fullmatch(r"  (\w+) = \{(.+)\},", line) for line in lines]
        assert all(field and field[2].count("{") == field[2].count("}") for field in fields)
        found[match[1]] = {field[1]: field[2] for field in fields if field}
    return found


def test_facts_are_those_of_the_citation_file():
    both = entries(dropjax.citation())
    paper, software = both["park2026dropped"], both["dropjax"]
    assert f'title: "{software["title"]}"' in CFF
    assert f'name: "{software["author"].strip("{}")}"' in CFF
    assert software["note"] == f"Version {dropjax.__version__}"
    family, given = paper["author"].split(", ")
    for fact in (f'title: "{paper["title"]}"', f"family-names: {family}", f"given-names: {given}", f"year: {paper['year']}"):
        assert fact in CFF
    assert f'value: "arXiv:{paper["eprint"]}"' in CFF


def test_without_a_solution_all_methods_are_cited():
    methods = ["kuhn1955hungarian", "efron2011tweedie", "bradley1952rank", "hunter2004mm"]
    methods += ["kirkpatrick1983optimization", "garciafernandez2015posterior", "dickey1971weighted"]
    assert list(entries(dropjax.citation())) == ["dropjax", "park2026dropped", *methods]


@pytest.fixture(scope="module")
def solution() -> dropjax.Solution:
    return written_solution(*random_puzzle(np.random.default_rng(1), L=4, d=6, h=9, rows=60))


def test_a_solve_cites_what_its_stages_used(solution: dropjax.Solution):
    assert list(entries(dropjax.citation(solution))) == ["dropjax", "park2026dropped", "bradley1952rank", "hunter2004mm"]
    stages = [Stage("pairing", 0.1), Stage("annealing, gelu", 0.1)]
    other = replace(solution, stages=stages, pairing=replace(solution.pairing, greedy_equals_hungarian=False))
    named = ["dropjax", "park2026dropped", "kuhn1955hungarian", "kirkpatrick1983optimization"]
    assert list(entries(dropjax.citation(other))) == named
    assert list(entries(dropjax.citation(replace(solution, stages=[])))) == ["dropjax", "park2026dropped"]
