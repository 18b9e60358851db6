"""Bubble repair round by round: the paper's, and with sweeps in both directions (paper, Tables 1 to 3)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from dropjax.core.stack import Stack, trajectory
from dropjax.moves.arrangements import SWAP, moved
from dropjax.moves.exact import score_arrangements, squared_error
from dropjax.ordering.bubble import bubble_repair, bubble_rounds
from dropjax.runtime.device import scored_together
from dropjax.search.problem import Problem


@jax.jit
def sweep_back(
    stack: Stack, arrangement: Int[Array, "L 2"], x: Float[Array, "N d"], pred: Float[Array, "N o"]
) -> tuple[Int[Array, "L 2"], Int[Array, ""], Float[Array, ""]]:
    """One sweep over all neighbours from right to left, keeping an exchange where the MSE falls: order, exchanges, MSE.

    `repair` has the paper's sweep from left to right; the two in turn are a cocktail sort.
    """
    states = trajectory(stack, arrangement, x).states
    weight = jnp.ones(len(x))

    def step(back: Int[Array, ""], at):
        arrangement, kept, mse = at
        i = stack.depth - 2 - back
        candidate = moved(arrangement, jnp.stack([jnp.full_like(i, SWAP), i, i + 1]))
        # What stands left of i has not changed, nor has the state that it hands on.
        score = squared_error(stack, candidate, i, states[i], pred, weight) / pred.size
        better = score < mse
        return jnp.where(better, candidate, arrangement), kept + better, jnp.where(better, score, mse)

    start = squared_error(stack, arrangement, 0, x, pred, weight) / pred.size
    return lax.fori_loop(0, stack.depth - 1, step, (arrangement, jnp.int32(0), start))


class Route(NamedTuple):
    """Bubble repair from one start, round by round."""

    table: list[tuple[int, int, float, int]]
    """(round, swaps, MSE over all rows, swaps so far) for the start, as round 0, and for each round that swapped."""
    arrangements: Int[np.ndarray, "K L 2"]
    """An order for each row of the table."""
    evaluations: int


def repair_route(problem: Problem, few: Problem, start: Int[np.ndarray, "L 2"], limit: float = math.inf) -> Route:
    """Bubble repair decided on the rows of `few`, reported over those of `problem` (paper, Tables 1 to 3).

    It ends after `limit` rounds, an even number, if not before.
    """
    repaired = bubble_repair(few.stack, start, few.x, few.pred, limit=limit)
    rounds = [(0, start), *((swaps, order) for swaps, order in repaired.history if swaps)]
    orders = np.stack([order for _, order in rounds])
    mse = np.asarray(score_arrangements(problem.stack, jnp.asarray(orders), problem.x, problem.pred))
    total = np.cumsum([swaps for swaps, _ in rounds])
    table = [(k, int(swaps), float(mse[k]), int(total[k])) for k, (swaps, _) in enumerate(rounds)]
    return Route(table, orders, repaired.evaluations)


class BothWays(NamedTuple):
    """Repair by sweeps from left to right and back in turn."""

    arrangement: Int[np.ndarray, "L 2"]
    swaps: list[int]
    """The number of exchanges that each sweep kept; a last sweep that kept none is left out."""
    mse: float
    """The MSE over the rows that decided."""


def repair_both_ways(few: Problem, start: Int[np.ndarray, "L 2"]) -> BothWays:
    """Sweeps in alternating directions until one of them keeps no exchange."""
    arrangement, swaps, mse = start, [], np.inf
    while True:
        if len(swaps) % 2:
            arrangement, kept, mse = sweep_back(few.stack, arrangement, few.x, few.pred)
        else:
            part = bubble_rounds(few.stack, arrangement, few.x, few.pred, 1, scored_together(len(start) - 1))
            arrangement, kept, mse = part.arrangement, part.swaps[0], part.mse
        if not int(kept) and len(swaps) > 0:
            return BothWays(np.asarray(arrangement), swaps, float(mse))
        swaps.append(int(kept))
