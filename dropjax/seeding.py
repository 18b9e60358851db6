"""Seed orders: a first guess at the order from one number per block (paper, Section 4.1)."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

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


@partial(jax.jit, static_argnames="descending")
def greedy_order(
    stack: Stack, pairs: Int[Array, "L 2"], x: Float[Array, "N d"], descending: bool = False
) -> Int[Array, " L"]:
    """Place next the block whose residual is smallest (or largest) at the state reached so far; L² block evaluations."""

    def place(at: _Greedy, _: None) -> tuple[_Greedy, Int[Array, ""]]:
        norms = lax.map(lambda halves: jnp.mean(jnp.linalg.norm(residual(stack, halves, at.state), axis=1)), pairs)
        norms = jnp.where(at.placed, jnp.inf, -norms if descending else norms)
        block = jnp.argmin(norms)
        return _Greedy(at.state + residual(stack, pairs[block], at.state), at.placed.at[block].set(True)), block

    return lax.scan(place, _Greedy(x, jnp.zeros(len(pairs), bool)), None, length=len(pairs))[1]


STATISTICS = ("delta_norm", "w_out_norm", "w_out_l1", "residual_std")
SEED_ORDERS = (*STATISTICS, "greedy", "random")


def seed_order(
    name: str,
    direction: str,
    stack: Stack,
    pairs: Int[Array, "L 2"],
    x: Float[Array, "N d"],
    random_seed: int = 0,
) -> Int[np.ndarray, "L 2"]:
    """The arrangement of `pairs` in the seed order `name`; `direction` says whether the smallest or the largest is first."""
    if name == "random":
        order = np.random.default_rng(random_seed).permutation(len(pairs))
    elif name == "greedy":
        order = np.asarray(greedy_order(stack, pairs, x, direction == "descending"))
    else:
        order = sort_blocks(np.asarray(block_statistics(stack, pairs, x)[name]), direction)
    return np.asarray(pairs)[order]


def sort_blocks(statistic: Float[np.ndarray, " L"], direction: str) -> Int[np.ndarray, " L"]:
    """The blocks by one statistic; equal ones keep their order."""
    return np.argsort(statistic if direction == "ascending" else -statistic, kind="stable")
