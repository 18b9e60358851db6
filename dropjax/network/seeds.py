"""First guesses at the order, from one number per part: training leaves its traces at every depth, but not always the same.

The sizes of a part's arrays, and their means, often grow or fall from the first block to the last. Each kind of part is
sorted by each of these numbers, both ways, and exact scores say which of these orders to begin with.
"""

import jax
import numpy as np
from jaxtyping import Float, Int, PyTree, Shaped

from dropjax.network.scorer import Scorer

SEEDED_FROM = 10
"""With at least this many blocks a search begins with the best of these orders; fewer blocks need no such start."""

ARRAYS = 16
"""Number of arrays of a part, the largest ones, that are summarised."""

ROUNDS = 2
"""How often each kind's order is chosen while the orders of the others are held."""


def numbers(part: PyTree[Shaped[np.ndarray, "L ..."]]) -> Float[np.ndarray, "n L"]:
    """RMS and mean of each array of each part of one kind; arrays that hold no numbers are left out."""
    arrays = [np.asarray(a, np.float64) for a in jax.tree.leaves(part) if np.issubdtype(np.asarray(a).dtype, np.number)]
    arrays = [a.reshape(len(a), -1) for a in sorted(arrays, key=lambda a: -a.size)[:ARRAYS]]
    found = [np.sqrt(np.mean(a**2, axis=1)) for a in arrays] + [a.mean(axis=1) for a in arrays]
    found = [a for a in found if np.isfinite(a).all() and np.ptp(a) > 0]
    return np.array(found).reshape(-1, len(arrays[0]) if arrays else 0)


def orders(part: PyTree[Shaped[np.ndarray, "L ..."]]) -> Int[np.ndarray, "K L"]:
    """The parts of one kind in ascending and in descending order of each of their `numbers`."""
    found = np.argsort(numbers(part), axis=1, kind="stable").astype(np.int32)
    return np.unique(np.concatenate([found, found[:, ::-1]]), axis=0)


def best_seed(scorer: Scorer, start: Int[np.ndarray, "L P"], rows: int) -> tuple[Int[np.ndarray, "L P"], float]:
    """The best arrangement that these orders give, or `start`, and its loss over the first rows.

    All kinds take their orders in turn, each the best one while the others stay.
    """
    parts = jax.tree.map(np.asarray, scorer.network.parts)
    of_kind = [orders(part) for part in parts]
    best, lowest = start, float(scorer.losses(start[None], rows)[0])
    for _ in range(ROUNDS if len(parts) > 1 else 1):
        for p, candidates in enumerate(of_kind):
            after = np.repeat(best[None], len(candidates), axis=0)
            after[:, :, p] = candidates
            losses = scorer.losses(after, rows)
            if len(losses) and losses.min() < lowest:
                best, lowest = after[losses.argmin()], float(losses.min())
    return best, lowest
