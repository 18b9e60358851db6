"""Signals for attention's projections, in addition to those for any two halves: a product for each head.

A head's units may be rotated in both projections alike, M_h = B_hᵀ·A_h stays. Different heads' traces may differ in sign, so
that they cancel in tr(M) = Σ_h tr(M_h); squares do not. A_h and B_h are a head's rows [e, d], C_h = A_h·B_hᵀ [e, e].
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from dropjax.core.options import MEMORY
from dropjax.pairing.evidence import Halves
from dropjax.pairing.portfolio import Extra

LARGEST_GROUP = 32
"""The number of units taken together if the size of a head is unknown; it divides the head size of nearly every model."""


class Heads(NamedTuple):
    """Sums over heads, for every half of ours (row) and of theirs (column)."""

    head_traces: Float[Array, "L L"]
    """Σ_h tr(M_h)² / ‖M_h‖²: the paper's ratio of every head, squared, so that signs do not cancel."""
    head_symmetry: Float[Array, "L L"]
    """Σ_h tr(M_h²) / ‖M_h‖²: how little every head's product is asymmetric."""
    head_gram: Float[Array, "L L"]
    """Σ_h ‖M_h‖² / (‖A_h·A_hᵀ‖·‖B_h·B_hᵀ‖): the cosine of every head's Gram matrices."""


NAMES = Heads._fields


@partial(jax.jit, static_argnames=("size", "together"))
def over_heads(a: Float[Array, "L s d"], b: Float[Array, "L s d"], size: int, together: int) -> Heads:
    """The sums over heads of `size` units each; `together` halves of theirs are looked at at once."""
    count, units, width = a.shape
    ours, theirs = (half.reshape(count, units // size, size, width) for half in (a, b))
    product = partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    our_gram, their_gram = (product("lhed,lhfd->lhef", half, half) for half in (ours, theirs))
    our_norm, their_norm = (jnp.linalg.norm(gram, axis=(2, 3)) for gram in (our_gram, their_gram))

    def with_one(one: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        half, gram, norm = one
        cross = product("ihed,hfd->ihef", ours, half)
        squares = product("ihef,hef->ih", our_gram, gram)
        scale, norms = jnp.where(squares > 0, squares, 1), our_norm * norm
        trace, square = product("ihee->ih", cross), product("ihef,ihfe->ih", cross, cross)
        gram_cosine = squares / jnp.where(norms > 0, norms, 1)
        return (trace**2 / scale).sum(1), (square / scale).sum(1), gram_cosine.sum(1)

    columns = lax.map(with_one, (theirs, their_gram, their_norm), batch_size=together)
    return Heads(*(column.T for column in columns))


def head_size(hidden: int, size: int = 0) -> int:
    """The units looked at together: a head's, or where its size is unknown (0) up to `LARGEST_GROUP` that divide `hidden`.

    Raises ValueError for a size that does not divide `hidden`.
    """
    if size:
        if hidden % size:
            raise ValueError(f"heads: expected a size that divides {hidden} units, got {size}")
        return size
    return next(size for size in range(LARGEST_GROUP, 0, -1) if hidden % size == 0)


def head_scores(
    halves: Halves, size: int, shuffles: int, seed: int = 0, memory: int = MEMORY
) -> dict[str, list[Float[np.ndarray, "L L"]]]:
    """Mean over heads of each quantity in `Heads`, of the halves as they are and then of `shuffles` copies with the output
    halves' units shuffled among those read together, as many heads as fit into `memory` bytes."""
    depth, hidden, width = halves.shape
    rng = np.random.default_rng((seed, size))
    step = size * max(1, min(hidden // size, memory // (16 * depth * width * size)))
    together = max(1, min(depth, memory // (8 * depth * step * size)))
    sums: list[Heads | None] = [None] * (shuffles + 1)
    for start in range(0, hidden, step):
        a, b = halves.units(start, min(start + step, hidden))
        ours = jnp.asarray(a)
        for k in range(shuffles + 1):
            order = rng.permutation(b.shape[1]) if k else np.arange(b.shape[1])
            found = over_heads(ours, jnp.asarray(np.take(b, order, axis=1)), size, together)
            before = sums[k]
            sums[k] = found if before is None else jax.tree.map(jnp.add, before, found)
    return {name: [np.asarray(getattr(one, name)) * size / hidden for one in sums if one] for name in NAMES}


def head_signals(halves: Halves, size: int) -> Extra:
    """The head signals, for `pairing.portfolio`."""
    return Extra(NAMES, lambda shuffles, seed, memory: head_scores(halves, size, shuffles, seed, memory))
