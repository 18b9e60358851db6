"""Several puzzles: each is solved or refused independently, and each result is available at once."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from builders import random_puzzle

import dropjax
from dropjax import console
from dropjax.core.errors import InputError
from dropjax.core.options import Options
from dropjax.core.puzzle import Puzzle
from dropjax.io.converted import write_converted
from dropjax.runtime import device
from dropjax.search import many


def puzzle(seed: int, L: int = 3) -> Puzzle:
    return random_puzzle(np.random.default_rng(seed), L=L)[0]


def planted(seed: int) -> tuple[Puzzle, tuple[int, ...]]:
    return random_puzzle(np.random.default_rng(seed), L=5, d=12, h=20, rows=300)


@pytest.fixture
def solve(monkeypatch: pytest.MonkeyPatch, unchecked: None) -> Callable[[Puzzle, str], None]:
    """Replaces the solver: how each puzzle ends is set beforehand."""
    endings: dict[int, str] = {}

    def solve(puzzle: Puzzle, options: Options, interrupted: Callable[[], bool] = lambda: False):
        ending = endings[id(puzzle)]
        if ending == "slow":
            while not interrupted():
                time.sleep(0.01)
        if ending == "fault":
            raise RuntimeError("broken")
        return puzzle.last_number, ending

    monkeypatch.setattr(many, "solve", solve)
    monkeypatch.setattr(many, "workers", lambda: 2)
    return lambda puzzle, ending: endings.__setitem__(id(puzzle), ending)


def none() -> Puzzle:
    raise InputError("none: expected a puzzle, got none")


def test_what_ends_is_had_while_others_go_on(solve):
    # The slow one is the first of its shape; those before it are not held up.
    puzzles = [puzzle(1), puzzle(2), puzzle(3), puzzle(4, L=4)]
    for one, ending in zip(puzzles, ("quick", "fault", "quick", "slow"), strict=True):
        solve(one, ending)
    stop = threading.Event()
    calls = [lambda one=one: one for one in puzzles]
    found = many.as_solved([*calls[:2], none, *calls[2:]], Options(), stop.is_set)
    first = dict(next(found) for _ in range(4))
    assert first[0] == (puzzles[0].last_number, "quick") and first[3] == (puzzles[2].last_number, "quick")
    assert isinstance(first[1], RuntimeError) and isinstance(first[2], InputError)
    threading.Timer(0.5, stop.set).start()
    assert list(found) == [(4, (puzzles[3].last_number, "slow"))]


def test_nothing_is_begun_after_an_interruption(solve):
    puzzles = [puzzle(seed) for seed in range(8)]
    for one in puzzles:
        solve(one, "slow")
    stop = threading.Event()
    loaded = []

    def load(k: int) -> Puzzle:
        loaded.append(k)
        return puzzles[k]

    found = many.as_solved([lambda k=k: load(k) for k in range(8)], Options(), stop.is_set)
    threading.Timer(0.5, stop.set).start()
    assert [number for number, _ in found] == [0]  # those behind the first of a shape wait for it
    assert loaded == [0]


def test_what_waits_for_a_worker_is_not_begun_either(solve):
    puzzles = [puzzle(seed) for seed in range(4)]
    for one, ending in zip(puzzles, ("quick", "slow", "slow", "slow"), strict=True):
        solve(one, ending)
    stop = threading.Event()
    found = many.as_solved([lambda one=one: one for one in puzzles], Options(), stop.is_set)
    assert next(found)[0] == 0
    threading.Timer(0.5, stop.set).start()
    assert sorted(number for number, _ in found) == [1, 2]


def test_whoever_leaves_stops_what_is_under_way(solve):
    puzzles = [puzzle(1), puzzle(2)]
    solve(puzzles[0], "quick")
    solve(puzzles[1], "slow")
    found = many.solve_many(puzzles)
    next(found)
    assert isinstance(found, Generator)
    found.close()  # would wait for ever


def test_solve_many_keeps_the_order_and_raises_where_it_was(solve):
    puzzles = [puzzle(seed) for seed in range(5)]
    for one, ending in zip(puzzles, ("quick", "quick", "quick", "fault", "quick"), strict=True):
        solve(one, ending)
    found = many.solve_many(puzzles)
    assert [next(found) for _ in range(3)] == [(one.last_number, "quick") for one in puzzles[:3]]
    with pytest.raises(RuntimeError, match="broken"):
        next(found)


@pytest.mark.slow
def test_sigint_ends_several_soon(tmp_path: Path):
    easy, _ = random_puzzle(np.random.default_rng(0), L=5, d=8, h=12, rows=80)
    hard, _ = random_puzzle(np.random.default_rng(1), L=24, d=32, h=48, coupling=0, rows=4000)
    paths = [tmp_path / f"{name}.safetensors" for name in ("easy", "hard", "behind")]
    for path, one in zip(paths, (easy, hard, hard), strict=True):
        write_converted(one, path)
    command = [sys.executable, "-m", "dropjax.solve", "--no-cache", *map(str, paths), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith(f"{paths[0]}: exact")
    assert (tmp_path / "out" / "easy" / "permutation.txt").exists()
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (console.NOT_SOLVED, "")
    assert f"{paths[1]}: not_solved" in out and (tmp_path / "out" / "hard" / "permutation.txt").exists()
    assert out.splitlines()[-1] == "1 not begun (interrupted)" and not (tmp_path / "out" / "behind").exists()


class Held(Executor):
    """An executor that holds its tasks until it is told to go on, and remembers them."""

    def __init__(self) -> None:
        self.held: list[tuple[Future, Callable, tuple]] = []

    def submit(self, fn, /, *args, **kwargs):
        self.held.append((Future(), fn, args))
        return self.held[-1][0]

    def run(self, k: int) -> None:
        future, fn, args = self.held[k]
        future.set_running_or_notify_cancel()
        try:
            future.set_result(fn(*args))
        except Exception as error:
            future.set_exception(error)


def test_an_executor_is_handed_some_at_a_time_and_in_the_order_given(solve, monkeypatch):
    monkeypatch.setattr(many, "HANDED_OVER", 2)
    puzzles = [puzzle(seed) for seed in range(4)]
    for one in puzzles:
        solve(one, "quick")
    executor = Held()
    found: list = []
    thread = threading.Thread(target=lambda: found.extend(many.solve_many(puzzles, executor=executor)))
    thread.start()
    for first, second in ((1, 0), (3, 2)):  # the second is done before the first
        while len(executor.held) < first + 1:
            time.sleep(0.01)
        assert len(executor.held) == first + 1
        executor.run(first)
        while first == 1 and len(executor.held) < 3:
            time.sleep(0.01)
        executor.run(second)
    thread.join()
    assert found == [(one.last_number, "quick") for one in puzzles]


def test_what_an_executor_loses_is_raised_and_the_rest_is_called_off(solve):
    executor = Held()
    found = many.solve_many([puzzle(seed) for seed in range(3)], executor=executor)
    threading.Timer(0.2, lambda: executor.held[0][0].set_exception(BrokenExecutor("a worker died"))).start()
    with pytest.raises(BrokenExecutor, match="a worker died"):
        next(found)
    assert [future.cancelled() for future, _, _ in executor.held] == [False, True, True]


def test_an_interruption_calls_off_what_an_executor_has_not_begun(solve):
    puzzles = [puzzle(seed) for seed in range(3)]
    solve(puzzles[0], "quick")
    executor, stop = Held(), threading.Event()
    found = many.as_solved([lambda one=one: one for one in puzzles], Options(), stop.is_set, executor)
    threading.Timer(0.2, lambda: executor.run(0)).start()
    assert next(found) == (0, (puzzles[0].last_number, "quick"))
    stop.set()
    assert list(found) == []
    assert [future.cancelled() for future, _, _ in executor.held] == [False, True, True]


@pytest.mark.slow
@pytest.mark.parametrize(
    "pool", [dropjax.process_pool, lambda: ProcessPoolExecutor(2, multiprocessing.get_context("spawn"))]
)
def test_a_pool_of_processes_solves_as_this_one_does(pool: Callable[[], Executor]):
    puzzles = [planted(seed) for seed in (20, 21, 22)]
    with pool() as executor:
        found = list(dropjax.solve_many((puzzle for puzzle, _ in puzzles), executor=executor))
    assert [solution.permutation for solution in found] == [permutation for _, permutation in puzzles]
    assert all(solution.outcome == "exact" for solution in found)


def surroundings() -> tuple[int, int, int, str, str]:
    """Cores, threads and devices of this process, its platform, and its folder of compiled programs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    folder = jax.config.values["jax_compilation_cache_dir"]
    return cores, device.workers(), len(jax.devices()), jax.default_backend(), folder


def test_a_process_of_the_pool_has_one_core_and_keeps_programs_where_this_one_does(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    with dropjax.process_pool(1) as pool:
        assert pool.submit(surroundings).result() == (1, 1, 1, "cpu", str(tmp_path))


@pytest.mark.parametrize("count", [0, 1 + (os.cpu_count() or 1)])
def test_a_pool_has_as_many_processes_as_there_are_cores_at_most(count: int):
    with pytest.raises(ValueError, match=f"processes: expected 1 to [0-9]+, got {count}"):
        dropjax.process_pool(count)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Dask tells of the worker that dies in warnings
def test_of_a_cluster_a_worker_that_dies_loses_no_puzzle_and_counts_none_twice():
    from distributed import Client, LocalCluster

    puzzles = [planted(seed) for seed in range(12)]
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        solutions = dropjax.solve_many((puzzle for puzzle, _ in puzzles), executor=client.get_executor())
        first = next(solutions)
        one, *_ = client.run(os.getpid).values()  # pyright: ignore[reportAttributeAccessIssue]  # this client is synchronous
        os.kill(one, signal.SIGKILL)
        found = [first, *solutions]
    assert [solution.permutation for solution in found] == [permutation for _, permutation in puzzles]
