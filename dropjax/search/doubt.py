"""Which blocks' places an unfinished search has not settled: those on which its best orders do not agree."""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

BEST = 5
"""At most this many orders are compared."""
NEARLY = 3
"""An order counts as one of the best if its MSE is at most this many times the lowest."""


def unsettled(arrangements: Sequence[Int[np.ndarray, "L 2"]], mse: Sequence[float]) -> Int[np.ndarray, " K"]:
    """Input halves of the best arrangement whose block has another partner or place in some other of the best.

    A block has kept its place if it belongs to the longest common subsequence of the two orders: a block that was moved far
    does not put in doubt the blocks that it passed. The result is empty if there is no second order, or only far worse ones.
    """
    ranked = [k for k in np.argsort(mse, kind="stable") if mse[k] <= NEARLY * min(mse)][:BEST]
    best, *others = (arrangements[k] for k in ranked)
    return differing(best, others)


def differing(best: Int[np.ndarray, "L 2"], others: Sequence[Int[np.ndarray, "L 2"]]) -> Int[np.ndarray, " K"]:
    """Input halves of `best` whose block has another partner or place in any of the others."""
    kept = np.ones(len(best), bool)
    for other in others:
        kept &= agreeing(best, other)
    return np.sort(best[~kept, 0])


def agreeing(one: Int[np.ndarray, "L 2"], other: Int[np.ndarray, "L 2"]) -> np.ndarray:
    """For each position of `one`, whether its block is in the longest common subsequence of the two; [L] bool."""
    position = {tuple(block): k for k, block in enumerate(other.tolist())}
    ends: list[int] = []  # smallest last position in `other` of a common subsequence, by its length
    last_of: list[int] = []  # and which of `one`'s blocks that is
    before = np.full(len(one), -1)
    for k, block in enumerate(one.tolist()):
        at = position.get(tuple(block))
        if at is None:
            continue
        length = bisect_left(ends, at)
        before[k] = last_of[length - 1] if length else -1
        ends[length : length + 1], last_of[length : length + 1] = [at], [k]
    kept, k = np.zeros(len(one), bool), last_of[-1] if last_of else -1
    while k >= 0:
        kept[k], k = True, before[k]
    return kept
