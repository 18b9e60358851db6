"""Moves on an arrangement, and what each would do to the MSE: exactly, as batched forward passes.

A move is a triple (kind, i, j) of positions. All candidates of a kernel start from the same arrangement, whose states are
kept, so that a candidate is run only from the first position it changes: all swaps of L blocks cost L(L²−1)/3 block
evaluations instead of L²(L−1)/2.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from dropjax import fused, mesh
from dropjax.device import CORE_ROWS, MEMORY, side_by_side, workers
from dropjax.programs import program
from dropjax.stack import ACTIVATIONS, Stack, Trajectory, adjoints, advance, product, read_out, residual, trajectory

T = TypeVar("T")

BATCH_ROWS = 1 << 14
"""Rows, over all neighbours together, up to which their swaps are scored as one batch of products."""

SWAP, INSERTION, PAIR_SWAP = range(3)
"""Exchange the blocks at i and j; take the block at i out and put it in at j; exchange the output halves at i and j."""


def adjacent_swaps(depth: int) -> Int[np.ndarray, "L-1 3"]:
    """The L−1 swaps of neighbours, from left to right."""
    i = np.arange(depth - 1, dtype=np.int32)
    return np.stack([np.full_like(i, SWAP), i, i + 1], axis=1)


def pairs_of_positions(depth: int, kind: int) -> Int[np.ndarray, "K 3"]:
    """The L(L−1)/2 moves of `kind` with i < j, from left to right: all swaps, or all pair swaps."""
    i, j = (a.astype(np.int32) for a in np.triu_indices(depth, 1))
    return np.stack([np.full_like(i, kind), i, j], axis=1)


def insertions(depth: int) -> Int[np.ndarray, "K 3"]:
    """The (L−1)² different insertions: every i to every j, a neighbour only to its right (the other way is the same)."""
    i, j = (a.reshape(-1).astype(np.int32) for a in np.indices((depth, depth)))
    keep = (i != j) & (i != j + 1)
    i, j = i[keep], j[keep]
    return np.stack([np.full_like(i, INSERTION), i, j], axis=1)


@jax.jit
def moved(arrangement: Int[Array, "L 2"], move: Int[Array, "3"]) -> Int[Array, "L 2"]:
    """The arrangement after one move."""
    kind, i, j = move
    k = jnp.arange(len(arrangement), dtype=jnp.int32)
    swapped = jnp.where(k == i, j, jnp.where(k == j, i, k))
    shifted = k + ((i <= k) & (k < j)).astype(k.dtype) - ((j < k) & (k <= i)).astype(k.dtype)
    inserted = jnp.where(k == j, i, shifted)
    ins_from = jnp.where(kind == INSERTION, inserted, jnp.where(kind == SWAP, swapped, k))
    outs_from = jnp.where(kind == INSERTION, inserted, swapped)
    return jnp.stack([arrangement[ins_from, 0], arrangement[outs_from, 1]], axis=1)


@jax.jit
def squared_error(stack: Stack, arrangement, start, state, pred, weight) -> Float[Array, ""]:
    """Weighted sum of squared errors, in pred's units squared, of an arrangement run from `state`, that before `start`."""
    outputs = read_out(stack, advance(stack, arrangement, start, stack.depth, state))
    return jnp.sum(weight[:, None] * (outputs - pred) ** 2)


def mean_over_rows(
    of_chunk: Callable[..., T], x: Float[Array, "N d"], pred: Float[Array, "N o"], bytes_per_row: int, memory: int
) -> T:
    """Means over all predictions, from the sums that `of_chunk(x, pred, weight)` gives for chunks of rows in `memory`."""
    sums = sum_over_rows(of_chunk, (x, pred, jnp.ones(len(x))), bytes_per_row, memory)
    return mesh.whole(jax.tree.map(lambda a: a / pred.size, sums))


def sum_over_rows(of_chunk: Callable[..., T], parts: Sequence[Float[Array, "N ..."]], bytes_per_row: int, memory: int) -> T:
    """Sum of what `of_chunk(*parts)` gives for chunks of rows in `memory`; rows of zeros fill the last one."""
    chunks = row_chunks(parts, bytes_per_row, memory)
    sums = of_chunk(*(chunk[0] for chunk in chunks))
    if len(chunks[0]) > 1:
        rest = tuple(chunk[1:] for chunk in chunks)
        sums, _ = lax.scan(lambda sums, chunk: (jax.tree.map(jnp.add, sums, of_chunk(*chunk)), None), sums, rest)
    return sums


def map_over_rows(of_chunk: Callable[..., T], parts: Sequence[Float[Array, "N ..."]], bytes_per_row: int, memory: int) -> T:
    """What `of_chunk(*parts)` gives for every row, rows first, from chunks of rows in `memory`."""
    chunks = row_chunks(parts, bytes_per_row, memory)
    by_chunk = lax.map(lambda chunk: of_chunk(*chunk), chunks)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[: len(parts[0])], by_chunk)


def row_chunks(
    parts: Sequence[Float[Array, "N ..."]], bytes_per_row: int, memory: int
) -> tuple[Float[Array, "chunks size ..."], ...]:
    """Each part in the chunks of rows that `memory` holds."""
    size = chunk_size(len(parts[0]), bytes_per_row, memory)
    return tuple(in_chunks(part, size) for part in parts)


def chunk_size(rows: int, bytes_per_row: int, memory: int) -> int:
    """Rows of each of the fewest equal chunks that `memory` holds, a multiple of the devices that they are spread over."""
    chunks = -(-rows // max(1, min(rows, memory // bytes_per_row)))
    devices = mesh.size(mesh.ROWS)
    return -(-rows // chunks // devices) * devices


def in_chunks(a: Float[Array, "N ..."], size: int) -> Float[Array, "chunks size ..."]:
    """Rows in chunks, the last one filled up with zeros: as weights, they count for nothing."""
    chunks = -(-len(a) // size)
    filled = jnp.pad(a, ((0, chunks * size - len(a)),) + ((0, 0),) * (a.ndim - 1))
    return mesh.spread(filled.reshape(chunks, size, *a.shape[1:]), None, mesh.ROWS)


def nothing(depth: int, times: int) -> Int[np.ndarray, "times 3"]:
    """Moves that change nothing and cost least to score, to fill up a batch."""
    return np.full((times, 3), (SWAP, depth - 1, depth - 1), np.int32)


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

    `together` candidates share each batched product; moves that are sorted by their first position share most. One at a
    time, every core has candidates of its own and runs as many rows as its cache holds.
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
    """MSE over the given rows of each of K arrangements, `together` of them in each batched product."""
    hidden, width = stack.w_in.shape[1:]

    def of_chunk(x, pred, weight):
        run = lambda arrangement: squared_error(stack, arrangement, 0, x, pred, weight)  # noqa: E731
        return lax.map(run, arrangements, batch_size=None if together == 1 else together)

    return mean_over_rows(of_chunk, x, pred, 8 * together * (width + hidden), memory)


class Linearised(NamedTuple):
    """An arrangement's states, preactivations and adjoints: all that first-order scores need."""

    states: Float[Array, "L+1 N d"]
    preactivations: Float[Array, "L N h"]
    adjoints: Float[Array, "L+1 N o d"]


def linearise(stack: Stack, arrangement: Int[Array, "L 2"], x: Float[Array, "N d"]) -> Linearised:
    """One pass forward and one back."""
    return linearised(stack, arrangement, trajectory(stack, arrangement, x))


def linearised(
    stack: Stack, arrangement: Int[Array, "L 2"], at: Trajectory, behind: Float[Array, "N o d"] | None = None
) -> Linearised:
    """One pass back, after one forward; `behind` as in `adjoints`."""
    return Linearised(*at, adjoints(stack, arrangement, at, behind))


def adjacent_changes(stack: Stack, arrangement: Int[Array, "L 2"], at: Linearised) -> Float[Array, "L-1 N o"]:
    """Change of the outputs by each swap of neighbours: exact up to the state behind the two, linear from there."""

    def change(of: tuple[Array, Array, Array, Array, Array]) -> Float[Array, "N o"]:
        first, second, before, after, adjoint = of
        between = before + residual(stack, second, before)
        return _inner(adjoint, between + residual(stack, first, between) - after)

    neighbours = (arrangement[:-1], arrangement[1:], at.states[:-2], at.states[2:], at.adjoints[2:])
    # Products of few rows are too small one by one; those of many leave the cache together.
    together = stack.depth * at.states.shape[1] <= BATCH_ROWS
    return jax.vmap(change)(neighbours) if together else lax.map(change, neighbours)


def flips(at: Linearised) -> Float[Array, "N o L L"]:
    """Δ_ab for a < b (0 elsewhere): change of the outputs, to first order, by block b coming before block a.

    Δ_ab = ⟨U_a, R_b⟩ − ⟨U_b, R_a⟩ with the residuals R_k = x_{k+1} − x_k and the adjoints' increments U_k = g_k − g_{k+1}.
    """
    residuals = at.states[1:] - at.states[:-1]
    increments = at.adjoints[:-1] - at.adjoints[1:]
    one_way = jnp.einsum("anod,bnd->noab", increments, residuals, precision=lax.Precision.HIGHEST)
    return jnp.triu(one_way - jnp.swapaxes(one_way, -1, -2), 1)


def flips_and_swaps(stack: Stack, arrangement: Int[Array, "L 2"], at: Linearised) -> Float[Array, "N o L L"]:
    """`flips`, but for neighbours the exact change of the state behind them: `adjacent_changes`."""
    left = jnp.arange(stack.depth - 1)
    near = jnp.moveaxis(adjacent_changes(stack, arrangement, at), 0, -1)
    return flips(at).at[..., left, left + 1].set(near)


class FarChanges(NamedTuple):
    """Changes of the outputs, to first order, by the moves between any two positions i < j: sums of flips."""

    right: Float[Array, "N o L L"]
    """Insertion of the block at i at j: Σ_{k=i+1..j} Δ_ik."""
    left: Float[Array, "N o L L"]
    """Insertion of the block at j at i: Σ_{k=i..j−1} Δ_kj."""
    swap: Float[Array, "N o L L"]
    """Both blocks exchanged: each passes all between them, and they pass one another once."""


def far_move(kind: Int[Array, "*K"], i: Int[Array, "*K"], j: Int[Array, "*K"]) -> Int[Array, "*K 3"]:
    """The moves between positions i < j that `FarChanges` lists as its field number `kind`."""
    swapped = jnp.stack([jnp.full_like(i, SWAP), i, j], axis=-1)
    inserted = jnp.stack([jnp.full_like(i, INSERTION), jnp.where(kind == 0, i, j), jnp.where(kind == 0, j, i)], axis=-1)
    return jnp.where(jnp.expand_dims(kind == 2, -1), swapped, inserted)


def far_changes(at: Linearised) -> FarChanges:
    """All insertions and swaps from one pass forward and one back."""
    delta = flips(at)
    right = jnp.cumsum(delta, axis=-1)
    left = jnp.cumsum(delta[..., ::-1, :], axis=-2)[..., ::-1, :]
    left_of_rest = jnp.pad(left[..., 1:, :], [(0, 0)] * (left.ndim - 2) + [(0, 1), (0, 0)])
    return FarChanges(right, left, right + left_of_rest)


class FirstOrder(NamedTuple):
    """What every move is predicted to add to the MSE; entries with i ≥ j are 0."""

    mse: Float[Array, ""]
    """Of the arrangement itself: exact."""
    adjacent: Float[Array, " L-1"]
    """Exchanges of neighbours, with their exact change of the state behind them."""
    far: Float[Array, "3 L L"]
    """`FarChanges`' insertions to the right, to the left, and swaps."""


def effect_sum(
    change: Float[Array, "N o ..."], error: Float[Array, "N o"], weight: Float[Array, " N"]
) -> Float[Array, "..."]:
    """Weighted sum over rows of 2eΔ + Δ²: what changes Δ of the outputs add to the squared error, e = f − pred."""
    behind = (1,) * (change.ndim - 2)
    by_row = (2 * error.reshape(*error.shape, *behind) + change) * change
    return jnp.sum(weight.reshape(-1, 1, *behind) * by_row, axis=(0, 1))


def far_effects(
    at: Linearised, error: Float[Array, "N o"], weight: Float[Array, " N"], memory: int = MEMORY
) -> Float[Array, "3 L L"]:
    """`effect_sum` of each of `FarChanges`, as many rows at a time as `memory` holds."""

    def of(states: Array, adjoints: Array, error: Array, weight: Array) -> Float[Array, "3 L L"]:
        chunk = at._replace(states=jnp.swapaxes(states, 0, 1), adjoints=jnp.swapaxes(adjoints, 0, 1))
        return jnp.stack([effect_sum(change, error, weight) for change in far_changes(chunk)])

    parts = jnp.swapaxes(at.states, 0, 1), jnp.swapaxes(at.adjoints, 0, 1), error, weight
    return sum_over_rows(of, parts, 4 * 8 * error.shape[1] * len(at.preactivations) ** 2, memory)


def first_order_sums(
    stack: Stack,
    arrangement: Int[Array, "L 2"],
    at: Linearised,
    pred: Float[Array, "N o"],
    weight: Float[Array, " N"],
    far: bool | Array = True,
    memory: int = MEMORY,
) -> FirstOrder:
    """`score_first_order` as sums over weighted rows; the moves over any distance only where `far` is true."""
    error = read_out(stack, at.states[-1]) - pred
    effect = partial(effect_sum, error=error, weight=weight)
    nowhere = jnp.zeros((3, stack.depth, stack.depth))
    return FirstOrder(
        mse=jnp.sum(weight[:, None] * error**2),
        adjacent=jax.vmap(effect)(adjacent_changes(stack, arrangement, at)),
        far=lax.cond(far, lambda: far_effects(at, error, weight, memory), lambda: nowhere),
    )


@partial(jax.jit, static_argnames="memory")
def score_first_order(
    stack: Stack, arrangement: Int[Array, "L 2"], x: Float[Array, "N d"], pred: Float[Array, "N o"], memory: int = MEMORY
) -> FirstOrder:
    """Predicted effects of all exchanges of neighbours, insertions and swaps: mean(2eΔ + Δ²), e = f − pred."""
    depth, (hidden, width), outputs = stack.depth, stack.w_in.shape[1:], pred.shape[1]
    bytes_per_row = 4 * (depth * hidden + 2 * depth * width * (1 + outputs))

    def of_chunk(x: Array, pred: Array, weight: Array) -> FirstOrder:
        return first_order_sums(stack, arrangement, linearise(stack, arrangement, x), pred, weight, memory=memory)

    return mean_over_rows(of_chunk, x, pred, bytes_per_row, memory)


def contributions(
    stack: Stack, arrangement: Int[Array, "L 2"], positions: Int[Array, " n"], at: Linearised
) -> Float[Array, "n n N o"]:
    """φ_ab = ⟨g_{a+1}, W_out·act(W_in·x_a + b_in) + b_out⟩ with the input half at position a and the output half at b: what
    the two would contribute to the outputs at a, to first order."""
    act = ACTIVATIONS[stack.activation]
    outs = arrangement[positions, 1]
    all_halves = jnp.swapaxes(stack.w_out[outs], 1, 2).reshape(-1, stack.w_out.shape[1])

    def of_position(of: tuple[Array, Array]) -> Float[Array, "n N o"]:
        z, adjoint = of
        by_hidden = product(adjoint, all_halves).reshape(*adjoint.shape[:2], len(outs), -1)
        through_weights = jnp.einsum("nolh,nh->lno", by_hidden, act(z), precision=lax.Precision.HIGHEST)
        return through_weights + jnp.moveaxis(product(adjoint, stack.b_out[outs]), 2, 0)

    return lax.map(of_position, (at.preactivations[positions], at.adjoints[positions + 1]))


def pair_swap_changes(stack: Stack, arrangement: Int[Array, "L 2"], at: Linearised) -> Float[Array, "L L N o"]:
    """Change of the outputs, to first order, by the exchange of the output halves at every two positions.

    ⟨g_{a+1}, r_{a,b}(x_a) − r_a(x_a)⟩ and the same for b, where r_{a,b} has the input half at a and the output half at b.
    """
    by_pair = contributions(stack, arrangement, jnp.arange(stack.depth), at)
    one_way = by_pair - jnp.einsum("aano->ano", by_pair)[:, None]
    return one_way + jnp.swapaxes(one_way, 0, 1)


def _inner(adjoint: Float[Array, "N o d"], change: Float[Array, "N d"]) -> Float[Array, "N o"]:
    return jnp.einsum("nod,nd->no", adjoint, change, precision=lax.Precision.HIGHEST)
