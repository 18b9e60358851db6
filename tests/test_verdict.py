"""Which answers are called solved: rounding, noise, offsets, twins, another activation, rounded inputs."""

import dataclasses
import json

import builders
import numpy as np
import pytest
import reference

import dropjax
from dropjax.core.protocols import StopReason
from dropjax.core.puzzle import Puzzle
from dropjax.core.solution import Outcome
from dropjax.core.stack import ACTIVATIONS, replay
from dropjax.search import causes, ladder, rivals, solving, stages, strategies, twins, verdict, verify, yardstick
from dropjax.search.answer import Answer
from dropjax.search.problem import Problem
from dropjax.search.yardstick import Yardstick

SHAPE = {"L": 6, "d": 12, "h": 20, "rows": 400}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Searches that cannot succeed give up soon."""
    monkeypatch.setattr(ladder, "ROUNDS", (40, 20))
    monkeypatch.setattr(strategies, "ATTEMPTS", 1)
    monkeypatch.setattr(strategies, "RANDOM_STARTS", 1)


def planted(seed=0, **changes):
    return builders.random_puzzle(np.random.default_rng(seed), **{**SHAPE, **changes})


def with_pred(puzzle: Puzzle, permutation, activation="relu", x=None, offset=0.0, scale=1.0) -> Puzzle:
    """The puzzle with the predictions that NumPy makes in that order, from x, the last layer scaled and moved."""
    puzzle = dataclasses.replace(
        puzzle,
        w_last=(scale * puzzle.w_last).astype(np.float32),
        b_last=(scale * puzzle.b_last + offset).astype(np.float32),
    )
    stack = verify.arranged_on_host(puzzle.stack(activation), puzzle.arrangement(permutation))
    return dataclasses.replace(puzzle, pred=replay(stack, puzzle.x if x is None else x).astype(np.float32))


# Rounding and noise


@pytest.mark.slow
def test_labels_that_the_stack_knows_nothing_of_are_not_solved():
    puzzle, _ = planted()
    puzzle = dataclasses.replace(puzzle, w_last=puzzle.w_last / 100, b_last=np.float32([0.5]))
    labels = np.random.default_rng(1).integers(0, 2, puzzle.pred.shape).astype(np.float32)
    solution = dropjax.solve(dataclasses.replace(puzzle, pred=labels), time_limit=20)
    assert not solution.solved
    assert solution.mse_of_variance is not None and solution.mse_of_variance > 0.9


@pytest.mark.parametrize("decimals", [pytest.param(1, marks=pytest.mark.slow), 2, 3, 5])
def test_rounded_predictions_give_the_right_answer_where_they_tell_it(decimals):
    puzzle, permutation = planted(5, rows=2000)
    rounded = dataclasses.replace(puzzle, pred=np.round(puzzle.pred, decimals))
    solution = dropjax.solve(rounded)
    assert solution.permutation == permutation
    # To five decimals it is rounded more finely than an exact answer has to be.
    exact = decimals == 5
    assert solution.outcome is (Outcome.EXACT if exact else Outcome.NOISE_FLOOR)
    assert solution.notes == (() if exact else (f"measured by pred's rounding to {decimals} decimals",))


@pytest.mark.parametrize("seed", [0, 1])
def test_predictions_rounded_past_their_spread_are_never_solved_wrongly(seed):
    puzzle, permutation = planted(seed)
    coarse = dataclasses.replace(puzzle, pred=np.round(puzzle.pred))
    solution = dropjax.solve(coarse, time_limit=20)
    assert not solution.solved or solution.permutation == permutation


def nearly_commuting(seed=0, rows=400):
    """A puzzle two neighbours of which can change places for next to nothing."""
    puzzle, permutation = planted(seed, rows=rows)
    w_out, b_out = puzzle.w_out.copy(), puzzle.b_out.copy()
    third = puzzle.arrangement(permutation)[2]
    w_out[third[1]] *= 1e-3
    b_out[third[1]] *= 1e-3
    return with_pred(dataclasses.replace(puzzle, w_out=w_out, b_out=b_out), permutation), permutation


def test_what_noise_does_not_tell_apart_is_not_solved_and_the_blocks_are_named():
    puzzle, permutation = nearly_commuting()
    assert dropjax.solve(puzzle).permutation == permutation
    sigma = 0.05 * float(puzzle.pred.std())
    noise = np.random.default_rng(0).normal(0, sigma, puzzle.pred.shape)
    noisy = dataclasses.replace(puzzle, pred=(puzzle.pred + noise).astype(np.float32))
    solution = dropjax.solve(noisy, pred_noise=sigma, initial_order=permutation)
    assert solution.outcome is Outcome.NOT_SOLVED
    assert solution.stop_reason is StopReason.UNTOLD
    assert (
        solution.reason is not None and "other arrangements fit pred as well, within the noise declared" in solution.reason
    )
    assert permutation[4] in solution.unsettled
    assert solution.ties == ()
    json.dumps(solution.to_json(), allow_nan=False)


def answer_of(puzzle: Puzzle, permutation, rod: Yardstick) -> Answer:
    problem, arrangement = Problem.of(puzzle.stack(), puzzle.x, puzzle.pred), puzzle.arrangement(permutation)
    passed = verify.full_pass(problem.stack, arrangement, problem.x, problem.pred)
    noise = verify.float32_noise(problem.stack, arrangement, puzzle.x, np.asarray(passed.outputs))
    return Answer(problem, rod, arrangement, passed, noise)


def test_moves_are_compared_as_numpy_compares_them():
    puzzle, permutation = planted(3, L=4, rows=700)
    puzzle = dataclasses.replace(puzzle, pred=np.round(puzzle.pred, 1))
    answer = answer_of(puzzle, permutation, Yardstick.of(puzzle.pred))
    moves = rivals.all_moves(4)
    assert len(moves) == 4 * 6
    few = 300
    found, own = rivals.compared(answer, moves, few)
    outputs = reference.outputs(puzzle.stack(), answer.arrangement, puzzle.x)[:few]
    for k, move in enumerate(moves):
        other = reference.outputs(puzzle.stack(), reference.after(answer.arrangement, move), puzzle.x)[:few]
        error = other - puzzle.pred[:few]
        assert found.mse[k] == pytest.approx(np.mean(error**2), rel=1e-4)
        assert found.change[k] == pytest.approx(np.mean((other - outputs) ** 2), rel=1e-3, abs=1e-9)
        assert found.beyond[k] == pytest.approx(np.mean(np.maximum(np.abs(error) - 0.05, 0)), rel=1e-2, abs=1e-4)
    assert own == pytest.approx(np.mean((outputs - puzzle.pred[:few]) ** 2), rel=1e-4)
    predicted = np.asarray(rivals.changes_by_moves(puzzle.stack(), answer.arrangement, puzzle.x[:64]))
    exactly, _ = rivals.compared(answer, moves, 64)
    assert np.corrcoef(predicted, np.sqrt(exactly.change))[0, 1] > 0.8


def test_an_order_that_fits_better_is_moved_to():
    puzzle, permutation = planted(3, rows=700)
    rounded = dataclasses.replace(puzzle, pred=np.round(puzzle.pred, 2))
    blocks = np.reshape(permutation[:-1], (-1, 2))[[1, 0, 2, 3, 4, 5]]
    wrong = answer_of(rounded, (*map(int, blocks.ravel()), permutation[-1]), Yardstick.of(rounded.pred))
    right = answer_of(rounded, permutation, Yardstick.of(rounded.pred))
    assert not wrong.fits
    assert right.fits
    # All moves are near enough to be looked at.
    wrong = wrong._replace(yardstick=wrong.yardstick._replace(noise=np.array([10.0])))
    np.testing.assert_array_equal(rivals.towards_fitting(wrong), right.arrangement)
    assert rivals.towards_fitting(right) is None
    assert rivals.near_rivals(right).orders == []
    noisy = wrong._replace(yardstick=Yardstick.of(rounded.pred, sigma=10.0))
    np.testing.assert_array_equal(rivals.near_rivals(noisy).better, right.arrangement)


def test_orders_of_the_search_that_fit_as_well_are_rivals():
    puzzle, permutation = nearly_commuting()
    answer = answer_of(puzzle, permutation, Yardstick.of(puzzle.pred, sigma=0.05 * float(puzzle.pred.std())))
    noisy = answer.passed._replace(by_output=np.array([(0.05 * puzzle.pred.std()) ** 2]))
    near, far = answer.arrangement[[0, 1, 3, 2, 4, 5]], answer.arrangement[::-1]
    passes = {
        order.astype(np.int32).tobytes(): verify.full_pass(puzzle.stack(), order, puzzle.x, puzzle.pred)
        for order in (answer.arrangement, near, far)
    }
    found = rivals.searched_rivals(answer._replace(passed=noisy), passes)
    assert len(found) == 1
    np.testing.assert_array_equal(found[0], near)


def test_an_exact_answer_gives_way_to_a_neighbour_that_is_nearer(monkeypatch):
    # A wrong order counts as exact, as swaps of a deep stack's neighbours do.
    monkeypatch.setattr(yardstick, "EXACT", 1.0)
    monkeypatch.setattr(stages, "straightened", lambda _, arrangement: arrangement)
    monkeypatch.setattr(solving, "finished", lambda _, arrangement: arrangement)
    monkeypatch.setattr(verdict, "near_rivals", lambda *_: rivals.Rivals())
    puzzle, permutation = planted(3)
    blocks = np.reshape(permutation[:-1], (-1, 2))[[1, 0, 2, 3, 4, 5]]
    solution = dropjax.solve(puzzle, initial_order=[*map(int, blocks.ravel()), permutation[-1]], verify="full")
    assert solution.permutation == permutation
    assert solution.outcome is Outcome.EXACT


# Offsets and scales


@pytest.mark.parametrize(("offset", "scale", "seed"), [(300.0, 0.003, 0), (1000.0, 0.006, 2), (0.0, 1e-6, 1)])
def test_a_small_spread_on_a_large_offset_is_right_or_not_solved(offset, scale, seed):
    puzzle, permutation = planted(seed, rows=1500, coupling=0.5)
    solution = dropjax.solve(with_pred(puzzle, permutation, offset=offset, scale=scale))
    assert solution.permutation == permutation
    assert solution.outcome is Outcome.EXACT
    assert ("float32's own rounding" in "".join(solution.notes)) == (offset > 0)
    np.testing.assert_array_equal(solution.stack.b_last, (scale * puzzle.b_last + offset).astype(np.float32))


@pytest.mark.slow
def test_outputs_of_different_size_are_judged_each_by_its_own():
    puzzle, permutation = planted(4, o=2)
    scales = np.array([[1.0], [1e-4]], np.float32)
    puzzle = with_pred(
        dataclasses.replace(puzzle, w_last=puzzle.w_last * scales, b_last=puzzle.b_last * scales[:, 0]), permutation
    )
    solution = dropjax.solve(puzzle)
    assert solution.permutation == permutation
    assert solution.outcome is Outcome.EXACT
    assert solution.mse < 1e-10
    spoilt = puzzle.pred.copy()
    spoilt[:, 1] += 1e-2 * puzzle.pred[:, 1].std() * np.random.default_rng(0).normal(size=len(spoilt))
    # Over both outputs together the error is 1e-6 of the spread, over the small one a hundredth of its own.
    assert dropjax.solve(dataclasses.replace(puzzle, pred=spoilt), time_limit=10).outcome is Outcome.NOT_SOLVED


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 400])
def test_a_pred_without_spread_is_not_solved(rows):
    puzzle, _ = planted()
    constant = dataclasses.replace(puzzle, x=puzzle.x[:rows], pred=np.full((rows, 1), 0.3, np.float32))
    solution = dropjax.solve(constant, time_limit=10)
    assert solution.outcome is Outcome.NOT_SOLVED
    assert solution.mse_of_variance is None
    assert solution.reason == "pred is the same in every row, which tells no order from another"


def test_a_table_of_two_rows_is_not_solved_though_it_fits():
    puzzle, permutation = planted(2, L=9)
    few = dataclasses.replace(puzzle, x=puzzle.x[:2], pred=puzzle.pred[:2])
    solution = dropjax.solve(few, initial_order=permutation)
    assert solution.mse < 1e-10
    assert solution.outcome is Outcome.NOT_SOLVED
    assert solution.reason is not None and "too few digits" in solution.reason


# Twins


@pytest.mark.parametrize(
    ("activation", "kind"),
    [("relu", "permuted"), ("relu", "rescaled"), ("tanh", "sign"), pytest.param("gelu", "permuted", marks=pytest.mark.slow)],
)
def test_blocks_that_are_the_same_function_are_a_tie(activation, kind):
    puzzle, permutation = planted(1, activation=activation)
    rng = np.random.default_rng(2)
    order, scale = rng.permutation(20), np.ones(20, np.float32)
    if kind == "rescaled":
        scale = np.exp2(rng.integers(-3, 4, 20)).astype(np.float32) * 3
    if kind == "sign":
        scale = rng.choice([-1, 1], 20).astype(np.float32)
    arrays = {name: getattr(puzzle, name).copy() for name in ("w_in", "b_in", "w_out", "b_out")}
    (in_0, out_0), (in_4, out_4) = puzzle.arrangement(permutation)[[0, 4]]
    arrays["w_in"][in_4] = (arrays["w_in"][in_0] * scale[:, None])[order]
    arrays["b_in"][in_4] = (arrays["b_in"][in_0] * scale)[order]
    arrays["w_out"][out_4] = (arrays["w_out"][out_0] / scale)[:, order]
    arrays["b_out"][out_4] = arrays["b_out"][out_0]
    puzzle = with_pred(dataclasses.replace(puzzle, **arrays), permutation, activation)
    solution = dropjax.solve(puzzle, activation=activation)
    assert solution.outcome is Outcome.EXACT_UP_TO_TIES
    pieces = {permutation[k] for k in (0, 1, 8, 9)}
    assert [set(group) for group in solution.ties] == [pieces]


def test_input_halves_that_do_the_same_are_a_tie_and_others_are_none():
    puzzle, permutation = planted(1)
    arrangement = puzzle.arrangement(permutation)
    arrays = {name: getattr(puzzle, name).copy() for name in ("w_in", "b_in", "w_out", "b_out")}
    # Units that no output half reads tell the two input halves apart, bit for bit and not otherwise.
    for name in ("w_in", "b_in"):
        arrays[name][arrangement[3, 0]] = arrays[name][arrangement[1, 0]]
        arrays[name][arrangement[3, 0], 5] *= 2
    for block in (1, 3):
        arrays["w_out"][arrangement[block, 1], :, 5] = 0
    puzzle = with_pred(dataclasses.replace(puzzle, **arrays), permutation)
    answer = answer_of(puzzle, permutation, Yardstick.of(puzzle.pred))
    assert [set(group) for group in twins.twin_pieces(puzzle, answer)] == [{permutation[2], permutation[6]}]
    plain, order = planted(1)
    assert twins.twin_pieces(plain, answer_of(plain, order, Yardstick.of(plain.pred))) == []


# Causes


@pytest.mark.parametrize(
    ("asked", "trained"),
    [("gelu", "gelu_tanh"), ("gelu", "quick_gelu"), ("relu", "leaky_relu(0.2)"), ("relu", "leaky_relu")],
)
def test_another_activation_is_found_and_said(asked, trained):
    puzzle, permutation = planted(3)
    solution = dropjax.solve(with_pred(puzzle, permutation, trained), activation=asked)
    assert solution.permutation == permutation
    assert solution.outcome is Outcome.EXACT
    assert ACTIVATIONS[solution.stack.activation].twin(np.array(-1.0)) == pytest.approx(
        ACTIVATIONS[trained].twin(np.array(-1.0))
    )
    assert f"activation: {asked} leaves" in solution.notes[0]
    assert solution.stack.activation in solution.notes[0]


@pytest.mark.parametrize("trained", [*ACTIVATIONS, "leaky_relu(0.3)", "leaky_relu(-0.05)"])
def test_every_activation_is_told_from_the_others(trained):
    puzzle, permutation = planted(3)
    wide = dataclasses.replace(puzzle, x=4 * puzzle.x)  # relu6 is relu up to 6
    puzzle = with_pred(wide, permutation, trained)
    asked = "silu" if trained != "silu" else "relu"
    stack = verify.arranged_on_host(puzzle.stack(asked), puzzle.arrangement(permutation))
    found = causes.other_activation(stack, puzzle.x, puzzle.pred)
    z = np.linspace(-9, 9, 101)
    assert found is not None
    np.testing.assert_allclose(ACTIVATIONS[found].twin(z), ACTIVATIONS[trained].twin(z), atol=1e-5)
    right = verify.arranged_on_host(puzzle.stack(trained), puzzle.arrangement(permutation))
    assert causes.other_activation(right, puzzle.x, puzzle.pred) is None


def test_x_that_was_rounded_after_pred_was_computed_is_noticed_and_never_exact():
    puzzle, permutation = planted(3, rows=1500)
    rounded = np.round(puzzle.x, 2)
    before = dataclasses.replace(with_pred(puzzle, permutation), x=rounded)
    solution = dropjax.solve(before)
    assert solution.permutation == permutation
    assert solution.outcome is Outcome.NOISE_FLOOR
    assert "x's rounding to 2 decimals" in solution.notes[0]
    behind = with_pred(dataclasses.replace(puzzle, x=rounded), permutation)
    solution = dropjax.solve(behind)
    assert solution.outcome is Outcome.EXACT
    assert solution.notes == ()


def test_errors_are_explained_by_noise_of_their_own_size_alone():
    noise = np.array([1.0, 2.0])
    assert causes.is_explained(np.array([1.0, 4.0]), noise)
    assert not causes.is_explained(np.array([1.0, 0.04]), noise)
    assert not causes.is_explained(np.array([2.0, 4.0]), noise)
