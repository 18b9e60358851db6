"""The distance of an order from the right one, and the decisions of a repair by sweeps."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Num
from scipy.stats import rankdata


class Disorder(NamedTuple):
    """How far an order is from the right one."""

    spearman: float
    """Rank correlation of the order with the right one."""
    kendall: float
    inversions: int
    """Pairs of blocks that stand the wrong way round."""
    largest_displacement: int
    rounds: int
    """Largest number of later blocks left of one block, which is the number of sweeps that sorting takes."""


def disorder(places: Int[np.ndarray, " L"]) -> Disorder:
    """The disorder of an order; `places` lists the right position of each of its blocks.

    A sweep from left to right that exchanges every two neighbours in the wrong order carries a block any distance right,
    but any one only one place left; so it lowers by one each block's count of later blocks left of it, and ends after as
    many rounds as the largest count, with one exchange for each inversion (Knuth, TAOCP 3, Section 5.2.2).
    """
    places = np.asarray(places)
    wrong = np.triu(places[:, None] > places, 1)
    order = np.arange(len(places))
    pairs = len(places) * (len(places) - 1) // 2
    return Disorder(
        spearman=rank_correlation(order, places) if len(places) > 1 else 1.0,
        kendall=1 - 2 * float(wrong.sum()) / max(pairs, 1),
        inversions=int(wrong.sum()),
        largest_displacement=int(np.abs(places - order).max()),
        rounds=int(wrong.sum(axis=0).max()),
    )


def rank_correlation(a: Num[np.ndarray, " n"], b: Num[np.ndarray, " n"]) -> float:
    """Spearman's rank correlation; NaN if all values of `a` or of `b` are equal."""
    ranks = np.stack([rankdata(a), rankdata(b)]) if len(a) else np.zeros((2, 1))
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1]) if np.all(np.ptp(ranks, axis=1) > 0) else float("nan")


def places_in(order: Int[np.ndarray, "L 2"], solved: Int[np.ndarray, "L 2"]) -> Int[np.ndarray, " L"]:
    """The position in `solved` of each block of `order`. Blocks are identified by their input halves."""
    place = np.empty(len(solved), np.int64)
    place[np.asarray(solved)[:, 0]] = np.arange(len(solved))
    return place[np.asarray(order)[:, 0]]


class Exchange(NamedTuple):
    """One exchange of neighbours that a repair kept."""

    round: int
    """The number of the round, from 1."""
    position: int
    """The position of the left one."""
    left: int
    """Right place of the block that stood left before."""
    right: int
    """Right place of the block that stood right before."""

    @property
    def sorts(self) -> bool:
        """Whether it put the two the right way round."""
        return self.left > self.right


class Decisions(NamedTuple):
    """Every decision of a repair by sweeps."""

    kept: list[Exchange]
    missed: list[Exchange]
    """Exchanges that would have sorted and were not kept."""


def decisions(rounds: Sequence[Int[np.ndarray, " L"]]) -> Decisions:
    """The decisions of sweeps from left to right, given the right places before the first sweep and after each.

    The orders before and after a sweep determine it: the block at i after the sweep was decided at i and not moved again.
    """
    found = Decisions([], [])
    for number, (before, after) in enumerate(pairwise(rounds), 1):
        carried = int(before[0])
        for i, (following, left) in enumerate(zip(map(int, before[1:]), map(int, after), strict=False)):
            exchange = Exchange(number, i, carried, following)
            if left != carried:
                found.kept.append(exchange)
                continue
            carried = following
            if exchange.sorts:
                found.missed.append(exchange)
    return found
