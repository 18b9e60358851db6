"""One puzzle from everywhere: every seed order both ways, random orders, and every signal that pairs nine in ten of it.

robustness.py [PUZZLE] [--random N] [--time-limit S] [--json FILE]. The signals are judged by the first answer that is found.
"""

import time
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from measuring import add_executor, done, executor, table, write_report

import dropjax
from dropjax import console
from dropjax.core.puzzle import Puzzle
from dropjax.io.loading import example, load
from dropjax.ordering import seeding
from dropjax.pairing.portfolio import pair
from dropjax.pairing.signals import CHOICES
from dropjax.runtime import device

ENOUGH = 0.9
"""Share of the pairs that a signal has to find to be tried."""
COLUMNS = {"start": "<34", "outcome": "<16", "seconds": ">8.1f"}


def starts(random: int) -> Iterator[dict[str, Any]]:
    """Options of each solve that begins with an order of its own."""
    for name, direction in product(seeding.PORTFOLIO, seeding.DIRECTIONS):
        yield {"seed_order": name, "direction": direction}
    for seed in range(random):
        yield {"seed_order": "random", "random_seed": seed}


def signals(puzzle: Puzzle) -> Iterator[dict[str, Any]]:
    """Options of each solve that begins with a pairing of its own."""
    truth = puzzle.arrangement(dropjax.solve(puzzle).permutation)
    partner = truth[np.argsort(truth[:, 0]), 1]
    for signal in CHOICES:
        share = float(np.mean(pair(puzzle.w_in, puzzle.w_out, signal=signal).partner == partner))
        print(f"  {signal} pairs {share:.0%}", flush=True)
        if share >= ENOUGH:
            yield {"pairing": signal}


def row(puzzle: Puzzle, options: dict[str, Any], limit: float) -> dict[str, Any]:
    """One solve, as the report has it."""
    start = time.perf_counter()
    solution = dropjax.solve(puzzle, time_limit=limit, **options)
    return {
        **options,
        "start": " ".join(map(str, options.values())),
        "outcome": solution.outcome.value,
        "mse": solution.mse,
        "stages": [stage.name for stage in solution.stages],
        "seconds": time.perf_counter() - start,
    }


def main() -> int:
    """Exit status 0 if every start is solved, 1 if not, 2 for bad input."""
    parser = console.Parser(description=__doc__)
    parser.add_argument("puzzle", nargs="?", type=Path, help="default: the example")
    parser.add_argument("--random", type=int, default=20, metavar="N", help="random orders (%(default)s)")
    parser.add_argument("--time-limit", type=float, default=300, metavar="SECONDS", help="of each solve (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    add_executor(parser)
    args = parser.parse_args()
    device.configure()
    puzzle = example() if args.puzzle is None else load(args.puzzle)
    found = []
    with executor(parser, args.executor) as workers:
        for group in (starts(args.random), signals(puzzle)):
            tasks = [partial(row, puzzle, options, args.time_limit) for options in group]
            for record in done(tasks, workers):
                found.append(record)
                print(table(pd.DataFrame([record]), COLUMNS, head=len(found) == 1), flush=True)
    solved = sum(record["outcome"] != "not_solved" for record in found)
    print(f"{solved} of {len(found)} solved")
    write_report(args.json, found)
    return 0 if solved == len(found) else 1


if __name__ == "__main__":
    console.run_command(main)
