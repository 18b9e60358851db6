"""Several puzzles: each is solved, or said to be none, by itself, and what is solved is had at once."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest
from builders import random_puzzle

from dropjax import console
from dropjax.core.errors import InputError
from dropjax.core.options import Options
from dropjax.core.puzzle import Puzzle
from dropjax.io.converted import write_converted
from dropjax.search import solving


def puzzle(seed: int, L: int = 3) -> Puzzle:
    return random_puzzle(np.random.default_rng(seed), L=L)[0]


@pytest.fixture
def solve(monkeypatch: pytest.MonkeyPatch, unchecked: None) -> Callable[[Puzzle, str], None]:
    """Stands for the solver: how each puzzle ends is said before."""
    endings: dict[int, str] = {}

    def solve(puzzle: Puzzle, options: Options, interrupted: Callable[[], bool] = lambda: False):
        ending = endings[id(puzzle)]
        if ending == "slow":
            while not interrupted():
                time.sleep(0.01)
        if ending == "fault":
            raise RuntimeError("broken")
        return puzzle.last_number, ending

    monkeypatch.setattr(solving, "solve", solve)
    monkeypatch.setattr(solving, "workers", lambda: 2)
    return lambda puzzle, ending: endings.__setitem__(id(puzzle), ending)


def none() -> Puzzle:
    raise InputError("none: expected a puzzle, got none")


def test_what_ends_is_had_while_others_go_on(solve):
    # The slow one is the first of its shape; those before it are not held up.
    puzzles = [puzzle(1), puzzle(2), puzzle(3), puzzle(4, L=4)]
    for one, ending in zip(puzzles, ("quick", "fault", "quick", "slow"), strict=True):
        solve(one, ending)
    stop = threading.Event()
    calls = [lambda one=one: one for one in puzzles]
    found = solving.as_solved([*calls[:2], none, *calls[2:]], Options(), stop.is_set)
    first = dict(next(found) for _ in range(4))
    assert first[0] == (puzzles[0].last_number, "quick") and first[3] == (puzzles[2].last_number, "quick")
    assert isinstance(first[1], RuntimeError) and isinstance(first[2], InputError)
    threading.Timer(0.5, stop.set).start()
    assert list(found) == [(4, (puzzles[3].last_number, "slow"))]


def test_nothing_is_begun_after_an_interruption(solve):
    puzzles = [puzzle(seed) for seed in range(8)]
    for one in puzzles:
        solve(one, "slow")
    stop = threading.Event()
    loaded = []

    def load(k: int) -> Puzzle:
        loaded.append(k)
        return puzzles[k]

    found = solving.as_solved([lambda k=k: load(k) for k in range(8)], Options(), stop.is_set)
    threading.Timer(0.5, stop.set).start()
    assert [number for number, _ in found] == [0]  # those behind the first of a shape wait for it
    assert loaded == [0]


def test_what_waits_for_a_worker_is_not_begun_either(solve):
    puzzles = [puzzle(seed) for seed in range(4)]
    for one, ending in zip(puzzles, ("quick", "slow", "slow", "slow"), strict=True):
        solve(one, ending)
    stop = threading.Event()
    found = solving.as_solved([lambda one=one: one for one in puzzles], Options(), stop.is_set)
    assert next(found)[0] == 0
    threading.Timer(0.5, stop.set).start()
    assert sorted(number for number, _ in found) == [1, 2]


def test_whoever_leaves_stops_what_is_under_way(solve):
    puzzles = [puzzle(1), puzzle(2)]
    solve(puzzles[0], "quick")
    solve(puzzles[1], "slow")
    found = solving.solve_many(puzzles)
    next(found)
    assert isinstance(found, Generator)
    found.close()  # would wait for ever


def test_solve_many_keeps_the_order_and_raises_where_it_was(solve):
    puzzles = [puzzle(seed) for seed in range(5)]
    for one, ending in zip(puzzles, ("quick", "quick", "quick", "fault", "quick"), strict=True):
        solve(one, ending)
    found = solving.solve_many(puzzles)
    assert [next(found) for _ in range(3)] == [(one.last_number, "quick") for one in puzzles[:3]]
    with pytest.raises(RuntimeError, match="broken"):
        next(found)


@pytest.mark.slow
def test_sigint_ends_several_soon(tmp_path: Path):
    easy, _ = random_puzzle(np.random.default_rng(0), L=5, d=8, h=12, rows=80)
    hard, _ = random_puzzle(np.random.default_rng(1), L=24, d=32, h=48, coupling=0, rows=4000)
    paths = [tmp_path / f"{name}.safetensors" for name in ("easy", "hard", "behind")]
    for path, one in zip(paths, (easy, hard, hard), strict=True):
        write_converted(one, path)
    command = [sys.executable, "-m", "dropjax.solve", "--no-cache", *map(str, paths), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith(f"{paths[0]}: exact")
    assert (tmp_path / "out" / "easy" / "permutation.txt").exists()
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (console.NOT_SOLVED, "")
    assert f"{paths[1]}: not_solved" in out and (tmp_path / "out" / "hard" / "permutation.txt").exists()
    assert out.splitlines()[-1] == "1 not begun (interrupted)" and not (tmp_path / "out" / "behind").exists()
