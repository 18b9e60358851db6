"""The strategies: which stages run, in what order, and how their results are used."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from dropjax.core.protocols import StopReason
from dropjax.core.solution import Pairing
from dropjax.ordering import seeding
from dropjax.ordering.places import is_deep
from dropjax.ordering.seeding import Start
from dropjax.pairing.certainty import doubtful
from dropjax.search import stages
from dropjax.search.run import Run, Searched
from dropjax.search.rungs import Climbed, Ground, climb

FALLBACK_SEEDS = 4
"""Number of seed orders that `auto` tries to repair and that least squares start from."""
HOPELESS = 0.5
"""A seed order is repaired before the ladder is tried if its MSE is below this fraction of pred's variance."""
RANDOM_STARTS = 6
"""Number of random orders from which least squares start in each attempt."""
ATTEMPTS = 3
"""Attempts of the ladder before `auto` takes the paper's exact route. After that it ends, or goes on until its time is
up."""


class Begin(NamedTuple):
    """The beginning of every search."""

    pairing: Pairing
    initial: Int[np.ndarray, "L 2"] | None
    """The arrangement given to start from, if any."""
    separating: Callable[[], Pairing]
    """The pairing that separates best."""

    @property
    def pairs(self) -> Int[np.ndarray, "L 2"]:
        """The pairs in the input halves' own order."""
        if self.initial is None:
            return as_arrangement(self.pairing)
        return self.initial[np.argsort(self.initial[:, 0])].astype(np.int32)


def as_arrangement(pairing: Pairing) -> Int[np.ndarray, "L 2"]:
    """The pairs in the input halves' own order."""
    return np.stack([np.arange(len(pairing.partner)), pairing.partner], axis=1).astype(np.int32)


Strategy = Callable[[Run, Begin], Iterator[Searched]]


def paper(run: Run, begin: Begin) -> Iterator[Searched]:
    """The paper's pipeline: a seed order, Bradley–Terry over all swaps, bubble repair."""
    options = run.options
    few = run.problem.first(options.search_rows)
    with run.stage("seed order") as record:
        if begin.initial is not None:
            name, arrangement = "given", begin.initial
        else:
            name = options.seed_order or "delta_norm"
            arrangement = seeding.seed_order(
                name, options.direction or "ascending", few.stack, begin.pairs, few.x, options.random_seed
            )
        record |= run.on_all_rows(arrangement)
    if options.rank == "bradley_terry" and not run.agreed_stop():
        arrangement = stages.ranked(run, few, arrangement)
    if not run.agreed_stop():
        arrangement = stages.bubbled(run, few, arrangement)
    yield Searched(arrangement, name, StopReason.STALLED, begin.pairing)


@dataclass
class Auto:
    """The running strategy `auto`."""

    run: Run
    begin: Begin
    pairing: Pairing
    starts: list[Start]
    """Seed orders of the pairing, the best first."""
    straight: list[Searched] = field(default_factory=list)
    """The arrangements that straightening made of the seed orders."""
    attempts: int = 0
    """Attempts of the ladder so far."""
    nothing_to_find: bool = False

    @property
    def deep(self) -> bool:
        """Whether the stack is so deep that single moves mislead and scoring all of them exactly would take too long."""
        return is_deep(self.run.problem.stack.depth)

    @property
    def in_doubt(self) -> bool:
        """Whether there is reason to try another pairing than the first, and it is allowed."""
        free = self.run.options.pairing is None and self.begin.initial is None
        return free and len(doubtful(self.begin.pairing)) > 0

    @property
    def repairable(self) -> list[Start]:
        """The best starts, and the paper's two."""
        papers = ("delta_norm ascending", "w_out_norm ascending")
        return [*self.starts[:FALLBACK_SEEDS], *(of for of in self.starts[FALLBACK_SEEDS:] if of.name in papers)]

    @property
    def promising(self) -> list[Start]:
        """The starts from which straightening may succeed."""
        most = HOPELESS * float(np.var(self.run.problem.table.pred))
        return [] if self.deep else [start for start in self.repairable if start.mse < most]


def auto(run: Run, begin: Begin) -> Iterator[Searched]:
    """Tries every method, the quickest first. With a time limit the ladder is repeated until the time is up."""
    at = Auto(run, begin, begin.pairing, stages.seed_orders(run, begin.pairs, begin.initial))
    table = (straighten_first, straighten_other_pairs, repair_best, *[climb_ladder] * ATTEMPTS, repair_exactly)
    for stage in table:
        yield from stage(at)
        if at.nothing_to_find:
            return
    while run.options.time_limit is not None and not at.nothing_to_find:
        yield from climb_ladder(at)


def straighten_first(at: Auto) -> Iterator[Searched]:
    """Straightens each promising start, or only the best one if the pairing is in doubt."""
    yield from _straighten(at, at.promising[:1])
    if not at.in_doubt:
        yield from _straighten(at, at.promising[1:])


def straighten_other_pairs(at: Auto) -> Iterator[Searched]:
    """If the pairing is in doubt, replaces it by the one that separates best and straightens the remaining starts."""
    if not at.in_doubt:
        return
    at.pairing = at.begin.separating()
    if (at.pairing.partner != at.begin.pairs[:, 1]).any():
        at.straight.clear()
        at.starts = stages.seed_orders(at.run, as_arrangement(at.pairing), None)
    yield from _straighten(at, at.promising[len(at.straight) :])


def _straighten(at: Auto, starts: Sequence[Start]) -> Iterator[Searched]:
    for start in starts:
        arrangement = stages.straightened(at.run, start.arrangement)
        at.straight.append(Searched(arrangement, start.name, StopReason.STALLED, at.pairing))
        yield at.straight[-1]


def repair_best(at: Auto) -> Iterator[Searched]:
    """Runs guided repair on the best straightened order."""
    if at.straight:
        best = min(at.straight, key=lambda of: at.run.full_pass(of.arrangement).mse)
        yield best._replace(arrangement=stages.guided(at.run, best.arrangement))


def climb_ladder(at: Auto) -> Iterator[Searched]:
    """Makes one attempt of the ladder: the first from the best seed orders, later ones from random orders."""
    from dropjax.search.ladder import evidence_of_nothing, rungs  # with many modules, which most solves do not need

    run, stack, attempt = at.run, at.run.problem.stack, at.attempts
    at.attempts += 1
    seed = run.options.random_seed + 1000 * attempt
    ground = Ground.of(stack, run.problem.table, at.pairing, seed, run.context, run.pred_noise)
    rng = np.random.default_rng(seed)
    seeds = [start.arrangement for start in at.starts[:FALLBACK_SEEDS]] if attempt == 0 else []
    begun = [*seeds, *(at.starts[0].arrangement[rng.permutation(stack.depth)] for _ in range(RANDOM_STARTS))]
    best = ground.judged(begun[0])
    ladder = rungs(ground, begun)
    for number, (name, rung, tells) in enumerate(ladder):
        if number > 0 and (run.agreed_stop() or run.solved(best.arrangement)):
            break
        with run.stage(name) as record:
            run.tell(words=f"attempt {at.attempts}, rung {number + 1} of {len(ladder)}")
            best = run.keep(partial(climb, rung, best, ground.context), best)
            record |= {"mse": best.mse, "rows": len(ground.many[0])}
            record |= {"evaluations": best.evaluations, "swaps": best.moves, "order": best.arrangement}
        if tells and not run.agreed_stop():
            evidence = evidence_of_nothing(ground, best.arrangement)
            if evidence is not None:
                at.nothing_to_find = True
                yield Searched(best.arrangement, "ladder", StopReason.NOTHING_TO_FIND, at.pairing, evidence)
                return
    yield Searched(_ended(run, best), "ladder", StopReason.STALLED, at.pairing)


def _ended(run: Run, best: Climbed) -> Int[np.ndarray, "L 2"]:
    """Repairs the ladder's best on all rows, if that may help: where pred is noisy, the ladder's rows are too few to tell
    neighbours apart."""
    if run.agreed_stop() or (run.pred_noise is None and run.solved(best.arrangement)):
        return best.arrangement
    return stages.guided(run, best.arrangement)


def repair_exactly(at: Auto) -> Iterator[Searched]:
    """Takes the paper's exact route from each of the best seed orders."""
    run = at.run
    for start in [] if at.deep else at.repairable:
        few = run.problem.first(run.options.search_rows)
        arrangement = stages.ranked(run, few, start.arrangement)
        if not run.agreed_stop():
            arrangement = stages.bubbled(run, few, arrangement)
        yield Searched(arrangement, start.name, StopReason.STALLED, at.pairing)
