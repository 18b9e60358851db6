"""Forward peeling: which block comes next, and with which partner, is read from the table at the states reached so far.

Whatever the weights hide, the outputs bend where hidden units switch, and the next block's units switch on its own input
half's hyperplanes at exactly these states; those of later blocks on hyperplanes that the blocks between have shifted. So
what is left of pred is regressed on the states and on the hidden activations of all remaining input halves at once (`fit`).
The one factorisation tells how much each half explains that no other does (`Fit.gains`) and how well each output half would
pass that on (`support`). With partners for all, each candidate is applied and the rest fitted again at the states that it
leads to, along the few directions that count (`ahead`): the block after which the outputs are likeliest comes next. After a
portion of blocks the last ones are straightened (`ordering.prefixes`), and those that then come last are given back. A step
owes nothing to the order of what is still to come, and nothing to what the weights say.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax import lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Int

from dropjax.core.options import MEMORY
from dropjax.core.stack import Stack, advance, product, residual
from dropjax.ordering.prefixes import straighten_prefix
from dropjax.ordering.regressions import (
    RIDGES,
    design,
    evidence,
    hidden_features,
    inner,
    is_dual,
    likeliest,
    residual_features,
)
from dropjax.runtime import mesh

ROWS = 4000
"""Rows that peeling looks at."""
COLUMNS, DIRECTIONS = 800, 8
"""Features of a look ahead: the remaining blocks' residuals along as many directions as make so many, but at least 8."""
LOOKED_AT = 12
"""Blocks that are tried as the next one: those after which the outputs were likeliest when last looked at."""
AHEAD = np.geomspace(1e-6, 0.1, LOOKED_AT, dtype=np.float32)
"""Ridges per row, as many as are tried at once: the likeliest before a block is placed is taken for looking ahead."""
PORTION, PORTIONS = 4, 8
"""Blocks that are placed before partners are matched again and every block is looked at: so many, or one in so many."""
WINDOW = 3
"""Portions that are straightened together: the last ones placed; at the end all are."""
GIVEN_BACK = 2
"""Part of a portion, as its denominator, that is looked for again after straightening."""
SURER = 10.0
"""How many times too sure `support` is beside what the weights say: much of its misfit is no noise, but what the regression
leaves out."""
CHANCE = 1e-3
"""Probability with which the best of L wrong blocks is taken for one that the table speaks for."""
SIZES = 3
"""Sizes of regression that are compiled: for all blocks, for two thirds of them, and for a third."""


class Fit(NamedTuple):
    """A regression on the states and on m groups of q features, one for each remaining half."""

    evidence: Float[Array, ""]
    coefficients: Float[Array, "d+mq o"]
    root: Float[Array, "r d+mq"]
    """The coefficients' covariance, in units of `noise`, is rootᵀ·root, or (1 − rootᵀ·root)/ridge with fewer rows."""
    ridge: Float[Array, ""]
    noise: Float[Array, ""]
    gains: Float[Array, " m"]
    """How much the penalised sum of squares grows where one half's features are left out."""
    scales: Float[Array, "2"]


@jax.jit
def fit(
    stack: Stack,
    left: Int[Array, "m 2"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    basis: Float[Array, "d k"] | None = None,
) -> Fit:
    """The regression at the states x, its ridge the one of `RIDGES` with the largest evidence.

    Its features are the hidden activations of the input halves in `left` or, given a `basis`, the residuals of the blocks
    there along it. A row of −1 stands for no block: its features are zeros, and so is its gain
    (D19 in docs/method.md).
    """
    features = hidden_features(stack, left, x) if basis is None else residual_features(stack, left, x, basis)
    seen = design(stack, left, x, pred, features)
    of, ridge = likeliest(seen, len(x) * jnp.asarray(RIDGES))
    root = solve_triangular(of.factor, seen.columns if is_dual(seen.columns.shape) else jnp.eye(len(of.factor)), lower=True)
    (groups, size), width = features.shape[1:], x.shape[1]
    found = Fit(of.evidence, of.coefficients, root, ridge, of.noise, jnp.zeros(groups), seen.scales)

    def gain(k: Int[Array, ""]) -> Float[Array, ""]:
        group, own = _half(found, width + k * size, size)
        return _surprise(_covariance(found, group), own)[0]

    return found._replace(gains=lax.map(gain, jnp.arange(groups)))


def _half(of: Fit, first: Int[Array, ""], size: int) -> tuple[Float[Array, "r q"], Float[Array, "q o"]]:
    """One half's columns of the root, and its coefficients."""
    return lax.dynamic_slice_in_dim(of.root, first, size, 1), lax.dynamic_slice_in_dim(of.coefficients, first, size, 0)


def _covariance(of: Fit, a: Float[Array, "r p"], b: Float[Array, "r q"] | None = None) -> Float[Array, "p q"]:
    """Covariance of a group's coefficients, or that with another group's, from their columns of the root."""
    both = inner(a.T, a if b is None else b)
    if not is_dual(of.root.shape):
        return both
    return ((jnp.eye(len(both)) if b is None else 0.0) - both) / of.ridge


def _surprise(covariance: Float[Array, "q q"], missed: Float[Array, "q o"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """missedᵀ·covariance⁻¹·missed, summed over the outputs, and log|covariance|."""
    scale = jnp.trace(covariance) / len(covariance)
    factor = jnp.linalg.cholesky(covariance / scale + 1e-6 * jnp.eye(len(covariance)))
    whitened = solve_triangular(factor, missed, lower=True)
    return jnp.sum(whitened**2) / scale, 2 * jnp.sum(jnp.log(jnp.diag(factor))) + len(covariance) * jnp.log(scale)


@jax.jit
def support(stack: Stack, of: Fit) -> Float[Array, "m L"]:
    """What speaks for each output half behind each of the remaining input halves, in nats, from a fit on hidden activations.
    See D20 in docs/method.md.

    If the two are a block and the next one, its hidden units move the outputs through the state alone: their coefficients
    are W_outᵀ·g, with the g of the states' own coefficients. The Bayes factor for that is the posterior density of this
    equation over its prior density (Dickey 1971, Annals of Mathematical Statistics 42(1)).
    """
    width, size = stack.w_out.shape[1:]
    by_state, by_hidden = of.scales
    states, slopes, outputs = of.root[:, :width], of.coefficients[:width], of.coefficients.shape[1]
    of_states = by_state**2 * _covariance(of, states)

    def of_half(k: Int[Array, ""]) -> Float[Array, " L"]:
        group, own = _half(of, width + k * size, size)
        of_group, with_states = by_hidden**2 * _covariance(of, group), by_hidden * by_state * _covariance(of, states, group)

        def behind(w_out: Float[Array, "d h"]) -> Float[Array, ""]:
            through = w_out.T
            expected = product(through, stack.w_last)
            missed = by_hidden * own - by_state * inner(through, slopes) - expected
            shared = inner(through, with_states)
            posterior = of_group - shared - shared.T + inner(inner(through, of_states), w_out)
            prior = (by_hidden**2 * jnp.eye(size) + by_state**2 * inner(through, w_out)) / of.ridge
            (before, spread_before), (after, spread) = _surprise(prior, expected), _surprise(posterior, missed)
            found = (outputs * (spread_before - spread) + (before - after) / of.noise) / 2
            return jnp.where(jnp.isfinite(found), found, -jnp.inf)

        return jax.vmap(behind)(stack.w_out)

    return lax.map(of_half, jnp.arange(of.gains.shape[0]))


@jax.jit
def ahead(
    stack: Stack,
    left: Int[Array, "m 2"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    basis: Float[Array, "d k"],
    ridges: Float[Array, " K"],
    rows: Int[Array, " K"],
) -> Float[Array, " K"]:
    """The outputs' evidence after the block in each of some rows of `left`, the other blocks' residuals seen along `basis`;
    after no block where the row is −1. Each has a ridge of its own, per row of the table."""

    def after(row: Int[Array, ""], ridge: Float[Array, ""]) -> Float[Array, ""]:
        there = x + jnp.where(left[row, 0] >= 0, residual(stack, left[row], x), 0)
        return evidence(stack, left.at[row].set(-1), there, pred, basis, ridge)

    return lax.map(lambda of: after(*of), (rows, ridges))


class Peeled(NamedTuple):
    """How far a stack is peeled."""

    arrangement: Int[np.ndarray, "L 2"]
    """The blocks placed so far in their order, then the others, with the partners that they had last."""
    placed: int
    lift: Float[np.ndarray, " L"]
    """How much likelier, in nats, the outputs became by each block placed, before the next one is looked for; else 0."""

    @property
    def knows_nothing(self) -> bool:
        """Whether none of the first blocks made the outputs likelier than the best of L wrong ones does by chance: the table
        is another network's, or its rows are too few."""
        first = self.lift[: min(self.placed, portion(len(self.lift)))]
        return self.placed > 0 and bool(np.max(first) < _by_chance(len(self.lift)))


def _by_chance(depth: int) -> float:
    """How much likelier, in nats, the best of `depth` wrong blocks makes the outputs with a probability of `CHANCE`."""
    return float(np.log(depth / CHANCE))


def portion(depth: int) -> int:
    """Blocks that are placed at once of a stack of that depth."""
    return max(PORTION, depth // PORTIONS)


def start_peeling(pairs: Int[np.ndarray, "L 2"]) -> Peeled:
    """The state before the first block; the pairs are what partners are called by until they are matched."""
    return Peeled(pairs.astype(np.int32), 0, np.zeros(len(pairs)))


def rows_to_peel(stack: Stack, memory: int = MEMORY) -> int:
    """Rows that peeling looks at: fewer where the features of all halves would not fit into `memory` four times."""
    return int(np.clip(memory // (16 * stack.w_in[..., 0].size), 1, ROWS))


def peel(
    stack: Stack,
    at: Peeled,
    certain: Int[np.ndarray, " L"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    belief: Float[np.ndarray, "L L"] | None = None,
) -> Peeled:
    """A portion of blocks more, or fewer, where none goes on with the partners at hand.

    `certain` is each input half's partner where that is beyond doubt, and −1 elsewhere; `belief` is what else is known of
    each pair, in nats.
    """
    here = _reached(stack, at.arrangement, np.int32(at.placed), x)
    rest = matched(stack, at.arrangement[at.placed :], certain, here, pred, belief)
    left = filled(rest, stack.depth)
    basis = directions(stack, left, here, pred)

    def looked(rows: Int[np.ndarray, " K"], ridges: Float[np.ndarray, " LOOKED_AT"]) -> Float[np.ndarray, " K"]:
        padded = np.pad(rows, (0, -len(rows) % LOOKED_AT), mode="edge").reshape(-1, LOOKED_AT).astype(np.int32)
        found = [mesh.fetch(ahead(stack, left, here, pred, basis, ridges, some)) for some in padded]
        return np.concatenate(found)[: len(rows)]

    tried = looked(np.full(LOOKED_AT, len(rest)), AHEAD)
    ridge, before = AHEAD[np.argmax(tried)], np.max(tried)
    ridges, gains = np.full_like(AHEAD, ridge), mesh.fetch(fit(stack, left, here, pred, basis).gains)[: len(rest)]
    placed: list[int] = []
    doubted = (certain[rest[:, 0]] < 0).any()
    likely, lift = np.full(len(rest), -np.inf), at.lift.copy()
    for k in range(at.placed, min(at.placed + portion(stack.depth), stack.depth)):
        ranked = np.argsort(-likely if placed else -gains, kind="stable")
        rows = ranked[~np.isin(ranked, placed)][: LOOKED_AT if placed else 2 * LOOKED_AT]
        likely[rows] = looked(rows, ridges)
        best = rows[np.argmax(likely[rows])]
        rise = likely[best] - before if np.isfinite(likely[best]) else 0.0
        if placed and doubted and rise < _by_chance(stack.depth):
            break  # no block goes on with the partners at hand: they are matched again from here
        lift[k], before = rise, likely[best]
        here = here + residual(stack, rest[best], here)
        left[best] = -1
        placed.append(int(best))
    others = np.setdiff1d(np.arange(len(rest)), placed)
    arrangement = np.concatenate([at.arrangement[: at.placed], rest[placed], rest[others]])
    end = at.placed + len(placed)
    window = min(end // portion(stack.depth), WINDOW) * portion(stack.depth)
    first = end - window if end < stack.depth else 0
    start = _reached(stack, at.arrangement, np.int32(first), x)
    arrangement[first:end] = straighten_prefix(stack, arrangement[first:end], left, start, pred, basis, float(ridge))
    # What the straightened order has last may have come too early: it is given back.
    given_back = portion(stack.depth) // GIVEN_BACK if end < stack.depth else 0
    return Peeled(arrangement, max(end - given_back, at.placed + 1), lift)


def matched(
    stack: Stack,
    rest: Int[np.ndarray, "m 2"],
    certain: Int[np.ndarray, " L"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    belief: Float[np.ndarray, "L L"] | None = None,
) -> Int[np.ndarray, "m 2"]:
    """The remaining input halves with partners: the certain ones, and for the others those of the largest total support,
    `belief` included."""
    partner = certain[rest[:, 0]]
    open_ = partner < 0
    if open_.any():
        of = fit(stack, filled(rest, stack.depth), x, pred)
        free = np.setdiff1d(rest[:, 1], partner[~open_])
        score = mesh.fetch(support(stack, of))[: len(rest)][np.ix_(open_, free)].astype(np.float64)
        least = np.min(score, where=np.isfinite(score), initial=0.0)
        score = np.where(np.isfinite(score), score, 2 * least - 1)
        if belief is not None:
            score = score / SURER + belief[np.ix_(rest[open_, 0], free)]
        partner[open_] = free[scipy.optimize.linear_sum_assignment(score, maximize=True)[1]]
    return np.stack([rest[:, 0], partner], axis=1).astype(np.int32)


_reached = jax.jit(lambda stack, arrangement, count, x: advance(stack, arrangement, 0, count, x))


def filled(rest: Int[np.ndarray, "m 2"], depth: int) -> Int[np.ndarray, "M 2"]:
    """The remaining blocks and rows of −1, one at least, up to the next of `SIZES` sizes."""
    size = -(-(depth + 1) // SIZES)
    return np.pad(rest, ((0, size - len(rest) % size), (0, 0)), constant_values=-1)


def directions(
    stack: Stack, left: Int[np.ndarray, "M 2"], x: Float[Array, "N d"], pred: Float[Array, "N o"]
) -> Float[np.ndarray, "d k"]:
    """Directions along which the remaining blocks' residuals move the outputs most: the principal ones of their slopes."""
    few = -(-len(x) // 2)
    slopes = np.array(mesh.fetch(_slopes(stack, left, x[:few], pred[:few])))
    slopes[0] += np.asarray(stack.w_last).T
    finite = np.nan_to_num(np.moveaxis(slopes, 2, 1).reshape(-1, x.shape[1]))
    return np.linalg.svd(finite, full_matrices=False)[2][: max(DIRECTIONS, COLUMNS // len(left))].T.copy()


@jax.jit
def _slopes(
    stack: Stack, left: Int[Array, "M 2"], x: Float[Array, "N d"], pred: Float[Array, "N o"]
) -> Float[Array, "1+M d o"]:
    """The outputs' slopes by the states, less the last layer, and by each remaining block's residual."""
    seen = design(stack, left, x, pred, residual_features(stack, left, x, jnp.eye(x.shape[1])))
    of, _ = likeliest(seen, len(x) * jnp.asarray(RIDGES))
    slopes = of.coefficients.reshape(1 + len(left), x.shape[1], -1)
    return slopes * jnp.repeat(seen.scales, jnp.array([1, len(left)]), total_repeat_length=1 + len(left))[:, None, None]
