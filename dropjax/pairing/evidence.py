"""The evidence for the pairing signals: sums over hidden units of quantities of one unit in both halves."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from dropjax.core.options import MEMORY
from dropjax.pairing.movements import beside_movements

EXACT_WIDTH = 256
"""Largest d for which products W_out·W_in are computed exactly; wider ones are sketched."""


SKETCH = 128
"""The number of random directions on each side of a sketched product."""

MOVED = 1 << 23
"""The largest number of weights of one kind whose movements are looked at: what is learned from more takes minutes."""

SHUFFLES = 8
"""The number of shuffled copies that a portfolio is compared with."""


@runtime_checkable
class Halves(Protocol):
    """Input and output halves of L blocks, in memory or in a file."""

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
    """The evidence for every input half i (row) with every output half j (column). M is B^(j)ᵀ·A^(i) = W_out·W_in."""

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
    kept_moved: tuple[Float[np.ndarray, "L k d"], Float[np.ndarray, "L k d"]] | None
    """The halves `beside_movements`; None where products are sketched, or of over `MOVED` weights."""
    order: Int[np.ndarray, " h"]
    """The order of the output halves' hidden units."""

    @property
    def moved(self) -> tuple[Float[np.ndarray, "L k d"], Float[np.ndarray, "L k d"]] | None:
        """`kept_moved`, the output halves' hidden units in `order`."""
        if self.kept_moved is None:
            return None
        ours, theirs = self.kept_moved
        return ours, theirs[:, np.concatenate([self.order, len(self.order) + self.order])]

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
    """All sums over hidden units of quantities of one unit in both halves."""
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
    grams = moved = None
    if exact:
        grams = np.asarray(gram_norms(ours)), np.asarray(gram_norms(theirs))
        moved = beside_movements(np.asarray(ours), np.asarray(theirs)) if ours.size <= MOVED else None
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
            kept_moved=moved,
            order=order,
        )


@jax.jit
def _sketch(half: Float[Array, "L s d"], directions: Float[Array, "d p"]) -> Float[Array, "L s p"]:
    return jnp.einsum("lsd,dp->lsp", half, directions, precision=lax.Precision.HIGHEST)
