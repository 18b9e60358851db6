"""Exact effects of moves and whole arrangements on the MSE, as batched forward passes.

All candidates of a kernel start from the same arrangement, whose states are kept, so that a candidate is run only from the
first position it changes: all swaps of L blocks cost L(L²−1)/3 block evaluations instead of L²(L−1)/2.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from dropjax.core.options import MEMORY
from dropjax.core.stack import Stack, advance, read_out, trajectory
from dropjax.moves import fused
from dropjax.moves.arrangements import moved, nothing
from dropjax.runtime import mesh
from dropjax.runtime.device import CORE_ROWS, side_by_side, workers
from dropjax.runtime.programs import program
from dropjax.runtime.rows import mean_over_rows


@jax.jit
def squared_error(stack: Stack, arrangement, start, state, pred, weight) -> Float[Array, ""]:
    """Weighted sum of squared errors, in pred's units squared, of an arrangement run from `state`, that before `start`."""
    outputs = read_out(stack, advance(stack, arrangement, start, stack.depth, state))
    return jnp.sum(weight[:, None] * (outputs - pred) ** 2)


def score_moves(
    stack: Stack,
    arrangement: Int[np.ndarray, "L 2"] | Int[Array, "L 2"],
    moves: Int[np.ndarray, "K 3"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    together: int = 1,
    memory: int = MEMORY,
) -> Float[np.ndarray, " K"]:
    """MSE over the given rows after each of K moves.

    Each is run from the first position that it changes (D18 in docs/method.md). `together` candidates share each batched
    product; moves that are sorted by their first position share most. With one candidate at a time, every core has
    candidates of its own and runs as many rows as its cache holds.
    """
    parts = workers() if together == 1 else 1
    filled = np.concatenate([moves, nothing(stack.depth, -len(moves) % (parts * together))])
    score = partial(_score_part, stack, arrangement, x=x, pred=pred, together=together, memory=memory)
    scores = side_by_side(lambda part: score(filled[part::parts]), range(parts))
    return np.stack(scores, axis=1).reshape(-1)[: len(moves)]


@program(static_argnames=("together", "memory"))
def _score_part(
    stack: Stack,
    arrangement: Int[Array, "L 2"],
    moves: Int[Array, "K 3"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    together: int,
    memory: int,
) -> Float[Array, " K"]:
    """`score_moves` for K moves that are a multiple of `together`."""
    depth, (hidden, width) = stack.depth, stack.w_in.shape[1:]
    batches = moves.reshape(-1, together, 3)

    def of_chunk(x, pred, weight):
        states = trajectory(stack, arrangement, x).states

        def of_batch(batch: Int[Array, "C 3"]) -> Float[Array, " C"]:
            batch = mesh.spread(batch, mesh.ORDERS)
            if together > 1 and fused.usable(stack):
                arrangements = jax.vmap(moved, (None, 0))(arrangement, batch)
                return fused.squared_errors(stack, arrangements, jnp.min(batch[:, 1:], axis=1), states, pred, weight)
            start = jnp.min(batch[:, 1:])
            run = lambda move: squared_error(stack, moved(arrangement, move), start, states[start], pred, weight)  # noqa: E731
            return jax.vmap(run)(batch)

        return lax.map(of_batch, batches).reshape(-1)

    bytes_per_row = 4 * ((depth + 1) * width + 2 * together * (width + hidden))
    held = memory if together > 1 else min(memory, CORE_ROWS * bytes_per_row)
    return mean_over_rows(of_chunk, x, pred, bytes_per_row, held)


@partial(jax.jit, static_argnames=("together", "memory"))
def score_arrangements(
    stack: Stack,
    arrangements: Int[Array, "K L 2"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    together: int = 1,
    memory: int = MEMORY,
) -> Float[Array, " K"]:
    """MSE over the given rows of each of K arrangements (paper, Eq. 3), `together` of them in each batched product."""
    hidden, width = stack.w_in.shape[1:]

    def of_chunk(x, pred, weight):
        run = lambda arrangement: squared_error(stack, arrangement, 0, x, pred, weight)  # noqa: E731
        return lax.map(run, arrangements, batch_size=None if together == 1 else together)

    bytes_per_row = 8 * together * (width + hidden)
    return mean_over_rows(of_chunk, x, pred, bytes_per_row, memory)
