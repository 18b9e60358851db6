"""Forward peeling: which block comes next, and with which partner, is read from the table at the states reached so far.

Whatever the weights hide, the outputs bend where hidden units switch, and the next block's units switch on its own input
half's hyperplanes at exactly these states; those of later blocks on hyperplanes that the blocks between have shifted. So
what is left of pred is regressed on the states and on the hidden activations of all remaining input halves at once (`fit`).
The one factorisation tells how much each half explains that no other does (`Fit.gains`) and how well each output half would
pass that on (`support`). With partners for all, each candidate is applied and the rest fitted again at the states that it
leads to, along the few directions that count (`ahead`): the block after which the outputs are likeliest comes next. A step
owes nothing to the order of what is still to come, and nothing to what the weights say.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax import lax
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, Float, Int

from dropjax.core.options import MEMORY
from dropjax.core.stack import ACTIVATIONS, Stack, advance, product, read_out, residual
from dropjax.runtime import mesh

ROWS = 4000
"""Rows that peeling looks at."""
RIDGES = (1e-3, 1e-2, 1e-1)
"""Ridges that are tried, per row and in units of a feature's mean square; the one of the largest evidence is taken."""
LOOSE = 3.0
"""Standard deviation of the outputs' slopes by the states in the prior, in those by hidden units, both standardised."""
DIRECTIONS = 8
"""Directions along which the remaining blocks' residuals are seen while one is looked for."""
LOOKED_AT = 12
"""Blocks that are tried as the next one: those after which the outputs were likeliest when last looked at."""
AHEAD = np.geomspace(1e-4, 0.1, LOOKED_AT, dtype=np.float32)
"""Ridges per row, as many as are tried at once: the likeliest before a block is placed is taken for looking ahead."""
PORTION, PORTIONS = 4, 8
"""Blocks that are placed before partners are matched again and every block is looked at: so many, or one in so many."""
CHANCE = 1e-3
"""Probability with which the best of L wrong blocks is taken for one that the table speaks for."""
SIZES = 3
"""Sizes of regression that are compiled: for all blocks, for two thirds of them, and for a third."""

inner = partial(jnp.matmul, precision=lax.Precision.HIGHEST)
products = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


class Design(NamedTuple):
    """What a regression at some states sees: all columns of mean 0."""

    columns: Float[Array, "N n"]
    """The states first, then the features of each remaining half; standardised, the states `LOOSE` times as large."""
    target: Float[Array, "N o"]
    """pred less the states' own read-out: in the prior the outputs' slope by the state is the last layer's."""
    scales: Float[Array, "2"]
    """What the states and the features were multiplied by."""


class Ridge(NamedTuple):
    """A ridge regression."""

    evidence: Float[Array, ""]
    """Logarithm of the marginal likelihood of the target, its variance the likeliest one, constants left out."""
    coefficients: Float[Array, "n o"]
    factor: Float[Array, "r r"]
    """Cholesky's, of the columns' products or, where there are fewer rows, of the rows', each plus the ridge."""
    noise: Float[Array, ""]
    """Penalised sum of squares, per prediction."""


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


def hidden_features(stack: Stack, left: Int[Array, "m 2"], x: Float[Array, "N d"]) -> Float[Array, "N m h"]:
    """Hidden activations of the remaining input halves at the states x; zeros for a row of −1."""
    halves = left[:, 0]
    z = products("nd,mhd->nmh", x, stack.w_in[halves]) + stack.b_in[halves]
    return jnp.where((halves >= 0)[:, None], ACTIVATIONS[stack.activation](z), 0)


def residual_features(
    stack: Stack, left: Int[Array, "m 2"], x: Float[Array, "N d"], basis: Float[Array, "d k"]
) -> Float[Array, "N m k"]:
    """The remaining blocks' residuals along some directions, b_out left out; zeros for a row of −1."""
    through = products("mdh,dk->mkh", stack.w_out[left[:, 1]], basis)
    return products("nmh,mkh->nmk", hidden_features(stack, left, x), through)


def design(
    stack: Stack, left: Int[Array, "m 2"], x: Float[Array, "N d"], pred: Float[Array, "N o"], seen: Float[Array, "N m q"]
) -> Design:
    """What a regression of pred sees at the states x."""
    count = seen.shape[2] * jnp.maximum(jnp.sum(left[:, 0] >= 0), 1)
    states, by_state = _standardised(x, LOOSE, x.shape[1])
    others, by_feature = _standardised(seen.reshape(len(x), -1), 1.0, count)
    target = pred - read_out(stack, x)
    columns = jnp.concatenate([states, others], axis=1)
    return Design(columns, target - target.mean(axis=0), jnp.stack([by_state, by_feature]))


def _standardised(
    columns: Float[Array, "N n"], size: float, count: int | Int[Array, ""]
) -> tuple[Float[Array, "N n"], Float[Array, ""]]:
    columns = columns - columns.mean(axis=0)
    scale = size / jnp.sqrt(jnp.maximum(jnp.sum(columns**2) / (len(columns) * count), 1e-30))
    return columns * scale, scale


def is_dual(shape: tuple[int, ...]) -> bool:
    """Whether a regression of that many rows and columns is solved by a matrix of the rows' products."""
    return shape[0] < shape[1]


def ridge_regression(seen: Design, gram: Float[Array, "r r"], ridge: Float[Array, ""]) -> Ridge:
    """The regression with one ridge, from the products of the columns or, where there are fewer rows, of the rows."""
    columns, target = seen.columns, seen.target
    dual = is_dual(columns.shape)
    factor = jnp.linalg.cholesky(gram + ridge * jnp.eye(len(gram)))
    weights = cho_solve((factor, True), target if dual else inner(columns.T, target))
    coefficients = inner(columns.T, weights) if dual else weights
    left_over = jnp.sum((target - inner(columns, coefficients)) ** 2) + ridge * jnp.sum(coefficients**2)
    noise = left_over / target.size
    log_det = 2 * jnp.sum(jnp.log(jnp.diag(factor))) - len(gram) * jnp.log(ridge)
    evidence = -(target.size * jnp.log(noise) + target.shape[1] * log_det) / 2
    return Ridge(jnp.where(jnp.isfinite(evidence), evidence, -jnp.inf), coefficients, factor, noise)


def _gram(columns: Float[Array, "N n"]) -> Float[Array, "r r"]:
    return inner(columns, columns.T) if is_dual(columns.shape) else inner(columns.T, columns)


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
    gram, ridges = _gram(seen.columns), len(x) * jnp.asarray(RIDGES)
    tried = lax.map(partial(ridge_regression, seen, gram), ridges)
    best = jnp.argmax(tried.evidence)
    of = jax.tree.map(lambda part: part[best], tried)
    root = solve_triangular(of.factor, seen.columns if is_dual(seen.columns.shape) else jnp.eye(len(gram)), lower=True)
    (groups, size), width = features.shape[1:], x.shape[1]
    found = Fit(of.evidence, of.coefficients, root, ridges[best], of.noise, jnp.zeros(groups), seen.scales)

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
        others = left.at[row].set(-1)
        seen = design(stack, others, there, pred, residual_features(stack, others, there, basis))
        return ridge_regression(seen, _gram(seen.columns), len(x) * ridge).evidence

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

    def evidence(rows: Int[np.ndarray, " K"], ridges: Float[np.ndarray, " LOOKED_AT"]) -> Float[np.ndarray, " K"]:
        filled = np.pad(rows, (0, -len(rows) % LOOKED_AT), mode="edge").reshape(-1, LOOKED_AT).astype(np.int32)
        found = [mesh.fetch(ahead(stack, left, here, pred, basis, ridges, some)) for some in filled]
        return np.concatenate(found)[: len(rows)]

    tried = evidence(np.full(LOOKED_AT, len(rest)), AHEAD)
    ridges, before = np.full_like(AHEAD, AHEAD[np.argmax(tried)]), np.max(tried)
    placed: list[int] = []
    doubted = (certain[rest[:, 0]] < 0).any()
    likely, lift = np.full(len(rest), np.inf), at.lift.copy()
    for k in range(at.placed, min(at.placed + portion(stack.depth), stack.depth)):
        rows = np.setdiff1d(np.arange(len(rest)), placed)
        if placed:
            rows = rows[np.argsort(-likely[rows], kind="stable")[:LOOKED_AT]]
        likely[rows] = evidence(rows, ridges)
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
    return Peeled(arrangement, at.placed + len(placed), lift)


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
            score += belief[np.ix_(rest[open_, 0], free)]
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
    width = x.shape[1]
    of = fit(stack, left, x, pred, np.eye(width, dtype=np.float32))
    scales = np.repeat(mesh.fetch(of.scales), [1, len(left)])
    slopes = mesh.fetch(of.coefficients).reshape(-1, width, pred.shape[1]) * scales[:, None, None]
    slopes[0] += np.asarray(stack.w_last).T
    finite = np.nan_to_num(np.moveaxis(slopes, 2, 1).reshape(-1, width))
    return np.linalg.svd(finite, full_matrices=False)[2][:DIRECTIONS].T.copy()
