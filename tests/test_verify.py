import builders
import numpy as np
import pytest
import reference

from dropjax.core.solution import Outcome
from dropjax.core.stack import identity_arrangement
from dropjax.search import verify


def made(seed=0, shape=(5, 6, 4, 2), rows=30):
    rng = np.random.default_rng(seed)
    stack = reference.random_stack(rng, *shape)
    x = rng.normal(size=(rows, shape[1])).astype(np.float32)
    arrangement = np.asarray(identity_arrangement(shape[0]))
    return stack, arrangement, x, reference.outputs(stack, arrangement, x).astype(np.float32)


@pytest.mark.parametrize("memory", [1 << 30, 1000])
def test_a_pass_measures_what_numpy_measures(memory):
    stack, arrangement, x, right = made()
    pred = right + np.random.default_rng(1).normal(size=right.shape).astype(np.float32)
    passed = verify.full_pass(stack, arrangement, x, pred, memory)
    error = reference.outputs(stack, arrangement, x) - pred
    np.testing.assert_allclose(passed.mse, np.mean(error**2), rtol=1e-5)
    np.testing.assert_allclose(passed.max_abs_error, np.abs(error).max(), rtol=1e-5)


@pytest.mark.parametrize("decimals", [0, 2, 4])
def test_decimals_of_rounded_predictions_are_found(decimals):
    values = np.random.default_rng(0).normal(size=(500, 1))
    assert verify.rounded_to(np.round(values, decimals).astype(np.float32)) == decimals
    assert verify.rounded_to(values.astype(np.float32)) is None


def test_outcomes():
    pred = np.full((10, 1), 2.0, np.float32)
    quiet, rounded = verify.Noise(1e-7, None), verify.Noise(1e-7, 1e-3)
    assert verify.judge((2e-5) ** 2 * 0.99, pred, quiet, ties=False) is Outcome.EXACT
    assert verify.judge((2e-5) ** 2 * 0.99, pred, quiet, ties=True) is Outcome.EXACT_UP_TO_TIES
    assert verify.judge((2e-5) ** 2 * 1.02, pred, quiet, ties=False) is Outcome.NOT_SOLVED
    assert verify.judge(1.9e-3**2, pred, rounded, ties=False) is Outcome.NOISE_FLOOR
    assert verify.judge(2.1e-3**2, pred, rounded, ties=False) is Outcome.NOT_SOLVED
    assert verify.judge(float("nan"), pred, rounded, ties=False) is Outcome.NOT_SOLVED


def test_noise_of_pred_is_what_rounding_leaves_or_what_was_declared():
    values = np.random.default_rng(0).normal(size=(4000, 1))
    rounded = np.round(values, 3).astype(np.float32)
    assert verify.noise_of_pred(rounded) == pytest.approx(np.std(values - rounded), rel=0.05)
    assert verify.noise_of_pred(values.astype(np.float32)) is None
    assert verify.noise_of_pred(values.astype(np.float32), decimals=3) == pytest.approx(1e-3 / np.sqrt(12))
    assert verify.noise_of_pred(rounded, sigma=0.5) == 0.5


def test_float32_noise_is_small_and_measured():
    stack, arrangement, x, pred = made()
    outputs = verify.full_pass(stack, arrangement, x, pred).outputs
    assert 0 < verify.float32_noise(stack, arrangement, x, outputs) < 1e-5
    assert verify.float32_noise(stack, arrangement, x, np.asarray(outputs) + 1) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize(("screen", "padded"), [(True, 64), (True, 1), (False, 64)], ids=["screened", "twice", "all"])
def test_blocks_that_do_nothing_to_each_other_are_ties(monkeypatch, screen, padded):
    monkeypatch.setattr(verify, "PADDED", padded)
    stack, arrangement, x, _ = made(2, (5, 6, 4, 1))
    # Two halves whose block adds only a constant to one feature that nothing but the last layer reads.
    w_in, w_out, b_out = np.array(stack.w_in), np.array(stack.w_out), np.array(stack.b_out)
    w_in[:, :, 0] = 0
    for block in (1, 2):
        w_out[block], b_out[block] = 0, [block, 0, 0, 0, 0, 0]
    stack = type(stack)(w_in, stack.b_in, w_out, b_out, stack.w_last, stack.b_last)
    pred = reference.outputs(stack, arrangement, x).astype(np.float32)
    passed = verify.full_pass(stack, arrangement, x, pred)
    noise = verify.float32_noise(stack, arrangement, x, passed.outputs)
    near = verify.near_moves(stack, arrangement, x, pred, np.asarray(x), passed, noise, screen=screen)
    found = {tuple(map(int, move)) for move in near.ties}
    # The constants commute with every block: none reads the feature they add to.
    assert {(0, 0, 1), (0, 1, 2), (0, 2, 3), (2, 1, 2)} <= found
    assert near.better is None
    assert not any(i not in (1, 2) and j not in (1, 2) for _, i, j in found)


@pytest.mark.parametrize(("screen", "padded"), [(True, 64), (True, 1), (False, 64)], ids=["screened", "twice", "all"])
def test_a_stack_without_ties_has_none(monkeypatch, screen, padded):
    monkeypatch.setattr(verify, "PADDED", padded)
    stack, arrangement, x, pred = made(3)
    passed = verify.full_pass(stack, arrangement, x, pred)
    noise = verify.float32_noise(stack, arrangement, x, passed.outputs)
    near = verify.near_moves(stack, arrangement, x, pred, np.asarray(x), passed, noise, screen=screen)
    assert len(near.ties) == 0
    assert near.better is None


def test_changes_to_first_order_are_the_same_in_little_memory():
    stack, arrangement, x, _ = made(5)
    whole = verify.first_order_changes(stack, arrangement, x)
    assert whole.shape == (len(stack.w_in) - 1 + len(stack.w_in) * (len(stack.w_in) - 1) // 2,)
    np.testing.assert_allclose(verify.first_order_changes(stack, arrangement, x, memory=1), whole, rtol=1e-4)


def test_equal_pieces_are_interchangeable():
    puzzle, _ = builders.random_puzzle(np.random.default_rng(0))
    w_in, b_in = puzzle.w_in.copy(), puzzle.b_in.copy()
    w_in[2], b_in[2] = w_in[0], b_in[0]
    twins = type(puzzle)(**{**vars(puzzle), "w_in": w_in, "b_in": b_in})
    expected = [int(puzzle.in_numbers[0]), int(puzzle.in_numbers[2])]
    assert verify.duplicate_pieces(puzzle) == []
    assert verify.duplicate_pieces(twins) == [expected]


def test_a_tie_names_the_pieces_it_exchanges():
    puzzle, permutation = builders.random_puzzle(np.random.default_rng(0), L=3)
    arrangement = puzzle.arrangement(permutation)
    ties = np.array([[0, 0, 1], [2, 0, 2]])
    groups = verify.tie_groups(puzzle, arrangement, ties)
    assert [set(group) for group in groups] == [set(permutation[:4]), {permutation[1], permutation[5]}]


def test_float64_replay_of_a_wrong_answer_is_far_off():
    stack, arrangement, x, pred = made(4)
    assert verify.float64_errors(stack, arrangement, x, pred)["mse"] < 1e-10
    assert verify.float64_errors(stack, arrangement[::-1].copy(), x, pred)["mse"] > 1e-4
