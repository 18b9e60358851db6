"""The rung that reads pairs and an order off the table from the front, and puts what it read in order."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dropjax.ordering.peeling import Peeled, peel, rows_to_peel, start_peeling
from dropjax.search.problem import Table
from dropjax.search.rungs import Climbed, Ground, RungMaker, climb


class ByPeelingState(NamedTuple):
    """The state of `ByPeeling`."""

    best: Climbed
    last: tuple[Peeled, Climbed]
    """How far the stack is peeled, and what became of its order once all blocks were placed."""
    ended: bool


@dataclass(frozen=True)
class ByPeeling:
    """An order peeled off the table from the front (`ordering.peeling`), and what other rungs make of it.

    It owes nothing to any order found before, and ends early where the table knows nothing of the first blocks, or, with the
    pairs at hand, soon nothing more: they are not the right ones.
    """

    ground: Ground
    onwards: tuple[RungMaker, ...]
    """What goes on from the peeled stack, one after the other."""
    pairs_open: bool
    """Whether partners that the weights leave in doubt are looked for as well; else the best arrangement's are kept."""
    draw: int = 0
    """Which draw of rows in this attempt: other rows make other mistakes."""

    def start(self, best: Climbed) -> ByPeelingState:
        """See `Rung`."""
        best = best.afresh()
        looked_for = not self.pairs_open or bool((self.ground.certain < 0).any())
        ended = not (looked_for and self.ground.unfinished(best))
        return ByPeelingState(best, (start_peeling(best.arrangement), best), ended)

    def ended(self, at: ByPeelingState) -> bool:
        """See `Rung`."""
        return at.ended

    def look(self, at: ByPeelingState) -> tuple[Peeled, Climbed]:
        """Some blocks more; behind the last one, what the order settles to."""
        ground, (peeled, none) = self.ground, at.last
        if peeled.placed < ground.stack.depth:
            ground.context.tell(done=peeled.placed, of=ground.stack.depth)
            pairs = peeled.arrangement[np.argsort(peeled.arrangement[:, 0])]
            certain = ground.certain if self.pairs_open else pairs[:, 1]
            return peel(ground.stack, peeled, certain, *self.rows(), ground.belief), none
        found = ground.judged(peeled.arrangement)
        for rung in self.onwards:
            found = found.or_better(climb(rung(ground), found, ground.context))
        return peeled, found

    def rows(self) -> Table:
        """The rows of this draw: as many as peeling uses."""
        x, pred = self.ground.table
        rows = np.random.default_rng(self.ground.seed + self.draw).permutation(len(x))
        rows = rows[: rows_to_peel(self.ground.stack, self.ground.context.memory)]
        return Table(x[rows], pred[rows])

    def step(self, at: ByPeelingState, found: tuple[Peeled, Climbed]) -> ByPeelingState:
        """See `Rung`."""
        (before, _), (peeled, settled) = at.last, found
        ordered = peeled.placed == before.placed
        hopeless = peeled.knows_nothing or (peeled.is_astray and not self.pairs_open)
        return ByPeelingState(at.best.or_better(settled) if ordered else at.best, found, ordered or hopeless)

    def best(self, at: ByPeelingState) -> Climbed:
        """See `Rung`."""
        return at.best
