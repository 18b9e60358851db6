"""Moves on an arrangement: a move is a triple (kind, i, j) of positions."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

SWAP, INSERTION, PAIR_SWAP = range(3)
"""Exchange the blocks at i and j; take the block at i out and put it in at j; exchange the output halves at i and j."""


def adjacent_swaps(depth: int) -> Int[np.ndarray, "K 3"]:
    """The L−1 swaps of neighbours, from left to right."""
    i = np.arange(depth - 1, dtype=np.int32)
    return np.stack([np.full_like(i, SWAP), i, i + 1], axis=1)


def pairs_of_positions(depth: int, kind: int) -> Int[np.ndarray, "K 3"]:
    """The L(L−1)/2 moves of `kind` with i < j, from left to right: all swaps, or all pair swaps."""
    i, j = (a.astype(np.int32) for a in np.triu_indices(depth, 1))
    return np.stack([np.full_like(i, kind), i, j], axis=1)


def insertions(depth: int) -> Int[np.ndarray, "K 3"]:
    """The (L−1)² different insertions: every i to every j, a neighbour only to its right (the other way is the same)."""
    i, j = (a.reshape(-1).astype(np.int32) for a in np.indices((depth, depth)))
    keep = (i != j) & (i != j + 1)
    i, j = i[keep], j[keep]
    return np.stack([np.full_like(i, INSERTION), i, j], axis=1)


@jax.jit
def moved(arrangement: Int[Array, "L 2"], move: Int[Array, "3"]) -> Int[Array, "L 2"]:
    """The arrangement after one move."""
    kind, i, j = move
    k = jnp.arange(len(arrangement), dtype=jnp.int32)
    swapped = jnp.where(k == i, j, jnp.where(k == j, i, k))
    shifted = k + ((i <= k) & (k < j)).astype(k.dtype) - ((j < k) & (k <= i)).astype(k.dtype)
    inserted = jnp.where(k == j, i, shifted)
    ins_from = jnp.where(kind == INSERTION, inserted, jnp.where(kind == SWAP, swapped, k))
    outs_from = jnp.where(kind == INSERTION, inserted, swapped)
    return jnp.stack([arrangement[ins_from, 0], arrangement[outs_from, 1]], axis=1)


def nothing(depth: int, times: int) -> Int[np.ndarray, "times 3"]:
    """Moves that change nothing and cost least to score, to fill up a batch."""
    return np.full((times, 3), (SWAP, depth - 1, depth - 1), np.int32)
