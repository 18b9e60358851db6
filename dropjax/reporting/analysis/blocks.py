"""The blocks of a solved stack at work: sizes, activations, Jacobians, and the predictions of Proposition 1."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from dropjax.core.stack import ACTIVATIONS, Stack, identity_arrangement, preactivation, residual


class Blocks(NamedTuple):
    """Each block at work in the stack, fed by the blocks before it; entry k is the block at position k."""

    singular_values: Float[Array, "L d"]
    """The singular values of W_out·W_in, largest first."""
    delta_norm: Float[Array, " L"]
    """E‖r_k(x)‖₂ at the table's raw inputs (paper, Eq. 5)."""
    residual_norm: Float[Array, " L"]
    """E‖r_k(x_k)‖₂ at the states x_k that reach the block."""
    state_norm: Float[Array, " L"]
    """E‖x_k‖₂."""
    activation: Float[Array, "L h"]
    """E[D(x_k)] of each unit: the share of rows on which it is active, or, if the activation is not ReLU, its mean slope."""
    trace: Float[Array, " L"]
    """tr(W_out·W_in)."""
    jacobian_squared: Float[Array, " L"]
    """E‖J_r‖_F²."""
    jacobian_trace: Float[Array, " L"]
    """E[tr J_r]."""
    isometry: Float[Array, " L"]
    """‖E[J_fᵀ·J_f] − I‖_F, which Proposition 1 assumes to be 0."""
    row_isometry: Float[Array, " L"]
    """E‖J_fᵀ·J_f − I‖_F, on the first `few` rows alone."""


@partial(jax.jit, static_argnames="few")
def measure_blocks(stack: Stack, x: Float[Array, "N d"], few: int = 128) -> Blocks:
    """Every block's size, activations and Jacobians J_r = W_out·D·W_in, J_f = I + J_r (paper, Eqs. 5 and 10 to 15).

    The means of ‖J_r‖² and J_rᵀ·J_r follow from E[D] and E[D·1·1ᵀ·D] without a Jacobian being formed.
    """
    act = ACTIVATIONS[stack.activation]
    inner = partial(jnp.einsum, precision=lax.Precision.HIGHEST)

    def at(state: Float[Array, "N d"], halves: Int[Array, "2"]):
        w_in, w_out = stack.w_in[halves[0]], stack.w_out[halves[1]]
        z = preactivation(stack, halves[0], state)
        _, slope = jax.jvp(act, (z,), (jnp.ones_like(z),))
        r = residual(stack, halves, state)
        product = inner("dh,he->de", w_out, w_in)
        mean = slope.mean(axis=0)
        together = inner("nh,ng->hg", slope, slope) / len(slope)
        outs, ins = inner("dh,dg->hg", w_out, w_out), inner("hd,gd->hg", w_in, w_in)
        mean_j = inner("dh,h,he->de", w_out, mean, w_in)
        mean_jj = inner("hd,hg,ge->de", w_in, together * outs, w_in)
        jacobians = inner("dh,nh,he->nde", w_out, slope[:few], w_in)
        rows = jacobians + jnp.swapaxes(jacobians, 1, 2) + inner("nkd,nke->nde", jacobians, jacobians)
        return state + r, Blocks(
            singular_values=jnp.linalg.svd(product, compute_uv=False),
            delta_norm=_mean_norm(residual(stack, halves, x)),
            residual_norm=_mean_norm(r),
            state_norm=_mean_norm(state),
            activation=mean,
            trace=jnp.trace(product),
            jacobian_squared=jnp.sum(together * outs * ins),
            jacobian_trace=jnp.trace(mean_j),
            isometry=jnp.linalg.norm(mean_j + mean_j.T + mean_jj),
            row_isometry=jnp.mean(jnp.linalg.norm(rows, axis=(1, 2))),
        )

    return lax.scan(at, x, identity_arrangement(stack.depth))[1]


def _mean_norm(rows: Float[Array, "N d"]) -> Float[Array, ""]:
    return jnp.mean(jnp.linalg.norm(rows, axis=1))


def effective_rank(singular_values: Float[np.ndarray, "... d"]) -> Float[np.ndarray | np.float64, "..."]:
    """exp of the entropy of the singular values' shares (Roy and Vetterli 2007): d if all are equal, 1 if only one
    is not 0. The paper's Figure 9 does not say which effective rank it means.
    """
    values = np.asarray(singular_values, np.float64)
    share = values / values.sum(axis=-1, keepdims=True)
    return np.exp(-np.sum(share * np.log(np.where(share > 0, share, 1)), axis=-1))


def products(stack: Stack) -> Float[np.ndarray, "L d d"]:
    """W_out·W_in of each block."""
    return np.asarray(jnp.einsum("ldh,lhe->lde", stack.w_out, stack.w_in, precision=lax.Precision.HIGHEST))
