from dataclasses import replace

import jax
import numpy as np
import pytest
import reference
from hypothesis import given, settings

from dropjax.moves.exact import score_arrangements
from dropjax.ordering import seeding


def drawn(shape, seed):
    rng = np.random.default_rng(seed)
    pairs = np.stack([np.arange(shape[0]), rng.permutation(shape[0])], axis=1).astype(np.int32)
    stack = reference.random_stack(rng, *shape)
    x = rng.normal(size=(13, shape[1])).astype(np.float32)
    return stack, pairs, x, rng.normal(size=(13, shape[3])).astype(np.float32)


def statistics(stack, halves, x):
    r, w_out = reference.residual(stack, halves, x), np.asarray(stack.w_out[halves[1]], np.float64)
    w_in, b_in, w_last = (np.asarray(a, np.float64) for a in (stack.w_in[halves[0]], stack.b_in[halves[0]], stack.w_last))
    in_norm, out_norm = np.sqrt((w_in**2).sum()), np.sqrt((w_out**2).sum())
    directions = w_last / np.linalg.norm(w_last, axis=1, keepdims=True)
    return {
        "delta_norm": np.linalg.norm(r, axis=1).mean(),
        "w_out_norm": np.sqrt((w_out**2).sum()),
        "w_out_l1": np.abs(w_out).sum(),
        "residual_std": np.linalg.norm(r.std(axis=0)),
        "w_in_norm": in_norm,
        "norm_product": in_norm * out_norm,
        "read_out_alignment": np.linalg.norm(directions @ w_out) / out_norm,
        "contribution_std": np.linalg.norm((r @ w_last.T).std(axis=0)),
        "mean_input_bias": b_in.mean(),
        "activation_fraction": np.mean(x @ w_in.T + b_in > 0),
    }


def greedy(stack, pairs, x, sign) -> list[int]:
    state, left, order = np.asarray(x, np.float64), list(range(len(pairs))), []
    while left:
        size = {k: sign * np.linalg.norm(reference.residual(stack, pairs[k], state), axis=1).mean() for k in left}
        order.append(min(left, key=size.__getitem__))
        left.remove(order[-1])
        state = state + reference.residual(stack, pairs[order[-1]], state)
    return order


@settings(max_examples=8, deadline=None)
@given(reference.shapes, reference.seeds)
def test_seed_orders_agree_with_their_definitions(shape, seed):
    stack, pairs, x, _ = drawn(shape, seed)
    by_block = [statistics(stack, halves, x) for halves in pairs]
    for sign, direction in zip((1, -1), seeding.DIRECTIONS, strict=True):
        for name in seeding.STATISTICS:
            order = np.argsort([sign * values[name] for values in by_block], kind="stable")
            np.testing.assert_array_equal(seeding.seed_order(name, direction, stack, pairs, x), pairs[order])
        expected = pairs[greedy(stack, pairs, x, sign)]
        np.testing.assert_array_equal(seeding.seed_order("greedy", direction, stack, pairs, x), expected)


def test_random_orders_follow_their_seed():
    stack, pairs, x, _ = drawn((7, 4, 9, 1), 0)
    orders = [seeding.seed_order("random", "ascending", stack, pairs, x, seed) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(orders[0], orders[1])
    assert (orders[0] != orders[2]).any()


def test_portfolio_holds_every_seed_order_and_its_mse():
    stack, pairs, x, pred = drawn((7, 4, 9, 1), 3)
    found = seeding.portfolio(stack, pairs, x, pred)
    assert len(found) == 2 * len(seeding.PORTFOLIO) == len({name for name, *_ in found})
    for name, arrangement, mse in found:
        seed, direction = name.split(" ")
        np.testing.assert_array_equal(arrangement, seeding.seed_order(seed, direction, stack, pairs, x))
        np.testing.assert_allclose(mse, score_arrangements(stack, arrangement[None], x, pred)[0], rtol=1e-4)


def test_blocks_that_overflow_are_placed_once_all_the_same():
    stack, pairs, x, pred = drawn((7, 4, 9, 1), 3)
    w_out = np.array(stack.w_out)
    w_out[[2, 4]] *= 1e38
    wild = replace(stack, w_out=w_out)
    for name, arrangement, _ in seeding.portfolio(wild, pairs, x, pred):
        assert sorted(arrangement[:, 1]) == list(range(7)), name


@pytest.mark.usefixtures("real_folder")
def test_the_papers_two_seeds_score_what_the_paper_prints(real_puzzle):
    stack, found = real_puzzle.stack(), {}
    partner = seeding_partner(real_puzzle)
    pairs = np.stack([np.arange(48), partner], axis=1).astype(np.int32)
    for name in ("delta_norm", "w_out_norm"):
        order = seeding.seed_order(name, "ascending", stack, pairs, real_puzzle.x[:2000])
        found[name] = float(jax.jit(score_arrangements)(stack, order[None], real_puzzle.x, real_puzzle.pred)[0])
    assert round(found["delta_norm"], 6) == 0.036794
    assert round(found["w_out_norm"], 6) == 0.075851


def seeding_partner(puzzle):
    from dropjax.pairing.portfolio import pair

    return pair(puzzle.w_in, puzzle.w_out).partner
