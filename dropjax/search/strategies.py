"""The strategies: which stages run, in what order, and what becomes of what they find."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dropjax.core.options import MEMORY
from dropjax.core.protocols import Keep, keep_nothing
from dropjax.core.solution import Pairing
from dropjax.moves.arrangements import SWAP, nothing, pairs_of_positions
from dropjax.moves.exact import score_moves
from dropjax.ordering import bradley_terry, seeding
from dropjax.ordering.bubble import bubble_repair
from dropjax.ordering.guided import guided_repair
from dropjax.ordering.places import is_deep
from dropjax.ordering.seeding import Start
from dropjax.ordering.straightening import rows_to_straighten, straighten
from dropjax.pairing.certainty import doubtful
from dropjax.pairing.portfolio import pair
from dropjax.runtime.device import scored_together
from dropjax.search.ladder import Climbed, Ladder
from dropjax.search.problem import Problem
from dropjax.search.run import NOTHING_TO_FIND, STALLED, Run, Searched

SEED_ROWS = 64
"""Rows that `auto` finds its portfolio of seed orders on."""


FALLBACK_SEEDS = 4
"""Seed orders that `auto` tries to repair, and least squares start from."""


MOVES_PER_CALL = 256
"""Swaps scored before the clock is looked at again."""


OVERFLOWED = float(np.finfo(np.float32).max)
"""MSE of an arrangement whose outputs are no numbers."""


HOPELESS = 0.5
"""Fraction of pred's variance that a seed order's MSE has to be under to be repaired before the ladder is tried."""


RANDOM_STARTS = 6
"""Random orders from which least squares are tried in each attempt."""


ATTEMPTS = 3
"""Attempts of the ladder before `auto` turns to the paper's exact route. It ends there, or goes on until its time is up."""


class Begin(NamedTuple):
    """What every search has to begin with."""

    pairing: Pairing
    initial: Int[np.ndarray, "L 2"] | None
    """A given arrangement."""
    separating: Callable[[], Pairing]
    """The pairing that separates best."""

    @property
    def pairs(self) -> Int[np.ndarray, "L 2"]:
        """The pairs in the input halves' own order."""
        return (
            _pairs(self.pairing) if self.initial is None else self.initial[np.argsort(self.initial[:, 0])].astype(np.int32)
        )


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
    if options.rank == "bradley_terry" and not run.stop():
        arrangement = _rank(run, few, arrangement)
    if not run.stop():
        arrangement = _bubble(run, few, arrangement)
    yield Searched(arrangement, name, STALLED, begin.pairing)


def _rank(run: Run, few: Problem, arrangement: Int[np.ndarray, "L 2"]) -> Int[np.ndarray, "L 2"]:
    """The blocks by their Bradley–Terry strengths over all swaps of `arrangement` (paper, Section 4.3)."""
    with run.stage("bradley-terry") as record:
        gaps = swap_gaps(few, arrangement, run.options.memory, run.stop, run.keep)
        if gaps is not None:
            wins = bradley_terry.log_soft_wins(gaps, run.options.temperature)
            arrangement = arrangement[bradley_terry.order(bradley_terry.fit(wins, run.options.bt_solver))]
            record["evaluations"] = len(gaps) * (len(gaps) - 1) // 2
        record |= run.on_all_rows(arrangement)
    return arrangement


def _bubble(run: Run, few: Problem, arrangement: Int[np.ndarray, "L 2"]) -> Int[np.ndarray, "L 2"]:
    """The paper's repair (Section 4.4), decided on the search rows."""
    with run.stage("bubble repair") as record:
        repaired = bubble_repair(few.stack, arrangement, few.x, few.pred, run.stop, run.keep)
        record |= run.on_all_rows(repaired.arrangement)
        record |= {"evaluations": repaired.evaluations, "swaps": repaired.swaps}
    return repaired.arrangement


def swap_gaps(
    problem: Problem,
    arrangement: Int[np.ndarray, "L 2"],
    memory: int = MEMORY,
    stop: Callable[[], object] = lambda: None,
    keep: Keep = keep_nothing,
) -> Float[np.ndarray, "L L"] | None:
    """g_AB of every two positions, antisymmetric: what their swap adds to the MSE (paper, Eq. 7); None where stopped."""
    depth = len(arrangement)
    swaps = pairs_of_positions(depth, SWAP)
    per_call = max(MOVES_PER_CALL, depth)
    # The last call is filled up with swaps of nothing: there is at least one, and it scores the arrangement itself.
    moves = np.concatenate([swaps, nothing(depth, per_call - len(swaps) % per_call)])
    scores: list[np.ndarray] = []
    for start in range(0, len(moves), per_call):
        if stop():
            return None
        part = moves[start : start + per_call]
        score = partial(score_moves, problem.stack, arrangement, part, problem.x, problem.pred)
        scores.append(keep(partial(score, scored_together(depth), memory), np.zeros(per_call, np.float32)))
    mse = np.nan_to_num(np.concatenate(scores, dtype=np.float64), nan=OVERFLOWED, posinf=OVERFLOWED)
    gaps = np.zeros((depth, depth))
    gaps[swaps[:, 1], swaps[:, 2]] = mse[: len(swaps)] - mse[-1]
    return gaps - gaps.T


def auto(run: Run, begin: Begin) -> Iterator[Searched]:
    """The best seed orders, each straightened, and the best of these repaired, and by another pairing where it is in doubt;
    then the ladder; then the paper's exact route, and where there is a time limit the ladder until its end."""
    options, (stack, _, _, table) = run.options, run.problem
    deep = is_deep(stack.depth)  # single moves go astray, and scoring all of them exactly would never end

    def exactly(arrangement: Int[np.ndarray, "L 2"]) -> Int[np.ndarray, "L 2"]:
        few = run.problem.first(options.search_rows)
        ranked = _rank(run, few, arrangement)
        return ranked if run.stop() else _bubble(run, few, ranked)

    straight: list[Searched] = []

    def straightened(pairing: Pairing, starts: Sequence[Start]) -> Iterator[Searched]:
        for start in starts:
            straight.append(Searched(_straightened(run, start.arrangement), start.name, STALLED, pairing))
            yield straight[-1]

    def promising(starts: Sequence[Start]) -> list[Start]:
        return [] if deep else [start for start in _repairable(starts) if start.mse < HOPELESS * np.var(table.pred)]

    pairing, pairs, initial = begin.pairing, begin.pairs, begin.initial
    in_doubt = options.pairing is None and initial is None and len(doubtful(pairing)) > 0
    starts = _starts(run, pairs, initial)
    yield from straightened(pairing, promising(starts)[: 1 if in_doubt else None])
    if in_doubt:
        pairing = begin.separating()
        if (pairing.partner != pairs[:, 1]).any():
            straight.clear()
            starts = _starts(run, _pairs(pairing), None)
        yield from straightened(pairing, promising(starts)[len(straight) :])
    if straight:
        best = min(straight, key=lambda of: run.full_pass(of.arrangement).mse)
        yield best._replace(arrangement=guided(run, best.arrangement))
    for attempt in count():
        if attempt == ATTEMPTS and not deep:
            for start in _repairable(starts):
                yield Searched(exactly(start.arrangement), start.name, STALLED, pairing)
        if attempt >= ATTEMPTS and options.time_limit is None:
            return
        climbed = _climb(run, pairing, starts, attempt)
        yield climbed
        if climbed.reason is not None:
            return


def separating(run: Run) -> Pairing:
    """The pairing that separates best."""
    with run.stage("pairing"):
        return pair(run.problem.stack.w_in, run.problem.stack.w_out, run.options.memory, "auto")


def _pairs(pairing: Pairing) -> Int[np.ndarray, "L 2"]:
    """The pairs as an arrangement, in the input halves' own order."""
    return np.stack([np.arange(len(pairing.partner)), pairing.partner], axis=1).astype(np.int32)


def _repairable(starts: Sequence[Start]) -> Sequence[Start]:
    """The best starts and the paper's two."""
    papers = [start for start in starts[FALLBACK_SEEDS:] if start.name in ("delta_norm ascending", "w_out_norm ascending")]
    return [*starts[:FALLBACK_SEEDS], *papers]


def _climb(run: Run, pairing: Pairing, starts: Sequence[Start], attempt: int) -> Searched:
    """One attempt of the ladder."""
    stack, table = run.problem.stack, run.problem.table
    seed = run.options.random_seed + 1000 * attempt
    ladder = Ladder(stack, *table, pairing, run.stop, seed, run.options.memory, run.keep, run.pred_noise)
    rng = np.random.default_rng(seed)
    seeds = [start.arrangement for start in starts[:FALLBACK_SEEDS]] if attempt == 0 else []
    begun = [*seeds, *(starts[0].arrangement[rng.permutation(stack.depth)] for _ in range(RANDOM_STARTS))]

    def rung(name: str, climbing: Callable[[], Climbed]) -> Climbed:
        with run.stage(name) as record:
            climbed = climbing()
            record |= {"mse": climbed.mse, "rows": len(ladder.many[0])}
            record |= {"evaluations": climbed.rounds, "swaps": climbed.moves}
        return climbed

    deep = is_deep(stack.depth)
    climbed = rung("places" if deep else "least squares", lambda: ladder.best_of(begun))
    nothing_to_find = None if run.stop() else ladder.evidence_of_nothing(climbed.arrangement)
    if nothing_to_find is not None:
        return Searched(climbed.arrangement, "ladder", NOTHING_TO_FIND, pairing, nothing_to_find)

    def placed(best: Climbed) -> Climbed:
        found = ladder.best_of(begun[:FALLBACK_SEEDS], ladder.by_places)
        return min(best, found, key=lambda of: of.mse)._replace(rounds=found.rounds, moves=found.moves)

    pairs = ("pairs by least squares", ladder.paired)
    rungs = (pairs, ("annealing", ladder.warmed), pairs, ("exact scan", ladder.scanned))
    if deep:
        rungs = (pairs,)
    elif ladder.exhaustible:
        rungs = (*rungs, ("every arrangement", ladder.exhausted))
    else:
        rungs = (("places", placed), *rungs)
    for name, climbing in rungs:
        if run.stop() or run.solved(climbed.arrangement):
            break
        climbed = rung(name, partial(run.keep, partial(climbing, climbed), climbed))
    # Noisy pred: as in `_straightened`.
    ended = run.stop() or (run.solved(climbed.arrangement) and run.pred_noise is None)
    return Searched(climbed.arrangement if ended else guided(run, climbed.arrangement), "ladder", STALLED, pairing)


def _starts(run: Run, pairs: Int[np.ndarray, "L 2"], initial: Int[np.ndarray, "L 2"] | None) -> list[Start]:
    """The given start or named seed order, and the same from behind; or all of the portfolio, the best first."""
    options, few = run.options, run.problem.first(SEED_ROWS)
    if initial is not None:
        return _both_ways(Start("given", initial))
    with run.stage("seed order") as record:
        if options.seed_order is not None:
            direction = options.direction or "ascending"
            arrangement = seeding.seed_order(options.seed_order, direction, few.stack, pairs, few.x, options.random_seed)
            return _both_ways(Start(f"{options.seed_order} {direction}", arrangement))
        seeds = seeding.portfolio(few.stack, pairs, few.x, few.pred)
        starts = [seeds[k] for k in np.argsort([seed.mse for seed in seeds])]  # one that overflowed, NaN, comes last
        record |= {"mse": starts[0].mse, "rows": min(len(few.x), seeding.SCORED_ROWS), "evaluations": len(starts)}
    return starts


def _both_ways(start: Start) -> list[Start]:
    """The start, and its reverse: a proxy for depth may as well fall with it."""
    return [start, Start(f"{start.name}, reversed", start.arrangement[::-1].copy())]


def _straightened(run: Run, arrangement: Int[np.ndarray, "L 2"]) -> Int[np.ndarray, "L 2"]:
    """Straightened on few rows, which mostly ends it."""
    options, few = run.options, run.problem.first(rows_to_straighten(len(arrangement)))
    tolerance = 0.0 if run.pred_noise is not None else run.yardstick.tolerance
    with run.stage("straightening") as record:
        found = straighten(few.stack, arrangement, few.x, few.pred, tolerance, run.stop, run.keep, options.memory)
        record |= {"mse": float(found.mse) if np.isfinite(found.mse) else None, "rows": len(few.x)}
        record |= {"evaluations": int(found.rounds)}
    arrangement = np.asarray(found.arrangement)
    # Where pred is noisy, a solved order's neighbours are so too: the best of them is still to be found.
    noisy = run.pred_noise is not None and run.solved(arrangement)
    return guided(run, arrangement) if noisy else arrangement


def guided(
    run: Run, arrangement: Int[np.ndarray, "L 2"], tolerances: Sequence[float] | None = None
) -> Int[np.ndarray, "L 2"]:
    """Guided repair, on few rows first; on all of them where pred is noisy or the few rows were deceived."""
    (stack, x, pred, _), options = run.problem, run.options
    if tolerances is None:
        tolerances = (0.0,) if run.pred_noise is not None else (run.yardstick.tolerance, 0.0)
    for tolerance in tolerances:
        with run.stage("guided repair") as record:
            screen, memory = options.screen_precision, options.memory
            repaired = guided_repair(stack, arrangement, x, pred, tolerance, run.stop, run.keep, screen, memory)
            arrangement = np.asarray(repaired.arrangement)
            mse = float(repaired.proposals.mse)
            record |= {"mse": mse if np.isfinite(mse) else None, "rows": repaired.rows(len(x))}
            record |= {"evaluations": int(repaired.rounds), "swaps": int(repaired.swaps)}
        if run.stop() or mse > tolerance or run.solved(arrangement):
            break
    return arrangement
