"""Bubble repair: the paper's left-to-right sweep of exchanges of neighbours (Section 4.4)."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from dropjax.core.options import MEMORY
from dropjax.core.protocols import ALONE, Context
from dropjax.core.stack import Stack, advance
from dropjax.moves.arrangements import SWAP, moved
from dropjax.moves.exact import squared_error
from dropjax.runtime import mesh
from dropjax.runtime.device import scored_together
from dropjax.runtime.rows import row_chunks, sum_over_chunks


class _Sweep(NamedTuple):
    position: Int[Array, ""]
    """Position up to which all swaps are decided."""
    state: Float[Array, "C M d"]
    """The state before `position`, in chunks of rows."""
    arrangement: Int[Array, "L 2"]
    mse: Float[Array, ""]
    swaps: Int[Array, ""]
    evaluations: Int[Array, ""]


class Rounds(NamedTuple):
    """Some rounds of bubble repair; entries from `rounds` on are unused."""

    arrangement: Int[Array, "L 2"]
    mse: Float[Array, ""]
    """MSE over the rows that the sweeps decided on."""
    rounds: Int[Array, ""]
    swaps: Int[Array, " most"]
    """Swaps kept in each round; the last one is 0 where the repair is done."""
    arrangements: Int[Array, "most L 2"]
    """The arrangement after each round."""
    evaluations: Int[Array, ""]

    @property
    def done(self) -> bool:
        """Whether the last round kept no swap: no exchange of neighbours lowers the MSE."""
        return bool(self.rounds > 0) and int(self.swaps[self.rounds - 1]) == 0


class _Chunked(NamedTuple):
    """A table in C chunks of M rows, the last one filled up with zeros."""

    x: Float[Array, "C M d"]
    pred: Float[Array, "C M o"]
    weight: Float[Array, "C M"]


def _sweep(
    stack: Stack, arrangement: Int[Array, "L 2"], mse: Float[Array, ""], table: _Chunked, values: int, window: int
) -> _Sweep:
    """One pass over all neighbours from left to right; a swap is kept where the MSE falls (paper, Section 4.4).

    The next `window` swaps are scored as one batch, the first that improves is kept, and scoring goes on behind it: the
    decisions are those of one swap after another, whatever the window. `values` is the number of predictions.
    """
    last = stack.depth - 1

    def swap_at(arrangement: Int[Array, "L 2"], i: Int[Array, ""]) -> Int[Array, "L 2"]:
        return moved(arrangement, jnp.stack([jnp.full_like(i, SWAP), i, i + 1]))

    def step(at: _Sweep) -> _Sweep:
        candidates = mesh.spread(at.position + jnp.arange(window, dtype=jnp.int32), mesh.ORDERS)
        real = candidates < last

        def score(*chunk: Array) -> Float[Array, " window"]:
            of = lambda i: squared_error(stack, swap_at(at.arrangement, i), at.position, *chunk)  # noqa: E731
            return jax.vmap(of)(candidates)

        mse = sum_over_chunks(score, table._replace(x=at.state)) / values
        scores = jnp.where(real, mse, jnp.inf)
        better = scores < at.mse
        found, first = jnp.any(better), jnp.argmax(better)
        arrangement = jnp.where(found, swap_at(at.arrangement, candidates[first]), at.arrangement)
        position = jnp.minimum(jnp.where(found, candidates[first] + 1, at.position + window), last)
        return _Sweep(
            position=position,
            state=lax.map(lambda state: advance(stack, arrangement, at.position, position, state), at.state),
            arrangement=arrangement,
            mse=jnp.where(found, scores[first], at.mse),
            swaps=at.swaps + found,
            evaluations=at.evaluations + jnp.sum(real),
        )

    zero = jnp.zeros((), jnp.int32)
    return lax.while_loop(lambda at: at.position < last, step, _Sweep(zero, table.x, arrangement, mse, zero, zero))


@partial(jax.jit, static_argnames=("most", "window", "memory"))
def bubble_rounds(
    stack: Stack,
    arrangement: Int[Array, "L 2"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    most: int = 8,
    window: int = 1,
    memory: int = MEMORY,
    reached: Float[Array, ""] | float = math.inf,
) -> Rounds:
    """Up to `most` rounds of bubble repair, ending early after a round that keeps no swap.

    `reached` is the MSE that earlier rounds ended at. A swap has to lower that as well: summed anew, the start's MSE may be
    rounded up, and swaps that change nothing else would go on for ever.
    `window` candidates are run together, as many rows at a time as `memory` holds; beside them stands one state of all rows.
    """
    hidden, width = stack.w_in.shape[1:]
    bytes_per_row = 8 * window * (width + hidden)
    table = _Chunked(*row_chunks((x, pred, jnp.ones(len(x))), bytes_per_row, memory))
    mse = jnp.minimum(reached, sum_over_chunks(partial(squared_error, stack, arrangement, 0), table) / pred.size)

    def going_on(at: Rounds) -> Array:
        return (at.rounds < most) & ((at.rounds == 0) | (at.swaps[at.rounds - 1] > 0))

    def one_round(at: Rounds) -> Rounds:
        sweep = _sweep(stack, at.arrangement, at.mse, table, pred.size, window)
        return Rounds(
            sweep.arrangement,
            sweep.mse,
            at.rounds + 1,
            at.swaps.at[at.rounds].set(sweep.swaps),
            at.arrangements.at[at.rounds].set(sweep.arrangement),
            at.evaluations + sweep.evaluations,
        )

    zero = jnp.zeros((), jnp.int32)
    start = Rounds(
        arrangement, mse, zero, jnp.zeros(most, jnp.int32), jnp.zeros((most, *arrangement.shape), arrangement.dtype), zero
    )
    return lax.while_loop(going_on, one_round, start)


class Repaired(NamedTuple):
    """A whole bubble repair, on the host."""

    arrangement: Int[np.ndarray, "L 2"]
    history: list[tuple[int, Int[np.ndarray, "L 2"]]]
    """Swaps kept in each round, and the arrangement after it; the last round keeps none unless it was stopped."""
    evaluations: int

    @property
    def swaps(self) -> int:
        """Swaps kept in all rounds."""
        return sum(swaps for swaps, _ in self.history)


def bubble_repair(
    stack: Stack,
    arrangement: Int[np.ndarray, "L 2"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    context: Context = ALONE,
    most: int = 2,
    limit: float = math.inf,
) -> Repaired:
    """Bubble repair until a round keeps no swap (paper, Section 4.4); the clock is looked at every `most` rounds.

    It ends after `limit` rounds, a multiple of `most`, as well.
    """
    history: list[tuple[int, np.ndarray]] = []
    evaluations, reached = 0, np.float32(np.inf)
    while not (context.agreed_stop() or len(history) >= limit):
        window = scored_together(stack.depth - 1)
        rounds = partial(bubble_rounds, stack, arrangement, x, pred, most, window, context.memory, reached)
        part = context.keep(rounds, jax.eval_shape(rounds))
        swaps, arrangements = np.asarray(part.swaps), np.asarray(part.arrangements)
        arrangement, reached = np.asarray(part.arrangement), np.asarray(part.mse)
        history += [(int(swaps[k]), arrangements[k]) for k in range(int(part.rounds))]
        evaluations += int(part.evaluations)
        if part.done:
            break
    return Repaired(arrangement, history, evaluations)
