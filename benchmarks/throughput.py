"""Puzzles a second: throughput.py FOLDER [--count N] [--json FILE].

Trains N stacks and drops them into FOLDER, where those that are there already stay. A few are solved in a process each, and
all of them in one process, one after another and with `solve_many`, and with `solve_many` in a process for each core. A
process's time is all that its user waits for, with the programs that the first of them compiled. Otherwise processes are
started, files read and programs compiled before the clock starts.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from measuring import machine, table, write_report

import dropjax
from dropjax import console
from dropjax.io.converted import write_converted
from dropjax.io.loading import load
from dropjax.make import training
from dropjax.runtime import device
from dropjax.runtime.writing import ensure_writable

RECIPE = training.Recipe(depth=24, optimizer="adamw", rate=1e-3, decay=0.1, epochs=20, batch=64)
WIDTH = 48
ROWS = 5_000
COLUMNS = {"way": "<21", "puzzles": ">7", "solved": ">6", "seconds": ">7.1f", "per_second": ">10.2f"}
AT_ONCE = 10
"""Stacks trained together."""


def trained(folder: Path, count: int) -> list[Path]:
    """The puzzles' files; those that are missing are made."""
    x, true = training.generate_table(0, ROWS, WIDTH, noise=0.3)
    paths = {seed: folder / f"{seed}.safetensors" for seed in range(count)}
    missing = [seed for seed, path in paths.items() if not path.exists()]
    for first in range(0, len(missing), AT_ONCE):
        seeds = missing[first : first + AT_ONCE]
        for seed, stack in zip(seeds, training.train(RECIPE, x, true, seeds), strict=True):
            puzzle, _ = training.drop(stack, x, true, seed)
            write_converted(puzzle, paths[seed])
        print(f"trained {seeds[-1] + 1} of {count}", file=sys.stderr)
    return list(paths.values())


def row(way: str, solved: list[bool], seconds: float) -> dict[str, Any]:
    """One line of the report."""
    return {
        "way": way,
        "puzzles": len(solved),
        "solved": sum(solved),
        "seconds": seconds,
        "per_second": len(solved) / seconds,
    }


def in_processes(paths: list[Path]) -> dict[str, Any]:
    """One process after another, the first of which, not counted, leaves its compiled programs."""
    seconds, solved = [], []
    with tempfile.TemporaryDirectory() as cache:
        for path in paths:
            start = time.perf_counter()
            command = [sys.executable, "-m", "dropjax.solve", str(path), "--quiet"]
            environment = {**os.environ, "DROPJAX_CACHE_DIR": cache, "PYTHONDONTWRITEBYTECODE": ""}
            ran = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
            seconds.append(time.perf_counter() - start)
            solved.append(ran.returncode == 0)
    return row("a process for each", solved[1:], sum(seconds[1:]))


def in_one(way: str, solutions: Callable[[], Iterable[dropjax.Solution]]) -> dict[str, Any]:
    """All that `solutions` returns."""
    start = time.perf_counter()
    solved = [solution.solved for solution in solutions()]
    return row(way, solved, time.perf_counter() - start)


def main() -> int:
    """Exit status 0, or 2 for bad input."""
    parser = console.Parser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--processes", type=int, default=5, help="puzzles that get a process of their own (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if not 1 <= args.processes < args.count:
        parser.error(f"--processes: expected 1 to {args.count - 1}, got {args.processes}")
    ensure_writable(args.folder, folder=True)
    if args.json is not None:
        ensure_writable(args.json)
    args.folder.mkdir(parents=True, exist_ok=True)
    paths = trained(args.folder, args.count)
    puzzles = [load(path) for path in paths]
    device.configure(cache=False)
    print(
        f"{machine()['processor']}, {device.describe()}; {args.count} trained stacks of {RECIPE.depth} blocks, {ROWS:,} rows"
    )
    rows = []
    with dropjax.process_pool() as pool:
        ways: dict[str, Callable[[], Iterable[dropjax.Solution]]] = {
            "one after another": lambda: map(dropjax.solve, puzzles),
            "solve_many": lambda: dropjax.solve_many(puzzles),
            "solve_many, processes": lambda: dropjax.solve_many(puzzles, executor=pool),
        }
        for solutions in ways.values():
            list(solutions())  # so that all programs are compiled, those of the hardest puzzle as well
        measures: list[Callable[[], dict[str, Any]]] = [lambda: in_processes(paths[: args.processes + 1])]
        measures += [partial(in_one, way, solutions) for way, solutions in ways.items()]
        for measure in measures:
            rows.append(measure())
            print(table(pd.DataFrame(rows[-1:]), COLUMNS, head=len(rows) == 1), flush=True)
    write_report(args.json, rows)
    return 0


if __name__ == "__main__":
    console.run_command(main)
