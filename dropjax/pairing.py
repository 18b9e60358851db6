"""Which output half belongs to which input half, from the weights alone (paper, Section 3).

`pair` alone is the paper's ratio. Where that does not tell the pairs apart, `portfolio` looks at the halves in several
ways (`SIGNALS`) and trusts the one whose matching stands out most from the matchings of the same halves with their hidden
units shuffled: shuffling takes away what pairs have in common and leaves everything else as it is.

Below, A is an input half's W_in [h, d] and B an output half's W_outᵀ [h, d]: row k of both is hidden unit k.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax import lax
from jaxtyping import Array, Float, Int

from dropjax import mesh
from dropjax.device import MEMORY
from dropjax.programs import program
from dropjax.solution import Pairing

PAIR_ERROR = 0.01
"""Probability, under the wrong pairs' own spread, with which some pair of a matching is called clear and is not."""
SIGNAL_ERROR = 0.001
"""Probability with which unrelated halves are said to have a signal, over all signals together, were the mean scores of
shuffled halves normal; they are not quite with two to four halves, where about 1 in 100 are."""
SHUFFLES = 8
"""Shuffled copies that a portfolio is compared with."""
EXACT_WIDTH = 256
"""Widest d whose products W_out·W_in are looked at as they are; wider ones are sketched."""
SKETCH = 128
"""Random directions on each side of a sketched product."""
RIDGE, REFITS = 0.05, 8
"""Of the discriminant."""
PREFERRED = 0.9
"""The discriminant is trusted where its separation comes to this share of the best one: it rests on all signals."""
WRONG_PAIRS = 10
"""Wrong pairs per signal that a discriminant is learned from: with 10 signals, it takes 11 halves."""


# The paper's ratio


@program(static_argnames=("memory",), quick=True)
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
        # The ratio of halves at unit size is the same, and cannot overflow.
        arrays = map(np.asarray, (w_in, w_out))
        unit_in, unit_out = (w / np.maximum(np.abs(w).max(axis=(1, 2), keepdims=True), 1e-30) for w in arrays)
        return diagonal_dominance(unit_in, unit_out, memory)[0], trace
    return np.abs(trace) / np.where(norm > 0, norm, 1), trace


def match(signal: str, score: Float[np.ndarray, "L L"]) -> Pairing:
    """The assignment of largest total score (Hungarian algorithm), with each pair's margin."""
    _, partner = scipy.optimize.linear_sum_assignment(score, maximize=True)
    return Pairing(signal, score, partner, bool(np.array_equal(score.argmax(axis=1), partner)))


def pair(
    w_in: Float[Array | np.ndarray, "L h d"],
    w_out: Float[Array | np.ndarray, "L d h"],
    memory: int = MEMORY,
    signal: str = "ddr",
) -> Pairing:
    """Pair input halves with output halves; `partner[i]` of the result is the output half of input half i.

    `signal` is "ddr", the paper's ratio (Section 3.1); another name in `SIGNALS` or `LEARNED`; or "auto", the one that
    separates best. All but "ddr" give a `Judged` pairing. Raises ValueError for another name.
    """
    if signal == "ddr":
        return match("ddr", diagonal_dominance(w_in, w_out, memory)[0])
    return portfolio(Arrays(np.asarray(w_in), np.asarray(w_out)), None if signal == "auto" else (signal,), memory=memory)


# How sure a matching is


def regrets(score: Float[np.ndarray, "L L"], partner: Int[np.ndarray, " L"]) -> Float[np.ndarray, " L"]:
    """What each pair's best exchange of output halves with another pair loses of the total score; ∞ for a lone pair.

    Unlike a row's margin it does not change when something is added to all scores of a row or a column.
    """
    mine = score[:, partner]
    own = np.diag(mine)
    loss = own[:, None] + own - mine - mine.T
    return np.where(np.eye(len(own), dtype=bool), np.inf, loss).min(axis=1)


def without_effects(score: Float[np.ndarray, "L L"], partner: Int[np.ndarray, " L"]) -> tuple[Float[np.ndarray, "L L"], int]:
    """The scores less their rows' and columns' effects, and the degrees of freedom that are left to the pairs not chosen.

    Column k is input half k's chosen partner, so that the chosen pairs are the diagonal. The effects are the least-squares
    fit to the table without the diagonal (Griffing's diallel analysis); with fewer than 4 halves there is too little to
    take effects from, and only the mean is taken.
    """
    count = len(partner)
    table = score[:, partner].astype(np.float64)
    if count < 2:
        return table, 1
    off = ~np.eye(count, dtype=bool)
    table -= table[off].mean()
    freedom = count * (count - 1) - 1
    if count > 3:
        rows, columns = np.where(off, table, 0).sum(axis=1), np.where(off, table, 0).sum(axis=0)
        by_row, by_column = (count - 1) * rows + columns, (count - 1) * columns + rows
        table -= (by_row[:, None] + by_column) / (count * (count - 2))
        freedom -= 2 * (count - 1)
    return table, freedom


def wrong_spread(score: Float[np.ndarray, "L L"], partner: Int[np.ndarray, " L"]) -> tuple[float, int]:
    """Standard deviation of the scores of the pairs not chosen, less their rows' and columns' effects, and its degrees of
    freedom."""
    table, freedom = without_effects(score, partner)
    return float(np.sqrt(np.square(table[~np.eye(len(table), dtype=bool)]).sum() / freedom)), freedom


def certainty(pairing: Pairing, least_spread: float = 0.0) -> tuple[Float[np.ndarray, " L"], float]:
    """Each pair's regret in standard deviations of an exchange between wrong pairs, and the value that makes it clear.

    An exchange weighs four scores, so its standard deviation is twice the wrong pairs' spread (or `least_spread`, if that
    is larger). A pair is clear where none of the L(L − 1)/2 exchanges would get as far by chance with probability
    `PAIR_ERROR`: Bonferroni over Student's t.
    """
    spread, freedom = wrong_spread(pairing.score, pairing.partner)
    regret, count = regrets(pairing.score, pairing.partner), len(pairing.partner)
    unit = 2 * max(spread, least_spread)
    sure = np.where(regret > 0, np.inf, 0.0) if unit == 0 else regret / unit
    return sure, float(-scipy.special.stdtrit(freedom, PAIR_ERROR / max(1, count * (count - 1) / 2)))


def doubtful(pairing: Pairing) -> Int[np.ndarray, " D"]:
    """Input halves whose partner is not clear of chance (see `certainty`), the most doubtful first."""
    if isinstance(pairing, Judged):
        sure, clear = pairing.certainty, pairing.clear
    else:
        sure, clear = certainty(pairing)
    order = np.argsort(sure, kind="stable")
    return order[sure[order] < clear]


# What the signals look at


class Halves(Protocol):
    """Input and output halves of L blocks, wherever they are kept."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(L, h, d)."""
        ...

    def units(self, start: int, stop: int) -> tuple[Float[np.ndarray, "L s d"], Float[np.ndarray, "L s d"]]:
        """Hidden units `start` to `stop` of every input half (rows of W_in) and output half (columns of W_out), float32."""
        ...


@dataclass(frozen=True)
class Arrays:
    """Halves in memory."""

    w_in: Float[np.ndarray, "L h d"]
    w_out: Float[np.ndarray, "L d h"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(L, h, d)."""
        count, hidden, width = self.w_in.shape
        return count, hidden, width

    def units(self, start: int, stop: int) -> tuple[Float[np.ndarray, "L s d"], Float[np.ndarray, "L s d"]]:
        """See `Halves`."""
        return self.w_in[:, start:stop], np.swapaxes(self.w_out[:, :, start:stop], 1, 2)


class Evidence(NamedTuple):
    """What the signals look at, for every input half i (row) and output half j (column). M is B^(j)ᵀ·A^(i) = W_out·W_in."""

    trace: Float[np.ndarray, "L L"]
    """tr(M) = Σ_k ⟨a_k, b_k⟩."""
    cosines: Float[np.ndarray, "L L"]
    """Mean over hidden units of cos(a_k, b_k)."""
    squared_cosines: Float[np.ndarray, "L L"]
    """Mean over hidden units of cos²(a_k, b_k)."""
    cubes: Float[np.ndarray, "L L"]
    """Σ_k ⟨â_k³, b̂_k³⟩ of the hidden units' vectors at unit length, their entries cubed."""
    cube_norms: tuple[Float[np.ndarray, " L"], Float[np.ndarray, " L"]]
    """Norms of the halves' units at unit length, cubed: sqrt(Σ_k ‖â_k³‖²), and the same of b."""
    norm: Float[np.ndarray, "L L"]
    """‖M‖_F; sketched where d > `EXACT_WIDTH`."""
    square: Float[np.ndarray, "L L"] | None
    """tr(M²); None where products are sketched."""
    in_norms: Float[np.ndarray, "L h"]
    """‖a_k‖ of every input half's hidden units."""
    out_norms: Float[np.ndarray, "L h"]
    """‖b_k‖ of every output half's hidden units."""
    in_peaks: Float[np.ndarray, "L h"]
    """The largest |entry| of each a_k."""
    out_peaks: Float[np.ndarray, "L h"]
    """The largest |entry| of each b_k."""
    gram_norms: tuple[Float[np.ndarray, " L"], Float[np.ndarray, " L"]] | None
    """‖A·Aᵀ‖_F and ‖B·Bᵀ‖_F; None where products are sketched."""
    kept: tuple[Float[Array, "L h p"], Float[Array, "L h p"]]
    """The halves themselves, or A·G and B·H with random G and H [d, p]: the sketch of M is (B·H)ᵀ·(A·G)."""
    order: Int[np.ndarray, " h"]
    """Which of the output halves' hidden units stands where."""

    @property
    def halves(self) -> tuple[Float[Array, "L h p"], Float[Array, "L h p"]]:
        """`kept`, the output halves' hidden units in `order`."""
        ours, theirs = self.kept
        return ours, theirs[:, self.order]


class Sums(NamedTuple):
    """Sums over some hidden units, and those units' norms and largest weights."""

    trace: Float[Array, "L L"]
    cosines: Float[Array, "L L"]
    squared_cosines: Float[Array, "L L"]
    cubes: Float[Array, "L L"]
    in_cubes: Float[Array, " L"]
    out_cubes: Float[Array, " L"]
    in_norms: Float[Array, "L s"]
    out_norms: Float[Array, "L s"]
    in_peaks: Float[Array, "L s"]
    out_peaks: Float[Array, "L s"]


@jax.jit
def sums_over(a: Float[Array, "L s d"], b: Float[Array, "L s d"]) -> Sums:
    """Everything that is a sum over hidden units of something about one unit of both halves."""
    inner = jnp.einsum("isd,jsd->sij", a, b, precision=lax.Precision.HIGHEST)
    in_norms, out_norms = (jnp.linalg.norm(half, axis=2) for half in (a, b))
    scale = in_norms.T[:, :, None] * out_norms.T[:, None, :]
    cosine = inner / jnp.where(scale > 0, scale, 1)
    in_cubed, out_cubed = (
        (half / jnp.where(norm > 0, norm, 1)[:, :, None]) ** 3 for half, norm in ((a, in_norms), (b, out_norms))
    )
    return Sums(
        trace=inner.sum(0),
        cosines=cosine.sum(0),
        squared_cosines=jnp.square(cosine).sum(0),
        cubes=jnp.einsum("isd,jsd->ij", in_cubed, out_cubed, precision=lax.Precision.HIGHEST),
        in_cubes=jnp.sum(in_cubed**2, axis=(1, 2)),
        out_cubes=jnp.sum(out_cubed**2, axis=(1, 2)),
        in_norms=in_norms,
        out_norms=out_norms,
        in_peaks=jnp.max(jnp.abs(a), axis=2),
        out_peaks=jnp.max(jnp.abs(b), axis=2),
    )


@partial(jax.jit, static_argnames="memory")
def product_norms(
    a: Float[Array, "L h p"], b: Float[Array, "L h p"], memory: int = MEMORY
) -> tuple[Float[Array, "L L"], Float[Array, "L L"]]:
    """‖M‖_F² and tr(M²) of every M = B^(j)ᵀ·A^(i); as many M as fit into `memory` bytes are held at once."""

    def of_pair(a: Float[Array, "h p"], b: Float[Array, "h p"]) -> tuple[Array, Array]:
        product = jnp.matmul(b.T, a, precision=lax.Precision.HIGHEST)
        return jnp.sum(product * product), jnp.sum(product * product.T)

    together = max(1, min(len(a), memory // (8 * a.shape[2] ** 2)))
    return lax.map(lambda a: lax.map(partial(of_pair, a), b, batch_size=together), a)


@jax.jit
def gram_norms(half: Float[Array, "L h d"]) -> Float[Array, " L"]:
    """‖A·Aᵀ‖_F = ‖Aᵀ·A‖_F of every half."""
    return lax.map(lambda a: jnp.linalg.norm(jnp.matmul(a.T, a, precision=lax.Precision.HIGHEST)), half)


@jax.jit
def template_scores(
    a: Float[Array, "L h p"], b: Float[Array, "L h p"], partner: Int[Array, " L"], weight: Float[Array, " L"]
) -> Float[Array, "L L"]:
    """⟨M, T⟩ / ‖M‖_F for every M = B^(j)ᵀ·A^(i), T the weighted mean of the pairs' own M / ‖M‖_F.

    Leave one out: the pairs that input half i or output half j belong to do not count in the T that M_ij meets.
    """

    def unit_product(a: Float[Array, "h p"], b: Float[Array, "h p"]) -> Float[Array, "p p"]:
        product = jnp.matmul(b.T, a, precision=lax.Precision.HIGHEST)
        norm = jnp.linalg.norm(product)
        return product / jnp.where(norm > 0, norm, 1)

    templates = lax.map(lambda k: unit_product(a[k], b[partner[k]]), jnp.arange(len(a)))

    def score(i, j):
        counts = weight * ((jnp.arange(len(a)) != i) & (partner != j))
        likeness = jnp.einsum("kpq,pq->k", templates, unit_product(a[i], b[j]), precision=lax.Precision.HIGHEST)
        return jnp.sum(counts * likeness) / jnp.maximum(jnp.sum(counts), 1)

    return lax.map(lambda i: lax.map(partial(score, i), jnp.arange(len(a))), jnp.arange(len(a)))


def observe(halves: Halves, shuffles: int = SHUFFLES, seed: int = 0, memory: int = MEMORY) -> Iterator[Evidence]:
    """The evidence of the halves as they are, and then of `shuffles` copies with the output halves' hidden units shuffled.

    One pass over the hidden units, as many at a time as fit into `memory` bytes; units are shuffled among those read
    together. Beyond d = `EXACT_WIDTH` products are sketched: what is kept of the halves is [L, h, `SKETCH`], whatever
    d is, and a norm's relative standard error is at most about 1/sqrt(`SKETCH`) = 9% (for products of rank one), and
    1/(sqrt(2)·`SKETCH`) = 0.6% for products with a flat spectrum. Traces and cosines are exact.
    """
    depth, hidden, width = halves.shape
    rng = np.random.default_rng(seed)
    exact = width <= EXACT_WIDTH
    directions = None if exact else rng.normal(size=(2, width, SKETCH), scale=SKETCH**-0.5).astype(np.float32)
    step = max(1, min(hidden, memory // (16 * depth * (width + depth))))
    kept: list[list[np.ndarray]] = [[], []]
    orders: list[list[np.ndarray]] = [[] for _ in range(shuffles + 1)]
    sums: list[list[Sums]] = [[] for _ in range(shuffles + 1)]
    for start in range(0, hidden, step):
        stop = min(start + step, hidden)
        a, b = halves.units(start, stop)
        a = jnp.asarray(a)
        for k in range(shuffles + 1):
            order = rng.permutation(stop - start) if k else np.arange(stop - start)
            sums[k].append(jax.tree.map(np.asarray, sums_over(a, jnp.asarray(np.take(b, order, axis=1)))))
            orders[k].append(start + order)
        for side, half in enumerate((a, b)):
            kept[side].append(np.asarray(half if directions is None else _sketch(jnp.asarray(half), directions[side])))
    ours, theirs = (jnp.asarray(np.concatenate(parts, axis=1)) for parts in kept)
    del kept
    grams = None
    if exact:
        grams = np.asarray(gram_norms(ours)), np.asarray(gram_norms(theirs))
    for order, parts in zip(map(np.concatenate, orders), sums, strict=True):
        squared_norm, square = map(np.asarray, product_norms(ours, theirs[:, order], memory))
        yield Evidence(
            trace=np.sum([part.trace for part in parts], axis=0),
            cosines=np.sum([part.cosines for part in parts], axis=0) / hidden,
            squared_cosines=np.sum([part.squared_cosines for part in parts], axis=0) / hidden,
            cubes=np.sum([part.cubes for part in parts], axis=0),
            cube_norms=(
                np.sqrt(np.sum([part.in_cubes for part in parts], axis=0)),
                np.sqrt(np.sum([part.out_cubes for part in parts], axis=0)),
            ),
            norm=np.sqrt(squared_norm),
            square=square if exact else None,
            in_norms=np.concatenate([part.in_norms for part in parts], axis=1),
            out_norms=np.concatenate([part.out_norms for part in parts], axis=1),
            in_peaks=np.concatenate([part.in_peaks for part in parts], axis=1),
            out_peaks=np.concatenate([part.out_peaks for part in parts], axis=1),
            gram_norms=grams,
            kept=(ours, theirs),
            order=order,
        )


@jax.jit
def _sketch(half: Float[Array, "L s d"], directions: Float[Array, "d p"]) -> Float[Array, "L s p"]:
    return jnp.einsum("lsd,dp->lsp", half, directions, precision=lax.Precision.HIGHEST)


# The signals


def _ratio(value: Float[np.ndarray, "L L"], scale: Float[np.ndarray, "L L"]) -> Float[np.ndarray, "L L"]:
    return value / np.where(scale > 0, scale, 1)


def ddr(seen: Evidence) -> Float[np.ndarray, "L L"]:
    """|tr M| / ‖M‖_F, the paper's Eq. 4. Blind to the order and scale of hidden units and to the scale of halves."""
    return np.abs(negative_trace(seen))


def negative_trace(seen: Evidence) -> Float[np.ndarray, "L L"]:
    """−tr M / ‖M‖_F: the same where the sign is as the paper's Proposition 1 has it. Blind to the same."""
    return -_ratio(seen.trace, seen.norm)


def positive_trace(seen: Evidence) -> Float[np.ndarray, "L L"]:
    """tr M / ‖M‖_F: strong weight decay turns the sign. Blind to the same."""
    return _ratio(seen.trace, seen.norm)


def cosines(seen: Evidence) -> Float[np.ndarray, "L L"]:
    """Minus the mean cosine of hidden units' in- and out-vectors. Blind to the order of hidden units and to every scale."""
    return -seen.cosines


def squared_cosines(seen: Evidence) -> Float[np.ndarray, "L L"]:
    """Mean squared cosine of hidden units' in- and out-vectors. Blind to the same, and to signs."""
    return seen.squared_cosines


def cubed_cosines(seen: Evidence) -> Float[np.ndarray, "L L"]:
    """Minus the cosine of the halves with their hidden units' vectors at unit length and every entry cubed.

    A sum over entries as the trace is, but led by the largest: where training has hardly begun to tie the halves
    together, their few large weights already agree. Blind to what the mean cosine is blind to.
    """
    return -_ratio(seen.cubes, np.outer(*seen.cube_norms))


def norms(seen: Evidence) -> Float[np.ndarray, "L L"]:
    """Correlation, over hidden units, of ‖W_in row‖ with ‖W_out column‖: weight decay and Adam make them alike.

    Blind to the order of hidden units and the scale of halves, NOT to the scale of a hidden unit (row × c, column ÷ c).
    """
    return _correlation(seen.in_norms, seen.out_norms)


def norm_ranks(seen: Evidence) -> Float[np.ndarray, "L L"]:
    """The same of the norms' ranks (Spearman). Blind and not blind to the same."""
    ranks = partial(scipy.stats.rankdata, axis=1)
    return _correlation(ranks(seen.in_norms), ranks(seen.out_norms))


def peaks(seen: Evidence) -> Float[np.ndarray, "L L"]:
    """The same of the hidden units' largest weights. Blind and not blind to the same."""
    return _correlation(seen.in_peaks, seen.out_peaks)


def gram(seen: Evidence) -> Float[np.ndarray, "L L"] | None:
    """Cosine of the hidden units' Gram matrices A·Aᵀ and B·Bᵀ, from −½‖G_A/‖G_A‖ − G_B/‖G_B‖‖² + 1 = ‖M‖²/(‖G_A‖‖G_B‖).

    Blind to the order of hidden units, rotations of the features and the scale of halves, NOT to the scale of a hidden unit.
    """
    return None if seen.gram_norms is None else _ratio(seen.norm**2, np.outer(*seen.gram_norms))


def symmetry(seen: Evidence) -> Float[np.ndarray, "L L"] | None:
    """tr(M²) / ‖M‖_F² = 1 − ½‖M − Mᵀ‖_F²/‖M‖_F²: how little M is asymmetric. Blind to what ddr is blind to."""
    return None if seen.square is None else _ratio(seen.square, seen.norm**2)


def _correlation(a: Float[np.ndarray, "L h"], b: Float[np.ndarray, "L h"]) -> Float[np.ndarray, "L L"]:
    a, b = (half - half.mean(axis=1, keepdims=True) for half in (a, b))
    return _ratio(a @ b.T, np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)))


SIGNALS: dict[str, Callable[[Evidence], Float[np.ndarray, "L L"] | None]] = {
    signal.__name__: signal
    for signal in (
        ddr,
        negative_trace,
        positive_trace,
        cosines,
        squared_cosines,
        cubed_cosines,
        norms,
        norm_ranks,
        peaks,
        gram,
        symmetry,
    )
}
"""Scores of every input half with every output half, larger for a likelier pair; None where d is too wide for it."""
TEMPLATE = "template"
"""The signal learned from the surer half of another one's pairs: `template_scores`. Blind to what ddr is blind to, as long
as it learns from the same pairs."""
DISCRIMINANT = "discriminant"
"""All signals weighed as another one's pairs suggest: `discriminant`. Blind to nothing that one of them sees."""
LEARNED = (TEMPLATE, DISCRIMINANT)
CHOICES = ("auto", *SIGNALS, *LEARNED)
"""What `pair` can be told to look at."""


def discriminant(scores: Sequence[Float[np.ndarray, "L L"]], partner: Int[np.ndarray, " L"]) -> Float[np.ndarray, "L L"]:
    """The weighted sum of several signals' scores that tells the chosen pairs best from the others, and, learned again from
    its own matching until that stays, tells them best from then on.

    Fisher's linear discriminant: Σ⁻¹·μ with the chosen pairs' mean μ and the others' covariance Σ, each signal less its
    rows' and columns' effects and in its wrong pairs' spread; `RIDGE` is added to Σ's diagonal, since some signals are
    nearly the same.
    """
    combined = np.zeros_like(scores[0], np.float64)
    off = ~np.eye(len(partner), dtype=bool)
    for _ in range(REFITS):
        tables = [without_effects(score, partner)[0] for score in scores]
        seen = np.stack([table / max(table[off].std(), 1e-30) for table in tables], axis=-1)
        covariance = np.cov(seen[off].T).reshape(len(scores), len(scores))
        weight = np.linalg.solve(covariance + RIDGE * np.eye(len(scores)), np.einsum("kks->ks", seen).mean(axis=0))
        combined[:, partner] = seen @ weight
        _, again = scipy.optimize.linear_sum_assignment(combined, maximize=True)
        if np.array_equal(again, partner):
            break
        partner = again
    return combined


# The portfolio


@dataclass(frozen=True)
class Judged(Pairing):
    """A pairing with what speaks for it."""

    certainty: Float[np.ndarray, " L"] = field(default_factory=lambda: np.zeros(0))
    """Each pair's regret in standard deviations of an exchange between wrong pairs (see `certainty`)."""
    clear: float = 0.0
    """The certainty from which a pair is beyond chance."""
    strength: float = 0.0
    """How far the chosen pairs stand above the others, in standard deviations above the same of the shuffled halves."""
    needed: float = 0.0
    """The strength from which there is a signal at all: Student's t over the shuffled copies, Bonferroni over signals."""
    separations: Mapping[str, float] = field(default_factory=dict)
    """For every signal tried, how many times as large the mean regret is as with shuffled halves; about 1: no signal."""
    votes: Int[np.ndarray, " L"] = field(default_factory=lambda: np.zeros(0, int))
    """How many of the signals that show one chose each pair."""
    voters: tuple[str, ...] = ()
    """Those signals."""

    @property
    def verdict(self) -> str:
        """`no signal`, or `paired` where every pair is clear, or `doubtful`."""
        if not self.strength > self.needed:
            return "no signal"
        return "paired" if (self.certainty >= self.clear).all() else "doubtful"


class _Candidate(NamedTuple):
    """One signal's matching beside those of the shuffled halves."""

    pairing: Pairing
    sure: Float[np.ndarray, " L"]
    clear: float
    strength: float
    separation: float


def _advantage(pairing: Pairing, least_spread: float) -> float:
    """By how much the chosen pairs' mean score exceeds the others', in the others' spread (at least `least_spread`)."""
    own, count = pairing.own, len(pairing.partner)
    spread = max(wrong_spread(pairing.score, pairing.partner)[0], least_spread)
    others = (pairing.score.sum() - own.sum()) / max(1, count * (count - 1))
    return float((own.mean() - others) / spread) if spread > 0 else 0.0


def _candidate(name: str, score: Float[np.ndarray, "L L"], *null: Float[np.ndarray, "L L"]) -> _Candidate:
    pairing, unrelated = match(name, score), [match(name, shuffled) for shuffled in null]
    floor = float(np.mean([wrong_spread(other.score, other.partner)[0] for other in unrelated]))
    sure, clear = certainty(pairing, floor)
    # The spread of few wrong pairs can be small by chance: none counts for less than the shuffled halves' mean.
    chance = np.array([_advantage(other, floor) for other in unrelated])
    deviation = chance.std(ddof=1) * np.sqrt(1 + 1 / len(chance))
    strength = (_advantage(pairing, floor) - chance.mean()) / deviation if deviation > 0 else 0.0
    usual = np.mean([certainty(other, floor)[0].mean() for other in unrelated])
    separation = sure.mean() / usual if np.isfinite(sure).all() and 0 < usual < np.inf else 1.0
    return _Candidate(pairing, sure, clear, float(strength), float(separation))


def portfolio(
    halves: Halves,
    signals: Sequence[str] | None = None,
    *,
    shuffles: int = SHUFFLES,
    seed: int = 0,
    memory: int = MEMORY,
) -> Judged:
    """Pair the halves by each of `signals` (default: all, and those learned from them) and keep the one that separates best.

    A signal's separation is the mean regret of its matching, in units of its own wrong pairs' spread, over the same of its
    matchings of shuffled halves. The answer plays no part. Raises ValueError for an unknown signal or fewer than 3 shuffles.
    """
    names = CHOICES[1:] if signals is None else tuple(signals)
    if unknown := [name for name in names if name not in CHOICES[1:]]:
        raise ValueError(f"signal: expected one of {', '.join(CHOICES[1:])}, got {unknown[0]!r}")
    if shuffles < 3:
        raise ValueError(f"shuffles: expected at least 3, got {shuffles}")
    wanted = [name for name in SIGNALS if name in names or set(LEARNED) & set(names)]
    every = list(observe(halves, shuffles, seed, memory))  # the halves themselves, and then their shuffled copies
    scores = {name: [np.asarray(score) for e in every if (score := SIGNALS[name](e)) is not None] for name in wanted}
    candidates = {name: _candidate(name, *of_name) for name, of_name in scores.items() if of_name}
    if not candidates:
        raise ValueError(f"signal: expected one that products of d = {halves.shape[2]} allow, got {', '.join(names)}")
    base = max(candidates.values(), key=lambda candidate: candidate.separation)
    matchings = [match(base.pairing.signal, score) for score in scores[base.pairing.signal]]
    if TEMPLATE in names:
        candidates[TEMPLATE] = _candidate(TEMPLATE, *map(_template, every, matchings))
    together = [of_name for name, of_name in scores.items() if of_name and name != "positive_trace"]  # negative_trace again
    count = halves.shape[0]
    if DISCRIMINANT in names and count * (count - 1) >= WRONG_PAIRS * len(together):
        learned = [discriminant(of_one, found.partner) for *of_one, found in zip(*together, matchings, strict=True)]
        candidates[DISCRIMINANT] = _candidate(DISCRIMINANT, *learned)
    candidates = {name: candidate for name, candidate in candidates.items() if name in names} or {base.pairing.signal: base}
    best = max(candidates.values(), key=lambda candidate: candidate.separation)
    if DISCRIMINANT in candidates and candidates[DISCRIMINANT].separation >= PREFERRED * best.separation:
        best = candidates[DISCRIMINANT]
    needed = float(-scipy.special.stdtrit(shuffles - 1, SIGNAL_ERROR / len(candidates)))
    voters = {name: c.pairing.partner for name, c in candidates.items() if c.strength > needed}
    return Judged(
        **vars(best.pairing),
        certainty=best.sure,
        clear=best.clear,
        strength=best.strength,
        needed=needed,
        separations={name: c.separation for name, c in candidates.items()},
        votes=np.sum([partner == best.pairing.partner for partner in voters.values()], axis=0, dtype=int)
        * np.ones(len(best.sure), int),
        voters=tuple(voters),
    )


def _template(seen: Evidence, pairing: Pairing) -> Float[np.ndarray, "L L"]:
    """The template of a matching's surer half."""
    sure = certainty(pairing)[0]
    weight = (sure >= np.median(sure)).astype(np.float32)
    return np.asarray(template_scores(*seen.halves, jnp.asarray(pairing.partner), jnp.asarray(weight)))
