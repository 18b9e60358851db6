"""Recovering a stack whose seed orders say little and whose pairs are in doubt.

Rung by rung, each from the best so far: orders by least squares, or of a deep stack by places, from the best seed orders; an
order peeled off the table from the front, with the pairs at hand and with others, which begins from nothing; pairings by
least squares, each judged by the order that it leads to; order and pairs peeled off other rows; more orders from other seeds
and from random ones; annealing, where none of these goes on; every move scored exactly, the best one made, and so on until
none helps. Of few blocks, every arrangement is tried.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from dropjax.core.stack import forward
from dropjax.ordering.places import is_deep
from dropjax.runtime import mesh
from dropjax.search.order_rungs import Annealing, ByFlips, ByPlaces
from dropjax.search.pair_rungs import FromEach, Paired, Settled
from dropjax.search.peeling_rung import ByPeeling
from dropjax.search.rungs import SOME_ROWS, Climbed, Ground, Rung, RungMaker, climb
from dropjax.search.scan_rungs import Exhausted, Scanned, exhaustible

HOT = 5e-3
"""Highest temperature of an annealing, in variances of pred: where an order begins to form."""
WARM = 150
"""An annealing begins at 1/150 of its start's MSE, if that is less: hotter, and what is there would melt."""
COOLING = 5, 10
"""Factors by which the temperature falls on the fewer rows, and on the more."""
ROUNDS = 3000, 1000
"""Rounds of annealing on the fewer rows, and on the more."""
SEEDS_PLACED = 4
"""Starts from which places are tried after flips have failed."""
BEFORE_PEELING = 2
"""Starts from which least squares, or in a deep stack half as many places, are tried before it is peeled."""
CHANCE = 6
"""Standard errors of a correlation by chance, up to which the outputs are said to know nothing of pred."""


class WarmedState(NamedTuple):
    """The state of `Warmed`."""

    best: Climbed
    last: Climbed
    """What the next phase begins with."""
    phase: int
    hot: float


@dataclass(frozen=True)
class Warmed:
    """Annealed on few rows, then on more until it is cold, and put in order by least squares from there."""

    ground: Ground
    ordering: RungMaker

    def start(self, best: Climbed) -> WarmedState:
        """See `Rung`."""
        hot = min(HOT * self.ground.variance, best.mse / WARM)
        return WarmedState(best.afresh(), best.afresh(), 0 if self.ground.unfinished(best) else 3, hot)

    def ended(self, at: WarmedState) -> bool:
        """See `Rung`."""
        return at.phase == 3

    def look(self, at: WarmedState) -> Climbed:
        """The next phase: annealing on the fewest rows, on few, then least squares."""
        self.ground.context.tell(done=0, of=0)
        ground, (few, more) = self.ground, COOLING
        hot, cold = ((at.hot, at.hot / few), (at.hot / few, at.hot / few / more), (0.0, 0.0))[at.phase]
        if at.phase == 2:
            return climb(Settled(ground, self.ordering), at.last, ground.context)
        rows, rounds = (ground.fewest, ground.few)[at.phase], ROUNDS[at.phase]
        annealing = Annealing(ground, rows, hot, cold, rounds, ground.seed + 1 + at.phase)
        return climb(annealing, at.last, ground.context)

    def step(self, at: WarmedState, found: Climbed) -> WarmedState:
        """See `Rung`."""
        spent = at.best._replace(evaluations=at.best.evaluations + found.evaluations, moves=at.best.moves + found.moves)
        best = at.best.or_better(found) if at.phase == 2 else spent
        return WarmedState(best, found, at.phase + 1, at.hot)

    def best(self, at: WarmedState) -> Climbed:
        """See `Rung`."""
        return at.best


class Named(NamedTuple):
    """A rung and the name of its stage."""

    name: str
    rung: Rung
    tells: bool = False
    """Whether all starts have been tried behind it, so that outputs which still do not follow pred tell something."""


def rungs(ground: Ground, starts: list[Int[np.ndarray, "L 2"]]) -> Sequence[Named]:
    """The ladder's rungs, in the order in which they are climbed; the first one's best start is `starts[0]`.

    A deep stack is put in order by places alone: single moves go astray there, and scoring all of them would never end.
    """
    deep = is_deep(ground.stack.depth)
    ordering = ByPlaces if deep else ByFlips
    pairs = Named("pairs by least squares", Paired(ground, ordering))
    settled = partial(Settled, ordering=ByFlips), partial(Settled, ordering=ByPlaces)
    peeling, with_pairs = (Named("peeling", ByPeeling(ground, settled, pairs_open)) for pairs_open in (False, True))
    if deep:
        some, others = (Named("places", FromEach(ground, of, ByPlaces)) for of in _parted(starts, BEFORE_PEELING // 2))
        return some, peeling, with_pairs, pairs, others._replace(tells=True), pairs
    annealing, scan = Named("annealing", Warmed(ground, ByFlips)), Named("exact scan", Scanned(ground))
    if exhaustible(ground.stack.depth):
        from_all = Named("least squares", FromEach(ground, starts, ByFlips), tells=True)
        return from_all, pairs, annealing, pairs, scan, Named("every arrangement", Exhausted(ground))
    some, others = (Named("least squares", FromEach(ground, of, ByFlips)) for of in _parted(starts, BEFORE_PEELING))
    by_places = Named("places", FromEach(ground, starts[:SEEDS_PLACED], ByPlaces))
    # On other rows peeling often succeeds, and sooner than anything that is left.
    again = Named("peeling", ByPeeling(ground, (*settled, partial(Paired, ordering=ByFlips)), pairs_open=True, draw=1))
    return some, peeling, with_pairs, pairs, again, others._replace(tells=True), by_places, annealing, pairs, scan


def _parted(starts: list[Int[np.ndarray, "L 2"]], first: int) -> tuple[list[Int[np.ndarray, "L 2"]], ...]:
    return starts[:first], starts[first:]


def evidence_of_nothing(ground: Ground, arrangement: Int[np.ndarray, "L 2"]) -> str | None:
    """In words, where the outputs do not follow pred on rows that no search decided on; None where they do.

    Outputs that know nothing of pred correlate with it by 1/√N; `CHANCE` times as much is no accident.
    """
    x, pred = (a[SOME_ROWS:] for a in ground.many)
    if len(x) < SOME_ROWS:
        return None
    outputs = mesh.fetch(forward(ground.stack.arranged(mesh.put(arrangement)), x)).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        both = [np.corrcoef(of, wanted)[0, 1] for of, wanted in zip(outputs.T, mesh.fetch(pred).T, strict=True)]
    most, chance = max(np.nan_to_num(both)), 1 / np.sqrt(len(x))
    if most > CHANCE * chance:
        return None
    return (
        f"no order of these pieces reproduces pred: on {len(x):,} rows that the search did not decide on, the outputs "
        f"of the best one correlate with pred by {most:.3f}, where chance gives about {chance:.3f}"
    )
