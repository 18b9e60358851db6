"""Straightening of a prefix: the order of the blocks peeled last, with a regression on all others as their read-out.

Peeling places a block too early or too late where several are nearly ready. The regression on the states at the prefix's
end, and on what the remaining blocks would add there, is a function of the state, so that it has a gradient. From it follow
the prefix's adjoints, and from them the effect of every flip within it, as in a whole stack (D21 in docs/method.md). Nothing
behind the prefix has to be in order for that.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Int

from dropjax.core.stack import Stack, advance, pick, read_out, trajectory
from dropjax.moves.first_order import flips_and_swaps, linearised
from dropjax.ordering.flip_regression import Normal, flippable, proposed, to_first_order
from dropjax.ordering.regressions import (
    Design,
    Ridge,
    design,
    evidence,
    gram_of,
    hidden,
    inner,
    is_dual,
    products,
    residual_features,
    ridge_regression,
)
from dropjax.runtime import mesh

REACH = 16
"""Largest distance, in positions, of two blocks whose flip is considered."""
ROUNDS = 12
"""Rounds of straightening, each from the order before, as long as the outputs become likelier."""
JUDGED = 6
"""Proposed orders whose evidence is looked at in a round: the best to first order."""
LIKELIER = 1.0
"""Nats by which an order has to be likelier."""


def straighten_prefix(
    stack: Stack,
    prefix: Int[np.ndarray, "n 2"],
    left: Int[np.ndarray, "m 2"],
    start: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    basis: Float[np.ndarray, "d k"],
    ridge: float,
) -> Int[np.ndarray, "n 2"]:
    """The prefix's blocks in the likeliest order found, from the states `start` before the first of them.

    `left` are the blocks behind it, whose order does not matter, with rows of −1 for none; their residuals are seen along
    `basis`. The ridge is per row.
    """
    reach = min(REACH, len(prefix) - 1)
    behind = left, start, pred, basis, np.float32(ridge)
    for _ in range(ROUNDS if reach > 0 else 0):
        normal = jax.tree.map(mesh.fetch, prefix_equations(stack, prefix, *behind, reach))
        if not np.isfinite(normal.gram).all():
            break  # the outputs overflow
        orders = np.unique(proposed(normal, len(prefix), reach), axis=0)
        orders = orders[np.argsort(to_first_order(normal, orders, reach), kind="stable")][: JUDGED - 1]
        judged = prefix[np.pad(orders, ((1, JUDGED - 1 - len(orders)), (0, 0)), mode="wrap")]
        judged[0] = prefix
        found = mesh.fetch(likelihoods(stack, judged, *behind))
        best = int(np.argmax(found))
        if not found[best] > found[0] + LIKELIER:
            break
        prefix = judged[best]
    return prefix


@jax.jit
def likelihoods(
    stack: Stack,
    prefixes: Int[Array, "K n 2"],
    left: Int[Array, "m 2"],
    start: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    basis: Float[Array, "d k"],
    ridge: Float[Array, ""],
) -> Float[Array, " K"]:
    """The outputs' evidence behind each of some prefixes."""

    def behind(prefix: Int[Array, "n 2"]) -> Float[Array, ""]:
        end = advance(stack, prefix, 0, len(prefix), start)
        return evidence(stack, left, end, pred, basis, ridge)

    return lax.map(behind, prefixes)


@partial(jax.jit, static_argnames="reach")
def prefix_equations(
    stack: Stack,
    prefix: Int[Array, "n 2"],
    left: Int[Array, "m 2"],
    start: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    basis: Float[Array, "d k"],
    ridge: Float[Array, ""],
    reach: int,
) -> Normal:
    """The normal equations of a regression of the errors behind the prefix on its flips, the read-out fitted with them
    (D21 in docs/method.md)."""
    at = trajectory(stack, prefix, start)
    end = at.states[-1]
    seen = design(stack, left, end, pred, residual_features(stack, left, end, basis))
    of = ridge_regression(seen, gram_of(seen.columns), len(start) * ridge)
    i, j = flippable(len(prefix), reach)
    changes = flips_and_swaps(stack, prefix, linearised(stack, prefix, at, slopes(stack, left, basis, seen, of, end)))
    changes = changes[..., i, j] - changes[..., i, j].mean(axis=0)
    errors = inner(seen.columns, of.coefficients) - seen.target
    by_output = [_unexplained(seen, of, len(start) * ridge, changes[:, k]) for k in range(changes.shape[1])]
    gram = jnp.sum(jnp.stack(by_output), axis=0)
    towards = -products("nop,no->p", changes, errors)
    return Normal(jnp.mean(errors**2), gram / errors.size, towards / errors.size)


def _unexplained(seen: Design, of: Ridge, ridge: Float[Array, ""], changes: Float[Array, "N P"]) -> Float[Array, "P P"]:
    """Products of the changes, less what the read-out's coefficients could explain of them."""
    dual = is_dual(seen.columns.shape)
    whitened = solve_triangular(of.factor, changes if dual else inner(seen.columns.T, changes), lower=True)
    products = inner(whitened.T, whitened)
    return ridge * products if dual else inner(changes.T, changes) - products


def slopes(
    stack: Stack,
    left: Int[Array, "m 2"],
    basis: Float[Array, "d k"],
    seen: Design,
    of: Ridge,
    x: Float[Array, "N d"],
) -> Float[Array, "N o d"]:
    """The gradient, by the state, of the outputs as a regression on the states and the remaining blocks' residuals has
    them."""
    width, (by_state, by_feature) = x.shape[1], seen.scales
    by_block = by_feature * of.coefficients[width:].reshape(len(left), -1, of.coefficients.shape[1])

    def outputs(x: Float[Array, "N d"]) -> Float[Array, "N o"]:
        @jax.checkpoint
        def add(total: Float[Array, "N o"], block: tuple[Array, Array]) -> tuple[Float[Array, "N o"], None]:
            halves, coefficients = block
            through = inner(inner(pick(stack.w_out, halves[1]).T, basis), coefficients)
            return total + jnp.where(halves[0] >= 0, inner(hidden(stack, halves, x), through), 0), None

        begin = read_out(stack, x) + by_state * inner(x, of.coefficients[:width])
        return lax.scan(add, begin, (left, by_block))[0]

    _, back = jax.vjp(outputs, x)
    each = jnp.broadcast_to(jnp.eye(len(stack.b_last))[:, None], (len(stack.b_last), len(x), len(stack.b_last)))
    return jnp.moveaxis(jax.vmap(lambda of_output: back(of_output)[0])(each), 0, 1)
