import jax
import numpy as np
import pytest
import reference

from dropjax.moves.arrangements import SWAP, insertions, moved, pairs_of_positions
from dropjax.ordering import annealing

L, D, H = 7, 4, 9


def drawn(seed, rows=64):
    rng = np.random.default_rng(seed)
    stack = reference.random_stack(rng, L, D, H, 1, size=0.2)
    x = rng.normal(size=(rows, D)).astype(np.float32)
    truth = reference.random_arrangement(rng, L)
    pred = reference.outputs(stack, truth, x).astype(np.float32)
    return stack, truth, x, pred, truth[rng.permutation(L)]


def annealed(stack, start, x, pred, seed=0, hot=1e-2, cold=1e-6, rounds=300, most=1 << 20):
    return annealing.anneal_rounds(
        stack,
        annealing.start_annealing(start, seed),
        x,
        pred,
        *(np.float32(t) for t in (hot, cold)),
        *(np.int32(k) for k in (rounds, most)),
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_small_stack_is_ordered_from_a_random_order(seed):
    stack, truth, x, pred, start = drawn(seed)
    assert reference.mse(stack, start, x, pred) > 1e-4
    at = annealed(stack, start, x, pred)
    np.testing.assert_array_equal(at.best, truth)
    assert float(at.best_mse) < 1e-10


def test_the_record_is_of_the_arrangement_it_names():
    stack, _, x, pred, start = drawn(5)
    at = annealed(stack, start, x, pred, hot=0.1, cold=0.05, rounds=20)
    np.testing.assert_allclose(float(at.mse), reference.mse(stack, at.arrangement, x, pred), rtol=1e-4)
    np.testing.assert_allclose(float(at.best_mse), reference.mse(stack, at.best, x, pred), rtol=1e-4)
    assert float(at.best_mse) <= float(at.mse)
    pairs = {tuple(halves) for halves in np.asarray(at.arrangement)}
    assert pairs == {tuple(halves) for halves in start}, "an order changes no pairs"


def test_the_same_seed_gives_the_same_order_and_another_another_path():
    stack, _, x, pred, start = drawn(6)
    once, again, other = (annealed(stack, start, x, pred, seed, 0.1, 0.05, 20) for seed in (1, 1, 2))
    np.testing.assert_array_equal(once.arrangement, again.arrangement)
    assert int(once.moves) == int(again.moves)
    assert not np.array_equal(once.changes, other.changes)


def test_a_schedule_in_parts_is_the_schedule():
    stack, _, x, pred, start = drawn(7)
    whole = annealed(stack, start, x, pred, rounds=30)
    at = annealing.start_annealing(start, 0)
    for _ in range(3):
        at = annealing.anneal_rounds(stack, at, x, pred, np.float32(1e-2), np.float32(1e-6), np.int32(30), np.int32(10))
    np.testing.assert_array_equal(at.arrangement, whole.arrangement)
    assert int(at.rounds) == int(whole.rounds) == 30


def test_without_heat_no_accepted_move_raises_the_mse():
    stack, _, x, pred, start = drawn(8)
    before = np.inf
    at = annealing.start_annealing(start, 0)
    for _ in range(15):
        at = annealing.anneal_rounds(stack, at, x, pred, np.float32(1e-12), np.float32(1e-12), np.int32(15), np.int32(1))
        assert float(at.mse) <= before + 1e-9
        before = float(at.mse)


def test_drawn_moves_do_not_overlap_and_stay_within_the_limit():
    stack, _, x, pred, start = drawn(9)
    at = annealed(stack, start, x, pred, hot=1.0, cold=1.0, rounds=2)
    apply_drawn = jax.jit(annealing._apply_drawn)
    for seed in range(20):
        arrangement, count, _ = apply_drawn(at._replace(most=np.int32(2)), np.float32(10), jax.random.key(seed))
        assert 0 < int(count) <= 2
        one, _, allowed = apply_drawn(at._replace(most=np.int32(1)), np.float32(10), jax.random.key(seed))
        reached = {
            np.asarray(moved(at.arrangement, np.array(move, np.int32))).tobytes()
            for move in (*pairs_of_positions(L, SWAP), *insertions(L))
        }
        assert np.asarray(one).tobytes() in reached
        assert float(allowed) >= 0
        assert sorted(map(tuple, np.asarray(arrangement))) == sorted(map(tuple, np.asarray(start)))
