"""How far every two blocks are from commuting (paper, Section 4.2)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from dropjax.core.stack import Stack, identity_arrangement, residual, trajectory


class Commutators(NamedTuple):
    """Two blocks A (row) and B (column), A before B, run in both orders from the state that reaches A."""

    size: Float[Array, "L L"]
    """E‖B(A(x)) − A(B(x))‖₂."""
    first_order: Float[Array, "L L"]
    """E‖J_B·r_A − J_A·r_B‖₂, which `size` approaches as both residuals become small."""
    product: Float[Array, "L L"]
    """E[‖r_A‖·‖r_B‖], the scale that the paper's Eq. 6 names."""
    change: Float[Array, "L L"]
    """E‖B(A(x)) − x‖₂: the effect of both blocks together."""


@jax.jit
def commutators(stack: Stack, x: Float[Array, "N d"]) -> Commutators:
    """How far every two blocks are from commuting (paper, Eq. 6); 4·L² block evaluations."""
    order = identity_arrangement(stack.depth)
    norm = lambda rows: jnp.linalg.norm(rows, axis=1)  # noqa: E731

    def of_first(first: tuple[Array, Array]) -> Commutators:
        a, state = first
        r_a = residual(stack, a, state)

        def with_second(b: Int[Array, "2"]) -> Commutators:
            r_b, jr_a = jax.jvp(lambda x: residual(stack, b, x), (state,), (r_a,))
            _, jr_b = jax.jvp(lambda x: residual(stack, a, x), (state,), (r_b,))
            b_of_a = r_a + residual(stack, b, state + r_a)
            a_of_b = r_b + residual(stack, a, state + r_b)
            parts = (norm(b_of_a - a_of_b), norm(jr_a - jr_b), norm(r_a) * norm(r_b), norm(b_of_a))
            return Commutators(*map(jnp.mean, parts))

        return lax.map(with_second, order)

    return lax.map(of_first, (order, trajectory(stack, order, x).states[:-1]))


def by_distance(values: Float[np.ndarray, "L L"]) -> Float[np.ndarray, "L-1 3"]:
    """Lower quartile, median and upper quartile of the entries above the diagonal, by distance from it (1 to L−1)."""
    values = np.asarray(values, np.float64)
    return np.array([np.quantile(np.diagonal(values, k), (0.25, 0.5, 0.75)) for k in range(1, len(values))]).reshape(-1, 3)
