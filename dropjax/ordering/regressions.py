"""Regressions of the outputs on the states at some position and on what the remaining blocks would add there.

They tell how well the outputs could be explained from a position on, whatever the order of the blocks behind it.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Float, Int

from dropjax.core.stack import ACTIVATIONS, Stack, pick, preactivation, read_out

RIDGES = (1e-3, 1e-2, 1e-1)
"""Ridges that are tried, per row and in units of a feature's mean square; the one of the largest evidence is taken."""
LOOSE = 3.0
"""Standard deviation of the outputs' slopes by the states in the prior, in those by hidden units, both standardised."""
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


def hidden_features(stack: Stack, left: Int[Array, "m 2"], x: Float[Array, "N d"]) -> Float[Array, "N m h"]:
    """Hidden activations of the remaining input halves at the states x; zeros for a row of −1."""
    return _of_each(left, lambda halves: hidden(stack, halves, x))


def residual_features(
    stack: Stack, left: Int[Array, "m 2"], x: Float[Array, "N d"], basis: Float[Array, "d k"]
) -> Float[Array, "N m k"]:
    """The remaining blocks' residuals along some directions, b_out left out; zeros for a row of −1."""
    return _of_each(left, lambda halves: inner(hidden(stack, halves, x), inner(pick(stack.w_out, halves[1]).T, basis)))


def hidden(stack: Stack, halves: Int[Array, "2"], x: Float[Array, "N d"]) -> Float[Array, "N h"]:
    """Hidden activations of one input half."""
    return ACTIVATIONS[stack.activation](preactivation(stack, halves[0], x))


def _of_each(left: Int[Array, "m 2"], of: Callable[[Array], Float[Array, "N q"]]) -> Float[Array, "N m q"]:
    # One block at a time: the hidden activations of all of them would not stay in the cache.
    found = lax.map(lambda halves: jnp.where(halves[0] >= 0, of(halves), 0), left)
    return jnp.moveaxis(found, 0, 1)


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


def likeliest(seen: Design, ridges: Float[Array, " K"]) -> tuple[Ridge, Float[Array, ""]]:
    """The regression with the ridge of the largest evidence, and this ridge."""
    tried = lax.map(partial(ridge_regression, seen, gram_of(seen.columns)), ridges)
    best = jnp.argmax(tried.evidence)
    return jax.tree.map(lambda part: part[best], tried), ridges[best]


def gram_of(columns: Float[Array, "N n"]) -> Float[Array, "r r"]:
    """Products of the columns or, where there are fewer rows, of the rows."""
    return inner(columns, columns.T) if is_dual(columns.shape) else inner(columns.T, columns)


def evidence(
    stack: Stack,
    left: Int[Array, "m 2"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    basis: Float[Array, "d k"],
    ridge: Float[Array, ""],
) -> Float[Array, ""]:
    """The outputs' evidence at the states x, the remaining blocks' residuals seen along `basis`; the ridge is per row."""
    seen = design(stack, left, x, pred, residual_features(stack, left, x, basis))
    return ridge_regression(seen, gram_of(seen.columns), len(x) * ridge).evidence
