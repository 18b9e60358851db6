import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings

from dropjax.moves.arrangements import (
    INSERTION,
    PAIR_SWAP,
    SWAP,
    adjacent_swaps,
    insertions,
    moved,
    nothing,
    pairs_of_positions,
)
from dropjax.moves.exact import score_arrangements, score_moves
from dropjax.moves.first_order import (
    Steps,
    adjacent_changes,
    bytes_per_row,
    far_changes,
    far_move,
    flips,
    flips_ahead,
    linearise,
    pair_swap_changes,
    score_first_order,
    steps,
)
from dropjax.ordering import seeding
from dropjax.pairing.portfolio import pair

KINDS = (SWAP, INSERTION, PAIR_SWAP)


def drawn(shape, seed, rows=11):
    rng = np.random.default_rng(seed)
    stack, arrangement = reference.random_stack(rng, *shape), reference.random_arrangement(rng, shape[0])
    x = rng.normal(size=(rows, shape[1])).astype(np.float32)
    pred = rng.normal(size=(rows, shape[3])).astype(np.float32)
    return stack, arrangement, x, pred


def every_move(depth):
    return np.concatenate([pairs_of_positions(depth, kind) for kind in (SWAP, PAIR_SWAP)] + [insertions(depth)])


@pytest.mark.parametrize("kind", KINDS)
def test_moves_do_what_their_names_say(kind):
    arrangement = reference.random_arrangement(np.random.default_rng(0), 6)
    for i in range(6):
        for j in range(6):
            move = np.array([kind, i, j], np.int32)
            np.testing.assert_array_equal(moved(jnp.asarray(arrangement), move), reference.after(arrangement, move))


def test_the_lists_of_moves_are_complete_and_without_repeats():
    assert len(pairs_of_positions(48, SWAP)) == 1128
    assert len(adjacent_swaps(48)) == 47
    start = np.stack([np.arange(6), np.arange(6)], axis=1)
    results = {tuple(reference.after(start, move)[:, 0]) for move in insertions(6)}
    everything = {tuple(reference.after(start, (1, i, j))[:, 0]) for i in range(6) for j in range(6) if i != j}
    assert results == everything
    assert len(results) == len(insertions(6)) == 25


def test_the_lists_of_moves_are_in_the_order_that_is_said():
    assert adjacent_swaps(3).tolist() == [[SWAP, 0, 1], [SWAP, 1, 2]]
    assert pairs_of_positions(3, PAIR_SWAP).tolist() == [[PAIR_SWAP, 0, 1], [PAIR_SWAP, 0, 2], [PAIR_SWAP, 1, 2]]
    # A neighbour goes to the right only.
    assert insertions(3).tolist() == [[INSERTION, 0, 1], [INSERTION, 0, 2], [INSERTION, 1, 2], [INSERTION, 2, 0]]


def test_a_filled_up_batch_gains_moves_of_nothing_at_the_last_position():
    assert nothing(4, 2).tolist() == [[SWAP, 3, 3], [SWAP, 3, 3]]


@pytest.mark.parametrize("together", [1, 4])
@settings(max_examples=6, deadline=None)
@given(reference.shapes, reference.seeds)
def test_exact_scores_are_those_of_whole_runs(together, shape, seed):
    stack, arrangement, x, pred = drawn(shape, seed)
    candidates = every_move(shape[0])
    expected = [reference.mse(stack, reference.after(arrangement, move), x, pred) for move in candidates]
    scores = score_moves(stack, arrangement, candidates, x, pred, together=together)
    np.testing.assert_allclose(scores, expected, rtol=1e-3)
    rearranged = np.stack([reference.after(arrangement, move) for move in candidates]).astype(np.int32)
    np.testing.assert_allclose(score_arrangements(stack, rearranged, x, pred, together=together), expected, rtol=1e-3)


def test_chunks_of_rows_change_nothing():
    stack, arrangement, x, pred = drawn((5, 6, 4, 2), 1, rows=103)
    candidates = every_move(5)
    whole = score_moves(stack, arrangement, candidates, x, pred)
    per_row = 4 * (6 * 6 + 2 * 10)
    chunked = score_moves(stack, arrangement, candidates, x, pred, memory=10 * per_row)
    np.testing.assert_allclose(whole, chunked, rtol=1e-5)
    np.testing.assert_allclose(
        score_arrangements(stack, arrangement[None], x, pred, memory=500),
        score_arrangements(stack, arrangement[None], x, pred),
        rtol=1e-5,
    )


def _first_order_by_definition(stack, arrangement, x):
    """Δ_ab row by row from the definition, in float64 as far as the states and adjoints allow."""
    at = jax.jit(linearise)(stack, arrangement, x)
    states, adjoints = np.asarray(at.states, np.float64), np.asarray(at.adjoints, np.float64)
    residuals, increments = states[1:] - states[:-1], adjoints[:-1] - adjoints[1:]
    depth = len(residuals)
    delta = np.zeros((depth, depth, *adjoints.shape[1:3]))
    for a in range(depth):
        for b in range(a + 1, depth):
            one = np.einsum("nod,nd->no", increments[a], residuals[b])
            delta[a, b] = one - np.einsum("nod,nd->no", increments[b], residuals[a])
    return at, delta


@settings(max_examples=6, deadline=None)
@given(reference.shapes, reference.seeds)
def test_far_changes_are_sums_of_flips(shape, seed):
    stack, arrangement, x, _ = drawn(shape, seed)
    at, delta = _first_order_by_definition(stack, arrangement, x)
    far = jax.jit(far_changes)(at)
    for i in range(shape[0]):
        for j in range(i + 1, shape[0]):
            right = sum(delta[i, k] for k in range(i + 1, j + 1))
            left = sum(delta[k, j] for k in range(i, j))
            both = right + sum((delta[k, j] for k in range(i + 1, j)), np.zeros_like(right))
            np.testing.assert_allclose(far.right[..., i, j], right, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(far.left[..., i, j], left, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(far.swap[..., i, j], both, rtol=1e-3, atol=1e-4)


def test_far_moves_are_in_the_order_of_their_changes():
    kinds, there = jnp.arange(3), jnp.full(3, 1)
    assert far_move(kinds, there, there + 3).tolist() == [[INSERTION, 1, 4], [INSERTION, 4, 1], [SWAP, 1, 4]]


def _changes(stack, arrangement, x, move):
    """First-order and exact change of the outputs by one move."""
    at = jax.jit(linearise)(stack, arrangement, x)
    kind, i, j = map(int, move)
    if kind == PAIR_SWAP:
        first_order = jax.jit(pair_swap_changes)(stack, arrangement, at)[i, j]
    elif kind == SWAP:
        first_order = jax.jit(far_changes)(at).swap[..., i, j]
    else:
        far = jax.jit(far_changes)(at)
        first_order = far.right[..., i, j] if i < j else far.left[..., j, i]
    exact = reference.outputs(stack, reference.after(arrangement, move), x) - reference.outputs(stack, arrangement, x)
    return np.asarray(first_order, np.float64), exact


@pytest.mark.parametrize("move", [(0, 1, 4), (0, 2, 3), (1, 0, 5), (1, 6, 2), (2, 1, 5)])
def test_first_order_becomes_exact_as_residuals_shrink(move):
    rng = np.random.default_rng(7)
    arrangement = reference.random_arrangement(rng, 7)
    x = rng.normal(size=(40, 4)).astype(np.float32)
    errors = []
    for size in (0.1, 0.02):
        stack = reference.random_stack(np.random.default_rng(8), 7, 4, 9, 1, "tanh", size)
        first_order, exact = _changes(stack, arrangement, x, move)
        errors.append(np.linalg.norm(first_order - exact) / np.linalg.norm(exact))
    assert errors[0] < 0.3
    assert errors[1] < errors[0] / 2


@settings(max_examples=6, deadline=None)
@given(reference.shapes, reference.seeds)
def test_adjacent_changes_are_exact_at_the_last_position(shape, seed):
    stack, arrangement, x, _ = drawn(shape, seed)
    at = jax.jit(linearise)(stack, arrangement, x)
    changes = jax.jit(adjacent_changes)(stack, arrangement, at)
    depth = shape[0]
    after = reference.outputs(stack, reference.after(arrangement, (0, depth - 2, depth - 1)), x)
    np.testing.assert_allclose(changes[-1], after - reference.outputs(stack, arrangement, x), rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("real_folder")
def test_first_order_ranks_the_real_puzzles_neighbours_as_exact_scores_do(real_puzzle):
    stack = real_puzzle.stack()
    pairs = np.stack([np.arange(48), pair(stack.w_in, stack.w_out).partner], axis=1).astype(np.int32)
    x, pred = real_puzzle.x[:2000], real_puzzle.pred[:2000]
    arrangement = seeding.seed_order("delta_norm", "ascending", stack, pairs, x)
    at = jax.jit(linearise)(stack, arrangement, x)
    error = reference.outputs(stack, arrangement, x) - pred
    change = np.asarray(jax.jit(adjacent_changes)(stack, arrangement, at), np.float64)
    predicted = np.mean(2 * error * change + change**2, axis=(1, 2))
    exact = score_moves(stack, arrangement, adjacent_swaps(48), x, pred)
    ranks = np.argsort(np.argsort([predicted, exact], axis=1), axis=1)
    assert np.corrcoef(ranks[0], ranks[1])[0, 1] > 0.99


@settings(max_examples=4, deadline=None)
@given(reference.shapes, reference.seeds)
def test_first_order_scores_are_the_mean_effects_of_the_changes(shape, seed):
    stack, arrangement, x, pred = drawn(shape, seed)
    at, error = jax.jit(linearise)(stack, arrangement, x), reference.outputs(stack, arrangement, x) - pred
    scores = score_first_order(stack, arrangement, x, pred)
    np.testing.assert_allclose(scores.mse, np.mean(error**2), rtol=1e-3)
    for k, change in enumerate(np.asarray(jax.jit(adjacent_changes)(stack, arrangement, at), np.float64)):
        np.testing.assert_allclose(scores.adjacent[k], np.mean(2 * error * change + change**2), rtol=1e-2, atol=1e-4)
    for k, changes in enumerate(jax.jit(far_changes)(at)):
        for i, j in zip(*np.triu_indices(shape[0], 1), strict=True):
            change = np.asarray(changes[..., i, j], np.float64)
            np.testing.assert_allclose(scores.far[k, i, j], np.mean(2 * error * change + change**2), rtol=1e-2, atol=1e-4)
    chunked = score_first_order(stack, arrangement, x, pred, memory=1)
    for whole, parts in zip(scores, chunked, strict=True):
        np.testing.assert_allclose(whole, parts, rtol=1e-3, atol=1e-5)


def test_flips_of_a_window_are_those_of_the_whole():
    stack, arrangement, x, _ = drawn((7, 4, 9, 2), 3)
    at = jax.jit(linearise)(stack, arrangement, x)
    whole, of = np.asarray(jax.jit(flips)(at)), steps(at)
    for own, window in ((3, 7), (2, 5), (7, 7)):
        found = jax.jit(flips_ahead)(Steps(*(part[:own] for part in of)), Steps(*(part[:window] for part in of)))
        np.testing.assert_allclose(found, whole[..., :own, :window], rtol=1e-4, atol=1e-5)


def test_neighbours_have_their_own_effect_in_every_kind_of_move():
    stack, arrangement, x, pred = drawn((6, 4, 9, 1), 4)
    scores = score_first_order(stack, arrangement, x, pred)
    near = np.eye(6, k=1, dtype=bool)
    assert not np.allclose(np.asarray(scores.far)[:, near], scores.adjacent, rtol=1e-3)
    for k in range(3):
        np.testing.assert_array_equal(np.asarray(scores.moves)[k][near], scores.adjacent)
        np.testing.assert_array_equal(np.asarray(scores.moves)[k][~near], np.asarray(scores.far)[k][~near])


@pytest.mark.parametrize("shape", [(7, 4, 9, 1), (5, 6, 4, 3)])
def test_a_row_takes_the_bytes_that_are_said(shape):
    stack, arrangement, x, _ = drawn(shape, 5)
    at = jax.jit(linearise)(stack, arrangement, x)
    held = sum(np.asarray(part).nbytes for part in jax.tree.leaves((at, steps(at)))) / len(x)
    # The first state and the last adjoint are the table's and the last layer's.
    assert bytes_per_row(stack) == held - 4 * shape[1] * (1 + shape[3])
    one = bytes_per_row(stack) // shape[0]
    assert bytes_per_row(stack, blocks=2, values=10) == 2 * one + 4 * 10 * shape[3]
