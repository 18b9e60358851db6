"""`python -m dropjax.pair FILE`: which halves of a checkpoint's MLPs, or of its other paths, belong together, from the
weights alone."""

import argparse
import importlib.util
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dropjax import console
from dropjax.core.errors import InputError
from dropjax.core.solution import _versions, plain
from dropjax.io import checkpoints, halves
from dropjax.pair import results
from dropjax.pair.found import RandomHalves
from dropjax.pair.paths import Say, pair_paths
from dropjax.pairing import chains, heads
from dropjax.pairing.certainty import Judged
from dropjax.pairing.evidence import Halves
from dropjax.pairing.paths import PATHS
from dropjax.pairing.portfolio import SHUFFLES, portfolio
from dropjax.pairing.signals import CHOICES
from dropjax.runtime import device
from dropjax.runtime.writing import atomic_write, ensure_writable

VERDICTS = {"paired": console.SOLVED, "doubtful": console.NOT_SOLVED, "no signal": console.NOT_SOLVED}
"""Exit status of each verdict."""


def parser() -> console.Parser:
    """The command line's arguments."""
    p = console.Parser(prog="python -m dropjax.pair", description="Pair the halves of a checkpoint's MLPs by their weights.")
    p.add_argument("file", type=Path, help=".safetensors, .pth or .bin, or an .index.json")
    which = p.add_argument_group("which tensors are halves (default: by names, or else by shapes)")
    which.add_argument(
        "--in", dest="ins", metavar="GLOB", help="names of the input halves (in gated MLPs, the up projections)"
    )
    which.add_argument("--out", dest="outs", metavar="GLOB", help="names of the output halves")
    which.add_argument("--gate", metavar="GLOB", help="names of the gate projections")
    which.add_argument(
        "--transposed",
        action=argparse.BooleanOptionalAction,
        help="weights are stored [in, out] (default: from biases, names and norms)",
    )
    which.add_argument("--fold-norm", metavar="GLOB", help="normalisation gains to fold into the input halves")
    which.add_argument("--path", choices=(*PATHS, "all"), help="pair paths of this kind, or of every kind in the file")
    which.add_argument(
        "--heads", type=int, metavar="N", help="number of query heads (default: from a config.json beside FILE)"
    )
    how = p.add_argument_group("pairing")
    how.add_argument("--signal", choices=(*CHOICES, *heads.NAMES, *chains.NAMES), default="auto")
    how.add_argument(
        "--shuffles", type=int, default=SHUFFLES, help="number of copies with shuffled hidden units to compare with"
    )
    how.add_argument("--check", action="store_true", help="shuffle the halves, pair them, and compare with their names")
    how.add_argument("--baselines", action="store_true", help="also pair fresh random weights of the same shapes")
    how.add_argument("--random-seed", type=int, default=0)
    result = p.add_argument_group("results")
    result.add_argument("--out-dir", type=Path, metavar="DIR", help="pairing.json and, without --path, heatmap.png")
    result.add_argument("--json", type=Path, metavar="FILE", help="pairing.json alone")
    result.add_argument("--quiet", action="store_true", help="print only the pairs' names")
    return p


def main(argv: list[str] | None = None) -> int:
    """Pairs one checkpoint; the exit status is 0 for `paired` if every half could be read, 1 for anything else, and 2 for
    bad input."""
    start = time.perf_counter()
    args = _arguments(argv)
    checkpoint = checkpoints.open_checkpoint(args.file)
    with console.progress(args.quiet) as progress:
        progress.begins("pairing")
        return (_mlps if args.path is None else _paths)(
            args, checkpoint, lambda lines: progress.says("\n".join(lines)), start
        )


def _mlps(args: argparse.Namespace, checkpoint: checkpoints.Checkpoint, say: Say, start: float) -> int:
    """Pairs the halves of MLPs; the exit status is 0 if they are `paired` and every half could be read."""
    mlps = halves.find_halves(checkpoint, args.ins, args.outs, args.gate, args.transposed, args.fold_norm)
    say(results.chosen(args.file.name, mlps))
    if args.check:
        rng = np.random.default_rng(args.random_seed)
        shuffled = {name: side.reordered(rng.permutation(mlps.depth)) for name, side in mlps.sides.items()}
        mlps = replace(mlps, sides=shuffled)
    device.configure()
    found, records = _pairings(args, mlps, say)
    first = f"{mlps.first}/out"
    result = {
        **records[first],
        "pairings": {key: value for key, value in records.items() if key != first},
        "d": mlps.width,
        "h": mlps.hidden,
        "selection": results.selection(mlps),
        "baselines": {"chance": 1.0},
    }
    if "gate" in mlps.sides:
        both = result["consistent"] = results.consistent(found)
        say([f"three ways: of {mlps.depth} output halves, {both} have an up and a gate that are a pair as well"])
    if args.baselines:
        fresh = _judged(args, RandomHalves((mlps.depth, mlps.hidden, mlps.width), args.random_seed))
        right = int((fresh.partner == np.arange(mlps.depth)).sum())
        result["baselines"]["untrained"] = {"verdict": fresh.verdict, "signal": fresh.signal, "correct": right}
        say([f"untrained weights of the same shapes: {fresh.verdict}, {right} of {mlps.depth} right"])
    result |= {"seconds": time.perf_counter() - start, "device": device.describe(), "versions": _versions()}
    _write(args, result, found[first])
    say([f"time: {result['seconds']:.1f} s"])
    return VERDICTS[found[first].verdict] if mlps.account.whole else console.NOT_SOLVED


def _paths(args: argparse.Namespace, checkpoint: checkpoints.Checkpoint, say: Say, start: float) -> int:
    """Pairs the paths that `--path` names; the exit status is 0 if all are `paired` and nothing was left out."""
    say([f"{args.file.name}:"])
    device.configure()
    try:
        records, good = pair_paths(args, checkpoint, say)
    except InputError:
        raise
    except ValueError as error:  # a signal that a path does not have
        return parser().error(f"--signal: {error}")
    result = {"paths": records, "seconds": time.perf_counter() - start, "device": device.describe(), "versions": _versions()}
    _write(args, result, None)
    say([f"time: {result['seconds']:.1f} s"])
    return console.SOLVED if good else console.NOT_SOLVED


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    """The arguments, after all checks that need no checkpoint."""
    p = parser()
    args = p.parse_args(argv)
    if args.shuffles < 3:
        p.error(f"--shuffles: expected at least 3, got {args.shuffles}")
    if args.heads is not None and args.heads < 1:
        p.error(f"--heads: expected at least 1, got {args.heads}")
    for path, folder in ((args.out_dir, True), (args.json, False)):
        if path is not None:
            ensure_writable(path, folder=folder)
    if args.out_dir is not None and importlib.util.find_spec("matplotlib") is None:
        p.error("--out-dir: expected matplotlib to draw with, got none: pip install 'dropjax[report]'")
    return args


def _judged(args: argparse.Namespace, pair_of_sides: Halves) -> Judged:
    try:
        signals = None if args.signal == "auto" else (args.signal,)
        return portfolio(pair_of_sides, signals, shuffles=args.shuffles, seed=args.random_seed)
    except InputError:
        raise
    except ValueError as error:  # a signal that these halves do not allow
        return parser().error(f"--signal: {error}")


def _pairings(args: argparse.Namespace, mlps: halves.Mlps, say: Say) -> tuple[dict[str, Judged], dict[str, dict[str, Any]]]:
    """The pairing of each two kinds of halves and its JSON record; gated MLPs are paired three ways."""
    kinds = [(mlps.first, "out"), *([("gate", "out"), ("gate", "up")] if "gate" in mlps.sides else [])]
    found: dict[str, Judged] = {}
    records: dict[str, dict[str, Any]] = {}
    for ours, theirs in kinds:
        key = f"{ours}/{theirs}"
        sides = mlps.sides[ours], mlps.sides[theirs]
        names = results.Names(*([name + side.label for name in side.names] for side in sides))
        one = found[key] = _judged(args, mlps.halves(ours, theirs))
        truth = np.array(_truth(args.file, sides[0].names, sides[1].names)) if args.check else None
        records[key] = results.record(names, one, truth)
        if args.quiet:
            print("\n".join(f"{pair['in']} {pair['out']}" for pair in records[key]["pairs"]))
            continue
        title = [f"{key}:"] if len(kinds) > 1 else []
        say([*title, *results.table(names, one), *results.summary(one, mlps.account.limits)])
        if truth is not None:
            say([f"check: {records[key]['correct']} of {mlps.depth} right; {results.chance(mlps.depth)}"])
    return found, records


def _write(args: argparse.Namespace, result: Mapping[str, Any], found: Judged | None) -> None:
    text = json.dumps(plain(result), indent=1, allow_nan=False) + "\n"
    if args.json is not None:
        atomic_write(args.json, lambda path: path.write_text(text))
    if args.out_dir is not None:
        if found is not None:
            atomic_write(args.out_dir / "heatmap.png", lambda path: results.heat_map(path, args.file.name, found))
        atomic_write(args.out_dir / "pairing.json", lambda path: path.write_text(text))


def _truth(path: Path, ours: tuple[str, ...], theirs: tuple[str, ...]) -> list[int]:
    if ours == theirs:
        return list(range(len(ours)))
    partners = halves.true_partners(ours, theirs)
    if partners is None and set(ours) == set(theirs):
        partners = [theirs.index(name) for name in ours]
    if partners is None:
        raise InputError(f"{path}: --check: expected names that tell each pair, got {ours[0]} and {theirs[0]}")
    return partners


if __name__ == "__main__":
    console.run_command(main)
