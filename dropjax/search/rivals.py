"""Rivals: other orders that fit a noisy or rounded pred as well as the answer does, so that they cannot be told apart.

Every exchange of neighbours, every swap and insertion and every exchange of two output halves is looked at to first order,
and the closest of them exactly, on all rows. So are the orders that the search itself went through. Several of these moves
at once are not looked at.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from dropjax.core.options import MEMORY
from dropjax.core.stack import Stack, advance, read_out
from dropjax.moves.arrangements import INSERTION, PAIR_SWAP, SWAP, moved, nothing, pairs_of_positions
from dropjax.moves.first_order import adjacent_changes, far_changes, linearise, pair_swap_changes
from dropjax.runtime import mesh
from dropjax.runtime.device import side_by_side
from dropjax.runtime.programs import QUICK, program
from dropjax.runtime.rows import sum_over_rows
from dropjax.search.answer import SURE, Answer, Compared
from dropjax.search.verify import SCREENED_ROWS, Pass

CLOSEST = 512
"""Number of moves, those that change the outputs least, that are evaluated exactly."""

AT_ONCE = 64
"""Number of moves in each call, always the same so that one length is compiled."""

LOOKS = (256, 2048)
"""Number of first rows on which an order is compared before all rows are: what these tell apart needs no more."""


def all_moves(depth: int) -> Int[np.ndarray, "K 3"]:
    """Every move that is looked at: exchanges of output halves, insertions to the right and to the left, swaps."""
    i, j = (a.astype(np.int32) for a in np.triu_indices(depth, 1))
    insert, swap = np.full_like(i, INSERTION), np.full_like(i, SWAP)
    far = [np.stack(move, axis=1) for move in ((insert, i, j), (insert, j, i), (swap, i, j))]
    return np.concatenate([pairs_of_positions(depth, PAIR_SWAP), *far])


@program(static_argnames=("memory",), options=QUICK)
def changes_by_moves(
    stack: Stack, arrangement: Int[Array, "L 2"], x: Float[Array, "N d"], memory: int = MEMORY
) -> Float[Array, " K"]:
    """RMS change of the outputs, to first order, by each of `all_moves`."""
    (depth, hidden, width), outputs = stack.w_in.shape, len(stack.b_last)

    def of_chunk(x: Array, weight: Array) -> Float[Array, " K"]:
        i, j = np.triu_indices(depth, 1)
        at = linearise(stack, arrangement, x)
        near = jnp.zeros((depth, depth, len(x), outputs)).at[jnp.arange(depth - 1), jnp.arange(1, depth)]
        near = near.set(adjacent_changes(stack, arrangement, at))[i, j]  # for neighbours this is more exact than flips
        far = [jnp.moveaxis(changes[..., i, j], -1, 0) for changes in far_changes(at)]
        far = [jnp.where((j == i + 1)[:, None, None], near, changes) for changes in far]
        changes = jnp.concatenate([pair_swap_changes(stack, arrangement, at)[i, j], *far])
        return jnp.sum(weight[:, None] * changes**2, axis=(1, 2))

    held = 4 * depth * (hidden + 2 * width * (1 + outputs) + outputs * (12 * depth + hidden))
    return jnp.sqrt(sum_over_rows(of_chunk, (x, jnp.ones(len(x))), held, memory) / (len(x) * outputs))


@program(static_argnames=("memory",), options=QUICK)
def compare(
    stack: Stack,
    arrangement: Int[Array, "L 2"],
    moves: Int[Array, "K 3"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    outputs: Float[Array, "N o"],
    bound: Float[Array, "N o"],
    memory: int = MEMORY,
) -> tuple[Float[Array, " K"], Float[Array, " K"], Float[Array, " K"]]:
    """The orders after each of the moves beside the answer, whose outputs are given: `Compared`'s three parts."""

    def of_chunk(*rows: Array) -> tuple[Array, Array, Array]:
        x, pred, outputs, bound, weight = rows

        def after(move: Int[Array, "3"]) -> tuple[Array, ...]:
            f = read_out(stack, advance(stack, moved(arrangement, move), 0, stack.depth, x))
            beyond = jnp.maximum(jnp.abs(f - pred) - bound, 0)
            return tuple(jnp.sum(weight[:, None] * part) for part in ((f - pred) ** 2, (f - outputs) ** 2, beyond))

        return lax.map(after, moves)

    hidden, width = stack.w_in.shape[1:]
    sums = sum_over_rows(of_chunk, (x, pred, outputs, bound, jnp.ones(len(x))), 8 * (width + hidden), memory)
    return mesh.whole(jax.tree.map(lambda a: a / pred.size, sums))


class Rivals(NamedTuple):
    """Orders that cannot be distinguished from the answer."""

    orders: Sequence[Int[np.ndarray, "L 2"]] = ()
    """The orders that fit as well as the answer."""
    better: Int[np.ndarray, "L 2"] | None = None
    """An order that fits better; None if there is none."""


def closest_moves(answer: Answer, memory: int = MEMORY) -> Int[np.ndarray, "K 3"]:
    """The moves that change the outputs least, to first order on few rows; moves that noise can surely not hide are left
    out."""
    stack, _, _, table = answer.problem
    changes = np.asarray(changes_by_moves(stack, answer.arrangement, table.x[:SCREENED_ROWS], memory))
    rms = max(np.sqrt(answer.passed.mse), answer.yardstick.pred_noise or 0)
    reach = rms * max(1, 8 * SURE / np.sqrt(table.pred.size))
    ranked = np.argsort(changes, kind="stable")[:CLOSEST]
    return all_moves(stack.depth)[ranked[changes[ranked] <= reach]]


def compared(answer: Answer, moves: Int[np.ndarray, "K 3"], rows: int, memory: int = MEMORY) -> tuple[Compared, float]:
    """Compares the orders after these moves with the answer on the first rows; also returns the answer's own MSE there."""
    stack, _, _, table = answer.problem
    limit = answer.yardstick.limit(answer.float32)
    parts = table.x, table.pred, mesh.fetch(answer.passed.outputs), np.broadcast_to(limit, table.pred.shape)
    on_devices = mesh.put_rows([np.asarray(part[:rows], np.float32) for part in parts])
    filled = np.concatenate([moves, nothing(stack.depth, 1 + -(len(moves) + 1) % AT_ONCE)])
    batches = filled.reshape(-1, AT_ONCE, 3)
    of_batch = side_by_side(lambda batch: compare(stack, answer.arrangement, batch, *on_devices, memory=memory), batches)
    parts = [np.concatenate(part) for part in zip(*of_batch, strict=True)]
    return Compared(*(part[: len(moves)] for part in parts)), float(parts[0][-1])


def near_rivals(answer: Answer, memory: int = MEMORY) -> Rivals:
    """Orders one move away that fit as well as the answer, and the best of those that fit better."""
    (total, outputs), moves = answer.problem.table.pred.shape, closest_moves(answer, memory)
    for rows in (rows for rows in LOOKS if rows < total):
        other, mse = compared(answer, moves, rows, memory)
        moves = moves[~answer.told(other, mse, rows * outputs)]
    other, mse = compared(answer, moves, total, memory)
    open_still = ~answer.told(other, mse, total * outputs) & ~answer.alike(other.change)
    moves, errors = moves[open_still], other.mse[open_still]
    orders = [after(answer.arrangement, move) for move in moves]
    is_better = len(errors) > 0 and mse - np.min(errors) > answer.float32**2
    return Rivals(orders, orders[int(np.argmin(errors))] if is_better else None)


def towards_fitting(answer: Answer, memory: int = MEMORY) -> Int[np.ndarray, "L 2"] | None:
    """The order one move away whose errors are least beyond what rounding explains; None if that is no less than the
    answer's."""
    moves, total = closest_moves(answer, memory), len(answer.problem.table.pred)
    beyond = np.inf
    for rows in (min(LOOKS[-1], total), total):
        if len(moves) == 0:
            return None
        other, _ = compared(answer, moves, rows, memory)
        least = np.argsort(other.beyond, kind="stable")[:8]
        moves, beyond = moves[least], float(other.beyond[least[0]])
    own = answer.beyond(mesh.fetch(answer.passed.outputs)).mean()
    return after(answer.arrangement, moves[0]) if beyond < own else None


def after(arrangement: Int[np.ndarray, "L 2"], move: Int[np.ndarray, "3"]) -> Int[np.ndarray, "L 2"]:
    """The arrangement after the move, on the host."""
    return np.asarray(moved(mesh.put(arrangement), move))


def searched_rivals(answer: Answer, passes: Mapping[bytes, Pass]) -> list[Int[np.ndarray, "L 2"]]:
    """Orders that the search went through, by their bytes, that fit as well as the answer and are not the same."""
    table, mine = answer.problem.table, mesh.fetch(answer.passed.outputs)
    found = []
    for key, passed in passes.items():
        if key == np.asarray(answer.arrangement, np.int32).tobytes() or not np.isfinite(passed.mse):
            continue
        outputs = mesh.fetch(passed.outputs)
        change = np.mean((outputs - mine) ** 2, dtype=np.float64)
        beyond = 0.0 if answer.yardstick.bound is None else answer.beyond(outputs).sum()
        other = Compared(*(np.array([part]) for part in (passed.mse, change, beyond)))
        if not answer.told(other, answer.passed.mse, table.pred.size)[0] and not answer.alike(other.change)[0]:
            found.append(np.frombuffer(key, np.int32).reshape(-1, 2))
    return found
