"""Which of the remaining blocks comes next, and where among the last ones placed, to second order.

Peeling regresses the outputs on the states that it has reached and on what the remaining blocks would add there. One more
block changes the states and with them everything that the regression sees; the regression's own gradient tells how. What it
then still misses, once its coefficients are fitted again and the block is no longer among those that remain, follows for all
blocks and all places from the one factorisation (D19 in docs/method.md). An exact look decides among the best.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Float, Int

from dropjax.core.stack import Stack, adjoints, residual, trajectory
from dropjax.ordering.regressions import (
    Design,
    Outlook,
    Ridge,
    inner,
    is_dual,
    likeliest,
    look,
    posterior,
    products,
    slopes,
    surprise,
)


class Insertions(NamedTuple):
    """What insertions promise."""

    evidence: Float[Array, ""]
    """The outputs' evidence before any of them."""
    ridge: Float[Array, ""]
    """The likeliest, per row, with which all were judged."""
    rise: Float[Array, "m p"]
    """By how much, in nats, each of m blocks makes the outputs likelier at each of the last p places, to second order."""


@jax.jit
def insertions(
    stack: Stack,
    last: Int[Array, "n 2"],
    left: Int[Array, "m 2"],
    start: Float[Array, "N d"],
    outlook: Outlook,
    ridges: Float[Array, " K"],
) -> Insertions:
    """What each block of `left` promises before each of the last blocks placed, and behind them all.

    The last blocks begin at the states `start`. The likeliest of `ridges`, which are per row, takes the place of the
    outlook's.
    """
    at = trajectory(stack, last, start)
    end = at.states[-1]
    seen = look(stack, outlook, end)
    of = likeliest(seen, len(end) * ridges)
    behind = adjoints(stack, last, at, slopes(stack, outlook, seen, of, end))

    def changes(halves: Int[Array, "2"]) -> Float[Array, "p N o"]:
        def at_place(place: tuple[Array, Array]) -> Float[Array, "N o"]:
            x, slope = place
            return products("nd,nod->no", residual(stack, halves, x), slope)

        return lax.map(at_place, (at.states, behind))

    return Insertions(of.evidence, of.ridge / len(end), rises(seen, of, lax.map(changes, left), outlook.through.shape[2]))


def rises(seen: Design, of: Ridge, changes: Float[Array, "m p N o"], size: int) -> Float[Array, "m p"]:
    """By how much, in nats, each change of the outputs makes them likelier, the last columns being `size` of each block,
    and those of the change's own block left out (D19 in docs/method.md)."""
    blocks, places, rows, outputs = changes.shape
    known, width = posterior(seen, of), seen.columns.shape[1]
    changes = changes - changes.mean(axis=2, keepdims=True)
    squares, log_det = of.noise * seen.target.size, 0.0
    errors = seen.target - inner(seen.columns, of.coefficients)
    for output in range(outputs):
        change = jnp.moveaxis(changes[..., output], 2, 0).reshape(rows, -1)
        explained, unexplained = _split(seen, of, change)
        squares += (unexplained - 2 * inner(errors[:, output], change)).reshape(blocks, places)

        def without(k: Int[Array, ""], output: int = output, explained: Array = explained) -> tuple[Array, Array]:
            group, own = known.group(width - (blocks - k) * size, size)
            of_change = lax.dynamic_slice(explained, (width - (blocks - k) * size, k * places), (size, places))
            return surprise(known.covariance(group), own[:, output, None] - of_change)

        lost, spread = lax.map(without, jnp.arange(blocks))
        squares, log_det = squares + lost, log_det + spread[:, None] + size * jnp.log(of.ridge)
    likelier = jnp.log(jnp.maximum(squares / (of.noise * seen.target.size), 1e-3))
    return -(seen.target.size * likelier + log_det) / 2


def _split(seen: Design, of: Ridge, change: Float[Array, "N K"]) -> tuple[Float[Array, "n K"], Float[Array, " K"]]:
    """The coefficients with which the regression explains each change, and the penalised sum of squares that is left."""
    if is_dual(seen.columns.shape):
        weights = cho_solve((of.factor, True), change)
        return inner(seen.columns.T, weights), of.ridge * jnp.sum(change * weights, axis=0)
    across = inner(seen.columns.T, change)
    coefficients = cho_solve((of.factor, True), across)
    return coefficients, jnp.sum(change**2, axis=0) - jnp.sum(across * coefficients, axis=0)
