"""Train a residual stack (or draw one), drop it, and write the puzzle and, apart, its answer.

Without options: 48 blocks as in the paper's Appendix A, on a generated table. `--example` makes the puzzle that ships with
the package.
"""

import argparse
import hashlib
import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from dropjax import console
from dropjax.core.errors import InputError
from dropjax.core.protocols import Status
from dropjax.core.puzzle import Puzzle
from dropjax.core.solution import plain
from dropjax.core.stack import ACTIVATIONS
from dropjax.io.converted import write_converted
from dropjax.io.folders import write_folder
from dropjax.io.loading import load
from dropjax.make import planted, training
from dropjax.reporting import analysis
from dropjax.runtime import device
from dropjax.runtime.writing import Results, ensure_writable, is_standard_output

SIGNAL_ROWS = 2000
"""The number of rows on which delta-norm is measured while a training is followed."""


def seeds(text: str) -> list[int]:
    """The different seeds in a text, which commas separate."""
    numbers = [int(number) if number.isdecimal() else -1 for number in text.split(",")]
    if len(set(numbers)) < len(numbers) or min(numbers) < 0 or max(numbers) >= 1 << 31:
        raise argparse.ArgumentTypeError(f"expected different numbers from 0 below 2**31, separated by commas, got {text!r}")
    return numbers


def parser() -> console.Parser:
    """The command line's arguments; each one of the recipe carries the name of its field in `training.Recipe`."""
    recipe = training.Recipe()
    p = console.Parser(prog="python -m dropjax.train", description=__doc__)
    p.add_argument("out", type=Path, help="a .safetensors file to write, or else a puzzle folder")
    p.add_argument("--answer", type=Path, metavar="FILE", help="default: OUT-ANSWER.txt, OUT without its .safetensors")
    p.add_argument("--example", action="store_true", help="the recipe of the shipped example; other options change it")
    p.add_argument("--planted", action="store_true", help="a stack drawn instead of trained, as hard as the real puzzle")
    p.add_argument("--curves", type=Path, metavar="FILE", help="JSON: the signals that pair and order the stack, by epoch")
    p.add_argument("--quiet", action="store_true", help="print nothing")
    stack = p.add_argument_group("stack")
    stack.add_argument("--depth", type=int, default=recipe.depth, metavar="L", help="blocks (%(default)s)")
    stack.add_argument("--hidden", type=int, default=recipe.hidden, metavar="H", help="units of a block (%(default)s)")
    stack.add_argument("--activation", choices=tuple(ACTIVATIONS), default=recipe.activation)
    how = p.add_argument_group("training")
    how.add_argument("--optimizer", choices=training.OPTIMIZERS, default=recipe.optimizer)
    how.add_argument("--rate", type=float, default=recipe.rate, help="learning rate (%(default)s)")
    how.add_argument("--decay", type=float, default=recipe.decay, help="weight decay of adamw (%(default)s)")
    how.add_argument("--momentum", type=float, default=recipe.momentum, help="of sgd (%(default)s)")
    how.add_argument("--epochs", type=int, default=recipe.epochs, help="(%(default)s)")
    how.add_argument("--batch", type=int, default=recipe.batch, metavar="ROWS", help="rows per step (%(default)s)")
    how.add_argument(
        "--seed", type=seeds, default=[0], help="one, or several such as 0,1,2 trained at once, each to OUT-SEED (0)"
    )
    table = p.add_argument_group("table")
    table.add_argument(
        "--table", type=Path, metavar="PUZZLE", help="use x and true of this folder or file, instead of a generated table:"
    )
    table.add_argument("--target", choices=("true", "pred"), default="true", help="column of --table to learn (%(default)s)")
    table.add_argument("--rows", type=int, default=10_000, help="(%(default)s)")
    table.add_argument("--width", type=int, default=48, metavar="D", help="features (%(default)s)")
    table.add_argument("--outputs", type=int, default=1, metavar="O", help="(%(default)s)")
    table.add_argument("--noise", type=float, default=0.0, help="standard deviation; the target's is 1 (%(default)s)")
    table.add_argument("--table-seed", type=int, default=0, metavar="SEED", help="(%(default)s)")
    table.add_argument("--keep-rows", type=int, metavar="ROWS", help="rows of the puzzle, from the first (all)")
    return p


def targets(out: Path, answer: Path | None, seeds: Sequence[int]) -> list[tuple[Path, Path]]:
    """The paths of each seed's puzzle and answer. Raises `InputError` if they cannot be written."""
    if not out.name:
        raise InputError(f"{out}: expected a file or a folder to make, got no name")
    end = out.suffix if out.suffix == ".safetensors" else ""
    pairs = []
    for seed in seeds:
        mark = f"-{seed}" if len(seeds) > 1 else ""
        name = out.name.removesuffix(end) + mark
        puzzle, text = out.with_name(name + end), out.with_name(f"{name}-ANSWER.txt")
        if answer is not None:
            text = answer if is_standard_output(answer) else answer.with_name(f"{answer.stem}{mark}{answer.suffix}")
        ensure_writable(puzzle, folder=not end)
        ensure_writable(text)
        if puzzle.is_dir() and any(puzzle.iterdir()):
            raise InputError(f"{puzzle}: expected a new or an empty folder to write, got one with something in it")
        pairs.append((puzzle, text))
    return pairs


def watched(epochs: Iterable[training.Epoch], total: int, quiet: bool) -> Iterator[training.Epoch]:
    """Passes the epochs on and shows the loss: a bar on a terminal; in a log some twenty lines, or one every ten seconds."""

    def losses(epoch: training.Epoch) -> str:
        return "loss " + "  ".join(f"{value:.5f}" for value in np.asarray(epoch.loss))

    start, written_over = time.perf_counter(), console.is_terminal()
    with console.progress(quiet) as progress:
        progress.begins("training")
        for epoch in epochs:
            progress.goes_on(Status(done=epoch.number, of=total, words=losses(epoch)))
            if not written_over and (epoch.number in (1, total) or epoch.number % max(total // 20, 1) == 0):
                seconds = time.perf_counter() - start
                progress.says(f"epoch {epoch.number}/{total}  {losses(epoch)}  {seconds:.1f} s")
            yield epoch


def followed(
    epochs: Iterable[training.Epoch], x: ArrayLike, seeds: Sequence[int], path: Path, results: Results
) -> Iterator[training.Epoch]:
    """Passes the epochs on; after each, the file holds `analysis.signals` of every stack so far, on the first rows."""
    few, rows = jnp.asarray(x)[:SIGNAL_ROWS], []
    for epoch in epochs:
        for i, seed in enumerate(seeds):
            stack = epoch.stack(i)
            record = {"seed": seed, "epoch": epoch.number, "loss": float(epoch.loss[i]), **analysis.signals(stack, few)}
            rows.append(plain(record))
        text = json.dumps({"rows": rows}, indent=1) + "\n"
        results.write(path, text)
        yield epoch


def write(puzzle: Puzzle, answer: Sequence[int], out: Path, answer_path: Path, results: Results) -> str:
    """Writes both, and roles.json for --roles if shapes cannot tell; returns the answer's SHA-256."""
    if out.suffix == ".safetensors":
        results.attempt(out, lambda: write_converted(puzzle, out))
    else:
        results.attempt(out, lambda: write_folder(puzzle, out))
        if puzzle.roles and out not in results.lost:
            results.write(out / "roles.json", json.dumps(puzzle.roles))
    text = ",".join(map(str, answer))
    results.write(answer_path, text)
    return hashlib.sha256(text.encode()).hexdigest()


def learned(puzzle: Puzzle) -> str:
    """Words about how well the stack learned its table; empty if it was drawn."""
    if puzzle.true is None:
        return ""
    error, spread = np.mean((puzzle.pred - puzzle.true) ** 2), np.mean(np.var(puzzle.true, axis=0))
    return f"MSE {error:.3g} where true varies by {spread:.3g}"


def difficulty(of: planted.Difficulty) -> str:
    """Words about the measured difficulty of a planted stack."""
    return (
        f"right pairs' ratios {of.right[0]:.2f} to {of.right[1]:.2f}, wrong ones up to {of.wrong:.2f}; "
        f"best seed order {of.seed_order} with {of.inverted:.1%} of the pairs inverted; "
        f"least swap of neighbours {of.margin:,.0f} times float32 noise"
    )


def main(argv: list[str] | None = None) -> int:
    """Trains, drops and writes; the exit status is 0, or one of the console's others."""
    p, results = parser(), Results()
    args = p.parse_args(argv)
    if args.example:
        p.set_defaults(**training.EXAMPLE_RECIPE)
        args = p.parse_args(argv)
    recipe = training.Recipe(**{f.name: getattr(args, f.name) for f in fields(training.Recipe)})
    if args.keep_rows is not None and args.keep_rows < 1:
        raise InputError(f"--keep-rows: expected at least 1, got {args.keep_rows}")
    if args.curves is not None:
        if args.planted:
            raise InputError("--curves: expected a stack that is trained, got --planted")
        ensure_writable(args.curves)
    paths = targets(args.out, args.answer, args.seed)
    device.configure()
    if args.table is None:
        factors = args.width if args.planted else training.FACTORS
        x, true = training.generate_table(args.table_seed, args.rows, args.width, args.outputs, args.noise, factors)
    else:
        given = load(args.table)
        if getattr(given, args.target) is None:
            raise InputError(f"{args.table}: expected a table with true values to train on, got none")
        x, true = given.x, getattr(given, args.target)
    if args.planted:
        shape = (args.depth, x, args.hidden, true.shape[1], args.activation)
        stacks = [planted.plant(np.random.default_rng(seed), *shape) for seed in args.seed]
    else:
        epochs = watched(training.epochs(recipe, x, true, args.seed), recipe.epochs, args.quiet)
        if args.curves is not None:
            epochs = followed(epochs, x, args.seed, args.curves, results)
        (last,) = deque(epochs, maxlen=1)
        stacks = [last.stack(i) for i in range(len(args.seed))]
    x, true = x[: args.keep_rows], None if args.planted else true[: args.keep_rows]
    for stack, seed, (out, answer_path) in zip(stacks, args.seed, paths, strict=True):
        puzzle, answer = training.drop(stack, x, true, seed)
        digest = write(puzzle, answer, out, answer_path, results)
        if not args.quiet:
            print(
                f"{out}: {puzzle.depth} blocks, {len(x):,} rows; {learned(puzzle) or difficulty(planted.measure(stack, x))}"
            )
            print(f"{answer_path}: the answer, SHA-256 {digest}")
    return console.with_results(console.SOLVED, results)


if __name__ == "__main__":
    console.run_command(main)
