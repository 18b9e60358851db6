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
    swaps, insertions = np.stack([np.full_like(i, SWAP), i, j], 1), np.stack([np.full_like(out, INSERTION), out, into], 1)
    positions = np.concatenate([swaps, insertions])
    mask = np.repeat(np.array(masks, int), len(positions))
    return np.column_stack([np.tile(positions, (len(masks), 1)), mask]).astype(np.int32)


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


def mending(arrangement: Int[np.ndarray, "L P"]) -> Moves:
    """The fewest exchanges, or insertions if those are fewer, that one after another make this arrangement of parts that
    stand in their own order; kinds that need the same ones are moved together."""
    kinds = arrangement.shape[1]
    masks: dict[tuple[int, ...], int] = {}
    for p in range(kinds):
        order = tuple(map(int, arrangement[:, p]))
        masks[order] = masks.get(order, 0) | 1 << p
    found = [(*move, mask) for order, mask in masks.items() for move in min(_swaps(order), _insertions(order), key=len)]
    return np.array(found, np.int32).reshape(-1, 4)


def _swaps(order: Sequence[int]) -> list[tuple[int, int, int]]:
    """Exchanges that make `order` of 0, 1, 2, …, along its cycles."""
    at, found = list(range(len(order))), []
    for k, wanted in enumerate(order):
        if at[k] != wanted:
            j = at.index(wanted)
            at[k], at[j] = at[j], at[k]
            found.append((SWAP, k, j))
    return found


def _insertions(order: Sequence[int]) -> list[tuple[int, int, int]]:
    """Insertions that make `order` of 0, 1, 2, …: those that are in no longest increasing run of it are put in again."""
    longest: list[list[int]] = []
    for wanted in order:
        before = max((run for run in longest if run[-1] < wanted), key=len, default=[])
        longest.append([*before, wanted])
    stay = set(max(longest, key=len))
    at, found = list(range(len(order))), []
    for k, wanted in enumerate(order):
        if wanted in stay:
            continue
        i = at.index(wanted)
        at.remove(wanted)
        j = at.index(order[k - 1]) + 1 if k else 0
        at.insert(j, wanted)
        found.append((INSERTION, i, j))
    return found
