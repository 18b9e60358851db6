"""Guided repair: moves proposed by the adjoints, decided by exact evaluations."""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from dropjax.core.options import MEMORY
from dropjax.core.protocols import ALONE, Context
from dropjax.core.stack import Stack, Trajectory, read_out, trajectory
from dropjax.moves.arrangements import moved
from dropjax.moves.exact import squared_error
from dropjax.moves.first_order import FirstOrder, far_move, first_order_sums, linearised
from dropjax.ordering.parts import in_parts
from dropjax.runtime import mesh
from dropjax.runtime.programs import QUICK, program
from dropjax.runtime.rows import in_chunks

CHUNK = 256
"""Rows that guided repair begins with, and rows in a chunk."""


PART = 16 * CHUNK
"""Rows times rounds between two checks whether guided repair has to stop."""


CUTOFFS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Fractions of the best predicted fall that a proposal must reach, from all proposals to the best alone."""


class Proposals(NamedTuple):
    """The best move between any two positions i < j, by its predicted effect; entries with i ≥ j are unused."""

    mse: Float[Array, ""]
    """MSE of the arrangement itself, over the rows in use."""
    fall: Float[Array, "L L"]
    """Predicted fall of the MSE by the move; ≤ 0 if no move is proposed."""
    kind: Int[Array, "L L"]
    """Index into `FarChanges`: the block at i goes to j, the block at j goes to i, or both change places."""


class Guided(NamedTuple):
    """State and result of guided repair."""

    arrangement: Int[Array, "L 2"]
    proposals: Proposals
    cutoff: Int[Array, ""]
    """Index into `CUTOFFS`; raised by each rejection, lowered by each acceptance."""
    far: Array
    """Whether insertions and swaps over any distance are proposed, or exchanges of neighbours alone."""
    chunks: Int[Array, ""]
    """Chunks of rows in use."""
    rounds: Int[Array, ""]
    swaps: Int[Array, ""]
    """Moves accepted."""
    finished: Array
    """Whether the order is exact on the rows in use, or no proposal helps on all rows."""

    def rows(self, of: int, chunk: int = CHUNK) -> int:
        """Rows in use, out of a table's `of`."""
        return min(int(self.chunks) * chunk, of)


def guided_repair(
    stack: Stack,
    arrangement: Int[np.ndarray, "L 2"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    tolerance: float,
    context: Context = ALONE,
    screen: str = "highest",
) -> Guided:
    """Guided repair until it is finished; the clock is looked at every `PART`."""

    def part(at: Guided) -> Guided:
        most = np.int32(max(1, PART // at.rows(len(x))))
        return guided_rounds(stack, at, x, pred, np.float32(tolerance), most, screen=screen, memory=context.memory)

    return in_parts(start_guided(arrangement), part, lambda at: at.finished, context)


def start_guided(arrangement: Int[np.ndarray, "L 2"]) -> Guided:
    """The state before the first round."""
    parts = arrangement, _no_proposals(len(arrangement)), np.bool_(False), np.int32(0), np.int32(1)
    here, nothing, no, zero, one = mesh.put(parts)
    return Guided(here, nothing, cutoff=zero, far=no, chunks=one, rounds=zero, swaps=zero, finished=no)


def _no_proposals(depth: int) -> Proposals:
    """The proposals of an arrangement that is still to be evaluated."""
    nothing: Any = np.float32(np.inf), np.zeros((depth, depth), np.float32), np.zeros((depth, depth), np.int32)
    return Proposals(*nothing)


@program(static_argnames=("chunk", "screen", "memory"), options=QUICK)
def guided_rounds(
    stack: Stack,
    start: Guided,
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    tolerance: Float[Array, ""],
    most: Int[Array, ""],
    chunk: int = CHUNK,
    screen: str = "highest",
    memory: int = MEMORY,
) -> Guided:
    """Up to `most` rounds of repair by proposals from first-order scores; ends early where it is finished.

    A round applies the non-overlapping proposals of largest total effect together and keeps them where the MSE over the
    rows in use falls; fewer are tried after a rejection. Where exchanges of neighbours are used up, moves over any
    distance are proposed; where these are, four times the rows are taken. An MSE within `tolerance` on the rows in use ends
    it, whatever moves are left. It begins with the first `chunk` rows. `screen` is the precision of the scores, as
    `lax.Precision` names it; what is kept is decided at the stack's own.
    """
    chunked = _Chunked(*(in_chunks(a, chunk) for a in (x, pred, jnp.ones(len(x)))))
    chunks, rows = len(chunked.x), len(x)
    measure = partial(_measure, replace(stack, precision=screen), chunked, rows=rows, memory=memory)

    def step(at: Guided) -> Guided:
        # Without proposals, as at the start, the candidate is the arrangement itself: accepting it measures it.
        candidate, proposed = _apply_best(at.arrangement, at.proposals, jnp.asarray(CUTOFFS)[at.cutoff])
        mse, first = _evaluate(stack, chunked, candidate, at.chunks, rows)
        accepted = mse < at.proposals.mse
        used_up = ~accepted & ((proposed <= 1) | (at.cutoff == len(CUTOFFS) - 1))
        done = accepted & (mse <= tolerance)
        finished = done | (used_up & at.far & (at.chunks == chunks))
        more_rows = used_up & at.far & ~finished
        far = jnp.where((accepted & (proposed > 0)) | more_rows, False, at.far | used_up)
        kept = at.proposals._replace(mse=jnp.where(done, mse, at.proposals.mse))
        proposals = lax.cond(accepted & ~done, measure, lambda *_: kept, candidate, mse, first, far, at.chunks)
        return Guided(
            arrangement=jnp.where(accepted, candidate, at.arrangement),
            proposals=jax.tree.map(partial(jnp.where, used_up & ~finished), _no_proposals(stack.depth), proposals),
            cutoff=jnp.where(accepted, jnp.maximum(at.cutoff - 1, 0), jnp.where(used_up, 0, at.cutoff + 1)),
            far=far,
            chunks=jnp.where(more_rows, jnp.minimum(4 * at.chunks, chunks), at.chunks),
            rounds=at.rounds + 1,
            swaps=at.swaps + jnp.where(accepted, proposed, 0),
            finished=finished,
        )

    last = start.rounds + most
    return lax.while_loop(lambda at: ~at.finished & (at.rounds < last), step, start)


class _Chunked(NamedTuple):
    """A table in C chunks of M rows, the last one filled up with zeros."""

    x: Float[Array, "C M d"]
    pred: Float[Array, "C M o"]
    weight: Float[Array, "C M"]

    def values(self, used: Int[Array, ""], rows: int) -> Int[Array, ""]:
        """Predictions in the chunks used, of a table of so many rows."""
        return jnp.minimum(used * self.x.shape[1], rows) * self.pred.shape[2]


def _evaluate(
    stack: Stack, chunked: _Chunked, arrangement: Int[Array, "L 2"], used: Int[Array, ""], rows: int
) -> tuple[Float[Array, ""], Trajectory]:
    """MSE over the chunks used, and the trajectory of the first."""
    xs, preds, weights = chunked
    add = lambda c, total: total + squared_error(stack, arrangement, 0, xs[c], preds[c], weights[c])  # noqa: E731
    first = trajectory(stack, arrangement, xs[0])
    of_first = jnp.sum(weights[0][:, None] * (read_out(stack, first.states[-1]) - preds[0]) ** 2)
    return lax.fori_loop(1, used, add, of_first) / chunked.values(used, rows), first


def _measure(
    stack: Stack,
    chunked: _Chunked,
    arrangement: Int[Array, "L 2"],
    mse: Float[Array, ""],
    first: Trajectory,
    far: Array,
    used: Int[Array, ""],
    rows: int,
    memory: int,
) -> Proposals:
    """Proposals, at the precision of `stack`, from the result of `_evaluate`."""
    xs, preds, weights = chunked

    def add(c: Int[Array, ""], sums: FirstOrder) -> FirstOrder:
        states = lax.cond(c == 0, lambda: first, lambda: trajectory(stack, arrangement, xs[c]))
        at = linearised(stack, arrangement, states)
        part = first_order_sums(stack, arrangement, at, preds[c], weights[c], far, memory)
        return jax.tree.map(jnp.add, sums, part)

    depth = stack.depth
    zeros = FirstOrder(jnp.float32(0), jnp.zeros(depth - 1), jnp.zeros((3, depth, depth)))
    sums = lax.fori_loop(0, used, add, zeros)
    effects = sums.moves / chunked.values(used, rows)
    return Proposals(mse, -jnp.triu(jnp.min(effects, axis=0), 1), jnp.argmin(effects, axis=0))


def _apply_best(
    arrangement: Int[Array, "L 2"], proposals: Proposals, cutoff: Float[Array, ""]
) -> tuple[Int[Array, "L 2"], Int[Array, ""]]:
    """The non-overlapping proposals of largest total fall, applied, and their number: weighted interval scheduling."""
    depth = len(arrangement)
    fall = jnp.where(proposals.fall >= cutoff * jnp.max(proposals.fall), jnp.maximum(proposals.fall, 0), 0)
    positions = jnp.arange(depth, dtype=jnp.int32)

    def close(best: Float[Array, " positions"], j: Int[Array, ""]):
        """best[k] is the largest total fall within the positions before k; here those up to j are settled."""
        totals = jnp.where(positions < j, best[:-1] + fall[:, j], -jnp.inf)
        i = jnp.argmax(totals).astype(jnp.int32)
        worth = totals[i] > best[j]
        return best.at[j + 1].set(jnp.where(worth, totals[i], best[j])), jnp.where(worth, i, j)

    _, opens = lax.scan(close, jnp.zeros(depth + 1), positions)

    def apply(back: Int[Array, ""], at):
        arrangement, end, count = at
        j = depth - 1 - back
        i = opens[j]
        here = (j == end) & (i < j)
        move = far_move(proposals.kind[i, j], i, j)
        arrangement = jnp.where(here, moved(arrangement, move), arrangement)
        return arrangement, jnp.where(j == end, i - 1, end), count + here

    start = (arrangement, jnp.int32(depth - 1), jnp.int32(0))
    arrangement, _, count = lax.fori_loop(0, depth, apply, start)
    return arrangement, count
