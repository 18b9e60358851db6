"""Matching the attention of each layer with its MLP: both write to the residual stream, and the MLP reads from it.

No hidden unit ties them together, only the stream's own basis. What is compared are the Gram matrices on its features
[d, d]: W_output·W_outputᵀ of what attention writes with W_inᵀ·W_in of what the MLP reads, and with W_out·W_outᵀ of what it
writes. Neighbouring layers are alike in this, so that pairs are seldom clear of exchanges with their neighbours.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from dropjax.pairing.certainty import Judged
from dropjax.pairing.evidence import SHUFFLES
from dropjax.pairing.portfolio import best_of

WIDEST = 2048
"""Largest number of features for which Gram matrices are held."""


@jax.jit
def feature_grams(half: Float[Array, "L h d"]) -> Float[Array, "L f"]:
    """Every layer's Gram matrix on the features [d, d] less the mean of all layers, at norm 1, as f = d² numbers.

    Features are brought to the same mean square over all layers, and the layers' mean matrix is taken off: what all layers
    have in common would be seen in every pair, and in no shuffled copy.
    """
    size = jnp.sqrt(jnp.mean(half**2, axis=(0, 1)))
    even = half / jnp.where(size > 0, size, 1)
    grams = lax.map(lambda one: jnp.matmul(one.T, one, precision=lax.Precision.HIGHEST), even)
    grams = _unit(grams.reshape(len(grams), -1))
    return _unit(grams - grams.mean(axis=0))


def _unit(flat: Float[Array, "L f"]) -> Float[Array, "L f"]:
    norm = jnp.linalg.norm(flat, axis=1, keepdims=True)
    return flat / jnp.where(norm > 0, norm, 1)


def pair_layers(
    writes: Float[np.ndarray, "L q d"],
    mlp_reads: Float[np.ndarray, "L h d"],
    mlp_writes: Float[np.ndarray, "L h d"],
    *,
    shuffles: int = SHUFFLES,
    seed: int = 0,
) -> Judged:
    """The MLP of every attention, by the vectors of units that attention writes, and that the MLP reads and writes.

    Signals: `reads`, the cosine of what attention writes with what the MLP reads (`feature_grams`), and `writes`, with what
    it writes. They are compared with copies in which the features that attention writes to are shuffled, for all layers
    alike. A pair is as sure as the less sure of the two, and not at all where they disagree: layers may be alike in one.
    """
    rng = np.random.default_rng(seed)
    width = writes.shape[2]
    ours, reads, theirs = (feature_grams(jnp.asarray(half)) for half in (writes, mlp_reads, mlp_writes))
    square = ours.reshape(len(ours), width, width)
    scores: dict[str, list[np.ndarray]] = {"reads": [], "writes": []}
    for k in range(shuffles + 1):
        order = rng.permutation(width) if k else np.arange(width)
        shuffled = square[:, order][:, :, order].reshape(len(ours), -1)
        for name, flat in (("reads", reads), ("writes", theirs)):
            scores[name].append(np.asarray(jnp.matmul(shuffled, flat.T, precision=lax.Precision.HIGHEST)))
    answer = best_of(scores)
    each = [best_of({name: tables}) for name, tables in scores.items()]
    sure = np.min([np.where(one.partner == answer.partner, one.certainty, 0) for one in each], axis=0)
    return replace(answer, certainty=sure)
