"""Moves on arrangements of P kinds of parts.

A move is a row (what, i, j, kinds): it exchanges the parts at positions i and j, or takes those at i out and puts them in at
j. `kinds` is a bit mask of the kinds of parts that it moves: one kind, all kinds (whole blocks), or any other set.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

SWAP, INSERTION = range(2)

Moves = Int[np.ndarray, "K 4"]


def kind_sets(kinds: int) -> tuple[list[int], list[int]]:
    """Bit masks of the sets of kinds that are moved first, single kinds and whole blocks, and of all others."""
    whole = (1 << kinds) - 1
    first = sorted({*(1 << p for p in range(kinds)), whole})
    return first, [mask for mask in range(1, whole) if mask not in first]


def every_move(depth: int, masks: Sequence[int]) -> Moves:
    """All exchanges and all insertions but those of neighbours, which are exchanges, of parts of these sets of kinds."""
    i, j = np.triu_indices(depth, 1)
    out, into = np.nonzero(np.abs(np.subtract.outer(np.arange(depth), np.arange(depth))) > 1)
    positions = np.concatenate([np.stack([np.full_like(i, SWAP), i, j], 1), np.stack([np.full_like(out, INSERTION), out, into], 1)])
    return np.concatenate([np.column_stack([positions, np.full(len(positions), mask)]) for mask in masks]).astype(np.int32)


def sources(moves: Moves, depth: int) -> Int[np.ndarray, "K L"]:
    """The position that each position's parts come from, where a move moves them."""
    what, i, j = (column[:, None] for column in moves.T[:3])
    k = np.arange(depth)
    swapped = np.where(k == i, j, np.where(k == j, i, k))
    shifted = k + ((i <= k) & (k < j)) - ((j < k) & (k <= i))
    return np.where(what == SWAP, swapped, np.where(k == j, i, shifted))


def moved_kinds(moves: Moves, kinds: int) -> Bool[np.ndarray, "K P"]:
    """Which kinds of parts each move moves."""
    return (moves[:, 3:] >> np.arange(kinds)) % 2 == 1


def moved(arrangement: Int[np.ndarray, "L P"], moves: Moves) -> Int[np.ndarray, "K L P"]:
    """The arrangement after each move alone."""
    depth, kinds = arrangement.shape
    return np.where(moved_kinds(moves, kinds)[:, None], arrangement[sources(moves, depth)], arrangement)


def touched(moves: Moves, depth: int, kinds: int) -> Bool[np.ndarray, "K L P"]:
    """The places whose parts each move moves."""
    elsewhere = sources(moves, depth) != np.arange(depth)
    return elsewhere[:, :, None] & moved_kinds(moves, kinds)[:, None]


def combined(arrangement: Int[np.ndarray, "L P"], moves: Moves, most: int) -> Int[np.ndarray, "n L P"]:
    """The arrangements after the first two, three, … of these moves that do not touch one another's places, at most `most`
    of them; a move that touches an earlier one's is left out."""
    free, at, found = np.ones(arrangement.shape, bool), arrangement, []
    for after, places in zip(moved(arrangement, moves), touched(moves, *arrangement.shape), strict=True):
        if free[places].all():
            free &= ~places
            at = np.where(places, after, at)
            found.append(at)
        if len(found) == most:
            break
    return np.stack(found[1:]) if len(found) > 1 else np.zeros((0, *arrangement.shape), arrangement.dtype)


def in_words(move: Int[np.ndarray, "4"], kinds: int) -> str:
    """What a move does, for people."""
    what, i, j, mask = map(int, move)
    moving = [p for p in range(kinds) if mask >> p & 1]
    parts = "blocks" if len(moving) == kinds else f"parts of kind {' and '.join(map(str, moving))}"
    if what == SWAP:
        return f"exchange the {parts} at positions {i} and {j}"
    return f"take the {parts.removesuffix('s') if parts == 'blocks' else parts} at position {i} out and put {'it' if parts == 'blocks' else 'them'} in at {j}"
