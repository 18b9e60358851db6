from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from threadpoolctl import threadpool_info

from dropjax.core.protocols import Context, StopReason
from dropjax.moves.first_order import adjacent_changes, flips, flips_and_swaps, linearise
from dropjax.ordering.flip_regression import Normal, by_places, flippable, normal_equations, orders, ridge_solutions
from dropjax.ordering.straightening import REACH, likeliest_order, near_equations, straighten
from dropjax.pairing.least_squares import contributions_and_errors, proposals, soft_pairing
from dropjax.runtime.device import on_one_thread


@settings(max_examples=6, deadline=None)
@given(reference.shapes, reference.seeds)
def test_contributions_sum_to_what_linearisation_says(shape, seed):
    depth, d, _, _ = shape
    rng = np.random.default_rng(seed)
    stack = reference.random_stack(rng, *shape, activation="tanh")  # relu has kinks, where there is no slope
    arrangement = reference.random_arrangement(rng, depth)
    x = rng.normal(size=(5, d)).astype(np.float32)
    pred = reference.outputs(stack, arrangement, x).astype(np.float32) + 1
    everywhere = np.arange(depth, dtype=np.int32)
    phi, error = contributions_and_errors(stack, arrangement, everywhere, x, pred)
    in_parts = contributions_and_errors(stack, arrangement, everywhere, x, pred, memory=1)
    np.testing.assert_allclose(in_parts[0], phi, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(in_parts[1], error, rtol=1e-4)
    np.testing.assert_allclose(error, -1, rtol=1e-3)
    states = reference.states(stack, arrangement, x)
    step = 1e-4
    for i in range(depth):
        for j in range(depth):
            added = step * reference.residual(stack, (arrangement[i, 0], arrangement[j, 1]), states[i])
            moved = states[i + 1] + added
            for halves in arrangement[i + 1 :]:
                moved = moved + reference.residual(stack, halves, moved)
            out = moved @ np.asarray(stack.w_last, np.float64).T + np.asarray(stack.b_last, np.float64)
            np.testing.assert_allclose(phi[i, j], (out - reference.outputs(stack, arrangement, x)) / step, atol=0.02)


def test_the_soft_pairing_of_a_linear_truth_is_the_truth():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4, 4, 200))
    truth = np.eye(4)[[1, 0, 2, 3]]
    pred = np.einsum("ij,ijk->k", truth, features)
    error = np.einsum("iik->k", features) - pred
    for soft in soft_pairing(features, error, ridges=(1e-9, 1e-6)):
        np.testing.assert_allclose(soft, truth, atol=1e-3)


def test_wrong_pairs_are_proposed_right_first():
    rng = np.random.default_rng(3)
    depth = 6
    stack = reference.random_stack(rng, depth, 5, 8, 1, size=0.2)
    x = rng.normal(size=(600, 5)).astype(np.float32)
    truth = reference.random_arrangement(rng, depth)
    pred = reference.outputs(stack, truth, x).astype(np.float32)
    wrong = truth.copy()
    wrong[[1, 4], 1] = wrong[[4, 1], 1]
    doubtful = wrong[[1, 4, 2, 0], 0]
    found = proposals(stack, wrong, doubtful, np.zeros((depth, depth)), x, pred, sizes=(2, 4))
    np.testing.assert_array_equal(found[0], truth)


def test_right_pairs_are_left_alone():
    rng = np.random.default_rng(4)
    stack = reference.random_stack(rng, 6, 5, 8, 1, size=0.2)
    x = rng.normal(size=(600, 5)).astype(np.float32)
    truth = reference.random_arrangement(rng, 6)
    pred = reference.outputs(stack, truth, x).astype(np.float32)
    assert proposals(stack, truth, truth[:4, 0], np.zeros((6, 6)), x, pred, sizes=(2, 4)) == []


# Order


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(reference.shapes, reference.seeds)
def test_normal_equations_are_those_of_the_flips(shape, seed):
    depth, d, _, _ = shape
    rng = np.random.default_rng(seed)
    stack, arrangement = reference.random_stack(rng, *shape, size=0.3), reference.random_arrangement(rng, depth)
    x = rng.normal(size=(9, d)).astype(np.float32)
    pred = reference.outputs(stack, arrangement, x).astype(np.float32) + rng.normal(size=(9, shape[3])).astype(np.float32)
    i, j = np.triu_indices(depth, 1)
    linear = flips_and_swaps(stack, arrangement, linearise(stack, arrangement, x))
    features = np.moveaxis(np.asarray(linear, np.float64), 1, 0).reshape(-1, depth, depth)[:, i, j]
    error = np.moveaxis(reference.outputs(stack, arrangement, x) - pred, 1, 0).reshape(-1)
    for memory in (1, 1 << 30):
        found = normal_equations(stack, arrangement, x, pred, memory)
        scale = np.abs(features.T @ features).max() / len(features) + 1e-6
        np.testing.assert_allclose(found.gram, features.T @ features / len(features), atol=1e-3 * scale)
        np.testing.assert_allclose(found.towards, -features.T @ error / len(features), atol=2e-3)
        np.testing.assert_allclose(found.mse, np.mean(error**2), rtol=1e-4)
        near = normal_equations(stack, arrangement, x, pred, memory, reach=2)
        kept = j - i <= 2
        np.testing.assert_allclose(near.gram, np.asarray(found.gram)[kept][:, kept], rtol=1e-3, atol=1e-5 * scale)
        np.testing.assert_allclose(near.towards, np.asarray(found.towards)[kept], rtol=1e-3, atol=1e-5)


def test_neighbours_have_their_exact_change_and_others_their_flip():
    rng = np.random.default_rng(6)
    stack, arrangement = reference.random_stack(rng, 4, 5, 8, 2), reference.random_arrangement(rng, 4)
    x = rng.normal(size=(3, 5)).astype(np.float32)
    at = linearise(stack, arrangement, x)
    found, plain = flips_and_swaps(stack, arrangement, at), flips(at)
    for k in range(3):
        np.testing.assert_allclose(found[..., k, k + 1], adjacent_changes(stack, arrangement, at)[k], rtol=1e-5)
    np.testing.assert_array_equal(found[..., 0, 2], plain[..., 0, 2])


def test_solutions_solve_a_linear_truth():
    rng = np.random.default_rng(7)
    features, truth = rng.normal(size=(400, 6)), np.array([0, 1.0, 0, 0, 1, 0])
    gram = features.T @ features / 400
    normal = Normal(truth @ gram @ truth, gram, gram @ truth)
    for share in ridge_solutions(normal, ridges=(1e-9, 1e-7)):
        np.testing.assert_allclose(share, truth, atol=1e-5)


def test_blocks_move_past_those_that_they_stand_wrongly_to():
    arrangement = np.stack([np.arange(4), np.arange(4)], axis=1)
    past = {(0, 1), (0, 2)}
    share = np.array([float(pair in past) for pair in zip(*map(np.ndarray.tolist, np.triu_indices(4, 1)), strict=True)])
    assert arrangement[by_places(share[None], 4)[0]][:, 0].tolist() == [1, 2, 0, 3]
    assert arrangement[by_places(0 * share[None], 4)[0]][:, 0].tolist() == [0, 1, 2, 3]


def test_an_order_far_off_is_proposed_right_in_a_few_steps():
    rng = np.random.default_rng(8)
    depth = 9
    stack = reference.random_stack(rng, depth, 6, 10, 1, size=0.15)
    x = rng.normal(size=(600, 6)).astype(np.float32)
    truth = reference.random_arrangement(rng, depth)
    pred = reference.outputs(stack, truth, x).astype(np.float32)
    order = truth[[3, 1, 0, 2, 5, 4, 8, 6, 7]]
    assert reference.mse(stack, order, x, pred) > 1e-5
    for _ in range(3):
        proposed = orders(stack, order, x, pred)
        order = min(proposed, key=lambda of: reference.mse(stack, of, x, pred))
    np.testing.assert_array_equal(order, truth)


# Order, by the flips of near blocks


def near_truth(seed, depth=9, rows=400):
    """A stack, a start whose near blocks are the wrong way round, the truth, and a table."""
    rng = np.random.default_rng(seed)
    stack = reference.random_stack(rng, depth, 6, 10, 1, size=0.15)
    x = rng.normal(size=(rows, 6)).astype(np.float32)
    truth = reference.random_arrangement(rng, depth)
    start = truth[np.argsort(np.arange(depth) + rng.uniform(-2, 2, depth))]
    return stack, start, truth, x, reference.outputs(stack, truth, x).astype(np.float32)


def test_the_order_that_all_flips_together_ask_for():
    depth = 6
    i, j = flippable(depth, REACH)
    rng = np.random.default_rng(1)
    features = rng.normal(size=(300, len(i)))
    wrong = np.isin(i * depth + j, [0 * depth + 1, 0 * depth + 2, 4 * depth + 5]).astype(float)
    gram = features.T @ features / 300
    normal = jax.tree.map(jnp.float32, Normal(wrong @ gram @ wrong, gram, gram @ wrong))
    assert likeliest_order(normal, depth).tolist() == [1, 2, 0, 3, 5, 4]
    right = normal._replace(mse=jnp.float32(0), towards=jnp.zeros(len(i)))
    assert likeliest_order(right, depth).tolist() == list(range(depth))


def test_straightening_never_ends_above_its_start_and_mostly_at_the_answer():
    solved = 0
    for seed in range(10):
        stack, start, truth, x, pred = near_truth(seed)
        found = straighten(stack, start, x, pred, tolerance=1e-10)
        mse = reference.mse(stack, found.arrangement, x, pred)
        assert mse <= reference.mse(stack, start, x, pred)
        assert mse == pytest.approx(float(found.mse), rel=1e-3, abs=1e-9)
        assert sorted(map(tuple, np.asarray(found.arrangement).tolist())) == sorted(map(tuple, truth.tolist()))
        solved += bool((np.asarray(found.arrangement) == truth).all())
    assert solved >= 8


def test_straightening_keeps_each_round_and_stops():
    stack, start, _, x, pred = near_truth(2)
    whole = straighten(stack, start, x, pred, tolerance=0.0)
    calls = []
    keep = lambda function, like: (calls.append(like), function())[1]  # noqa: E731
    kept = straighten(stack, start, x, pred, tolerance=0.0, context=Context(keep=keep))
    assert len(calls) == int(kept.rounds) == int(whole.rounds) > 1
    assert all(np.shape(a) == np.shape(b) and a.dtype == b.dtype for a, b in zip(calls[0], kept, strict=True))
    np.testing.assert_array_equal(whole.arrangement, kept.arrangement)
    stopped = straighten(stack, start, x, pred, tolerance=0.0, context=Context(agreed_stop=lambda: StopReason.INTERRUPTED))
    assert int(stopped.rounds) == 0
    np.testing.assert_array_equal(stopped.arrangement, start)


def test_straightening_calls_no_lapack():
    # On a CPU, two programs at the same time that do wait for one another's threads, forever.
    stack, start, _, x, pred = near_truth(2)
    assert "lapack" not in jax.jit(near_equations).lower(stack, start, x, pred).as_text()


def test_small_systems_are_solved_on_one_thread_and_others_on_as_many_as_before():
    threads = lambda: [of["num_threads"] for of in threadpool_info() if of["user_api"] == "blas"]  # noqa: E731
    before = threads()
    assert before
    with ThreadPoolExecutor(4) as pool:
        with on_one_thread():
            waiting = [pool.submit(_threads_alone, threads) for _ in range(4)]
            assert set(threads()) == {1}
        assert [set(of.result()) for of in waiting] == [{1}] * 4
    assert threads() == before


def _threads_alone(threads):
    with on_one_thread():
        return threads()


def test_what_stands_rightly_is_left_alone_and_one_block_as_well():
    stack, _, truth, x, pred = near_truth(3)
    noisy = pred + np.random.default_rng(0).normal(scale=1e-3, size=pred.shape).astype(np.float32)
    found = straighten(stack, truth, x, noisy, tolerance=0.0)
    np.testing.assert_array_equal(found.arrangement, truth)
    assert int(found.rounds) <= 2
    one = reference.random_stack(np.random.default_rng(4), 1, 6, 10, 1)
    alone = straighten(one, np.zeros((1, 2), np.int32), x, pred, tolerance=0.0)
    assert int(alone.rounds) == 0


def test_where_outputs_overflow_nothing_is_taken_for_better():
    stack, start, _, x, pred = near_truth(5)
    huge = replace(stack, w_out=1e30 * stack.w_out)
    found = straighten(huge, start, x, pred, tolerance=0.0)
    np.testing.assert_array_equal(found.arrangement, start)
