"""`solve_many`: several puzzles, on the cores of this machine or wherever an executor takes them."""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from typing import Unpack

from dropjax.core.options import OptionChanges, Options
from dropjax.core.puzzle import Puzzle
from dropjax.core.solution import Solution
from dropjax.runtime import mesh
from dropjax.runtime.device import share_of_cores, workers
from dropjax.runtime.together import Together
from dropjax.search.solving import changed, solve

POLL = 0.2
"""Seconds between two looks at whether another solve can begin."""

HANDED_OVER = 64
"""Puzzles that an executor holds at a time: there may be more puzzles than memory, and this many keep its workers busy."""


def solve_many(
    puzzles: Iterable[Puzzle],
    options: Options | None = None,
    *,
    executor: Executor | None = None,
    together: int = 1,
    **changes: Unpack[OptionChanges],
) -> Generator[Solution, None, None]:
    """Solves each puzzle, in the order given; programs are compiled once per shape and process.

    A CPU runs as many puzzles at once as it has cores, because the products of one small puzzle do not keep it busy. With
    `together` above 1, so many small puzzles of one shape go side by side on one device, and the same step of all of them is
    run as one program, which is meant for an accelerator. An `executor` decides where they run: in processes
    (`process_pool`), or on a cluster (Dask, Ray, MPI and Slurm offer the interface of `concurrent.futures`). When a puzzle's
    turn comes, the errors of its `solve` and of the executor are raised. Closing the iterator stops the solves that are
    under way; an executor finishes those that it has begun.
    """
    turn, ready = 0, {}
    calls = (partial(_given, puzzle) for puzzle in puzzles)
    for number, found in as_solved(calls, changed(options, changes), executor=executor, together=together):
        ready[number] = found
        while turn in ready:
            if isinstance(found := ready.pop(turn), Exception):
                raise found
            yield found
            turn += 1


def as_solved(
    puzzles: Iterable[Callable[[], Puzzle]],
    options: Options,
    interrupted: Callable[[], bool] = lambda: False,
    executor: Executor | None = None,
    together: int = 1,
) -> Iterator[tuple[int, Solution | Exception]]:
    """Solves the puzzle that each call returns; yields the call's index and the solution as soon as there is one.

    If a puzzle cannot be loaded or solved, the exception is yielded instead of the solution, and the others go on. Once
    `interrupted` returns true, the solves under way end with their best so far, and no other solve begins.
    """
    waiting, more = enumerate(puzzles), True
    under_way: dict[Future[Solution], int] = {}
    ways = _ThisMachine(options, interrupted, together) if executor is None else _Elsewhere(options, executor)
    try:
        while more or under_way:
            while more and ways.has_room(len(under_way)):
                item = None if interrupted() else next(waiting, None)
                if item is None:
                    more = False
                    break
                number, get = item
                try:
                    puzzle = get()
                except Exception as error:
                    yield number, error
                    continue
                under_way[ways.begin(puzzle)] = number
            if interrupted():  # running solves cannot be cancelled; they end by themselves
                under_way = {future: number for future, number in under_way.items() if not future.cancel()}
            for future in wait(under_way, POLL, FIRST_COMPLETED).done:
                number, error = under_way.pop(future), CancelledError() if future.cancelled() else future.exception()
                if not isinstance(error, _NotBegun):
                    yield number, error if isinstance(error, Exception) else future.result()
    finally:
        ways.leave(under_way)


class _NotBegun(Exception):
    """A puzzle whose turn came after the end."""


class _ThisMachine:
    """Solves in threads of this process: one for each core, or one for each puzzle of a batch."""

    def __init__(self, options: Options, interrupted: Callable[[], bool], together: int) -> None:
        self.options, self.interrupted, self.left = options, interrupted, threading.Event()
        self.together = Together(together) if together > 1 and not mesh.is_set() else None  # several devices share a puzzle
        self.threads = workers() if self.together is None else self.together.size
        self.pool = ThreadPoolExecutor(self.threads)
        self.seen: set[tuple] = set()
        self.first: Future | None = (
            None  # the first of its shape: the others wait for it, or they would compile the same programs again
        )

    def has_room(self, under_way: int) -> bool:
        return under_way < 2 * self.threads and (self.together is not None or self.first is None or self.first.done())

    def begin(self, puzzle: Puzzle) -> Future[Solution]:
        future = self.pool.submit(self._solved, puzzle)
        shape = (puzzle.w_in.shape, puzzle.w_last.shape, puzzle.x.shape)
        if shape not in self.seen:
            self.seen.add(shape)
            self.first = future
        return future

    def leave(self, under_way: Iterable[Future]) -> None:
        self.left.set()
        self.pool.shutdown(cancel_futures=True)

    def _solved(self, puzzle: Puzzle) -> Solution:
        if self._stopped():
            raise _NotBegun
        with share_of_cores(1):  # its kernels start no threads of their own, for the other puzzles use the cores
            if self.together is None or not self._is_small(puzzle):
                return solve(puzzle, self.options, interrupted=self._stopped)
            options = replace(self.options, memory=self.options.memory // self.together.size)
            with self.together.member():
                return solve(puzzle, options, interrupted=self._stopped)

    def _is_small(self, puzzle: Puzzle) -> bool:
        """Whether a batch of such puzzles, and its arrays side by side, fit into the memory that a solve may use."""
        arrays = puzzle.w_in, puzzle.w_out, puzzle.x, puzzle.pred
        return self.together is not None and 2 * self.together.size * sum(a.nbytes for a in arrays) <= self.options.memory

    def _stopped(self) -> bool:
        return self.left.is_set() or self.interrupted()


class _Elsewhere:
    """Solves by an executor; each solve uses all devices of its process."""

    def __init__(self, options: Options, executor: Executor) -> None:
        self.options, self.executor = options, executor

    def has_room(self, under_way: int) -> bool:
        return under_way < HANDED_OVER

    def begin(self, puzzle: Puzzle) -> Future[Solution]:
        return self.executor.submit(solve, puzzle, self.options)

    def leave(self, under_way: Iterable[Future]) -> None:
        for future in under_way:
            future.cancel()


def _given(puzzle: Puzzle) -> Puzzle:
    return puzzle
