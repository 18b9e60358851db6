"""What holds of any small random stack, dropped: it comes back, or the answer says that it did not."""

import math
from itertools import permutations

import numpy as np
import pytest
from builders import random_puzzle, same
from hypothesis import given, settings
from hypothesis import strategies as st

import dropjax
from dropjax.core.stack import replay
from dropjax.io.arguments import read_permutation
from dropjax.io.folders import write_folder
from dropjax.io.results import write_result

L, D, H, ROWS = 3, 6, 8, 60
"""One shape, so that programs are compiled once."""

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=12, deadline=None, derandomize=True)


def dropped(seed: int, coupling: float, gaps: bool = False) -> tuple[dropjax.Puzzle, tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    numbers = rng.choice(10_000, 2 * L + 1, replace=False).tolist() if gaps else None
    return random_puzzle(rng, L, D, H, rows=ROWS, coupling=coupling, numbers=numbers)


def relative_error(puzzle: dropjax.Puzzle, permutation) -> float:
    """RMS(f − pred) / RMS(pred) of an answer, in float64, from the puzzle's pieces alone."""
    arrangement = puzzle.arrangement(permutation)
    halves = puzzle.w_in, puzzle.b_in, puzzle.w_out, puzzle.b_out, puzzle.w_last, puzzle.b_last
    outputs = replay(dropjax.Stack(*halves).arranged(arrangement), puzzle.x)  # pyright: ignore[reportArgumentType]
    return float(np.sqrt(np.mean((outputs - puzzle.pred) ** 2) / np.mean(np.square(puzzle.pred, dtype=np.float64))))


@few
@given(seeds, st.sampled_from([0.0, 0.5, 1.0]), st.booleans())
def test_a_dropped_stack_is_solved_and_round_trips(tmp_path_factory, seed: int, coupling: float, gaps: bool):
    """With three blocks the exact scans reach every arrangement, so the weights need show neither pairs nor depth."""
    puzzle, permutation = dropped(seed, coupling, gaps)
    path = tmp_path_factory.mktemp("puzzle")
    write_folder(puzzle, path / "folder")
    read = dropjax.load(path / "folder")
    assert same(read, puzzle)
    solution = dropjax.solve(read)
    assert solution.solved
    assert solution.permutation == permutation or solution.ties
    write_result(path / "result", solution)
    assert read_permutation(path / "result" / "permutation.txt") == solution.permutation
    again = dropjax.solve(read, initial_order=solution.permutation, method="paper", rank="none")
    assert (again.permutation, again.outcome) == (solution.permutation, solution.outcome)


@pytest.mark.slow
@few
@given(seeds, st.permutations(range(L)), st.permutations(range(L)))
def test_the_verdict_is_that_of_a_float64_replay(seed: int, ins: list[int], outs: list[int]):
    """Whatever the start, and whether or not the search is stopped at once, the solution describes its answer correctly."""
    puzzle, permutation = dropped(seed, coupling=0.0)
    order = puzzle.permutation(np.stack([ins, outs], axis=1))
    solution = dropjax.solve(puzzle, initial_order=order, method="paper", rank="none")
    assert sorted(solution.permutation) == sorted(permutation)
    error = relative_error(puzzle, solution.permutation)
    assert solution.solved == (error < 1e-5)
    rms = np.sqrt(np.mean(np.square(puzzle.pred, dtype=np.float64)))
    assert math.isclose(math.sqrt(solution.mse), error * rms, rel_tol=1e-3, abs_tol=1e-6)
    assert solution.mse <= (relative_error(puzzle, order) * rms) ** 2 * (1 + 1e-3) + 1e-12


def test_another_stacks_pred_is_not_solved_by_any_order():
    puzzle, _ = dropped(0, coupling=1.0)
    other = dropjax.Puzzle.from_arrays(puzzle.pieces, puzzle.x, puzzle.pred[::-1])
    solution = dropjax.solve(other)
    assert not solution.solved
    arrangements = (np.stack([a, b], axis=1) for a in permutations(range(L)) for b in permutations(range(L)))
    best = min(relative_error(other, other.permutation(arrangement)) for arrangement in arrangements)
    assert best > 1e-5
