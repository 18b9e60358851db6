"""Tracing layers of one model to those of another, even if they were fine-tuned, merged, permuted, rescaled or quantised.

A layer's signature is the products of its two halves that meet on the residual stream, unit by unit, or head by head: M_k =
b_k·a_kᵀ of hidden unit k keeps its direction when units change places or either half's are scaled, and a head's product when
the head's units are rotated. A residual stream that was itself rotated, or its features permuted, hides all origins.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax import lax
from jaxtyping import Array, Float, Int

from dropjax.core.options import MEMORY
from dropjax.pairing.evidence import Halves
from dropjax.runtime.settings import own_settings

SAMPLE = 128
"""The number of hidden units of a layer of ours that are compared with each layer of theirs."""
ORIGIN_ERROR = 0.01
"""Probability that some layer without an origin is said to have one, if the scores of unrelated layers were normal."""


@dataclass(frozen=True)
class Origins:
    """The origins of layers."""

    score: Float[np.ndarray, "A B"]
    """The similarity of every layer of ours (row) to every layer of theirs (column)."""
    best: Int[np.ndarray, " A"]
    """The likeliest layer of theirs, whatever the verdict; several of ours may have the same."""
    certainty: Float[np.ndarray, " A"]
    """The distance of the likeliest layer's score from the mean of unrelated ones, in their standard deviations."""
    margin: Float[np.ndarray, " A"]
    """Its distance from the second likeliest, in standard deviations; ∞ if there is no second."""
    clear: float
    """The certainty, and the margin, from which a layer is beyond chance."""

    @property
    def verdicts(self) -> list[str]:
        """For each layer of ours: `from`, `doubtful` where another layer of theirs is as likely, or `none`."""
        found = []
        for certainty, margin in zip(self.certainty, self.margin, strict=True):
            found.append("none" if certainty < self.clear else "from" if margin >= self.clear else "doubtful")
        return found

    @property
    def verdict(self) -> str:
        """`traced` where every layer has an origin, `none` where no layer has, else `in part`."""
        verdicts = set(self.verdicts)
        return "traced" if verdicts == {"from"} else "none" if verdicts == {"none"} else "in part"


@partial(jax.jit, static_argnames="size")
def _best_blocks(
    a: Float[Array, "A n d"], b: Float[Array, "A n d"], x: Float[Array, "B m d"], y: Float[Array, "B m d"], size: int
) -> Float[Array, "A B k"]:
    """The largest cosine of the product of each block of `size` units of ours with that of a block of theirs."""
    product = partial(jnp.matmul, precision=lax.Precision.HIGHEST)

    def squares(p: Float[Array, "u d"], q: Float[Array, "u d"]) -> Float[Array, " k"]:
        p, q = (half.reshape(-1, size, half.shape[1]) for half in (p, q))
        return jnp.sum(product(p, p.swapaxes(1, 2)) * product(q, q.swapaxes(1, 2)), axis=(1, 2))

    def of_pair(p: Array, q: Array, r: Array, s: Array) -> Float[Array, " k"]:
        both = product(p, r.T) * product(q, s.T)
        inner = both.reshape(len(p) // size, size, len(r) // size, size).sum(axis=(1, 3))
        scale = jnp.sqrt(jnp.outer(squares(p, q), squares(r, s)))
        return jnp.max(inner / jnp.where(scale > 0, scale, 1), axis=1)

    return lax.map(lambda ours: lax.map(lambda theirs: of_pair(*ours, *theirs), (x, y)), (a, b))


@own_settings()
def likeness(
    ours: Halves, theirs: Halves, size: int = 1, seed: int = 0, memory: int = MEMORY
) -> tuple[Float[np.ndarray, "A B"], Float[np.ndarray, "A B"]]:
    """The similarity of every layer of ours to every layer of theirs, and to theirs with their features shuffled.

    Of about `SAMPLE` units of a layer of ours, in blocks of `size`, the mean over blocks of the largest cosine of its
    product with that of any block of theirs: 1 where all are there, in whatever order and scale.
    """
    count, hidden, width = ours.shape
    other, their_hidden, _ = theirs.shape
    rng = np.random.default_rng(seed)
    blocks = min(hidden // size, max(1, SAMPLE // size))
    first = size * int(rng.integers(hidden // size - blocks + 1))
    a, b = map(jnp.asarray, ours.units(first, first + blocks * size))  # a run of units: their order means nothing
    features = rng.permutation(width)
    step = size * max(1, min(their_hidden // size, memory // (16 * other * width * size)))
    found = np.full((2, count, other, blocks), -np.inf)
    for start in range(0, their_hidden // size * size, step):
        x, y = theirs.units(start, min(start + step, their_hidden // size * size))
        for k, order in enumerate((np.arange(width), features)):
            found[k] = np.maximum(found[k], _best_blocks(a, b, jnp.asarray(x[..., order]), jnp.asarray(y[..., order]), size))
    same, shuffled = found.mean(axis=-1)
    return same, shuffled


def origins(score: Float[np.ndarray, "A B"], unrelated: Float[np.ndarray, "A B"]) -> Origins:
    """The likeliest layer of theirs for each of ours, and how certain that is.

    What unrelated layers score is taken from all layers of theirs but each one's two likeliest, less the rows' means, and
    from the `unrelated` scores: of the two, the larger mean and the larger spread. A layer is beyond chance by Student's t,
    Bonferroni over all scores.
    """
    count, other = score.shape
    order, every = np.argsort(-score, axis=1), np.arange(count)
    spread, freedom = float(unrelated.std(ddof=1)) if unrelated.size > 1 else 0.0, max(1, unrelated.size - 1)
    mean = np.full(count, unrelated.mean())
    if other > 1:
        rest = score[every[:, None], order[:, 2 if other > 3 else 1 :]]
        rows = rest.mean(axis=1)
        mean = np.maximum(mean, rows)
        own = max(1, rest.size - count)
        wrong = float(np.sqrt(np.square(rest - rows[:, None]).sum() / own))
        spread, freedom = max((spread, freedom), (wrong, own))
    best, top = order[:, 0], score[every, order[:, 0]]
    second = score[every, order[:, 1]] if other > 1 else np.full(count, -np.inf)
    clear = float(-scipy.special.stdtrit(freedom, ORIGIN_ERROR / score.size))
    unit = max(spread, 1e-12)
    return Origins(score, best, (top - mean) / unit, (top - second) / (np.sqrt(2) * unit), clear)


def trace(ours: Halves, theirs: Halves, size: int = 1, seed: int = 0, memory: int = MEMORY) -> Origins:
    """The layers of theirs that layers of ours come from. Raises ValueError for layers of another d, or heads that do not
    divide their units."""
    if ours.shape[2] != theirs.shape[2]:
        raise ValueError(f"expected layers of the same d, got {ours.shape[2]} and {theirs.shape[2]}")
    if ours.shape[1] % size or theirs.shape[1] % size:
        raise ValueError(f"expected heads that divide {ours.shape[1]} and {theirs.shape[1]} units, got {size}")
    return origins(*likeness(ours, theirs, size, seed, memory))
