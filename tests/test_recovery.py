"""benchmarks/recovery.py on one small stack."""

import json
import os
import signal
import sys
from itertools import product
from operator import itemgetter

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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Dask tells of the worker that dies in warnings
def test_on_a_cluster_a_worker_that_dies_loses_no_stack_and_counts_none_twice(tmp_path, monkeypatch):
    from distributed import Client, LocalCluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))  # the workers' too
    entry = recovery.Entry("small", Recipe(depth=4, hidden=12, rate=3e-3, epochs=3), width=8)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        rows = recovery.rows([entry], 4, None, tmp_path, 60, client.get_executor())
        found = [next(rows)]
        one, *_ = client.run(os.getpid).values()  # pyright: ignore[reportAttributeAccessIssue]  # this client is synchronous
        os.kill(one, signal.SIGKILL)
        found += rows
    named = itemgetter("seed", "method")
    done = list(map(named, found))
    assert sorted(done) == sorted(product(range(4), recovery.METHODS))
    assert len(list(tmp_path.glob("*.json"))) == len(done)
    again = list(recovery.rows([entry], 4, None, tmp_path, 60))
    assert sorted(again, key=named) == sorted(found, key=named)


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
