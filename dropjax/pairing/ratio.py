"""The paper's pairing (Section 3.1): the diagonal dominance ratio, and the assignment of the largest total."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import scipy
from jax import lax
from jaxtyping import Array, Float

from dropjax.core.options import MEMORY
from dropjax.core.solution import Pairing
from dropjax.runtime import mesh
from dropjax.runtime.programs import QUICK, program


@program(static_argnames=("memory",), options=QUICK, shared=True)
def traces_and_norms(
    w_in: Float[Array, "L h d"], w_out: Float[Array, "L d h"], memory: int = MEMORY
) -> tuple[Float[Array, "L L"], Float[Array, "L L"]]:
    """tr(W_out^(j)·W_in^(i)) and ‖W_out^(j)·W_in^(i)‖_F for every input half i (row) and output half j (column).

    No product is formed: the trace is an inner product of the two halves' entries, and the squared norm one of their
    Gram matrices W_in·W_inᵀ and W_outᵀ·W_out, which costs h² a pair instead of d²·h. As many Gram matrices are held as
    fit into `memory` bytes.
    """
    w_out_t = jnp.swapaxes(w_out, 1, 2)
    trace = jnp.einsum("ihd,jhd->ij", w_in, w_out_t, precision=lax.Precision.HIGHEST)

    def gram(half: Float[Array, "h d"]) -> Float[Array, "h h"]:
        return jnp.matmul(half, half.T, precision=lax.Precision.HIGHEST)

    hidden = w_in.shape[1]
    together = min(len(w_in), max(1, memory // (8 * hidden * hidden)))

    def squares_of(half: Float[Array, "h d"]) -> Float[Array, " L"]:
        own = gram(half)
        inner = partial(jnp.einsum, "hg,hg->", precision=lax.Precision.HIGHEST)
        return lax.map(lambda other: inner(own, gram(other)), w_out_t, batch_size=together)

    squares = lax.map(squares_of, w_in, batch_size=together)
    return trace, jnp.sqrt(jnp.maximum(squares, 0))


def diagonal_dominance(
    w_in: Float[Array | np.ndarray, "L h d"], w_out: Float[Array | np.ndarray, "L d h"], memory: int = MEMORY
) -> tuple[Float[np.ndarray, "L L"], Float[np.ndarray, "L L"]]:
    """d(i, j) = |tr(M)| / ‖M‖_F with M = W_out^(j)·W_in^(i) (paper, Eq. 4), and the traces. 0/0 counts as 0."""
    trace, norm = map(np.asarray, traces_and_norms(*mesh.put((w_in, w_out)), memory))
    if not np.isfinite(norm).all():
        # Halves scaled to unit size have the same ratio, and cannot overflow.
        arrays = map(np.asarray, (w_in, w_out))
        unit_in, unit_out = (w / np.maximum(np.abs(w).max(axis=(1, 2), keepdims=True), 1e-30) for w in arrays)
        return diagonal_dominance(unit_in, unit_out, memory)[0], trace
    return np.abs(trace) / np.where(norm > 0, norm, 1), trace


def match(signal: str, score: Float[np.ndarray, "L L"]) -> Pairing:
    """The assignment of largest total score (Hungarian algorithm), with each pair's margin."""
    largest = score.argmax(axis=1)
    mutual = len(np.unique(largest)) == len(largest)  # no assignment has a larger total, and SciPy need not be imported
    partner = largest if mutual else scipy.optimize.linear_sum_assignment(score, maximize=True)[1]
    return Pairing(signal, score, partner, bool(np.array_equal(largest, partner)))
