"""Rungs that look for the order: by flips, by places, by annealing."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from dropjax.moves.exact import score_arrangements
from dropjax.ordering.annealing import Annealed, anneal_rounds, from_here, start_annealing
from dropjax.ordering.flip_regression import orders
from dropjax.ordering.guided import guided_rounds, start_guided
from dropjax.ordering.places import Placing, placing_round, start_placing
from dropjax.search.pair_rungs import ROUGH, likeliest_pairs
from dropjax.search.rungs import Climbed, Ground, Rows

ORDERS_WAITED = 4
"""The most consecutive orders by least squares that may be no better than the best so far."""
ORDERS_JUDGED = 4
"""The number of proposed orders that are judged on many rows."""
PLACED = 8
"""Rounds of placing in one step; few, because the data on deep stacks' places are large. Guided repair may then end it."""
REPAIRED = 16
"""Rounds of guided repair after that, repeated as long as they halve the MSE."""
ANNEALED = 20
"""Rounds of annealing in one step."""
PAIRED_EVERY = 1000
"""Rounds of annealing between two trials of pairs by least squares."""


class ByFlipsState(NamedTuple):
    """The state of `ByFlips`."""

    last: Climbed
    """The order that the next proposals are made from."""
    best: Climbed
    seen: frozenset[bytes]
    waited: int
    """Orders in a row that were no better than the best."""


@dataclass(frozen=True)
class ByFlips:
    """Orders by least squares over all flips, each from the one before."""

    ground: Ground

    def start(self, best: Climbed) -> ByFlipsState:
        """See `Rung`."""
        return ByFlipsState(best.afresh(), best.afresh(), frozenset([best.arrangement.tobytes()]), 0)

    def ended(self, at: ByFlipsState) -> bool:
        """Whether nothing is left to find, or several orders in a row were no better."""
        return at.waited >= ORDERS_WAITED or not self.ground.unfinished(at.best)

    def look(self, at: ByFlipsState) -> Climbed:
        """The best of the new proposed orders; `at.last` if there is none."""
        ground, memory = self.ground, self.ground.context.memory
        proposed = orders(ground.stack, at.last.arrangement, *ground.many, memory=memory)
        scores = np.asarray(score_arrangements(ground.stack, proposed, *ground.few, memory=memory))
        ranked = [proposed[k] for k in np.argsort(scores, kind="stable")]
        new = [order for order in ranked if order.tobytes() not in at.seen][:ORDERS_JUDGED]
        found = ground.best_of(new, at.last)
        return found._replace(evaluations=found.evaluations + len(proposed))

    def step(self, at: ByFlipsState, found: Climbed) -> ByFlipsState:
        """See `Rung`."""
        key, best = found.arrangement.tobytes(), at.best.or_better(found)
        if key in at.seen:
            return at._replace(best=best, waited=ORDERS_WAITED)
        waited = 0 if found.mse < at.best.mse else at.waited + 1
        return ByFlipsState(found, best, at.seen | {key}, waited)

    def best(self, at: ByFlipsState) -> Climbed:
        """See `Rung`."""
        return at.best


class ByPlacesState(NamedTuple):
    """The state of `ByPlaces`."""

    start: Int[np.ndarray, "L 2"]
    """The arrangement that places are counted from."""
    last: tuple[Placing | None, Climbed]
    """The state of the places, and the order by them after repair; None if there was nothing left to find."""
    best: Climbed


@dataclass(frozen=True)
class ByPlaces:
    """The order by its blocks' places (`ordering.places`), which begin with the evidence of the start's errors."""

    ground: Ground

    def start(self, best: Climbed) -> ByPlacesState:
        """See `Rung`."""
        ground, best = self.ground, best.afresh()
        placing = None
        if ground.unfinished(best):
            placing = start_placing(ground.stack, best.arrangement, *ground.for_places, ground.context.memory)
        return ByPlacesState(best.arrangement, (placing, best), best)

    def ended(self, at: ByPlacesState) -> bool:
        """Whether the places are certain or stall, or an order is exact."""
        placing, _ = at.last
        if placing is None or not self.ground.unfinished(at.best):
            return True
        return bool(placing.ended) or placing.mse <= self.ground.exact

    def look(self, at: ByPlacesState) -> tuple[Placing, Climbed]:
        """Some rounds of placing and, if one of them found a better order, guided repair from it."""
        ground, (placing, _) = self.ground, at.last
        assert placing is not None  # else it has ended
        rounds = placing.rounds
        while placing.rounds < rounds + PLACED and placing.mse > ground.exact and not placing.ended:
            if placing.rounds > rounds and ground.context.agreed_stop():
                break
            placing = placing_round(ground.stack, at.start, placing, *ground.for_places, ground.context.memory)
        found = at.best.afresh() if placing.waited >= PLACED else self._repaired(at.start[placing.order])
        return placing, found._replace(evaluations=found.evaluations + int(placing.rounds - rounds))

    def _repaired(self, arrangement: Int[np.ndarray, "L 2"]) -> Climbed:
        """The order, or a better one by guided repair: once places are nearly certain, only neighbours may be wrong."""
        ground, halved, at = self.ground, True, start_guided(arrangement)
        exact, most, memory = np.float32(ground.exact), np.int32(REPAIRED), ground.context.memory // 2  # beside places' own
        while halved and not at.finished and not ground.context.agreed_stop():
            before = float(at.proposals.mse)
            at = guided_rounds(ground.stack, at, *ground.for_places, exact, most, memory=memory)
            halved = float(at.proposals.mse) < before / 2
        repaired = ground.judged(np.asarray(at.arrangement))
        repaired = repaired._replace(evaluations=1 + int(at.rounds), moves=int(at.swaps))
        return ground.judged(arrangement).or_better(repaired)

    def step(self, at: ByPlacesState, found: tuple[Placing, Climbed]) -> ByPlacesState:
        """See `Rung`."""
        return at._replace(last=found, best=at.best.or_better(found[1]))

    def best(self, at: ByPlacesState) -> Climbed:
        """See `Rung`."""
        return at.best


class AnnealingState(NamedTuple):
    """The state of `Annealing`."""

    last: Annealed


@dataclass(frozen=True)
class Annealing:
    """One annealing on some rows; from time to time, pairs by least squares are tried and kept if they help."""

    ground: Ground
    rows: Rows
    hot: float
    cold: float
    """Temperatures at the beginning and the end, in units of the MSE."""
    rounds: int
    seed: int

    def start(self, best: Climbed) -> AnnealingState:
        """See `Rung`."""
        return AnnealingState(start_annealing(best.arrangement, self.seed))

    def ended(self, at: AnnealingState) -> bool:
        """Whether the schedule has ended, or an order is exact on its rows."""
        return int(at.last.rounds) >= self.rounds or float(at.last.best_mse) <= self.ground.exact

    def look(self, at: AnnealingState) -> Annealed:
        """Some more rounds, and from time to time the likeliest other pairs."""
        self.ground.context.tell(mse=float(at.last.best_mse), done=int(at.last.rounds), of=self.rounds)
        schedule = np.float32(self.hot), np.float32(self.cold), np.int32(self.rounds), np.int32(ANNEALED)
        after = anneal_rounds(self.ground.stack, at.last, *self.rows, *schedule)
        if float(after.mse) < ROUGH * self.ground.variance and int(after.rounds) % PAIRED_EVERY == 0:
            here = self.ground.judged(np.asarray(after.arrangement))
            better = likeliest_pairs(self.ground, here)
            if better.mse < here.mse:
                return from_here(after, better.arrangement)
        return after

    def step(self, at: AnnealingState, found: Annealed) -> AnnealingState:
        """See `Rung`."""
        return AnnealingState(found)

    def best(self, at: AnnealingState) -> Climbed:
        """See `Rung`."""
        found = self.ground.judged(np.asarray(at.last.best))
        return found._replace(evaluations=1 + int(at.last.rounds), moves=int(at.last.moves))
