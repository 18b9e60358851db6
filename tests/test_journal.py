"""A search that ended early goes on as if it had not."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from builders import random_puzzle

import dropjax
from dropjax.core.errors import InputError
from dropjax.core.options import Options
from dropjax.core.puzzle import Puzzle
from dropjax.runtime.journal import Journal, digest, read_checkpoint
from dropjax.search import ladder, order_rungs, stages, strategies
from dropjax.search.solving import identity

IDENTITY = {"puzzle": "this one"}


def never() -> bool:
    return False


def nested(journal: Journal, made: list[str], last: str | None = None) -> dict[str, tuple[np.ndarray, float]]:
    """Three calls, the second with three within it; ends at the one named `last` as if time were up."""
    stopped: list[str] = []

    def call(name: str, inside: tuple[str, ...] = ()) -> tuple[np.ndarray, float]:
        def function() -> tuple[np.ndarray, float]:
            total = np.zeros(2, np.float32)
            for inner in inside:
                if stopped:
                    break
                total = total + call(inner)[0]
            made.append(name)
            if name == last:
                stopped.append(name)
            return total + len(name), len(name) / 3

        return journal.call(function, (np.zeros(2, np.float32), 0.0), lambda: bool(stopped))

    found = {}
    for name, inside in (("a", ()), ("bcd", ("bc", "bcd2", "b")), ("e", ())):
        if not stopped:
            found[name] = call(name, inside)
    return found


@pytest.mark.parametrize("last", ["a", "bc", "bcd2", "b", "bcd", "e"])
def test_what_has_ended_is_not_called_again(tmp_path: Path, last: str):
    whole: list[str] = []
    expected = nested(Journal(tmp_path / "whole", IDENTITY), whole)
    before: list[str] = []
    first = Journal(tmp_path / "cut", IDENTITY)
    nested(first, before, last)
    first.write()
    after: list[str] = []
    found = nested(Journal(tmp_path / "cut", IDENTITY, resume=True), after)
    for name, (array, number) in expected.items():
        np.testing.assert_array_equal(found[name][0], array)
        assert found[name][1] == number
        assert type(found[name][1]) is float
    assert after == whole[whole.index(last) :], "from the call that was cut short on"


def test_the_file_is_written_in_time_and_whole(tmp_path: Path):
    path = tmp_path / "kept"
    journal = Journal(path, IDENTITY, every=0)
    journal.call(lambda: np.arange(3), np.arange(3), never)
    first = read_checkpoint(path, IDENTITY)
    assert digest(first) == digest(journal.levels)
    journal.call(lambda: np.arange(3), np.arange(3), never)
    assert len(read_checkpoint(path, IDENTITY)[0]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
    rare = Journal(tmp_path / "rare", IDENTITY, every=3600)
    rare.call(lambda: np.arange(3), np.arange(3), never)
    assert not rare.path.exists()


def test_what_is_no_checkpoint_of_this_search_is_refused(tmp_path: Path):
    path = tmp_path / "kept"
    journal = Journal(path, IDENTITY)
    journal.call(lambda: np.arange(300), np.arange(300), never)
    journal.write()
    sound = path.read_bytes()
    with pytest.raises(InputError, match="expected no file, or --resume"):
        Journal(path, IDENTITY)
    with pytest.raises(InputError, match="puzzle: expected another, got this one"):
        Journal(path, {"puzzle": "another"}, resume=True)
    with pytest.raises(InputError, match="version: expected 2, got None"):
        Journal(path, {**IDENTITY, "version": "2"}, resume=True)
    with pytest.raises(InputError, match="got nothing there"):
        Journal(tmp_path / "nowhere", IDENTITY, resume=True)
    with pytest.raises(InputError, match="another file"):
        Journal(tmp_path, IDENTITY, resume=True)
    for at in range(0, len(sound), 7):
        changed = bytearray(sound)
        changed[at] ^= 4
        path.write_bytes(changed)
        try:
            assert digest(read_checkpoint(path, IDENTITY)) == digest(journal.levels)
        except InputError as error:
            assert "\n" not in str(error)
    for cut in (0, 5, len(sound) // 2, len(sound) - 1):
        path.write_bytes(sound[:cut])
        with pytest.raises(InputError, match="damaged"):
            Journal(path, IDENTITY, resume=True)
    path.write_bytes(sound)
    with pytest.raises(InputError, match="of this search's shapes"):
        Journal(path, IDENTITY, resume=True).call(lambda: np.arange(2), np.arange(2), never)


def hard() -> Puzzle:
    """Without a pairing signal, and with predictions that no order follows: every rung is gone through."""
    puzzle, _ = random_puzzle(np.random.default_rng(5), L=6, coupling=0, rows=400)
    return dataclasses.replace(puzzle, pred=np.random.default_rng(0).permutation(puzzle.pred))


@pytest.mark.parametrize(("method", "step"), [pytest.param("auto", 17, marks=pytest.mark.slow), ("paper", 3)])
def test_a_search_stopped_again_and_again_ends_where_it_would_have(tmp_path: Path, monkeypatch, method: str, step: int):
    monkeypatch.setattr(ladder, "ROUNDS", (60, 40))
    monkeypatch.setattr(order_rungs, "PAIRED_EVERY", 20)
    monkeypatch.setattr(strategies, "ATTEMPTS", 1)
    monkeypatch.setattr(stages, "MOVES_PER_CALL", 4)
    puzzle = hard()
    options = Options(method=method)  # pyright: ignore[reportArgumentType]
    expected = dropjax.solve(puzzle, options)
    whose, path = identity(puzzle, options), tmp_path / "kept"
    solution, resumed = None, 0
    while solution is None or solution.stop_reason == "interrupted":
        asked = iter(range(step, -1, -1))
        journal = Journal(path, whose, resume=solution is not None)
        asking = lambda asked=asked: next(asked, 0) == 0  # noqa: E731
        solution = dropjax.solve(puzzle, options, interrupted=asking, journal=journal)
        step += 2  # so that it ends, also where what lies between two questions was cut short
        resumed += 1
    assert resumed > 1
    assert solution.permutation == expected.permutation
    assert [stage.mse for stage in solution.stages] == [stage.mse for stage in expected.stages]
    assert solution.stop_reason == expected.stop_reason
