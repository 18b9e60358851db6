"""The order by least squares: to first order, every two blocks that stand the wrong way round add a change of their own.

One regression of the errors on all such changes finds all wrong pairs at once, even if their effects cancel and no single
move helps. It does not use any signal in the weights.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax import lax
from jaxtyping import Array, Float, Int

from dropjax.core.options import MEMORY
from dropjax.core.stack import Stack, read_out
from dropjax.moves.first_order import bytes_per_row, flips_and_swaps, linearise
from dropjax.runtime.rows import mean_over_rows

A = TypeVar("A", np.ndarray, Array)


ORDER_RIDGES = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
"""Ridges of an order, in the same units: weak ones suit an order near the answer, strong ones an order far from it."""


class Normal(NamedTuple):
    """The MSE after a share s of each of P changes, to first order: `mse` − 2·s·`towards` + s·`gram`·s."""

    mse: Float[Array, ""]
    gram: Float[Array, "P P"]
    towards: Float[Array, " P"]


def flippable(depth: int, reach: int | None = None) -> tuple[Int[np.ndarray, " P"], Int[np.ndarray, " P"]]:
    """Every two positions i < j, at most `reach` apart."""
    i, j = np.triu_indices(depth, 1)
    near = j - i <= (reach or depth)
    return i[near], j[near]


@partial(jax.jit, static_argnames=("memory", "reach"))
def normal_equations(
    stack: Stack,
    arrangement: Int[Array, "L 2"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    memory: int = MEMORY,
    reach: int | None = None,
) -> Normal:
    """The normal equations of a regression of −e on Δ_ij, for all `flippable` i < j. Δ_ij is the change of the outputs when
    the blocks at i and j stand the other way round (D8 in docs/method.md)."""
    i, j = flippable(stack.depth, reach)

    def of_chunk(x, pred, weight):
        at = linearise(stack, arrangement, x)
        error = (read_out(stack, at.states[-1]) - pred) * weight[:, None]
        changes = flips_and_swaps(stack, arrangement, at)[..., i, j] * weight[:, None, None]
        product = partial(jnp.einsum, precision=lax.Precision.HIGHEST)
        return Normal(jnp.sum(error**2), product("nop,noq->pq", changes, changes), -product("nop,no->p", changes, error))

    held = bytes_per_row(stack, values=4 * stack.depth**2 + 2 * len(i))
    return mean_over_rows(of_chunk, x, pred, held, memory)


def ridge_solutions(normal: Normal, ridges: Sequence[float] = ORDER_RIDGES) -> list[Float[np.ndarray, " P"]]:
    """For each ridge, the share of each unknown that the regression finds."""
    _, gram, towards = (np.asarray(a, np.float64) for a in normal)
    scale = max(np.trace(gram) / len(gram), 1e-300)
    identity = np.eye(len(gram))
    return [scipy.linalg.solve(gram + ridge * scale * identity, towards, assume_a="pos") for ridge in ridges]


def expected_places(share: Float[A, "*K P"], depth: int, reach: int | None = None) -> Float[A, "*K L"]:
    """The expected place of each block if every `flippable` pair is the wrong way round with probability `share`: the
    expected number of blocks before it (Borda's count; D10 in docs/method.md)."""
    i, j = flippable(depth, reach)
    pair = np.arange(len(i))
    turned = np.zeros((len(i), depth))
    turned[pair, i], turned[pair, j] = 1, -1
    return share.clip(0, 1) @ turned + np.arange(depth)


def by_places(share: Float[np.ndarray, "K P"], depth: int, reach: int | None = None) -> Int[np.ndarray, "K L"]:
    """Orders of the positions by their blocks' `expected_places`."""
    return np.argsort(expected_places(share, depth, reach), axis=1, kind="stable")


def to_first_order(normal: Normal, orders: Int[np.ndarray, "K L"], reach: int) -> Float[np.ndarray, " K"]:
    """The change of the MSE by each order of the positions, to first order (D9 in docs/method.md)."""
    i, j = flippable(orders.shape[1], reach)
    place = np.argsort(orders, axis=1)
    flipped = (place[:, i] > place[:, j]).astype(np.float64)
    return np.sum(flipped * (flipped @ normal.gram - 2 * normal.towards), axis=1)


def proposed(normal: Normal, depth: int, reach: int | None = None) -> Int[np.ndarray, "K L"]:
    """Orders, of positions, that the regressions ask for; K is always the same.

    For each ridge there are orders by the shares themselves (about 0 for two blocks in the right order and 1 for two in the
    wrong one), by half and twice these shares, and by the flips whose shares are above 30% and above 70%.
    """
    shares = ridge_solutions(normal)
    asked = [of for share in shares for of in (share, share / 2, 2 * share, share > 0.3, share > 0.7)]
    return by_places(np.asarray(asked, np.float64), depth, reach)


def orders(
    stack: Stack,
    arrangement: Int[np.ndarray, "L 2"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    memory: int = MEMORY,
) -> Int[np.ndarray, "K L 2"]:
    """Orders of the same blocks that regressions of the errors on all flips propose (see `proposed`)."""
    return arrangement[proposed(normal_equations(stack, arrangement, x, pred, memory), len(arrangement))]
