"""Pairs that agree with one another about what training did to them.

Training moves both halves of a block by one matrix G, much the same in all blocks: W_in by W_outᵀ·G and W_out by G·W_inᵀ. So
the right pairs' products resemble one another, and pairs that do teach which others belong to them. What is taken of each
weight is its `movements`: the draw, which drowns the products of halves that were hardly trained, counts for less.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

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

_einsum = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


class Products(NamedTuple):
    """The products M_ij = theirs_jᵀ·ours_i, as vectors, and their inner products where they share a half."""

    each: Float[Array, "L L p"]
    same_input: Float[Array, "L L L"]
    """⟨M_ij, M_ik⟩ of input half i and output halves j and k."""
    same_output: Float[Array, "L L L"]
    """⟨M_ij, M_kj⟩ of output half j (first axis) and input halves i and k."""


@jax.jit
def products(ours: Float[Array, "L k d"], theirs: Float[Array, "L k d"]) -> Products:
    """All products, and what they have in common."""
    every = jnp.arange(len(ours))
    each = lax.map(lambda half: _einsum("jkp,kq->jpq", theirs, half).reshape(len(theirs), -1), ours)
    gram = partial(_einsum, "jp,kp->jk")
    same_input = lax.map(lambda i: gram(each[i], each[i]), every)
    return Products(each, same_input, lax.map(lambda j: gram(each[:, j], each[:, j]), every))


def fits(depth: int, width: int, memory: int) -> bool:
    """Whether the products of all halves with all others take no more than `memory` bytes."""
    return 4 * depth**2 * (width**2 + 2 * depth) <= memory


@jax.jit
def agreement(of: Products, partners: Int[Array, "S L"]) -> Float[Array, "S L L"]:
    """⟨M_ij, T⟩ for several choices of pairs, with T the sum of the chosen pairs' own products, less those of input half i
    and of output half j. See D23 in docs/method.md."""
    halves = jnp.arange(partners.shape[1])
    chosen = jnp.argsort(partners, axis=1)
    together = jax.vmap(lambda partner: of.each[halves, partner].sum(axis=0))(partners)
    with_all = jnp.moveaxis(_einsum("ijp,sp->ijs", of.each, together), 2, 0)  # so XLA copies no products
    with_ours = of.same_input[halves, partners]
    with_theirs = jnp.swapaxes(of.same_output[halves, chosen], 1, 2)
    return with_all - with_ours - jnp.where(chosen[:, None] == halves[:, None], 0, with_theirs)


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
    traces = -np.asarray(_einsum("ikp,jkp->ij", a, b), np.float64)
    of = products(a, b)

    def agreeing(partners: Int[np.ndarray, "S L"]) -> Float[np.ndarray, "S L L"]:
        return np.asarray(agreement(of, partners), np.float64)

    def weighed(partners: Int[np.ndarray, "S L"]) -> Float[np.ndarray, "S L L"]:
        agreements = agreeing(partners)
        return np.stack([discriminant([traces, each], partner) for each, partner in zip(agreements, partners, strict=True)])

    random = np.random.default_rng(0).normal(size=(STARTS, depth, depth))
    alone = max(_repeated(agreeing, np.stack([traces, *random])), key=_standing_out)
    return max(_repeated(weighed, np.stack([traces, alone])), key=_standing_out)


def _standing_out(score: Float[np.ndarray, "L L"]) -> float:
    return advantage(match(COHERENCE, score))


def _repeated(
    scored: Callable[[Int[np.ndarray, "S L"]], Float[np.ndarray, "S L L"]], scores: Float[np.ndarray, "S L L"]
) -> Float[np.ndarray, "S L L"]:
    """The scores by the pairs that the scores before choose, each again until some pairs come back."""
    seen: list[set[bytes]] = [set() for _ in scores]
    for _ in range(ROUNDS):
        partners = np.stack([scipy.optimize.linear_sum_assignment(score, maximize=True)[1] for score in scores])
        going = np.array([partner.tobytes() not in before for partner, before in zip(partners, seen, strict=True)])
        if not going.any():
            break
        for partner, before in zip(partners, seen, strict=True):
            before.add(partner.tobytes())
        scores = np.where(going[:, None, None], scored(partners), scores)
    return scores
