"""Seed orders: a first guess at the order from one number per block (paper, Section 4.1)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dropjax.moves import score_arrangements
from dropjax.stack import Stack, residual

DIRECTIONS = ("ascending", "descending")


@jax.jit
def block_statistics(stack: Stack, pairs: Int[Array, "L 2"], x: Float[Array, "N d"]) -> dict[str, Float[Array, " L"]]:
    """Each proxy for depth, for the blocks as `pairs` lists them.

    delta_norm    mean ‖r_k(x)‖₂ over the raw inputs (paper, Eq. 5)
    w_out_norm    ‖W_out‖_F (the paper's data-free proxy)
    w_out_l1      sum of |W_out|
    residual_std  norm of the residual's standard deviations, feature by feature
    """

    def of_block(halves: Int[Array, "2"]) -> dict[str, Float[Array, ""]]:
        r = residual(stack, halves, x)
        w_out = stack.w_out[halves[1]]
        return {
            "delta_norm": jnp.mean(jnp.linalg.norm(r, axis=1)),
            "w_out_norm": jnp.linalg.norm(w_out),
            "w_out_l1": jnp.sum(jnp.abs(w_out)),
            "residual_std": jnp.linalg.norm(jnp.std(r, axis=0)),
        }

    return lax.map(of_block, pairs)


class _Greedy(NamedTuple):
    state: Float[Array, "N d"]
    """The state after the blocks placed so far."""
    placed: Bool[Array, " L"]


@jax.jit
def greedy_order(
    stack: Stack, pairs: Int[Array, "L 2"], x: Float[Array, "N d"], descending: Bool[Array, ""]
) -> Int[Array, " L"]:
    """Place next the block whose residual is smallest (or largest) at the state reached so far; L² block evaluations."""
    sign = jnp.where(descending, -1, 1)

    def place(at: _Greedy, _: None) -> tuple[_Greedy, Int[Array, ""]]:
        norms = lax.map(lambda halves: jnp.mean(jnp.linalg.norm(residual(stack, halves, at.state), axis=1)), pairs)
        block = jnp.argmin(jnp.where(at.placed, jnp.inf, sign * norms))
        return _Greedy(at.state + residual(stack, pairs[block], at.state), at.placed.at[block].set(True)), block

    return lax.scan(place, _Greedy(x, jnp.zeros(len(pairs), bool)), None, length=len(pairs))[1]


STATISTICS = ("delta_norm", "w_out_norm", "w_out_l1", "residual_std")
SEED_ORDERS = (*STATISTICS, "greedy", "random")


class Portfolio(NamedTuple):
    """Seed orders with their MSE over the rows they were scored on; rows as `SEEDS` names them."""

    arrangements: Int[Array, "K L 2"]
    mse: Float[Array, " K"]


SEEDS = (*((name, direction) for name in STATISTICS for direction in DIRECTIONS), ("greedy", "best"))
"""Names and directions of a portfolio's seed orders; the greedy one goes the way of the best of the others."""


@jax.jit
def portfolio(stack: Stack, pairs: Int[Array, "L 2"], x: Float[Array, "N d"], pred: Float[Array, "N o"]) -> Portfolio:
    """Every seed order, scored as one batch."""
    statistics = block_statistics(stack, pairs, x)
    orders = jnp.stack([jnp.argsort(sign * statistics[name]) for name in STATISTICS for sign in (1, -1)])
    mse = score_arrangements(stack, pairs[orders], x, pred)
    greedy = greedy_order(stack, pairs, x, jnp.argmin(mse) % 2 == 1)[None]
    greedy_mse = score_arrangements(stack, pairs[greedy], x, pred)
    return Portfolio(pairs[jnp.concatenate([orders, greedy])], jnp.concatenate([mse, greedy_mse]))


def seed_order(
    name: str,
    direction: str,
    stack: Stack,
    pairs: Int[np.ndarray, "L 2"],
    x: Float[Array, "N d"],
    random_seed: int = 0,
) -> Int[np.ndarray, "L 2"]:
    """The arrangement of `pairs` in the seed order `name`; `direction` says whether the smallest or the largest is first."""
    if name == "random":
        order = np.random.default_rng(random_seed).permutation(len(pairs))
    elif name == "greedy":
        order = np.asarray(greedy_order(stack, pairs, x, np.bool_(direction == "descending")))
    else:
        statistic = np.asarray(block_statistics(stack, pairs, x)[name])
        order = np.argsort(statistic if direction == "ascending" else -statistic, kind="stable")
    return pairs[order]
