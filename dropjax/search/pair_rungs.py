"""Rungs that look for the pairs, by least squares, each pairing judged by the order that it leads to."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from dropjax.pairing.least_squares import proposals
from dropjax.search.rungs import Climbed, Ground, RungMaker, climb

SIZES = (12, 16, 24, 48)
"""The most doubtful pairs in one regression."""
ROUGH = 0.5
"""Least squares is tried on an order only if its MSE is below this fraction of pred's variance."""
PAIRINGS_JUDGED = 4
"""The number of proposed pairings that are judged on many rows."""


def other_pairings(ground: Ground, arrangement: Int[np.ndarray, "L 2"]) -> list[Int[np.ndarray, "L 2"]]:
    """Other pairings by least squares, the likeliest first."""
    memory = ground.context.memory
    return proposals(ground.stack, arrangement, ground.doubtful, ground.score, *ground.many, sizes=SIZES, memory=memory)


def likeliest_pairs(ground: Ground, here: Climbed) -> Climbed:
    """The best of the likeliest other pairings without a search for their order; `here` if none is proposed."""
    return ground.best_of(other_pairings(ground, here.arrangement)[:PAIRINGS_JUDGED], here)


class SettledState(NamedTuple):
    """The state of `Settled`."""

    best: Climbed
    last: tuple[Climbed, Climbed]
    """The last order, and that order with the best other pairs, or itself if none was tried or is better."""
    settled: bool


@dataclass(frozen=True)
class Settled:
    """Orders by another rung and pairs by least squares, alternately, as long as other pairs help at once."""

    ground: Ground
    ordering: RungMaker

    def start(self, best: Climbed) -> SettledState:
        """See `Rung`."""
        return SettledState(best.afresh(), (best.afresh(), best.afresh()), settled=False)

    def ended(self, at: SettledState) -> bool:
        """See `Rung`."""
        return at.settled

    def look(self, at: SettledState) -> tuple[Climbed, Climbed]:
        """The order of the current pairs, then the likeliest other pairs."""
        ground = self.ground
        order = climb(self.ordering(ground), at.best, ground.context)
        hopeless = order.mse > ROUGH * ground.variance or order.mse <= ground.exact
        return order, order.afresh() if hopeless or ground.context.agreed_stop() else likeliest_pairs(ground, order)

    def step(self, at: SettledState, found: tuple[Climbed, Climbed]) -> SettledState:
        """See `Rung`."""
        order, pairs = found
        return SettledState(at.best.or_better(order).or_better(pairs), found, settled=pairs.mse >= order.mse)

    def best(self, at: SettledState) -> Climbed:
        """See `Rung`."""
        return at.best


class FromEachState(NamedTuple):
    """The state of `FromEach`."""

    best: Climbed
    last: Climbed
    next: int
    """Index of the next start."""


@dataclass(frozen=True)
class FromEach:
    """The best arrangement that several starts settle to; an exact one ends it."""

    ground: Ground
    starts: list[Int[np.ndarray, "L 2"]]
    ordering: RungMaker

    def start(self, best: Climbed) -> FromEachState:
        """See `Rung`."""
        return FromEachState(best.afresh(), best.afresh(), 0)

    def ended(self, at: FromEachState) -> bool:
        """See `Rung`."""
        return at.next == len(self.starts) or at.best.mse <= self.ground.exact

    def look(self, at: FromEachState) -> Climbed:
        """The arrangement that the next start settles to."""
        self.ground.context.tell(done=at.next, of=len(self.starts))
        ground, judged = self.ground, self.ground.judged(self.starts[at.next])
        found = climb(Settled(ground, self.ordering), judged, ground.context)
        return found._replace(evaluations=found.evaluations + judged.evaluations)

    def step(self, at: FromEachState, found: Climbed) -> FromEachState:
        """See `Rung`."""
        return FromEachState(at.best.or_better(found), found, at.next + 1)

    def best(self, at: FromEachState) -> Climbed:
        """See `Rung`."""
        return at.best


class PairedState(NamedTuple):
    """The state of `Paired`."""

    best: Climbed
    last: Climbed
    waiting: list[Int[np.ndarray, "L 2"]]
    """Pairings proposed from the best arrangement that have not been tried."""
    tried: frozenset[bytes]


@dataclass(frozen=True)
class Paired:
    """Pairings by least squares, as long as one of them leads to an order of a lower MSE."""

    ground: Ground
    ordering: RungMaker

    def start(self, best: Climbed) -> PairedState:
        """See `Rung`."""
        return self._from(best.afresh(), best.afresh(), frozenset([best.arrangement.tobytes()]))

    def _from(self, best: Climbed, last: Climbed, tried: frozenset[bytes]) -> PairedState:
        rough = best.mse > ROUGH * self.ground.variance
        proposed = [] if rough or not self.ground.unfinished(best) else other_pairings(self.ground, best.arrangement)
        new = [pairing for pairing in proposed if pairing.tobytes() not in tried]
        return PairedState(best, last, new[:PAIRINGS_JUDGED], tried)

    def ended(self, at: PairedState) -> bool:
        """See `Rung`."""
        return not at.waiting

    def look(self, at: PairedState) -> Climbed:
        """The arrangement that the next pairing settles to."""
        ground, judged = self.ground, self.ground.judged(at.waiting[0])
        found = climb(Settled(ground, self.ordering), judged, ground.context)
        return found._replace(evaluations=found.evaluations + judged.evaluations)

    def step(self, at: PairedState, found: Climbed) -> PairedState:
        """See `Rung`."""
        best, tried = at.best.or_better(found), at.tried | {at.waiting[0].tobytes()}
        if found.mse < at.best.mse:
            return self._from(best, found, tried)
        return PairedState(best, found, at.waiting[1:], tried)

    def best(self, at: PairedState) -> Climbed:
        """See `Rung`."""
        return at.best
