"""Rungs that leave nothing out: every move scored exactly, or every arrangement."""

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from dropjax.moves.arrangements import PAIR_SWAP, SWAP, insertions, moved, nothing, pairs_of_positions
from dropjax.moves.exact import score_arrangements, score_moves
from dropjax.moves.first_order import score_first_order
from dropjax.runtime.device import scored_together
from dropjax.search.rungs import Climbed, Ground

DOUBTFUL = 16
"""The number of doubtful pairs whose exchanges are scored one by one."""
PORTION = 512
"""The number of moves that are scored exactly before the best of them is made, if it helps."""
BEST_MOVES = 4
"""The number of moves in a portion that are judged on many rows."""
EXHAUSTIBLE = 20_000
"""The most arrangements that are tried exhaustively: those of five blocks."""


class ScannedState(NamedTuple):
    """The state of `Scanned`."""

    best: Climbed
    last: Climbed
    waiting: Int[np.ndarray, "K P 3"]
    """Portions of moves from the best arrangement that have not been scored."""


@dataclass(frozen=True)
class Scanned:
    """Swaps, insertions and doubtful pair swaps, scored exactly, those first that are predicted to help most.

    The best of the first `PORTION` with an improvement is made, as long as there is one among them all.
    """

    ground: Ground

    def start(self, best: Climbed) -> ScannedState:
        """See `Rung`."""
        return ScannedState(best.afresh(), best.afresh(), self._portions(best))

    def ended(self, at: ScannedState) -> bool:
        """See `Rung`."""
        return len(at.waiting) == 0

    def look(self, at: ScannedState) -> Climbed:
        """The best arrangement after a move of the next portion."""
        ground, portion, (x, pred) = self.ground, at.waiting[0], self.ground.few
        together = scored_together(ground.stack.depth)
        scores = score_moves(ground.stack, at.best.arrangement, portion, x, pred, together, ground.context.memory)
        tops = [np.asarray(moved(at.best.arrangement, portion[k])) for k in np.argsort(scores)[:BEST_MOVES]]
        found = ground.best_of(tops, at.best)
        return found._replace(evaluations=found.evaluations + len(portion))

    def step(self, at: ScannedState, found: Climbed) -> ScannedState:
        """See `Rung`."""
        better = found.mse < at.best.mse
        best = at.best.or_better(found._replace(moves=int(better)))
        return ScannedState(best, found, self._portions(best) if better else at.waiting[1:])

    def best(self, at: ScannedState) -> Climbed:
        """See `Rung`."""
        return at.best

    def _portions(self, at: Climbed) -> Int[np.ndarray, "K P 3"]:
        """All moves, `PORTION` at a time, the last filled up with moves of nothing; none where nothing is left to find."""
        if at.mse <= self.ground.exact:
            return np.zeros((0, PORTION, 3), np.int32)
        ground, depth, arrangement = self.ground, self.ground.stack.depth, at.arrangement
        pair_swaps, swaps, inserts = pairs_of_positions(depth, PAIR_SWAP), pairs_of_positions(depth, SWAP), insertions(depth)
        places = np.argsort(arrangement[:, 0])[ground.doubtful[:DOUBTFUL]]
        pair_swaps = pair_swaps[np.isin(pair_swaps[:, 1:], places).all(axis=1)]
        first_order = score_first_order(ground.stack, arrangement, *ground.few, ground.context.memory)
        right, left, exchanged = np.asarray(first_order.far)
        i, j = inserts[:, 1:].T
        inserted = np.where(i < j, right[np.minimum(i, j), np.maximum(i, j)], left[np.minimum(i, j), np.maximum(i, j)])
        predicted = np.concatenate([exchanged[swaps[:, 1], swaps[:, 2]], inserted])
        ordered = np.concatenate([swaps, inserts])[np.argsort(predicted, kind="stable")]
        moves = np.concatenate([pair_swaps, ordered])
        return np.concatenate([moves, nothing(depth, -len(moves) % PORTION)]).reshape(-1, PORTION, 3)


class ExhaustedState(NamedTuple):
    """The state of `Exhausted`."""

    best: Climbed
    last: Climbed
    done: bool


@dataclass(frozen=True)
class Exhausted:
    """The best of all arrangements of few blocks."""

    ground: Ground

    def start(self, best: Climbed) -> ExhaustedState:
        """See `Rung`."""
        return ExhaustedState(best.afresh(), best.afresh(), done=False)

    def ended(self, at: ExhaustedState) -> bool:
        """See `Rung`."""
        return at.done

    def look(self, at: ExhaustedState) -> Climbed:
        """The best of all arrangements."""
        orders = list(itertools.permutations(range(self.ground.stack.depth)))
        every = np.array([np.stack(halves, axis=1) for halves in itertools.product(orders, orders)], np.int32)
        scores = score_arrangements(self.ground.stack, every, *self.ground.many, memory=self.ground.context.memory)
        return self.ground.judged(every[np.argsort(np.asarray(scores))[0]])._replace(evaluations=len(every))

    def step(self, at: ExhaustedState, found: Climbed) -> ExhaustedState:
        """See `Rung`."""
        return ExhaustedState(at.best.or_better(found), found, done=True)

    def best(self, at: ExhaustedState) -> Climbed:
        """See `Rung`."""
        return at.best


def exhaustible(depth: int) -> bool:
    """Whether all arrangements of that many blocks can be tried."""
    return math.factorial(depth) ** 2 <= EXHAUSTIBLE
