"""Pairs that agree with one another about what training did to them.

Training moves both halves of a block by one matrix G, much the same in all blocks: W_in by W_outᵀ·G and W_out by G·W_inᵀ. So
the right pairs' products resemble one another, and pairs that do teach which others belong to them. What is taken of each
weight is its `movements`: the draw, which drowns the products of halves that were hardly trained, counts for less.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax import lax
from jaxtyping import Array, Float, Int

from dropjax.pairing.certainty import advantage
from dropjax.pairing.ratio import match
from dropjax.pairing.signals import COHERENCE, discriminant

ROUNDS, STARTS = 12, 6
"""Most rounds in which pairs are chosen by those of the round before, and random pairs from which that begins as well."""


@jax.jit
def agreement(ours: Float[Array, "L k d"], theirs: Float[Array, "L k d"], partner: Int[Array, " L"]) -> Float[Array, "L L"]:
    """⟨M_ij, T⟩ for the products M_ij = theirs_jᵀ·ours_i, with T the sum of the chosen pairs' own products, less those of
    input half i and of output half j. See D23 in docs/method.md."""

    def multiply(spec: str, *of: Array) -> Array:
        return jnp.einsum(spec, *of, precision=lax.Precision.HIGHEST)

    chosen = jnp.argsort(partner)
    own = multiply("ikp,ikq->ipq", theirs[partner], ours)
    with_all = multiply("ikp,jkp->ij", multiply("pq,ikq->ikp", own.sum(axis=0), ours), theirs)
    with_ours = multiply("ikp,jkp->ij", multiply("ipq,ikq->ikp", own, ours), theirs)
    with_theirs = multiply("ikq,jkq->ij", ours, multiply("jpq,jkp->jkq", own[chosen], theirs))
    return with_all - with_ours - jnp.where(chosen == jnp.arange(len(ours))[:, None], 0, with_theirs)


def coherence(ours: Float[np.ndarray, "L k d"], theirs: Float[np.ndarray, "L k d"]) -> Float[np.ndarray, "L L"]:
    """Scores of every input half (row) with every output half (column), by the pairs that agree with one another best.

    Pairs are chosen again and again by their agreement, from those of the most negative traces and from random ones; where
    they stand out most, and from the traces' pairs, it goes on by trace and agreement together. The better of the two, by
    how much the chosen pairs stand out, is returned.
    """
    depth = len(ours)
    if depth < 3:  # no pair has others to agree with
        return np.zeros((depth, depth))
    a, b = (jnp.asarray(half - half.mean(axis=0)) for half in (ours, theirs))
    traces = -np.asarray(jnp.einsum("ikp,jkp->ij", a, b, precision=lax.Precision.HIGHEST), np.float64)

    def agreeing(partner: Int[np.ndarray, " L"]) -> Float[np.ndarray, "L L"]:
        return np.asarray(agreement(a, b, partner), np.float64)

    def weighed(partner: Int[np.ndarray, " L"]) -> Float[np.ndarray, "L L"]:
        return discriminant([traces, agreeing(partner)], partner)

    random = np.random.default_rng(0).normal(size=(STARTS, depth, depth))
    alone = max((_repeated(agreeing, start) for start in (traces, *random)), key=_standing_out)
    return max((_repeated(weighed, start) for start in (traces, alone)), key=_standing_out)


def _standing_out(score: Float[np.ndarray, "L L"]) -> float:
    return advantage(match(COHERENCE, score))


def _repeated(
    scored: Callable[[Int[np.ndarray, " L"]], Float[np.ndarray, "L L"]], score: Float[np.ndarray, "L L"]
) -> Float[np.ndarray, "L L"]:
    """The scores by the pairs that the scores before choose, again until some pairs come back."""
    seen = set()
    for _ in range(ROUNDS):
        _, partner = scipy.optimize.linear_sum_assignment(score, maximize=True)
        if partner.tobytes() in seen:
            break
        seen.add(partner.tobytes())
        score = scored(partner)
    return score
