"""benchmarks/recovery.py on one small stack."""

import json
import sys

import numpy as np
import pytest
import recovery
from builders import random_puzzle

from dropjax.make.training import Recipe
from dropjax.search.yardstick import rounded_to


@pytest.fixture
def small(monkeypatch, tmp_path):
    entry = recovery.Entry("small", Recipe(depth=4, hidden=12, rate=3e-3, epochs=3), width=8)
    monkeypatch.setattr(recovery, "SUITE", (entry,))
    monkeypatch.setattr(recovery, "SHORT", ("small",))
    return tmp_path


@pytest.mark.slow
def test_a_small_stack_is_trained_dropped_solved_and_kept(small, monkeypatch, capsys):
    arguments = ["recovery.py", str(small / "kept"), "--short", "--json", str(small / "report.json")]
    monkeypatch.setattr(sys, "argv", arguments)
    assert recovery.main() == 0
    rows = json.loads((small / "report.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["paper", "auto"]
    assert rows[1]["exact"]
    assert rows[1]["pairs_right"] == rows[1]["places_right"] == rows[1]["blocks"] == 4
    assert "auto: 1 of 1 recovered" in capsys.readouterr().out
    monkeypatch.setattr(recovery, "row", lambda *_: pytest.fail("what was kept is not run again"))
    assert recovery.main() == 0
    assert json.loads((small / "report.json").read_text())["rows"] == rows


def test_pairs_and_places_are_counted_apart():
    truth = np.array([[0, 2], [1, 0], [2, 1]])
    assert recovery.right(truth, truth) == (3, 3)
    assert recovery.right(truth[[1, 0, 2]], truth) == (3, 1)
    assert recovery.right(np.array([[0, 0], [1, 2], [2, 1]]), truth) == (1, 1)


def test_a_table_is_handed_out_as_the_entry_says():
    puzzle, _ = random_puzzle(np.random.default_rng(0))
    few = recovery.handed_out(puzzle, recovery.Entry("few", Recipe(), rows=7, decimals=2))
    np.testing.assert_array_equal(few.x, puzzle.x[:7])
    np.testing.assert_allclose(few.pred, puzzle.pred[:7], atol=0.005)
    assert puzzle.true is not None and few.true is not None
    np.testing.assert_array_equal(few.true, puzzle.true[:7])
    assert rounded_to(few.pred) == 2
    whole = recovery.handed_out(puzzle, recovery.Entry("whole", Recipe()))
    np.testing.assert_array_equal(whole.pred, puzzle.pred)
