import builders
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from scipy.optimize import linear_sum_assignment

import dropjax
from dropjax import pairing


@settings(max_examples=10, deadline=None)
@given(reference.shapes, reference.seeds)
def test_ratio_agrees_with_the_products_themselves(shape, seed):
    stack = reference.random_stack(np.random.default_rng(seed), *shape)
    ratio, trace = pairing.diagonal_dominance(stack.w_in, stack.w_out)
    for i, w_in in enumerate(np.asarray(stack.w_in, np.float64)):
        for j, w_out in enumerate(np.asarray(stack.w_out, np.float64)):
            product = w_out @ w_in
            np.testing.assert_allclose(trace[i, j], np.trace(product), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(ratio[i, j], abs(np.trace(product)) / np.linalg.norm(product), rtol=1e-3, atol=1e-5)


def test_little_memory_changes_nothing():
    stack = reference.random_stack(np.random.default_rng(0), 7, 4, 9, 1)
    whole = pairing.traces_and_norms(stack.w_in, stack.w_out)
    chunked = pairing.traces_and_norms(stack.w_in, stack.w_out, 8 * 9 * 9 * 2)
    np.testing.assert_allclose(whole[1], chunked[1], rtol=1e-5)


def test_a_zero_half_scores_zero():
    stack = reference.random_stack(np.random.default_rng(0), 5, 6, 4, 2)
    w_out = np.array(stack.w_out)
    w_out[2] = 0
    ratio, _ = pairing.diagonal_dominance(stack.w_in, w_out)
    assert (ratio[:, 2] == 0).all()
    assert np.isfinite(ratio).all()


def test_finds_planted_pairs_and_says_how_clear_they_are():
    puzzle, permutation = builders.random_puzzle(np.random.default_rng(5), L=8, d=12, h=20)
    found = dropjax.pair(puzzle.w_in, puzzle.w_out)
    numbers = dict(zip(permutation[0:-1:2], permutation[1:-1:2], strict=True))
    assert [numbers[n] for n in puzzle.in_numbers] == puzzle.out_numbers[found.partner].tolist()
    assert found.greedy_equals_hungarian
    rows, columns = linear_sum_assignment(-found.score)
    np.testing.assert_array_equal(found.partner, columns[np.argsort(rows)])
    assert (found.gap > 0).all()
    np.testing.assert_allclose(found.gap, found.own - found.runner_up)


def test_unrelated_halves_have_no_clear_partner():
    stack = reference.random_stack(np.random.default_rng(6), 8, 12, 20, 1)
    found = dropjax.pair(stack.w_in, stack.w_out)
    assert found.gap.min() < 0.1


def test_match_prefers_the_largest_total_to_the_largest_entry():
    score = np.array([[10.0, 9.0], [9.0, 1.0]])
    found = pairing.match("made up", score)
    assert found.partner.tolist() == [1, 0]
    assert not found.greedy_equals_hungarian
    assert found.gap.tolist() == [-1.0, 8.0]


def test_one_block_has_no_runner_up():
    found = pairing.match("made up", np.array([[1.0]]))
    assert found.runner_up[0] == -np.inf


@pytest.mark.usefixtures("real_folder")
def test_real_puzzle_separates_as_the_paper_says(real_puzzle):
    found = dropjax.pair(real_puzzle.w_in, real_puzzle.w_out)
    right = np.zeros_like(found.score, bool)
    right[np.arange(48), found.partner] = True
    assert found.greedy_equals_hungarian
    assert round(float(found.score[right].min()), 2) == 1.76
    assert round(float(found.score[~right].max()), 2) == 0.58
