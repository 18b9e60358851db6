"""Extreme numbers: stacks that overflow, blocks without effect, and duplicates."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from builders import random_puzzle

import dropjax
from dropjax.core.puzzle import Puzzle
from dropjax.core.solution import Outcome
from dropjax.core.stack import forward
from dropjax.moves.arrangements import adjacent_swaps
from dropjax.moves.exact import score_moves
from dropjax.ordering.bubble import bubble_repair
from dropjax.ordering.guided import guided_repair


def planted(seed=0, **changes):
    return random_puzzle(np.random.default_rng(seed), **{"L": 5, "rows": 300, **changes})


def with_predictions(puzzle: Puzzle, truth: tuple[int, ...]) -> Puzzle:
    """The puzzle with the predictions of the stack in the order `truth`."""
    stack = puzzle.stack().arranged(puzzle.arrangement(truth))
    return dataclasses.replace(puzzle, pred=np.asarray(forward(stack, puzzle.x)))


def plain(solution: dropjax.Solution) -> str:
    """The result file's text, which has to be JSON without NaN."""
    return json.dumps(solution.to_json(), allow_nan=False)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["auto", "paper"])
def test_an_order_that_overflows_never_wins(method):
    puzzle, truth = planted(1)
    # The last block's output is beyond float32 as soon as any block runs behind it.
    w_out = puzzle.w_out.copy()
    last = puzzle.arrangement(truth)[-1]
    w_out[last[1]] *= 1e38 / np.abs(w_out[last[1]]).max()
    wild = dataclasses.replace(puzzle, w_out=w_out)
    solution = dropjax.solve(wild, method=method, time_limit=5)
    assert not solution.solved
    assert sorted(solution.permutation) == list(range(11))
    assert min(solution.seconds.values()) >= 0
    assert solution.mse == np.inf
    assert json.loads(plain(solution))["mse"] is None


def test_scores_that_are_not_numbers_rank_last():
    puzzle, truth = planted(2)
    stack, right = puzzle.stack(), puzzle.arrangement(truth)
    wrong = right[[1, 0, 2, 3, 4]]
    x = np.full_like(puzzle.x, np.nan)
    assert not np.isfinite(score_moves(stack, right, adjacent_swaps(5), x, puzzle.pred)).any()
    guided = guided_repair(stack, wrong, jax.device_put(x), puzzle.pred, tolerance=1e-9)
    np.testing.assert_array_equal(guided.arrangement, wrong)
    assert int(guided.swaps) == 0
    bubbled = bubble_repair(stack, wrong, jax.device_put(x), puzzle.pred)
    np.testing.assert_array_equal(bubbled.arrangement, wrong)


@pytest.mark.slow
def test_a_table_of_constants_says_only_what_it_can():
    puzzle, truth = planted(3)
    constant = dataclasses.replace(puzzle, x=np.repeat(puzzle.x[:1], 300, axis=0))
    solution = dropjax.solve(with_predictions(constant, truth))
    # One row, three hundred times: whatever fits it is an answer, and what else fits is told.
    assert solution.outcome in (Outcome.EXACT, Outcome.EXACT_UP_TO_TIES, Outcome.NOT_SOLVED)
    assert "NaN" not in plain(solution)
    assert sorted(solution.permutation) == list(range(11))


def test_duplicated_rows_change_nothing():
    puzzle, truth = planted(4, rows=150)
    twice = dataclasses.replace(puzzle, x=np.repeat(puzzle.x, 2, axis=0), pred=np.repeat(puzzle.pred, 2, axis=0))
    solution = dropjax.solve(twice)
    assert solution.permutation == truth
    assert solution.outcome is Outcome.EXACT


def test_equal_blocks_are_interchangeable():
    puzzle, truth = planted(5)
    arrays = {name: getattr(puzzle, name).copy() for name in ("w_in", "b_in", "w_out", "b_out")}
    for name, column in (("w_in", 0), ("b_in", 0), ("w_out", 1), ("b_out", 1)):
        two, four = puzzle.arrangement(truth)[[1, 3], column]
        arrays[name][four] = arrays[name][two]
    solution = dropjax.solve(with_predictions(dataclasses.replace(puzzle, **arrays), truth))
    assert solution.outcome is Outcome.EXACT_UP_TO_TIES
    assert sorted((truth[2], truth[6])) in [list(group) for group in solution.ties]
    assert sorted((truth[3], truth[7])) in [list(group) for group in solution.ties]
    found = {truth[6]: truth[2], truth[7]: truth[3]}
    same = lambda permutation: [found.get(number, number) for number in permutation]  # noqa: E731
    assert same(solution.permutation) == same(truth)


def test_a_block_that_does_nothing_can_stand_anywhere():
    puzzle, truth = planted(6)
    w_out, b_out = puzzle.w_out.copy(), puzzle.b_out.copy()
    idle = puzzle.arrangement(truth)[2]
    w_out[idle[1]] = b_out[idle[1]] = 0
    solution = dropjax.solve(with_predictions(dataclasses.replace(puzzle, w_out=w_out, b_out=b_out), truth))
    assert solution.outcome is Outcome.EXACT_UP_TO_TIES
    rest = lambda permutation: [n for n in permutation if n not in (truth[4], truth[5])]  # noqa: E731
    assert rest(solution.permutation) == rest(truth)


def test_a_block_of_huge_norm_is_put_in_its_place():
    puzzle, truth = planted(7)
    w_in, w_out = puzzle.w_in.copy(), puzzle.w_out.copy()
    huge = puzzle.arrangement(truth)[2]
    w_in[huge[0]] *= 300
    w_out[huge[1]] *= 30
    solution = dropjax.solve(with_predictions(dataclasses.replace(puzzle, w_in=w_in, w_out=w_out), truth))
    assert solution.permutation == truth
    assert solution.outcome is Outcome.EXACT
