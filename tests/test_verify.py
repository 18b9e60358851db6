from dataclasses import replace

import builders
import numpy as np
import pytest
import reference

from dropjax.core.stack import identity_arrangement
from dropjax.runtime.device import CORE_ROWS
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


@pytest.mark.parametrize(("cores", "rows"), [(1, 130), (2, 2 * 640 + 1), (3, 3 * 640 + 1), (4, 4 * 640 + 3)])
def test_a_pass_in_parts_measures_every_row_once(monkeypatch, cores, rows):
    monkeypatch.setattr(verify, "workers", lambda: cores)
    stack, arrangement, x, pred = made(rows=rows)
    x, pred = x.copy(), pred.copy()
    x[-1] *= 3  # so that each part, and the last row, is missed
    pred[: rows // 2] += 1
    assert verify.pass_parts(rows) == cores
    passed = verify.full_pass(stack, arrangement, x, pred)
    error = reference.outputs(stack, arrangement, x) - pred
    assert passed.outputs.shape == pred.shape
    np.testing.assert_allclose(passed.outputs - pred, error, atol=1e-4)
    np.testing.assert_allclose(passed.by_output, np.mean(error**2, axis=0), rtol=1e-4)
    np.testing.assert_allclose(passed.largest, np.abs(error).max(axis=0), rtol=1e-4)
    assert passed.mse == pytest.approx(np.mean(error**2), rel=1e-4)


def test_a_pass_has_one_part_for_each_core_and_none_of_few_rows(monkeypatch):
    monkeypatch.setattr(verify, "workers", lambda: 3)
    assert [verify.pass_parts(rows) for rows in (1, CORE_ROWS, 2 * CORE_ROWS, 100 * CORE_ROWS)] == [1, 1, 2, 3]


def test_rows_that_fill_up_the_last_part_do_not_count(monkeypatch):
    monkeypatch.setattr(verify, "workers", lambda: 3)
    stack, arrangement, x, _ = made(rows=3 * 640 + 1)
    stack = replace(stack, b_last=stack.b_last + 100)  # the outputs of rows of zeros are far from zero
    pred = np.asarray(verify.full_pass(stack, arrangement, x, np.zeros((len(x), 2), np.float32)).outputs)
    passed = verify.full_pass(stack, arrangement, x, pred)
    assert passed.mse == passed.max_abs_error == 0


def test_an_error_that_is_no_number_is_infinite():
    stack, arrangement, x, pred = made()
    assert verify.full_pass(stack, arrangement, x * np.float32(np.nan), pred).mse == np.inf


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


def test_noise_is_all_that_has_nothing_to_do_with_the_order():
    assert verify.Noise(3e-7, None).floor == pytest.approx(3e-7)
    assert verify.Noise(3e-7, 4e-7).floor == pytest.approx(5e-7)


@pytest.mark.parametrize(("screen", "padded"), [(True, 1), (False, 64)], ids=["screened twice", "all"])
@pytest.mark.parametrize(("times", "tied"), [(3.5, True), (12, False)])
def test_a_tie_changes_no_output_by_more_than_float32_does(times, tied, screen, padded, monkeypatch):
    monkeypatch.setattr(verify, "PADDED", padded)
    stack, arrangement, x, _ = made(3, (5, 6, 4, 1))
    noise = 1e-4
    w_out, b_out = np.array(stack.w_out), np.array(stack.b_out)
    w_out[1], b_out[1] = 0, 1e-3 * b_out[1]
    smaller = replace(stack, w_out=w_out, b_out=b_out)  # a block that adds next to nothing
    swapped = arrangement[[1, 0, 2, 3, 4]]
    change = np.sqrt(np.mean((reference.outputs(smaller, swapped, x) - reference.outputs(smaller, arrangement, x)) ** 2))
    grown = replace(smaller, b_out=np.where(np.arange(5)[:, None] == 1, b_out * times * noise / change, b_out))
    pred = reference.outputs(grown, arrangement, x).astype(np.float32)
    passed = verify.full_pass(grown, arrangement, x, pred)
    near = verify.near_moves(grown, arrangement, x, pred, x, passed, noise, screen=screen)
    assert ((0, 0, 1) in {tuple(map(int, move)) for move in near.ties}) == tied


def test_of_two_neighbours_that_stand_wrong_the_better_order_is_found():
    stack, arrangement, x, pred = made(3)
    wrong = arrangement[[0, 2, 1, 3, 4]]
    passed = verify.full_pass(stack, wrong, x, pred)
    noise = verify.float32_noise(stack, wrong, x, np.asarray(passed.outputs))
    near = verify.near_moves(stack, wrong, x, pred, x, passed, noise, screen=False)
    np.testing.assert_array_equal(near.better, arrangement)


@pytest.mark.parametrize("screen", [True, False], ids=["screened", "all"])
def test_without_any_noise_only_what_changes_nothing_is_a_tie(screen):
    stack, arrangement, x, _ = made(2)
    w_out, b_out = np.array(stack.w_out), np.array(stack.b_out)
    w_out[1:3], b_out[1:3] = 0, 0
    idle = replace(stack, w_out=w_out, b_out=b_out)
    passed = verify.full_pass(idle, arrangement, x, np.zeros((len(x), 2), np.float32))
    near = verify.near_moves(idle, arrangement, x, np.asarray(passed.outputs), x, passed, 0.0, screen=screen)
    found = {tuple(map(int, move)) for move in near.ties}
    assert found == {(0, 0, 1), (0, 1, 2), (0, 2, 3), (2, 1, 2)}


@pytest.mark.parametrize(("share", "better"), [(0.5, False), (1.7, True)])
def test_an_order_is_better_by_more_than_the_noise_or_it_is_not(share, better):
    stack, arrangement, x, right = made(3)
    wrong = arrangement[[0, 2, 1, 3, 4]]
    other = reference.outputs(stack, wrong, x)
    between = np.mean((other - right) ** 2)
    noise = np.sqrt(between) / 6  # the two are no tie
    part = 1 / 2 + share * noise**2 / between / 2
    pred = ((1 - part) * other + part * right).astype(np.float32)
    passed = verify.full_pass(stack, wrong, x, pred)
    near = verify.near_moves(stack, wrong, x, pred, x, passed, float(noise), screen=False)
    assert noise < 0.5 and [0, 1, 2] not in near.ties.tolist()
    assert (near.better is not None) == better


def test_of_a_noisy_pred_the_right_order_has_no_better_one():
    stack, arrangement, x, right = made(3)
    pred = (right + 0.01 * np.random.default_rng(0).normal(size=right.shape)).astype(np.float32)
    passed = verify.full_pass(stack, arrangement, x, pred)
    near = verify.near_moves(stack, arrangement, x, pred, x, passed, 1e-7, screen=False)
    assert near.better is None
    wrong = arrangement[[0, 2, 1, 3, 4]]
    passed = verify.full_pass(stack, wrong, x, pred)
    near = verify.near_moves(stack, wrong, x, pred, x, passed, 1e-7, screen=False)
    np.testing.assert_array_equal(near.better, arrangement)


@pytest.mark.parametrize("stopped", [True, False])
def test_a_verification_in_full_that_is_stopped_looks_at_what_is_near(stopped, monkeypatch):
    scored, score = [], verify.score_moves
    monkeypatch.setattr(verify, "score_moves", lambda *a, **k: scored.append(len(a[2])) or score(*a, **k))
    monkeypatch.setattr(verify, "PADDED", 2)
    stack, arrangement, x, pred = made(3)
    passed = verify.full_pass(stack, arrangement, x, pred)
    near = verify.near_moves(
        stack, arrangement, x, pred, x, passed, 1e-9, screen=False, stopped=lambda: stopped or len(scored) > 20
    )
    assert near.better is None
    assert sum(scored) == (0 if stopped else 2 * (4 + 10))  # each move's change, and its error


def test_changes_to_first_order_are_those_of_small_residuals():
    stack, arrangement, x, _ = made(5)
    small = replace(stack, w_out=np.asarray(stack.w_out) * 1e-2, b_out=np.asarray(stack.b_out) * 1e-2)
    here = reference.outputs(small, arrangement, x)
    moves = [(0, k, k + 1) for k in range(4)] + [(2, i, j) for i in range(5) for j in range(i + 1, 5)]
    expected = [
        np.sqrt(np.mean((reference.outputs(small, reference.after(arrangement, move), x) - here) ** 2)) for move in moves
    ]
    np.testing.assert_allclose(verify.first_order_changes(small, arrangement, x), expected, rtol=0.05)


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


def test_a_group_is_said_once_whoever_finds_it():
    puzzle, permutation = builders.random_puzzle(np.random.default_rng(0), L=3)
    arrangement = puzzle.arrangement(permutation)
    outs = permutation[1], permutation[5]
    both = [*permutation[:4]]
    groups = verify.tie_groups(puzzle, arrangement, np.array([[2, 0, 2]]), [outs[::-1], both, both])
    assert list(groups) == [tuple(sorted(outs)), tuple(both)]


def test_blocks_of_equal_halves_are_said_as_halves_alone():
    puzzle, permutation = builders.random_puzzle(np.random.default_rng(0), L=3)
    (i, j), (k, m) = puzzle.arrangement(permutation)[[0, 2]]
    equal = {name: getattr(puzzle, name).copy() for name in ("w_in", "b_in", "w_out", "b_out")}
    for name, a in equal.items():
        a[k if name.endswith("in") else m] = a[i if name.endswith("in") else j]
    twins = replace(puzzle, **equal)
    groups = verify.tie_groups(twins, puzzle.arrangement(permutation), np.array([[0, 0, 2]]))
    assert sorted(map(sorted, groups)) == sorted(map(sorted, (permutation[0:5:4], permutation[1:6:4])))


def test_float64_replay_of_a_wrong_answer_is_far_off():
    stack, arrangement, x, pred = made(4)
    right, wrong = stack, verify.arranged_on_host(stack, arrangement[::-1])
    of_right, of_wrong = (verify.float64_errors(of, x, pred) or {} for of in (right, wrong))
    assert of_right["mse"] < 1e-10
    assert of_wrong["mse"] > 1e-4


def test_a_float64_replay_measures_every_row(monkeypatch):
    monkeypatch.setattr(verify, "PASS_ROWS", 7)
    stack, arrangement, x, _ = made(4)
    pred = np.zeros((len(x), 2), np.float32)
    pred[0], pred[-1] = 50, -50  # the largest errors are the first and the last row's
    error = reference.outputs(stack, arrangement, x) - pred
    found = verify.float64_errors(stack, x, pred)
    assert found == pytest.approx({"mse": np.mean(error**2), "max_abs_error": np.abs(error).max()}, rel=1e-6)
    assert verify.float64_errors(stack, x, pred, lambda: True) is None
