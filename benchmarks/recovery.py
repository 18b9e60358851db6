"""Which freshly trained stacks come back: recovery.py FOLDER [--short] [--table PUZZLE] [--time-limit S] [--json FILE].

Trains a suite of recipes, drops each stack, and solves it with `paper` and with `auto`. Stacks and results are kept in
FOLDER, each under its own name, so that an interrupted run goes on where it stopped. Ties count as recovered. With
`--executor` the stacks are spread over its workers, which have to see FOLDER.
"""

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int
from measuring import add_executor, done, executor, table, write_report

import dropjax
from dropjax import console
from dropjax.core.puzzle import Puzzle
from dropjax.io.arguments import read_permutation
from dropjax.io.converted import write_converted
from dropjax.io.loading import load
from dropjax.make import training
from dropjax.make.training import Recipe
from dropjax.runtime import device
from dropjax.runtime.writing import atomic_write, ensure_writable

METHODS = ("paper", "auto")

COLUMNS = {
    "recipe": "<16",
    "seed": ">5",
    "method": "<7",
    "outcome": "<18",
    "blocks": ">7",
    "pairs_right": ">12",
    "places_right": ">13",
    "mse_of_variance": ">16.2g",
    "seconds": ">8.1f",
}


class Entry(NamedTuple):
    """One recipe of the suite, on the given table or, where it differs in shape, a generated one."""

    name: str
    recipe: Recipe
    width: int | None = None
    """Features of a generated table; None: the given table."""
    outputs: int = 1
    rows: int | None = None
    """Rows that are handed out with the pieces; None: all that it was trained on."""
    decimals: int | None = None
    """That pred is rounded to before it is handed out."""


SUITE = (
    Entry("appendix A", Recipe()),
    Entry("adam 1e-3", Recipe(rate=1e-3, epochs=60)),
    Entry("adamw 0.1", Recipe(optimizer="adamw", rate=1e-3, decay=0.1, epochs=60)),
    Entry("adamw 0.3", Recipe(optimizer="adamw", rate=1e-3, decay=0.3, epochs=60)),
    Entry("adamw 3", Recipe(optimizer="adamw", rate=1e-3, decay=3.0, epochs=60)),
    Entry("sgd", Recipe(optimizer="sgd", rate=1e-3, epochs=60)),
    Entry("gelu", Recipe(activation="gelu", rate=1e-3, epochs=60)),
    Entry("silu", Recipe(activation="silu", rate=1e-3, epochs=60)),
    Entry("tanh", Recipe(activation="tanh", rate=1e-3, epochs=60)),
    Entry("three outputs", Recipe(rate=1e-3, epochs=60), width=48, outputs=3),
    Entry("2,000 rows", Recipe(rate=1e-3, epochs=60), rows=2000),
    Entry("4 decimals", Recipe(rate=1e-3, epochs=60), decimals=4),
    Entry("L = 6", Recipe(depth=6, rate=1e-3, epochs=60)),
    Entry("L = 12", Recipe(depth=12, rate=1e-3, epochs=60)),
    Entry("L = 24", Recipe(depth=24, rate=1e-3, epochs=60)),
    Entry("L = 64", Recipe(depth=64, optimizer="adamw", rate=1e-3, decay=0.1, epochs=60)),
    Entry("L = 96", Recipe(depth=96, optimizer="adamw", rate=1e-3, decay=0.1, epochs=60)),
    Entry("d = 32", Recipe(hidden=64, rate=1e-3, epochs=60), width=32),
    Entry("d = 64", Recipe(hidden=128, rate=1e-3, epochs=60), width=64),
    Entry("h = 192", Recipe(hidden=192, rate=1e-3, epochs=60)),
    Entry("5 epochs", Recipe(rate=1e-3, epochs=5)),
    Entry("h < d", Recipe(hidden=16, optimizer="adamw", rate=1e-3, epochs=40), width=64),
    Entry("sgd, L = 24", Recipe(depth=24, optimizer="sgd", rate=1e-3, epochs=60)),
    Entry("wide", Recipe(depth=64, hidden=128, rate=1e-3, epochs=30), width=64, rows=4000),
    Entry("L = 96, plain", Recipe(depth=96, rate=5e-4, epochs=60)),
    Entry("L = 128", Recipe(depth=128, optimizer="adamw", rate=5e-4, decay=0.3, epochs=25)),
)
SHORT = ("adam 1e-3", "adamw 0.1", "adamw 0.3", "adamw 3", "sgd", "gelu", "silu", "three outputs", "L = 12", "L = 24")


def trained(entry: Entry, seed: int, given: Puzzle | None, folder: Path) -> tuple[Puzzle, tuple[int, ...]]:
    """The dropped stack and its answer, from the folder where it is there."""
    path = folder / f"{entry.name}-{seed}.safetensors"
    answer = path.with_suffix(".txt")
    if not (path.exists() and answer.exists()):
        if given is None or entry.width is not None:
            x, true = training.generate_table(seed, 10_000, entry.width or 48, entry.outputs)
        else:
            x, true = given.x, given.pred
        (stack,) = training.train(entry.recipe, x, true, [seed])
        puzzle, permutation = training.drop(stack, x, true, seed)
        puzzle = handed_out(puzzle, entry)
        write_converted(puzzle, path)
        atomic_write(answer, lambda path: path.write_text(",".join(map(str, permutation))))
    return load(path), read_permutation(answer)


def handed_out(puzzle: Puzzle, entry: Entry) -> Puzzle:
    """The puzzle with as much of its table as the entry says."""
    x, pred, true = (None if a is None else a[: entry.rows] for a in (puzzle.x, puzzle.pred, puzzle.true))
    if entry.decimals is not None:
        pred = np.round(np.asarray(pred, np.float64), entry.decimals).astype(np.float32)
    return replace(puzzle, x=x, pred=pred, true=true)


def right(found: Int[np.ndarray, "L 2"], truth: Int[np.ndarray, "L 2"]) -> tuple[int, int]:
    """Right pairs, and right places: pairs that stand where they belong."""
    pairs = {tuple(halves) for halves in truth.tolist()}
    return sum(tuple(halves) in pairs for halves in found.tolist()), int(np.sum((found == truth).all(axis=1)))


def row(entry: Entry, seed: int, method: str, puzzle: Puzzle, answer: Sequence[int], limit: float) -> dict[str, Any]:
    """One solve, as the report has it."""
    start = time.perf_counter()
    named: Any = {"method": method}  # one of METHODS
    solution = dropjax.solve(puzzle, **named, activation=entry.recipe.activation, time_limit=limit)
    seconds = time.perf_counter() - start
    pairs, places = right(puzzle.arrangement(solution.permutation), puzzle.arrangement(answer))
    return {
        "recipe": entry.name,
        "seed": seed,
        "method": method,
        "outcome": solution.outcome.value,
        "exact": solution.solved,
        "pairs_right": pairs,
        "places_right": places,
        "blocks": puzzle.depth,
        "mse_of_variance": solution.mse / float(np.var(puzzle.pred)),
        "stop_reason": solution.stop_reason,
        "seconds": seconds,
    }


def task(entry: Entry, seed: int, method: str, given: Puzzle | None, folder: Path, limit: float) -> dict[str, Any]:
    """The record of one recipe, seed and method, wherever it is run."""
    puzzle, answer = trained(entry, seed, given, folder)
    return row(entry, seed, method, puzzle, answer, limit)


def rows(
    suite: Sequence[Entry],
    seeds: int,
    given: Puzzle | None,
    folder: Path,
    limit: float,
    executor: Executor | None = None,
) -> Iterator[dict[str, Any]]:
    """A record for every recipe, seed and method; those in the folder come first and are not run again."""
    missing = []
    for entry, seed, method in product(suite, range(seeds), METHODS):
        path = kept(folder, entry.name, seed, method)
        if path.exists():
            yield json.loads(path.read_text())
        else:
            missing.append(partial(task, entry, seed, method, given, folder, limit))
    for record in done(missing, executor):
        path = kept(folder, record["recipe"], record["seed"], record["method"])
        atomic_write(path, lambda path, record=record: path.write_text(json.dumps(record)))
        yield record


def kept(folder: Path, name: str, seed: int, method: str) -> Path:
    """Where a record is kept."""
    return folder / f"{name}-{seed}-{method}.json"


def main() -> int:
    """Exit status 0, or 2 for bad input."""
    parser = console.Parser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--short", action="store_true", help="ten stacks, one seed each")
    parser.add_argument(
        "--table", type=Path, metavar="PUZZLE", help="a puzzle whose x and pred are learned (default: generated)"
    )
    parser.add_argument("--only", metavar="RECIPE", choices=[entry.name for entry in SUITE])
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="of each recipe: 0 to N − 1 (%(default)s)")
    parser.add_argument("--time-limit", type=float, default=870, metavar="SECONDS", help="of each solve (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    add_executor(parser)
    args = parser.parse_args()
    ensure_writable(args.folder, folder=True)
    args.folder.mkdir(parents=True, exist_ok=True)
    device.configure()
    suite = [
        entry
        for entry in SUITE
        if entry.name == args.only or (args.only is None and (not args.short or entry.name in SHORT))
    ]
    given = None if args.table is None else load(args.table)
    found = []
    with executor(parser, args.executor) as workers:
        for record in rows(suite, 1 if args.short else args.seeds, given, args.folder, args.time_limit, workers):
            found.append(record)
            print(table(pd.DataFrame([record]), COLUMNS, head=len(found) == 1), flush=True)
    for method, records in pd.DataFrame(found).groupby("method", sort=False) if found else ():
        print(f"{method}: {records['exact'].sum()} of {len(records)} recovered")
    write_report(args.json, found)
    return 0


if __name__ == "__main__":
    console.run_command(main)
