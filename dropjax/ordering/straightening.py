"""Straightening: in each round, one regression finds and turns all near blocks that stand the wrong way round."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from dropjax.core.options import MEMORY
from dropjax.core.protocols import ALONE, Context
from dropjax.core.stack import Stack
from dropjax.moves.exact import score_arrangements
from dropjax.ordering.flip_regression import Normal, expected_places, flippable, normal_equations
from dropjax.ordering.parts import in_parts
from dropjax.runtime import mesh
from dropjax.runtime.programs import program

REACH = 4
"""Largest distance, in positions, of two blocks whose flip is considered."""


NEAR_RIDGES, ERROR_RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 0.1), (1e-4, 1e-3, 1e-2)
"""Ridges of straightening, in the same units and in those of the MSE: a smaller MSE makes them weaker."""


NO_LESS = 1e-7
"""Smallest value of every ridge, in the former units, because a flip may change nothing."""


ITERATIONS, ACCURACY = 200, 1e-5
"""Largest number of conjugate gradient steps for straightening's shares, and the relative residual that ends them."""


CERTAIN = (0.3, 0.5)
"""Shares above which a flip is made outright, in some of the orders among which straightening chooses."""


STRAIGHTENED_ROWS, ROWS_PER_BLOCK = 256, 5
"""Rows that straightening uses: the first number, or the second times the number of blocks if that is more."""


STRAIGHTENED_AT_ONCE = 8
"""Rounds between two looks at the clock."""


class Straightened(NamedTuple):
    """State and result of straightening."""

    arrangement: Int[Array, "L 2"]
    mse: Float[Array, ""]
    """MSE over the rows that straightening uses; ∞ before the first round."""
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
    context: Context = ALONE,
) -> Straightened:
    """Straightening until the MSE over the rows is within `tolerance` or falls no more; the clock is looked at every
    `STRAIGHTENED_AT_ONCE` rounds.

    A round turns all near blocks that a regression of the errors finds to stand the wrong way round. Guided repair, in
    contrast, judges each move by its own effect on the MSE, and the effects of several moves may cancel.
    """

    def part(at: Straightened) -> Straightened:
        last = np.int32(int(at.rounds) + STRAIGHTENED_AT_ONCE)
        return straightening(stack, at, x, pred, np.float32(tolerance), last, memory=context.memory)

    def ended(at: Straightened) -> bool:
        return not (at.falling and float(at.mse) > tolerance)

    return in_parts(start_straightening(arrangement), part, ended, context)


def start_straightening(arrangement: Int[np.ndarray, "L 2"]) -> Straightened:
    """The state before the first round."""
    parts: tuple[Any, ...] = arrangement, np.float32(np.inf), np.int32(0), np.bool_(len(arrangement) > 1)
    return Straightened(*mesh.put(parts))


@program(static_argnames=("memory",), quick=True)
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
        # Two programs sum one arrangement's squares, and may round them differently; so both have to find less.
        lower = mse < jnp.minimum(normal.mse, at.mse)
        arrangement = jnp.where(lower, candidate, at.arrangement)
        return Straightened(arrangement, jnp.minimum(mse, normal.mse), at.rounds + 1, lower)

    def going_on(at: Straightened) -> Array:
        return at.falling & (at.mse > tolerance) & (at.rounds < last)

    return lax.while_loop(going_on, step, start)


def likeliest_order(normal: Normal, depth: int) -> Int[Array, " L"]:
    """The order of the lowest MSE to first order, among those that regressions of the errors ask for.

    D9 in docs/method.md.
    """
    from jax.scipy.sparse.linalg import cg  # which is slow to import, and needed only to trace the program

    i, j = flippable(depth, REACH)
    scale = jnp.trace(normal.gram) / len(i)
    ridges = jnp.concatenate([scale * jnp.asarray(NEAR_RIDGES), normal.mse * jnp.asarray(ERROR_RIDGES)])
    ridges = jnp.maximum(ridges, NO_LESS * scale)

    def share(ridge: Float[Array, ""]) -> Float[Array, " P"]:
        # LAPACK is not used: when two programs call it, the CPU threads of XLA wait for one another.
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
