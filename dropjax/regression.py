"""What a stack's errors say about its pairs and its order, by least squares.

Pairs: a block is linear in its output half, so to first order the outputs are linear in a soft pairing P of some blocks'
halves. Order: to first order every two blocks that stand the wrong way round add a change of their own to the outputs, so
that one regression of the errors on all such changes tells all wrong ways at once, also where they make up for one another
and no single move helps. None of this owes anything to the weights.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax import lax
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Float, Int

from dropjax import mesh
from dropjax.device import MEMORY
from dropjax.journal import Keep, keep_nothing
from dropjax.moves import contributions, flips_and_swaps, linearise, map_over_rows, mean_over_rows, score_arrangements
from dropjax.programs import program
from dropjax.stack import Stack, read_out

A = TypeVar("A", np.ndarray, Array)

RIDGES = (0.1, 0.3, 1.0, 3.0)
"""Ridges of a pairing, in units of the features' mean square sum: weaker ones find the pairing at hand, whatever it is."""

ORDER_RIDGES = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
"""Ridges of an order, in the same units: weak ones near the answer, strong ones far from it."""

# Order, by flips


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
    """Of −e by Δ_ij for all `flippable` i < j: the change of the outputs by the blocks at i and j standing the other way
    round."""
    depth, (hidden, width), outputs = stack.depth, stack.w_in.shape[1:], pred.shape[1]
    i, j = flippable(depth, reach)

    def of_chunk(x, pred, weight):
        at = linearise(stack, arrangement, x)
        error = (read_out(stack, at.states[-1]) - pred) * weight[:, None]
        changes = flips_and_swaps(stack, arrangement, at)[..., i, j] * weight[:, None, None]
        product = partial(jnp.einsum, precision=lax.Precision.HIGHEST)
        return Normal(jnp.sum(error**2), product("nop,noq->pq", changes, changes), -product("nop,no->p", changes, error))

    held = depth * hidden + 2 * depth * width * (1 + outputs) + outputs * (4 * depth**2 + 2 * len(i))
    return mean_over_rows(of_chunk, x, pred, 4 * held, memory)


def ridge_solutions(normal: Normal, ridges: Sequence[float] = ORDER_RIDGES) -> list[Float[np.ndarray, " P"]]:
    """For each ridge, how much of each unknown the errors ask for."""
    _, gram, towards = (np.asarray(a, np.float64) for a in normal)
    scale = max(np.trace(gram) / len(gram), 1e-300)
    identity = np.eye(len(gram))
    return [scipy.linalg.solve(gram + ridge * scale * identity, towards, assume_a="pos") for ridge in ridges]


def expected_places(share: Float[A, "*K P"], depth: int, reach: int | None = None) -> Float[A, "*K L"]:
    """Where each block is to stand, every `flippable` pair being the wrong way round with probability `share`: the expected
    number of blocks before it (Borda's count)."""
    i, j = flippable(depth, reach)
    pair = np.arange(len(i))
    turned = np.zeros((len(i), depth))
    turned[pair, i], turned[pair, j] = 1, -1
    return share.clip(0, 1) @ turned + np.arange(depth)


def reordered(arrangement: Int[np.ndarray, "L 2"], share: Float[np.ndarray, " P"]) -> Int[np.ndarray, "L 2"]:
    """The blocks by their `expected_places`."""
    return arrangement[np.argsort(expected_places(share, len(arrangement)), kind="stable")]


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


# Order, by the flips of near blocks

REACH = 4
"""Positions apart, at most, that two blocks stand whose flip is looked for."""

NEAR_RIDGES, ERROR_RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 0.1), (1e-4, 1e-3, 1e-2)
"""Ridges of straightening, in the same units and in those of the MSE: the less is wrong, the weaker."""

NO_LESS = 1e-7
"""What every ridge is at least, in the former units: a flip may change nothing."""

ITERATIONS, ACCURACY = 200, 1e-5
"""Of conjugate gradients for straightening's shares: at most, and the relative residual that ends them."""

CERTAIN = (0.3, 0.5)
"""Shares above which a flip is made outright, in some of the orders among which straightening chooses."""

STRAIGHTENED_ROWS, ROWS_PER_BLOCK = 256, 5
"""Rows that straightening looks at: the former, or the latter times the number of blocks, if that is more."""
STRAIGHTENED_AT_ONCE = 8
"""Rounds between two looks at the clock."""


class Straightened(NamedTuple):
    """State and result of straightening."""

    arrangement: Int[Array, "L 2"]
    mse: Float[Array, ""]
    """Over the rows it looks at; ∞ before the first round."""
    rounds: Int[Array, ""]
    falling: Array
    """Whether the last round lowered the MSE."""


def rows_to_straighten(depth: int) -> int:
    """Rows that straightening a stack of `depth` blocks looks at."""
    return max(STRAIGHTENED_ROWS, ROWS_PER_BLOCK * depth)


def straighten(
    stack: Stack,
    arrangement: Int[np.ndarray, "L 2"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    tolerance: float,
    stop: Callable[[], object] = lambda: None,
    keep: Keep = keep_nothing,
    memory: int = MEMORY,
) -> Straightened:
    """Straightening until the MSE over the rows is within `tolerance` or falls no more, or until `stop()`, which is asked
    every `STRAIGHTENED_AT_ONCE` rounds.

    A round turns all near blocks round that a regression of the errors finds the wrong way round. Single moves, which guided
    repair makes, go by what each alone does to the MSE: several of them make up for one another.
    """
    at = start_straightening(arrangement)
    while at.falling and at.mse > tolerance and not stop():
        last = at.rounds + np.int32(STRAIGHTENED_AT_ONCE)
        at = keep(partial(straightening, stack, at, x, pred, np.float32(tolerance), last, memory=memory), at)
    return at


def start_straightening(arrangement: Int[np.ndarray, "L 2"]) -> Straightened:
    """The state before the first round."""
    parts: tuple[Any, ...] = arrangement, np.float32(np.inf), np.int32(0), np.bool_(len(arrangement) > 1)
    return Straightened(*mesh.put(parts))


@program(static_argnames=("memory",), results=(Straightened,), quick=True)
def straightening(
    stack: Stack,
    start: Straightened,
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    tolerance: Float[Array, ""],
    last: Int[Array, ""],
    memory: int = MEMORY,
) -> Straightened:
    """Rounds of straightening, of which `last` is the last."""

    def step(at: Straightened) -> Straightened:
        normal = normal_equations(stack, at.arrangement, x, pred, memory, REACH)
        candidate = at.arrangement[likeliest_order(normal, stack.depth)]
        (mse,) = score_arrangements(stack, candidate[None], x, pred, memory=memory)
        lower = mse < normal.mse
        arrangement = jnp.where(lower, candidate, at.arrangement)
        return Straightened(arrangement, jnp.minimum(mse, normal.mse), at.rounds + 1, lower)

    def going_on(at: Straightened) -> Array:
        return at.falling & (at.mse > tolerance) & (at.rounds < last)

    return lax.while_loop(going_on, step, start)


def likeliest_order(normal: Normal, depth: int) -> Int[Array, " L"]:
    """Of the orders that regressions of the errors ask for, the one of the lowest MSE to first order."""
    i, j = flippable(depth, REACH)
    scale = jnp.trace(normal.gram) / len(i)
    ridges = jnp.concatenate([scale * jnp.asarray(NEAR_RIDGES), normal.mse * jnp.asarray(ERROR_RIDGES)])
    ridges = jnp.maximum(ridges, NO_LESS * scale)

    def share(ridge: Float[Array, ""]) -> Float[Array, " P"]:
        # Not by LAPACK: XLA's CPU threads that run it wait for one another where two programs do.
        system = lambda s: jnp.matmul(s, normal.gram, precision=lax.Precision.HIGHEST) + ridge * s  # noqa: E731
        inverse = 1 / (jnp.diag(normal.gram) + ridge)
        return cg(system, normal.towards, tol=ACCURACY, maxiter=ITERATIONS, M=lambda s: s * inverse)[0]

    shares = jax.vmap(share)(ridges)
    asked = jnp.concatenate([shares, *((shares > certain).astype(shares.dtype) for certain in CERTAIN)])
    order = jnp.argsort(expected_places(asked, depth, REACH), axis=1)
    rank = jnp.argsort(order, axis=1)
    flipped = (rank[:, i] > rank[:, j]).astype(jnp.float32)
    product = partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    mse = product("kp,kp->k", flipped, product("kp,pq->kq", flipped, normal.gram) - 2 * normal.towards)
    return order[jnp.argmin(mse)]


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
