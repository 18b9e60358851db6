"""`solve`: from a puzzle to a verified solution."""

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import version
from typing import Any, Unpack

import jax
import jax.monitoring
import numpy as np

from dropjax.core.options import OptionChanges, Options
from dropjax.core.protocols import Progress, StopReason
from dropjax.core.puzzle import Puzzle
from dropjax.core.solution import Solution
from dropjax.core.stack import ACTIVATIONS
from dropjax.ordering import seeding
from dropjax.ordering.places import is_deep
from dropjax.ordering.straightening import near_equations, rows_to_straighten
from dropjax.pairing.certainty import doubtful
from dropjax.pairing.portfolio import pair
from dropjax.runtime import mesh
from dropjax.runtime.compile_clock import CompileClock
from dropjax.runtime.device import PRECISION, describe
from dropjax.runtime.journal import Journal
from dropjax.runtime.settings import own_settings
from dropjax.search import doubt, verify
from dropjax.search.problem import Problem
from dropjax.search.run import Run, Searched
from dropjax.search.stages import SEED_ROWS, separating
from dropjax.search.strategies import Begin, Strategy, auto, paper
from dropjax.search.verdict import Verdict, explained, finished, judged
from dropjax.search.yardstick import Level, Yardstick


def prepare(problem: Problem, options: Options, pool: ThreadPoolExecutor) -> None:
    """Starts compiling, in the background, the programs that the search will call later.

    If they were compiled one after another on one core, compiling would take most of the time of a first solve.
    """
    stack, x, pred, _ = problem
    nowhere = np.zeros((stack.depth, 2), np.int32)

    def submit(call: Callable, *args: Any, **named: Any) -> None:
        pool.submit(copy_context().run, partial(call, *args, **named))

    def shapes(rows: int) -> Iterator[jax.ShapeDtypeStruct]:
        return (jax.ShapeDtypeStruct((min(rows, len(x)), *a.shape[1:]), a.dtype) for a in (x, pred))

    if options.method == "auto":
        submit(seeding.one_way.prepare, stack, nowhere, *shapes(SEED_ROWS), np.bool_(False))
        if not is_deep(stack.depth):
            submit(near_equations.prepare, stack, nowhere, *shapes(rows_to_straighten(stack.depth)), options.memory)
    parts = verify.pass_parts(len(x))
    submit(verify.pass_part.prepare, stack, nowhere, x, pred, np.int32(0), parts, options.memory)
    submit(verify.first_order_changes.prepare, stack, nowhere, next(shapes(verify.SCREENED_ROWS)), options.memory)


@own_settings()
def solve(
    puzzle: Puzzle,
    options: Options | None = None,
    *,
    progress: Progress | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    journal: Journal | None = None,
    **changes: Unpack[OptionChanges],
) -> Solution:
    """Find the arrangement of the pieces that reproduces `puzzle.pred`, and verify it on every row.

    Options are given as an `Options`, or one by one by name: `solve(puzzle, method="paper")`. `interrupted` is called
    between dispatches; once it returns true, the best arrangement so far is verified and returned. Results that a `journal`
    holds are not computed again; its `identity` has to be that of this puzzle and these options. Raises ValueError if the
    options contradict one another, and `InputError` if an initial order does not consist of this puzzle's pieces.
    """
    options = changed(options, changes)
    started = time.perf_counter()
    with CompileClock() as clock, ThreadPoolExecutor(2) as pool:
        yardstick = Yardstick.of(puzzle.pred, options.pred_decimals, options.pred_noise)
        level = Level.of(puzzle, yardstick.spread)
        run = _begun(level.levelled(puzzle), yardstick.scaled(level.scale), options, pool)
        run = replace(run, progress=progress or Progress(), interrupted=interrupted, journal=journal, started=started)
        run, searched = _searched(run, puzzle)
        found = finished(run, searched.arrangement)
        if journal is not None:
            journal.write()
        search_ended = time.perf_counter()
        with run.stage("verify") as record:
            verdict = judged(run, puzzle, found)
            passed = level.restored(verdict.passed)
            record |= {"mse": passed.mse, "rows": len(puzzle.x), "evaluations": 1, "order": verdict.arrangement}
        ended = time.perf_counter()
    compiling, verifying_compiling = (clock.seconds(after, ended) for after in (started, search_ended))
    seconds = {
        "compile": compiling,
        "solve": search_ended - started - (compiling - verifying_compiling),
        "verify": ended - search_ended - verifying_compiling,
    }
    return _solution(run, puzzle, searched, verdict._replace(passed=passed), seconds)


def _begun(puzzle: Puzzle, yardstick: Yardstick, options: Options, pool: ThreadPoolExecutor) -> Run:
    """Starts a run of the puzzle with its first activation, and the compiling of its programs."""
    first = next(iter(ACTIVATIONS)) if options.activation == "auto" else options.activation
    problem = Problem.of(puzzle.stack(first), puzzle.x, puzzle.pred)
    if not mesh.is_set():
        prepare(problem, options, pool)
    return Run(problem, options, yardstick, in_numbers=puzzle.in_numbers)


def _searched(run: Run, puzzle: Puzzle) -> tuple[Run, Searched]:
    """Runs the strategy; returns its result and the run, whose activation is the one it was found with."""
    options, stack = run.options, run.problem.stack
    with run.stage("pairing"):
        pairing = pair(stack.w_in, stack.w_out, options.memory, options.pairing or "ddr")
    initial = None if options.initial_order is None else puzzle.arrangement(options.initial_order)
    begin = Begin(pairing, initial, cache(partial(separating, run)))
    strategy = {"auto": auto, "paper": paper}[options.method]
    runs = [run.with_activation(name) for name in ACTIVATIONS] if options.activation == "auto" else [run]
    return _search(runs, strategy, begin)


def _solution(run: Run, puzzle: Puzzle, searched: Searched, verdict: Verdict, seconds: dict[str, float]) -> Solution:
    """Builds the `Solution` from a search and the verdict on it; the verdict's pass is in the units of pred."""
    options, passed = run.options, verdict.passed
    stack = verify.arranged_on_host(puzzle.stack(run.problem.stack.activation), verdict.arrangement)
    full = options.verify == "full"
    return Solution(
        permutation=puzzle.permutation(verdict.arrangement),
        stack=stack,
        outcome=verdict.outcome,
        mse=passed.mse,
        max_abs_error=passed.max_abs_error,
        noise_floor=verdict.noise.floor,
        rows=len(puzzle.x),
        method=options.method,
        seed_order=searched.seed_order,
        random_seed=options.random_seed,
        stop_reason=StopReason.SOLVED if verdict.outcome.solved else verdict.stop_reason or searched.stop_reason,
        device=describe(),
        precision=PRECISION,
        pairing=searched.pairing,
        stages=tuple(run.stages),
        seconds=seconds,
        ties=verdict.ties,
        **({} if verdict.outcome.solved else _doubt(run, puzzle, searched, verdict)),
        input_sha256=puzzle.hashes,
        replay=verify.float64_errors(stack, puzzle.x, puzzle.pred, run.interrupted) if full else None,
        notes=(*searched.notes, *verdict.notes),
    )


def identity(puzzle: Puzzle, options: Options) -> dict[str, str]:
    """Everything that a search's results depend on, by which its journal is recognised."""
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


def changed(options: Options | None, changes: Mapping[str, Any]) -> Options:
    """The options with these changes; without options, the default ones with these changes."""
    return Options(**{**(vars(options) if options else {}), **changes})


def _doubt(run: Run, puzzle: Puzzle, searched: Searched, verdict: Verdict) -> dict[str, Any]:
    """The fields of a `Solution` that describe what is in doubt after a search that did not solve the puzzle."""
    arrangements, mse = zip(*run.log, strict=True)
    open_still = [doubt.unsettled(arrangements, mse), doubt.differing(verdict.arrangement, verdict.rivals)]
    variance = run.yardstick.variance
    return {
        "doubtful": puzzle.in_numbers[doubtful(searched.pairing)].tolist(),
        "unsettled": puzzle.in_numbers[np.union1d(*open_still)].tolist(),
        "mse_of_variance": min(mse) / variance if variance else None,
        "reason": verdict.reason or searched.reason,
    }


def _search(runs: Sequence[Run], strategy: Strategy, begin: Begin) -> tuple[Run, Searched]:
    """Searches with each run in turn until one solves the puzzle; returns the best result and its run."""
    found: list[tuple[Run, Searched]] = []
    ways = deque((run, strategy(run, begin)) for run in runs)
    while ways:
        run, way = ways.popleft()
        searched = next(way, None)
        if searched is None:
            continue
        stop = run.agreed_stop()  # asked once, so that the reason that ends the search is the reason that is reported
        found.append((run, searched._replace(stop_reason=stop or searched.stop_reason)))
        if stop or run.solved(searched.arrangement):
            break
        if (better := explained(run, searched)) is not None:
            return better
        ways.append((run, way))
    run, best = min(found, key=lambda of: of[0].full_pass(of[1].arrangement).mse)
    _, last = found[-1]
    return run, best._replace(stop_reason=last.stop_reason, reason=last.reason)
