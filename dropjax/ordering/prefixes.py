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

from dropjax.core.stack import Stack, advance, trajectory
from dropjax.moves.first_order import flips_and_swaps, linearised
from dropjax.ordering.flip_regression import Normal, flippable, proposed, to_first_order
from dropjax.ordering.regressions import Design, Outlook, Ridge, evidence, inner, is_dual, products, regression, slopes
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
    stack: Stack, prefix: Int[np.ndarray, "n 2"], start: Float[Array, "N d"], outlook: Outlook
) -> Int[np.ndarray, "n 2"]:
    """The prefix's blocks in the likeliest order found, from the states `start` before the first of them."""
    reach = min(REACH, len(prefix) - 1)
    left = np.tile(outlook.left, (JUDGED, 1))
    for _ in range(ROUNDS if reach > 0 else 0):
        normal = jax.tree.map(mesh.fetch, prefix_equations(stack, prefix, start, outlook, reach))
        if not np.isfinite(normal.gram).all():
            break  # the outputs overflow
        orders = np.unique(proposed(normal, len(prefix), reach), axis=0)
        orders = orders[np.argsort(to_first_order(normal, orders, reach), kind="stable")][: JUDGED - 1]
        judged = prefix[np.pad(orders, ((1, JUDGED - 1 - len(orders)), (0, 0)), mode="wrap")]
        judged[0] = prefix
        found = mesh.fetch(likelihoods(stack, judged, start, left, outlook))
        best = int(np.argmax(found))
        if not found[best] > found[0] + LIKELIER:
            break
        prefix = judged[best]
    return prefix


@jax.jit
def likelihoods(
    stack: Stack, prefixes: Int[Array, "K n 2"], start: Float[Array, "N d"], left: Int[Array, "K m"], outlook: Outlook
) -> Float[Array, " K"]:
    """The outputs' evidence behind each of some prefixes, each with its own blocks left."""

    def behind(prefix: Int[Array, "n 2"], left: Int[Array, " m"]) -> Float[Array, ""]:
        return evidence(stack, outlook._replace(left=left), advance(stack, prefix, 0, len(prefix), start))

    return lax.map(lambda of: behind(*of), (prefixes, left))


@partial(jax.jit, static_argnames="reach")
def prefix_equations(
    stack: Stack, prefix: Int[Array, "n 2"], start: Float[Array, "N d"], outlook: Outlook, reach: int
) -> Normal:
    """The normal equations of a regression of the errors behind the prefix on its flips, the read-out fitted with them
    (D21 in docs/method.md)."""
    at = trajectory(stack, prefix, start)
    end = at.states[-1]
    seen, of = regression(stack, outlook, end)
    i, j = flippable(len(prefix), reach)
    changes = flips_and_swaps(stack, prefix, linearised(stack, prefix, at, slopes(stack, outlook, seen, of, end)))
    changes = changes[..., i, j] - changes[..., i, j].mean(axis=0)
    errors = inner(seen.columns, of.coefficients) - seen.target
    by_output = [_unexplained(seen, of, changes[:, k]) for k in range(changes.shape[1])]
    gram = jnp.sum(jnp.stack(by_output), axis=0)
    towards = -products("nop,no->p", changes, errors)
    return Normal(jnp.mean(errors**2), gram / errors.size, towards / errors.size)


def _unexplained(seen: Design, of: Ridge, changes: Float[Array, "N P"]) -> Float[Array, "P P"]:
    """Products of the changes, less what the read-out's coefficients could explain of them."""
    dual = is_dual(seen.columns.shape)
    whitened = solve_triangular(of.factor, changes if dual else inner(seen.columns.T, changes), lower=True)
    products = inner(whitened.T, whitened)
    return of.ridge * products if dual else inner(changes.T, changes) - products
