"""Which output half belongs to which input half, from the weights alone (paper, Section 3)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment

from dropjax.device import MEMORY
from dropjax.solution import Pairing


@partial(jax.jit, static_argnames="memory")
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
    w_in: Float[ArrayLike, "L h d"], w_out: Float[ArrayLike, "L d h"], memory: int = MEMORY
) -> tuple[Float[np.ndarray, "L L"], Float[np.ndarray, "L L"]]:
    """d(i, j) = |tr(M)| / ‖M‖_F with M = W_out^(j)·W_in^(i) (paper, Eq. 4), and the traces. 0/0 counts as 0."""
    trace, norm = map(np.asarray, traces_and_norms(jnp.asarray(w_in), jnp.asarray(w_out), memory))
    return np.abs(trace) / np.where(norm > 0, norm, 1), trace


def match(signal: str, score: Float[np.ndarray, "L L"]) -> Pairing:
    """The assignment of largest total score (Hungarian algorithm), with each pair's margin."""
    _, partner = linear_sum_assignment(score, maximize=True)
    return Pairing(signal, score, partner, bool(np.array_equal(score.argmax(axis=1), partner)))


def pair(w_in: Float[ArrayLike, "L h d"], w_out: Float[ArrayLike, "L d h"], memory: int = MEMORY) -> Pairing:
    """Pair input halves with output halves by the diagonal dominance ratio (paper, Section 3.1).

    w_in is [L, h, d] and w_out [L, d, h]; `partner[i]` of the result is the output half of input half i.
    """
    return match("ddr", diagonal_dominance(w_in, w_out, memory)[0])
