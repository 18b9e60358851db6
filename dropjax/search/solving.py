"""The strategies: which stages run, in what order, and what becomes of what they find."""

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.metadata import version
from itertools import count
from typing import Any, NamedTuple, TypeVar

import jax
import jax.monitoring
import numpy as np
from jaxtyping import Float, Int

from dropjax.core.options import MEMORY, Options
from dropjax.core.protocols import Keep, Progress, keep_nothing
from dropjax.core.puzzle import Puzzle
from dropjax.core.solution import Outcome, Pairing, Solution, Stage
from dropjax.core.stack import ACTIVATIONS
from dropjax.moves.arrangements import SWAP, nothing, pairs_of_positions
from dropjax.moves.exact import score_moves
from dropjax.ordering import bradley_terry, seeding
from dropjax.ordering.bubble import bubble_repair
from dropjax.ordering.guided import guided_repair
from dropjax.ordering.places import is_deep
from dropjax.ordering.seeding import Start
from dropjax.ordering.straightening import rows_to_straighten, start_straightening, straighten, straightening
from dropjax.pairing.certainty import doubtful
from dropjax.pairing.portfolio import pair
from dropjax.runtime import mesh
from dropjax.runtime.device import PRECISION, describe, scored_together, workers
from dropjax.runtime.journal import Journal
from dropjax.search import doubt, verify
from dropjax.search.ladder import Climbed, Ladder
from dropjax.search.problem import Problem

T = TypeVar("T")


SEED_ROWS = 64
"""Rows that `auto` finds its portfolio of seed orders on."""


FALLBACK_SEEDS = 4
"""Seed orders that `auto` tries to repair, and least squares start from."""


MOVES_PER_CALL = 256
"""Swaps scored before the clock is looked at again."""


STOPS = (None, "interrupted", "time limit")
"""Why a search has to stop, where it has to."""


STALLED = "no move lowers the MSE"
"""Why a search ends that was not stopped."""


NOTHING_TO_FIND = "no order reproduces pred"
"""Why a search ends early."""


OVERFLOWED = float(np.finfo(np.float32).max)
"""MSE of an arrangement whose outputs are no numbers."""


HOPELESS = 0.5
"""Fraction of pred's variance that a seed order's MSE has to be under to be repaired before the ladder is tried."""


RANDOM_STARTS = 6
"""Random orders from which least squares are tried in each attempt."""


ATTEMPTS = 3
"""Attempts of the ladder before `auto` turns to the paper's exact route. It ends there, or goes on until its time is up."""


def _prepare(problem: Problem, options: Options, pool: ThreadPoolExecutor) -> None:
    """Compiles in the background what the search will call, while it does what comes first.

    One after another, on one core, compiling would take most of the time of a first solve.
    """
    stack, x, pred, _ = problem
    nowhere = np.zeros((stack.depth, 2), np.int32)

    def shapes(rows: int) -> Iterator[jax.ShapeDtypeStruct]:
        return (jax.ShapeDtypeStruct((min(rows, len(x)), *a.shape[1:]), a.dtype) for a in (x, pred))

    if options.method == "auto":
        pool.submit(seeding.one_way.prepare, stack, nowhere, *shapes(SEED_ROWS), np.bool_(False))
        if not is_deep(stack.depth):
            start = start_straightening(nowhere), *shapes(rows_to_straighten(stack.depth)), np.float32(0), np.int32(0)
            pool.submit(straightening.prepare, stack, *start, memory=options.memory)
    parts = verify.pass_parts(len(x))
    pool.submit(verify.pass_part.prepare, stack, nowhere, x, pred, np.int32(0), parts, options.memory)
    pool.submit(verify.first_order_changes.prepare, stack, nowhere, next(shapes(verify.SCREENED_ROWS)), options.memory)


@dataclass
class Run:
    """One solve under way: its clock, its records, and whoever wants to know."""

    problem: Problem
    options: Options
    pred_noise: float | None
    progress: Progress
    interrupted: Callable[[], bool]
    journal: Journal | None
    started: float
    label: str = ""
    """Behind the names of its stages, where there are other runs."""
    stages: list[Stage] = field(default_factory=list)
    passes: dict[bytes, verify.Pass] = field(default_factory=dict)
    noises: dict[bytes, float] = field(default_factory=dict)

    def with_activation(self, name: str) -> "Run":
        """The same, and one list of stages with this one, for the stack with another activation."""
        problem = self.problem._replace(stack=replace(self.problem.stack, activation=name))
        return replace(self, problem=problem, label=f", {name}", passes={}, noises={})

    def stop(self) -> str | None:
        """Why the search has to stop now, if it has to."""
        limit = self.options.time_limit
        late = limit is not None and time.perf_counter() - self.started > limit
        return STOPS[mesh.agreed(1 if self.interrupted() else 2 if late else 0)]

    def keep(self, function: Callable[[], T], like: T) -> T:
        """What `function()` gives, from the journal where there is one that has it."""
        return function() if self.journal is None else self.journal.call(function, like, self.stop)

    @contextmanager
    def stage(self, name: str) -> Iterator[dict]:
        """Times a stage; what it puts into the yielded record (mse, rows, evaluations, swaps) is kept."""
        name += self.label
        self.progress.begins(name)
        start = time.perf_counter()
        record: dict = {}
        yield record
        self.stages.append(Stage(name=name, seconds=time.perf_counter() - start, **record))
        self.progress.ends(self.stages[-1])

    def full_pass(self, arrangement: Int[np.ndarray, "L 2"]) -> verify.Pass:
        """The arrangement over all rows; asking again costs nothing."""
        key = np.asarray(arrangement, np.int32).tobytes()
        if key not in self.passes:
            stack, x, pred, _ = self.problem
            passed = verify.full_pass(stack, arrangement, x, pred, self.options.memory)
            self.passes[key] = passed if np.isfinite(passed.mse) else passed._replace(mse=np.inf)
        return self.passes[key]

    def float32_noise(self, arrangement: Int[np.ndarray, "L 2"]) -> float:
        """float32's noise in the arrangement's outputs; asking again costs nothing."""
        key = np.asarray(arrangement, np.int32).tobytes()
        if key not in self.noises:
            stack, _, _, table = self.problem
            outputs = mesh.fetch(self.full_pass(arrangement).outputs)
            self.noises[key] = verify.float32_noise(stack, arrangement, table.x, outputs)
        return self.noises[key]

    def solved(self, arrangement: Int[np.ndarray, "L 2"]) -> bool:
        """Whether the arrangement reproduces pred on all rows as well as pred allows."""
        noise = verify.Noise(0.0, self.pred_noise)
        return verify.judge(self.full_pass(arrangement).mse, self.problem.table.pred, noise, ties=False).solved

    def on_all_rows(self, arrangement: Int[np.ndarray, "L 2"]) -> dict:
        """The arrangement's MSE as a stage's record has it."""
        return {"mse": self.full_pass(arrangement).mse, "rows": len(self.problem.x)}


class Searched(NamedTuple):
    """A search's result, before it is verified."""

    arrangement: Int[np.ndarray, "L 2"]
    seed_order: str
    stop_reason: str
    pairing: Pairing
    reason: str | None = None
    """Why nothing can be found, with the evidence."""


def solve(
    puzzle: Puzzle,
    options: Options | None = None,
    *,
    progress: Progress | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    journal: Journal | None = None,
    **changes,
) -> Solution:
    """Find the arrangement of the pieces that reproduces `puzzle.pred`, and verify it on every row.

    Options are given as an `Options`, or one by one by name: `solve(puzzle, method="paper")`. `interrupted` is asked between
    dispatches; where it turns true, the best so far is verified and returned. What a `journal` holds is not searched again;
    its `identity` has to be that of this puzzle and these options. Raises ValueError for options that make no sense
    together, `InputError` for an initial order that is not of these pieces.
    """
    options = _changed(options, changes)
    started = time.perf_counter()
    with CompileClock() as clock, ThreadPoolExecutor(2) as pool:
        names = list(ACTIVATIONS) if options.activation == "auto" else [options.activation]
        problem = Problem.of(puzzle.stack(names[0]), puzzle.x, puzzle.pred)
        pred_noise = verify.noise_of_pred(puzzle.pred, options.pred_decimals, options.pred_noise)
        if not mesh.is_set():
            _prepare(problem, options, pool)
        run = Run(problem, options, pred_noise, progress or Progress(), interrupted, journal, started)
        with run.stage("pairing"):
            pairing = pair(problem.stack.w_in, problem.stack.w_out, options.memory, options.pairing or "ddr")
        initial = None if options.initial_order is None else puzzle.arrangement(options.initial_order)
        begin = Begin(pairing, initial, cache(partial(_separating, run)))
        strategy = {"auto": _auto, "paper": _paper}[options.method]
        run, searched = _search([run] if len(names) == 1 else [run.with_activation(name) for name in names], strategy, begin)
        found = _finished(run, searched.arrangement)
        if journal is not None:
            journal.write()
        search_ended = time.perf_counter()
        with run.stage("verify") as record:
            verdict = _verify(run, puzzle, found)
            record |= {"mse": verdict.passed.mse, "rows": len(puzzle.x), "evaluations": 1}
        ended = time.perf_counter()
    compiling, verifying_compiling = (clock.seconds(after, ended) for after in (started, search_ended))
    return Solution(
        permutation=puzzle.permutation(verdict.arrangement),
        stack=verify.arranged_on_host(run.problem.stack, verdict.arrangement),
        outcome=verdict.outcome,
        mse=verdict.passed.mse,
        max_abs_error=verdict.passed.max_abs_error,
        noise_floor=verdict.noise.floor,
        rows=len(puzzle.x),
        method=options.method,
        seed_order=searched.seed_order,
        random_seed=options.random_seed,
        stop_reason="solved" if verdict.outcome.solved else searched.stop_reason,
        device=describe(),
        precision=PRECISION,
        pairing=searched.pairing,
        stages=tuple(run.stages),
        seconds={
            "compile": compiling,
            "solve": search_ended - started - (compiling - verifying_compiling),
            "verify": ended - search_ended - verifying_compiling,
        },
        ties=verdict.ties,
        **({} if verdict.outcome.solved else _doubt(run, puzzle, searched)),
        input_sha256=puzzle.hashes,
        replay=verdict.replay,
    )


def identity(puzzle: Puzzle, options: Options) -> dict[str, str]:
    """What a search's results depend on, for its journal."""
    arrays = hashlib.sha256()
    for numbers in (puzzle.in_numbers, puzzle.out_numbers, puzzle.last_number):
        arrays.update(np.asarray(numbers, np.int64).tobytes())
    for array in (puzzle.w_in, puzzle.b_in, puzzle.w_out, puzzle.b_out, puzzle.w_last, puzzle.b_last, puzzle.x, puzzle.pred):
        arrays.update(f"{array.shape}".encode() + array.tobytes())
    searching = {name: value for name, value in vars(options).items() if name not in ("time_limit", "verify")}
    versions = {name: version(name) for name in ("dropjax", "jax", "jaxlib")}
    return {
        "puzzle": arrays.hexdigest(),
        "device": describe(),
        **{name: json.dumps(value) for name, value in searching.items()},
        **versions,
    }


def solve_many(puzzles: Iterable[Puzzle], options: Options | None = None, **changes) -> Iterator[Solution]:
    """`solve` for each puzzle, in the order given; programs are compiled once per shape.

    A CPU runs as many puzzles at once as it has cores: one small puzzle's products do not keep it busy. Raises as `solve`,
    where the puzzle's turn has come.
    """
    options = _changed(options, changes)
    with ThreadPoolExecutor(workers()) as pool:
        under_way: deque[Future[Solution]] = deque()
        seen: set[tuple] = set()
        for puzzle in puzzles:
            shape = (puzzle.w_in.shape, puzzle.w_last.shape, puzzle.x.shape)
            future = pool.submit(solve, puzzle, options)
            if shape not in seen:
                # The first of its shape compiles; those behind it would do so again if they did not wait.
                seen.add(shape)
                future.result()
            under_way.append(future)
            while len(under_way) > 2 * workers() or (under_way and under_way[0].done()):
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def _changed(options: Options | None, changes: dict) -> Options:
    return Options(**{**(vars(options) if options else {}), **changes})


class CompileClock:
    """The seconds in which JAX traced, compiled or fetched compiled programs."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    def __enter__(self) -> "CompileClock":
        jax.monitoring.register_event_duration_secs_listener(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._note)

    def _note(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            now = time.perf_counter()
            self._spans.append((now - duration_secs, now))

    def seconds(self, after: float, before: float) -> float:
        """Of the time between the two; events lie within one another and are counted once."""
        total = 0.0
        for start, end in sorted(self._spans):
            total += max(0.0, min(end, before) - max(start, after))
            after = max(after, end)
        return total


def _doubt(run: Run, puzzle: Puzzle, searched: Searched) -> dict[str, Any]:
    """Of a search that did not solve it, what its `Solution` says of that."""
    arrangements = [np.frombuffer(key, np.int32).reshape(-1, 2) for key in run.passes]
    mse = [passed.mse for passed in run.passes.values()]
    return {
        "doubtful": puzzle.in_numbers[doubtful(searched.pairing)].tolist(),
        "unsettled": puzzle.in_numbers[doubt.unsettled(arrangements, mse)].tolist(),
        "mse_of_variance": min(mse) / float(np.var(puzzle.pred, axis=0).mean()),
        "reason": searched.reason,
    }


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


def _search(runs: Sequence[Run], strategy: Strategy, begin: Begin) -> tuple[Run, Searched]:
    """The best that the runs find, a search of each in turn, until one is solved."""
    found: list[tuple[Run, Searched]] = []
    ways = deque((run, strategy(run, begin)) for run in runs)
    while ways:
        run, way = ways.popleft()
        searched = next(way, None)
        if searched is None:
            continue
        found.append((run, searched._replace(stop_reason=run.stop() or searched.stop_reason)))
        if run.stop() or run.solved(searched.arrangement):
            break
        ways.append((run, way))
    run, best = min(found, key=lambda of: of[0].full_pass(of[1].arrangement).mse)
    _, last = found[-1]
    return run, best._replace(stop_reason=last.stop_reason, reason=last.reason)


def _paper(run: Run, begin: Begin) -> Iterator[Searched]:
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


def _auto(run: Run, begin: Begin) -> Iterator[Searched]:
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
        yield best._replace(arrangement=_guided(run, best.arrangement))
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


def _separating(run: Run) -> Pairing:
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
    return Searched(climbed.arrangement if ended else _guided(run, climbed.arrangement), "ladder", STALLED, pairing)


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
    tolerance = 0.0 if run.pred_noise is not None else verify.exact_mse(run.problem.table.pred)
    with run.stage("straightening") as record:
        found = straighten(few.stack, arrangement, few.x, few.pred, tolerance, run.stop, run.keep, options.memory)
        record |= {"mse": float(found.mse) if np.isfinite(found.mse) else None, "rows": len(few.x)}
        record |= {"evaluations": int(found.rounds)}
    arrangement = np.asarray(found.arrangement)
    # Where pred is noisy, a solved order's neighbours are so too: the best of them is still to be found.
    noisy = run.pred_noise is not None and run.solved(arrangement)
    return _guided(run, arrangement) if noisy else arrangement


def _guided(
    run: Run, arrangement: Int[np.ndarray, "L 2"], tolerances: Sequence[float] | None = None
) -> Int[np.ndarray, "L 2"]:
    """Guided repair, on few rows first; on all of them where pred is noisy or the few rows were deceived."""
    (stack, x, pred, table), options = run.problem, run.options
    if tolerances is None:
        tolerances = (0.0,) if run.pred_noise is not None else (verify.exact_mse(table.pred), 0.0)
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


def _finished(run: Run, arrangement: Int[np.ndarray, "L 2"]) -> Int[np.ndarray, "L 2"]:
    """A solved arrangement, repaired on where float32 tells it from the answer: of a deep stack, exchanges of neighbours can
    do less than an exact answer's MSE allows."""
    if run.pred_noise is not None or not run.solved(arrangement):
        return arrangement
    tolerance = (verify.ALIKE * run.float32_noise(arrangement)) ** 2
    if run.full_pass(arrangement).mse <= tolerance:
        return arrangement
    repaired = _guided(run, arrangement, (tolerance,))
    return min(arrangement, repaired, key=lambda of: run.full_pass(of).mse)


class Verdict(NamedTuple):
    """What verification says of an answer."""

    arrangement: Int[np.ndarray, "L 2"]
    passed: verify.Pass
    outcome: Outcome
    noise: verify.Noise
    ties: Sequence[Sequence[int]]
    replay: Mapping[str, float] | None


def _verify(run: Run, puzzle: Puzzle, arrangement: Int[np.ndarray, "L 2"]) -> Verdict:
    """Judges an arrangement on all rows, and looks for others that do as well or better within float32's noise."""
    stack, x, pred, table = run.problem
    full, memory = run.options.verify == "full", run.options.memory
    while True:
        passed = run.full_pass(arrangement)
        noise = verify.Noise(run.float32_noise(arrangement), run.pred_noise)
        outcome = verify.judge(passed.mse, puzzle.pred, noise, ties=False)
        near = (
            verify.Near.none()
            if not outcome.solved
            else verify.near_moves(stack, arrangement, x, pred, table.x, passed, noise.float32, not full, memory)
        )
        if near.better is None:
            break
        arrangement = near.better
    ties = verify.tie_groups(puzzle, arrangement, near.ties) if outcome.solved else ()
    return Verdict(
        arrangement,
        passed,
        verify.judge(passed.mse, puzzle.pred, noise, ties=bool(ties)),
        noise,
        ties,
        verify.float64_errors(stack, arrangement, *table) if full else None,
    )
