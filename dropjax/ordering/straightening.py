"""Straightening: in each round, one regression finds and turns all near blocks that stand the wrong way round."""

from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from dropjax.core.options import MEMORY
from dropjax.core.protocols import ALONE, Context
from dropjax.core.stack import Stack
from dropjax.ordering.flip_regression import Normal, by_places, normal_equations, to_first_order
from dropjax.ordering.parts import in_parts
from dropjax.runtime import mesh
from dropjax.runtime.device import on_one_thread
from dropjax.runtime.programs import OF_FEW_ROWS, program

REACH = 4
"""Largest distance, in positions, of two blocks whose flip is considered."""


NEAR_RIDGES, ERROR_RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 0.1), (1e-4, 1e-3, 1e-2)
"""Ridges of straightening, in the same units and in those of the MSE: a smaller MSE makes them weaker."""


NO_LESS = 1e-7
"""Smallest value of every ridge, in the former units, because a flip may change nothing."""


CERTAIN = (0.3, 0.5)
"""Shares above which a flip is made outright, in some of the orders among which straightening chooses."""


STRAIGHTENED_ROWS, ROWS_PER_BLOCK = 256, 5
"""Rows that straightening uses: the first number, or the second times the number of blocks if that is more."""


class Straightened(NamedTuple):
    """State and result of straightening."""

    arrangement: Int[np.ndarray, "L 2"]
    """The arrangement of the lowest MSE so far."""
    mse: np.floating
    """Its MSE over the rows that straightening uses; ∞ before the first round."""
    candidate: Int[np.ndarray, "L 2"]
    """The arrangement that the next round looks at."""
    rounds: np.integer
    falling: np.bool_
    """Whether the last round lowered the MSE and left something to try."""


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
    """Straightening until the MSE over the rows is within `tolerance` or falls no more; the clock is looked at in each
    round.

    A round turns all near blocks that a regression of the errors finds to stand the wrong way round. Guided repair, in
    contrast, judges each move by its own effect on the MSE, and the effects of several moves may cancel.
    """

    def ended(at: Straightened) -> bool:
        return not (at.falling and float(at.mse) > tolerance)

    part = partial(straightened, stack, x, pred, memory=context.memory)
    return in_parts(start_straightening(arrangement), part, ended, context)


def start_straightening(arrangement: Int[np.ndarray, "L 2"]) -> Straightened:
    """The state before the first round."""
    return Straightened(arrangement, np.float32(np.inf), arrangement, np.int32(0), np.bool_(len(arrangement) > 1))


def straightened(
    stack: Stack, x: Float[Array, "N d"], pred: Float[Array, "N o"], at: Straightened, memory: int = MEMORY
) -> Straightened:
    """The state after another round."""
    normal = jax.tree.map(mesh.fetch, near_equations(stack, at.candidate, x, pred, memory))
    lower = bool(normal.mse < at.mse and np.isfinite(normal.gram).all())  # orders that are tried may overflow
    if not lower:
        return at._replace(rounds=np.int32(at.rounds + 1), falling=np.bool_(False))
    order = likeliest_order(normal, stack.depth)
    turned = bool((order != np.arange(stack.depth)).any())
    return Straightened(at.candidate, np.float32(normal.mse), at.candidate[order], np.int32(at.rounds + 1), np.bool_(turned))


@program(static_argnames=("memory",), options=OF_FEW_ROWS, shared=True)
def near_equations(
    stack: Stack, arrangement: Int[Array, "L 2"], x: Float[Array, "N d"], pred: Float[Array, "N o"], memory: int = MEMORY
) -> Normal:
    """`normal_equations` of all flips within `REACH`, whose constant is the arrangement's own MSE."""
    return normal_equations(stack, arrangement, x, pred, memory, REACH)


def likeliest_order(normal: Normal, depth: int) -> Int[np.ndarray, " L"]:
    """The order of the lowest MSE to first order, among those that regressions of the errors ask for.

    D9 in docs/method.md. The small systems are solved on the host: a program that did it would take longer to compile than
    all that straightening runs.
    """
    normal = jax.tree.map(lambda a: np.asarray(a, np.float64), normal)
    mse, gram, towards = normal
    scale = np.trace(gram) / len(gram)
    ridges = np.maximum([*(scale * np.array(NEAR_RIDGES)), *(mse * np.array(ERROR_RIDGES))], NO_LESS * scale)
    with on_one_thread():
        values, vectors = np.linalg.eigh(gram)
    shares = (towards @ vectors / (np.maximum(values, 0) + np.maximum(ridges, 1e-300)[:, None])) @ vectors.T
    asked = np.concatenate([shares, *((shares > certain).astype(float) for certain in CERTAIN)])
    orders = by_places(asked, depth, REACH)
    return orders[np.argmin(to_first_order(normal, orders, REACH))]
