"""Regressions of the outputs on the states at some position and on what the remaining blocks would add there.

They tell how well the outputs could be explained from a position on, whatever the order of the blocks behind it.
"""

import itertools
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, Float, Int

from dropjax.core.stack import ACTIVATIONS, Stack, preactivation, read_out

RIDGES = (1e-3, 1e-2, 1e-1)
"""Ridges that are tried, per row and in units of a feature's mean square; the one of the largest evidence is taken."""
LOOSE = 3.0
"""Standard deviation of the outputs' slopes by the states in the prior, in those by hidden units, both standardised."""
STRIPS = 4
"""Strips in which a matrix of products is computed."""
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
    ridge: Float[Array, ""]


class Outlook(NamedTuple):
    """What the outputs are regressed on at some position, beside the states: what the remaining blocks would add there."""

    left: Int[Array | np.ndarray, " m"]
    """The remaining blocks' input halves, in any order."""
    through: Float[Array | np.ndarray, "m h q"]
    """What is seen of each one's hidden activations."""
    pred: Float[Array, "N o"]
    ridge: Float[Array | np.ndarray | np.float32, ""]
    """Per row."""


def with_none(stack: Stack) -> Stack:
    """The stack with one half more of each kind, all zeros. What calls for a fixed number of blocks is filled up with the
    block of these two, which adds nothing: it is no block."""

    def longer(of: Array) -> Array:
        return jnp.pad(of, [(0, 1)] + [(0, 0)] * (of.ndim - 1))

    halves = {name: longer(getattr(stack, name)) for name in ("w_in", "b_in", "w_out", "b_out")}
    return replace(stack, **halves)


def hidden_features(stack: Stack, left: Int[Array, " m"], x: Float[Array, "N d"]) -> Float[Array, "N m h"]:
    """Hidden activations of the remaining input halves at the states x."""
    return jnp.moveaxis(lax.map(lambda half: hidden(stack, half, x), left), 0, 1)


def features(stack: Stack, outlook: Outlook, x: Float[Array, "N d"]) -> Float[Array, "N m q"]:
    """What is seen of the remaining blocks at the states x."""
    # One block at a time: the hidden activations of all of them would not stay in the cache.
    found = lax.map(lambda of: inner(hidden(stack, of[0], x), of[1]), (outlook.left, outlook.through))
    return jnp.moveaxis(found, 0, 1)


def hidden(stack: Stack, half: Int[Array, ""], x: Float[Array, "N d"]) -> Float[Array, "N h"]:
    """Hidden activations of one input half."""
    return ACTIVATIONS[stack.activation](preactivation(stack, half, x))


def look(stack: Stack, outlook: Outlook, x: Float[Array, "N d"]) -> Design:
    """The design of a regression at the states x."""
    return design(stack, x, outlook.pred, features(stack, outlook, x))


def design(stack: Stack, x: Float[Array, "N d"], pred: Float[Array, "N o"], seen: Float[Array, "N m q"]) -> Design:
    """What a regression of pred sees at the states x."""
    states, by_state = _standardised(x, LOOSE)
    others, by_feature = _standardised(seen.reshape(len(x), -1), 1.0)
    target = pred - read_out(stack, x)
    columns = jnp.concatenate([states, others], axis=1)
    return Design(columns, target - target.mean(axis=0), jnp.stack([by_state, by_feature]))


def _standardised(columns: Float[Array, "N n"], size: float) -> tuple[Float[Array, "N n"], Float[Array, ""]]:
    """The columns and what they were multiplied by; those that are zero, of no block, do not count."""
    columns = columns - columns.mean(axis=0)
    squares = jnp.mean(columns**2, axis=0)
    scale = size / jnp.sqrt(jnp.maximum(jnp.sum(squares) / jnp.maximum(jnp.sum(squares > 0), 1), 1e-30))
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
    return Ridge(jnp.where(jnp.isfinite(evidence), evidence, -jnp.inf), coefficients, factor, noise, ridge)


def likeliest(seen: Design, ridges: Float[Array, " K"]) -> Ridge:
    """The regression with the ridge of the largest evidence."""
    tried = lax.map(partial(ridge_regression, seen, gram_of(seen.columns)), ridges)
    best = jnp.argmax(tried.evidence)
    return jax.tree.map(lambda part: part[best], tried)


def gram_of(columns: Float[Array, "N n"]) -> Float[Array, "r r"]:
    """Products of the columns or, where there are fewer rows, of the rows."""
    return _products_of(columns.T if is_dual(columns.shape) else columns)


def _products_of(columns: Float[Array, "N n"]) -> Float[Array, "n n"]:
    """columnsᵀ·columns, by strips up to the diagonal: what is above it is below it already."""
    ends = np.linspace(0, columns.shape[1], STRIPS + 1).astype(int)
    strips = [inner(columns[:, a:b].T, columns[:, :b]) for a, b in itertools.pairwise(ends)]
    lower = jnp.concatenate([jnp.pad(strip, ((0, 0), (0, len(columns.T) - strip.shape[1]))) for strip in strips])
    return jnp.tril(lower) + jnp.tril(lower, -1).T


def regression(stack: Stack, outlook: Outlook, x: Float[Array, "N d"]) -> tuple[Design, Ridge]:
    """The regression at the states x, with the outlook's ridge."""
    seen = look(stack, outlook, x)
    return seen, ridge_regression(seen, gram_of(seen.columns), len(x) * jnp.asarray(outlook.ridge))


def evidence(stack: Stack, outlook: Outlook, x: Float[Array, "N d"]) -> Float[Array, ""]:
    """The outputs' evidence at the states x."""
    return regression(stack, outlook, x)[1].evidence


def slopes(stack: Stack, outlook: Outlook, seen: Design, of: Ridge, x: Float[Array, "N d"]) -> Float[Array, "N o d"]:
    """The gradient, by the state, of the outputs as the regression has them at the states x."""
    width, (by_state, by_feature) = x.shape[1], seen.scales
    by_block = by_feature * of.coefficients[width:].reshape(len(outlook.left), -1, of.coefficients.shape[1])

    def outputs(x: Float[Array, "N d"]) -> Float[Array, "N o"]:
        @jax.checkpoint
        def add(total: Float[Array, "N o"], block: tuple[Array, Array]) -> tuple[Float[Array, "N o"], None]:
            half, through = block
            return total + inner(hidden(stack, half, x), through), None

        begin = read_out(stack, x) + by_state * inner(x, of.coefficients[:width])
        return lax.scan(add, begin, (outlook.left, products("mhq,mqo->mho", outlook.through, by_block)))[0]

    _, back = jax.vjp(outputs, x)
    each = jnp.broadcast_to(jnp.eye(len(stack.b_last))[:, None], (len(stack.b_last), len(x), len(stack.b_last)))
    return jnp.moveaxis(jax.vmap(lambda of_output: back(of_output)[0])(each), 0, 1)


class Posterior(NamedTuple):
    """What a regression knows of its coefficients."""

    coefficients: Float[Array, "n o"]
    root: Float[Array, "r n"]
    """The coefficients' covariance, in units of `noise`, is rootᵀ·root, or (1 − rootᵀ·root)/ridge with fewer rows."""
    ridge: Float[Array, ""]
    noise: Float[Array, ""]
    scales: Float[Array, "2"]

    def group(self, first: int | Int[Array, ""], size: int) -> tuple[Float[Array, "r q"], Float[Array, "q o"]]:
        """Some columns of the root, and their coefficients."""
        of = partial(lax.dynamic_slice_in_dim, start_index=first, slice_size=size)
        return of(self.root, axis=1), of(self.coefficients, axis=0)

    def covariance(self, a: Float[Array, "r p"], b: Float[Array, "r q"] | None = None) -> Float[Array, "p q"]:
        """Covariance of a group's coefficients, or that with another group's, from their columns of the root."""
        both = inner(a.T, a if b is None else b)
        if not is_dual(self.root.shape):
            return both
        return ((jnp.eye(len(both)) if b is None else 0.0) - both) / self.ridge


def posterior(seen: Design, of: Ridge) -> Posterior:
    """The posterior of a regression's coefficients."""
    columns = seen.columns if is_dual(seen.columns.shape) else jnp.eye(len(of.factor))
    root = solve_triangular(of.factor, columns, lower=True)
    return Posterior(of.coefficients, root, of.ridge, of.noise, seen.scales)


def surprise(covariance: Float[Array, "q q"], missed: Float[Array, "q K"]) -> tuple[Float[Array, " K"], Float[Array, ""]]:
    """missedᵀ·covariance⁻¹·missed for each column, and log|covariance|."""
    scale = jnp.trace(covariance) / len(covariance)
    factor = jnp.linalg.cholesky(covariance / scale + 1e-6 * jnp.eye(len(covariance)))
    whitened = solve_triangular(factor, missed, lower=True)
    log_det = 2 * jnp.sum(jnp.log(jnp.diag(factor))) + len(covariance) * jnp.log(scale)
    return jnp.sum(whitened**2, axis=0) / scale, log_det
