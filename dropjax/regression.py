"""What a stack's errors say about its pairs and its order, by least squares.

Pairs: a block is linear in its output half, so to first order the outputs are linear in a soft pairing P of some blocks'
halves. Order: to first order every two blocks that stand the wrong way round add a change of their own to the outputs, so
that one regression of the errors on all such changes tells all wrong ways at once, also where they make up for one another
and no single move helps. A deep stack has more pairs of blocks than a table has rows; there the unknowns are the L places
that the blocks are off, for a block that stands too far left stands the wrong way round with all of its next neighbours
alike. None of this owes anything to the weights.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax import lax
from jaxtyping import Array, Float, Int

from dropjax import mesh
from dropjax.device import MEMORY
from dropjax.moves import adjacent_changes, chunk_size, contributions, flips_and_swaps, in_chunks, linearise, mean_over_rows
from dropjax.stack import Stack, read_out

RIDGES = (0.1, 0.3, 1.0, 3.0)
"""Ridges of a pairing, in units of the features' mean square sum: weaker ones find the pairing at hand, whatever it is."""

ORDER_RIDGES = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
"""Ridges of an order, in the same units: weak ones near the answer, strong ones far from it."""

MOST_FLIPS = 5000
"""Pairs of positions up to which each of them is an unknown: the cost grows with their cube."""

SPANS = (1.0, 4.0, 16.0)
"""In places: how far off a block may be for its changes to be told from its neighbours', as the scale of a decay."""

REACH = 64
"""Places after which that decay ends."""

STEPS = (0.5, 1.0, 2.0)
"""Parts of the way to where the regression wants the blocks."""

BLOCK = 32
"""Positions whose flips with those behind them are held at once."""

FLIP_ROWS = 4000
"""Rows that flips are fitted to, or twice the number of flips, if that is more."""

ROWS_PER_PLACE = 2
"""Predictions for each unknown place, where there are as many, and at least `FEWEST_ROWS`."""
FEWEST_ROWS = 1000


# Order, by flips


class Normal(NamedTuple):
    """Normal equations of the errors by P unknowns, as means over the predictions."""

    gram: Float[Array, "P P"]
    towards: Float[Array, " P"]


def by_places(depth: int) -> bool:
    """Whether a stack of that depth is put in order by its blocks' places, and not by flips."""
    return depth * (depth - 1) // 2 > MOST_FLIPS


@partial(jax.jit, static_argnames="memory")
def normal_equations(
    stack: Stack,
    arrangement: Int[Array, "L 2"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    memory: int = MEMORY,
) -> Normal:
    """Of −e by Δ_ij for all i < j: the change of the outputs by the blocks at i and j standing the other way round."""
    depth, (hidden, width), outputs = stack.depth, stack.w_in.shape[1:], pred.shape[1]
    i, j = np.triu_indices(depth, 1)

    def of_chunk(x, pred, weight):
        at = linearise(stack, arrangement, x)
        error = (read_out(stack, at.states[-1]) - pred) * weight[:, None]
        changes = flips_and_swaps(stack, arrangement, at)[..., i, j] * weight[:, None, None]
        product = partial(jnp.einsum, precision=lax.Precision.HIGHEST)
        return Normal(product("nop,noq->pq", changes, changes), -product("nop,no->p", changes, error))

    held = depth * hidden + 2 * depth * width * (1 + outputs) + outputs * (4 * depth**2 + 2 * len(i))
    return mean_over_rows(of_chunk, x, pred, 4 * held, memory)


def ridge_solutions(normal: Normal, ridges: Sequence[float] = ORDER_RIDGES) -> list[Float[np.ndarray, " P"]]:
    """For each ridge, how much of each unknown the errors ask for."""
    gram, towards = (np.asarray(a, np.float64) for a in normal)
    scale = max(np.trace(gram) / len(gram), 1e-300)
    identity = np.eye(len(gram))
    return [scipy.linalg.solve(gram + ridge * scale * identity, towards, assume_a="pos") for ridge in ridges]


def reordered(arrangement: Int[np.ndarray, "L 2"], share: Float[np.ndarray, " P"]) -> Int[np.ndarray, "L 2"]:
    """The blocks by the expected number of those before them, a pair being the wrong way round with probability `share`
    (Borda's count)."""
    i, j = np.triu_indices(len(arrangement), 1)
    share = np.clip(share, 0, 1)
    before = np.triu(np.ones((len(arrangement), len(arrangement))), 1)
    before[i, j], before[j, i] = 1 - share, share
    return arrangement[np.argsort(before.sum(axis=0), kind="stable")]


def orders(
    stack: Stack,
    arrangement: Int[np.ndarray, "L 2"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    memory: int = MEMORY,
) -> Int[np.ndarray, "K L 2"]:
    """Orders of the same blocks that regressions of the errors propose; K is always the same.

    By flips, for each ridge: those by the shares themselves, about 0 where two blocks stand rightly and 1 where not, by
    half and by twice as much, and by the flips of more than 30% and 70%. By places (`by_places`), for each span and ridge:
    those after some `STEPS` of the way.
    """
    if by_places(len(arrangement)):
        return _orders_by_places(stack, arrangement, x, pred, memory)
    shares = ridge_solutions(normal_equations(stack, arrangement, x, pred, memory))
    asked = [of for share in shares for of in (share, share / 2, 2 * share, share > 0.3, share > 0.7)]
    return np.stack([reordered(arrangement, np.asarray(of, np.float64)) for of in asked])


# Order, by places


@partial(jax.jit, static_argnames="memory")
def place_changes(
    stack: Stack,
    arrangement: Int[Array, "L 2"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    memory: int = MEMORY,
) -> tuple[Float[Array, "N o S L"], Float[Array, "N o"]]:
    """Change of the outputs, to first order, by each block's moving right, per place and seen over each of `SPANS`; and the
    errors f − pred.

    ½(Σ_{k>0} w_k·Δ_{i,i+k} − Σ_{k>0} w_k·Δ_{i−k,i}) with w_k ∝ exp(−k/span), Σw = 1: to the right the block passes those
    behind it, from the left those before it come back.
    """
    depth, (hidden, width), outputs = stack.depth, stack.w_in.shape[1:], pred.shape[1]
    reach, block = min(REACH, depth - 1), min(BLOCK, depth)
    blocks, window = -(-depth // block), block + reach
    apart = np.arange(window) - np.arange(block)[:, None]
    spans = np.array(SPANS)[:, None, None]
    decay = np.where((apart > 0) & (apart <= reach), np.exp((1 - apart) / spans) * (1 - np.exp(-1 / spans)), 0)
    weights = jnp.asarray(decay, jnp.float32)  # [S, block, window]

    def of_chunk(rows: tuple[Array, Array]) -> tuple[Array, Array]:
        x, pred = rows
        at = linearise(stack, arrangement, x)
        # Positions beyond the last one hold zeros, whose flips are zero.
        filled = lambda a, more: jnp.pad(a, ((0, more),) + ((0, 0),) * (a.ndim - 1))  # noqa: E731
        beyond = blocks * block + reach - depth
        residuals = filled(at.states[1:] - at.states[:-1], beyond)
        increments = filled(at.adjoints[:-1] - at.adjoints[1:], beyond)
        near = filled(adjacent_changes(stack, arrangement, at), blocks * block + 1 - depth)
        inner = partial(jnp.einsum, precision=lax.Precision.HIGHEST)

        def add(k: Int[Array, ""], sums: Float[Array, "N o S L+"]) -> Float[Array, "N o S L+"]:
            first = k * block
            here, behind = (partial(lax.dynamic_slice_in_dim, start_index=first, slice_size=n) for n in (block, window))
            one_way = inner("anod,bnd->noab", here(increments), behind(residuals))
            flips = one_way - inner("bnod,and->noab", behind(increments), here(residuals))
            i = jnp.arange(block)
            flips = flips.at[..., i, i + 1].set(jnp.moveaxis(here(near), 0, -1))
            right, left = inner("noab,sab->nosa", flips, weights), inner("noab,sab->nosb", flips, weights)
            for sign, part in ((0.5, right), (-0.5, left)):
                so_far = lax.dynamic_slice_in_dim(sums, first, part.shape[-1], axis=3)
                sums = lax.dynamic_update_slice_in_dim(sums, so_far + sign * part, first, axis=3)
            return sums

        start = jnp.zeros((*pred.shape, len(SPANS), blocks * block + reach))
        changes = lax.fori_loop(0, blocks, add, start)[..., :depth]
        return changes, read_out(stack, at.states[-1]) - pred

    held = 4 * (depth * hidden + 3 * depth * width * (1 + outputs) + outputs * (depth * len(SPANS) + 4 * block * window))
    rows = len(x)
    size = chunk_size(rows, held, memory)
    changes, errors = lax.map(of_chunk, (in_chunks(x, size), in_chunks(pred, size)))
    return tuple(a.reshape(-1, *a.shape[2:])[:rows] for a in (changes, errors))


def _orders_by_places(stack, arrangement, x, pred, memory: int) -> Int[np.ndarray, "K L 2"]:
    """For each of `SPANS`, ridge and step, the blocks by where they stand and how far they are wanted from there."""
    changes, errors = (mesh.fetch(a).astype(np.float64) for a in place_changes(stack, arrangement, x, pred, memory))
    flat, error = changes.reshape(-1, *changes.shape[2:]), errors.reshape(-1)
    proposed = []
    for features in np.moveaxis(flat, 1, 0):
        normal = Normal(features.T @ features / len(error), -features.T @ error / len(error))
        for places in ridge_solutions(normal):
            proposed += [np.arange(len(places)) + step * places for step in STEPS]
    return arrangement[np.argsort(np.stack(proposed), axis=1, kind="stable")]


def regression_rows(depth: int, outputs: int) -> int:
    """Rows that an order is fitted to, of as many as there are."""
    if by_places(depth):
        return -(-max(FEWEST_ROWS, ROWS_PER_PLACE * depth) // outputs)
    return max(FLIP_ROWS, depth * (depth - 1))


# Pairs


@jax.jit
def contributions_and_errors(
    stack: Stack,
    arrangement: Int[Array, "L 2"],
    positions: Int[Array, " n"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
) -> tuple[Float[Array, "n n N o"], Float[Array, "N o"]]:
    """`moves.contributions` of the halves at some positions, and the errors f − pred."""
    at = linearise(stack, arrangement, x)
    return contributions(stack, arrangement, positions, at), read_out(stack, at.states[-1]) - pred


def soft_pairing(
    features: Float[np.ndarray, "n n K"], error: Float[np.ndarray, " K"], ridges: Sequence[float] = RIDGES
) -> list[Float[np.ndarray, "n n"]]:
    """For each ridge, the P that minimises ‖e + Σ_ij (P_ij − δ_ij)·φ_ij‖² + λ‖P − 1/n‖².

    Anchored at the uniform matrix, and not at the pairing at hand: the regression owes it nothing.
    """
    count = len(features)
    flat = features.reshape(count * count, -1).astype(np.float64)
    rest = -error.astype(np.float64) + np.einsum("iik->k", features) - flat.mean(axis=0) * count
    gram, towards = flat @ flat.T, flat @ rest
    scale = np.trace(gram) / len(gram)
    return [
        1 / count + np.linalg.solve(gram + ridge * scale * np.eye(len(gram)), towards).reshape(count, count)
        for ridge in ridges
    ]


def proposals(
    stack: Stack,
    arrangement: Int[np.ndarray, "L 2"],
    doubtful: Int[np.ndarray, " D"],
    score: Float[np.ndarray, "L L"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    sizes: Sequence[int],
) -> list[Int[np.ndarray, "L 2"]]:
    """Other pairings of the same input halves at the same positions, those that most regressions agree on first.

    `doubtful` are input halves, the most doubtful first, of which each size takes the first ones; `score` is the weights'
    own, as the pairing has it.
    """
    votes: Counter[bytes] = Counter()
    place = np.argsort(arrangement[:, 0])
    most = min(max(sizes), len(doubtful))
    positions = place[doubtful[:most]]
    features, error = map(mesh.fetch, contributions_and_errors(stack, arrangement, positions, x, pred))
    features, error = features.reshape(most, most, -1), error.reshape(-1)
    for size in sorted({min(size, most) for size in sizes}):
        chosen = positions[:size]
        own = score[np.ix_(arrangement[chosen, 0], arrangement[chosen, 1])]
        own = (own - own.mean()) / max(own.std(), 1e-30)
        for soft in soft_pairing(features[:size, :size], error):
            for weight in (0.0, 0.5):
                seen = soft / max(soft.std(), 1e-30) + weight * own
                _, column = scipy.optimize.linear_sum_assignment(seen, maximize=True)
                proposal = arrangement.copy()
                proposal[chosen, 1] = arrangement[chosen[column], 1]
                votes[proposal.tobytes()] += 1
    del votes[arrangement.tobytes()]
    return [np.frombuffer(key, arrangement.dtype).reshape(arrangement.shape) for key, _ in votes.most_common()]
