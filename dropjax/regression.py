"""What a stack's errors say about its pairs and its order, by least squares.

Pairs: a block is linear in its output half, so to first order the outputs are linear in a soft pairing P of some blocks'
halves. Order: to first order every two blocks that stand the wrong way round add a change of their own to the outputs, so
that one regression of the errors on all such changes tells all wrong ways at once, also where they make up for one another
and no single move helps. None of this owes anything to the weights.
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
from dropjax.moves import contributions, flips_and_swaps, linearise, map_over_rows, mean_over_rows
from dropjax.stack import Stack, read_out

RIDGES = (0.1, 0.3, 1.0, 3.0)
"""Ridges of a pairing, in units of the features' mean square sum: weaker ones find the pairing at hand, whatever it is."""

ORDER_RIDGES = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
"""Ridges of an order, in the same units: weak ones near the answer, strong ones far from it."""

# Order, by flips


class Normal(NamedTuple):
    """Normal equations of the errors by P unknowns, as means over the predictions."""

    gram: Float[Array, "P P"]
    towards: Float[Array, " P"]


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

    For each ridge: those by the shares themselves, about 0 where two blocks stand rightly and 1 where not, by half and by
    twice as much, and by the flips of more than 30% and 70%.
    """
    shares = ridge_solutions(normal_equations(stack, arrangement, x, pred, memory))
    asked = [of for share in shares for of in (share, share / 2, 2 * share, share > 0.3, share > 0.7)]
    return np.stack([reordered(arrangement, np.asarray(of, np.float64)) for of in asked])


# Pairs


@partial(jax.jit, static_argnames="memory")
def contributions_and_errors(
    stack: Stack,
    arrangement: Int[Array, "L 2"],
    positions: Int[Array, " n"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    memory: int = MEMORY,
) -> tuple[Float[Array, "n n N o"], Float[Array, "N o"]]:
    """`moves.contributions` of the halves at some positions, and the errors f − pred."""
    (depth, hidden, width), outputs, of_pairs = stack.w_in.shape, pred.shape[1], len(positions)

    def of_chunk(x: Array, pred: Array) -> tuple[Array, Array]:
        at = linearise(stack, arrangement, x)
        by_pair = contributions(stack, arrangement, positions, at)
        return jnp.einsum("abno->nabo", by_pair), read_out(stack, at.states[-1]) - pred

    held = 4 * (depth * (hidden + 2 * width * (1 + outputs)) + 2 * outputs * of_pairs * (of_pairs + hidden))
    by_pair, error = map_over_rows(of_chunk, (x, pred), held, memory)
    return jnp.einsum("nabo->abno", by_pair), error


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
    memory: int = MEMORY,
) -> list[Int[np.ndarray, "L 2"]]:
    """Other pairings of the same input halves at the same positions, those that most regressions agree on first.

    `doubtful` are input halves, the most doubtful first, of which each size takes the first ones; `score` is the weights'
    own, as the pairing has it.
    """
    votes: Counter[bytes] = Counter()
    place = np.argsort(arrangement[:, 0])
    most = min(max(sizes), len(doubtful))
    positions = place[doubtful[:most]]
    features, error = map(mesh.fetch, contributions_and_errors(stack, arrangement, positions, x, pred, memory))
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
