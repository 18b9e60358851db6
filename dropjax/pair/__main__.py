"""`python -m dropjax.pair FILE`: which halves of a checkpoint's MLPs belong together, from the weights alone."""

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dropjax import console
from dropjax.core.solution import _versions, plain
from dropjax.io import checkpoints
from dropjax.pairing.certainty import Judged, doubtful
from dropjax.pairing.evidence import Halves
from dropjax.pairing.portfolio import SHUFFLES, portfolio
from dropjax.pairing.signals import CHOICES
from dropjax.runtime import device
from dropjax.runtime.writing import atomic_write, ensure_writable

VERDICTS = {"paired": console.SOLVED, "doubtful": console.NOT_SOLVED, "no signal": console.NOT_SOLVED}
"""Exit status of each verdict."""


def parser() -> console.Parser:
    """The command line's arguments."""
    p = console.Parser(prog="python -m dropjax.pair", description="Pair the halves of a checkpoint's MLPs by their weights.")
    p.add_argument("file", type=Path, help=".safetensors, .safetensors.index.json or .pth")
    which = p.add_argument_group("which tensors are halves (default: told by their shapes)")
    which.add_argument(
        "--in", dest="ins", metavar="GLOB", help="names of the input halves, of gated MLPs the up projections"
    )
    which.add_argument("--out", dest="outs", metavar="GLOB", help="names of the output halves")
    which.add_argument("--gate", metavar="GLOB", help="names of the gate projections")
    which.add_argument(
        "--transposed", action=argparse.BooleanOptionalAction, help="stored [in, out] (default: as biases say)"
    )
    which.add_argument("--fold-norm", metavar="GLOB", help="normalisation gains to fold into the input halves")
    how = p.add_argument_group("pairing")
    how.add_argument("--signal", choices=CHOICES, default="auto")
    how.add_argument("--shuffles", type=int, default=SHUFFLES, help="copies with shuffled hidden units to compare with")
    how.add_argument("--check", action="store_true", help="shuffle the halves, pair them, and compare with their names")
    how.add_argument("--baselines", action="store_true", help="also pair fresh random weights of the same shapes")
    how.add_argument("--random-seed", type=int, default=0)
    result = p.add_argument_group("results")
    result.add_argument("--out-dir", type=Path, metavar="DIR", help="pairing.json and heatmap.png")
    result.add_argument("--json", type=Path, metavar="FILE", help="pairing.json alone")
    result.add_argument("--quiet", action="store_true", help="print the pairs' names alone")
    return p


@dataclass(frozen=True)
class RandomHalves:
    """Fresh halves of the same shapes, drawn as `torch.nn.Linear` draws: uniform within ±1/sqrt(fan_in)."""

    shape: tuple[int, int, int]
    seed: int

    def units(self, start: int, stop: int) -> tuple[Float[np.ndarray, "L s d"], Float[np.ndarray, "L s d"]]:
        """See `pairing.Halves`."""
        depth, hidden, width = self.shape
        rng = np.random.default_rng((self.seed, start))
        size = depth, stop - start, width
        a, b = ((2 * rng.random(size, np.float32) - 1) * np.float32(fan_in**-0.5) for fan_in in (width, hidden))
        return a, b


class Names(NamedTuple):
    """Names of two kinds of halves."""

    ours: list[str]
    theirs: list[str]


def chance(count: int) -> str:
    """What guessing gets right: one pair on average, and all of them once in L! times."""
    return f"guessing gets 1 of {count} right on average"


def table(names: Names, found: Judged) -> list[str]:
    """A line for each pair."""
    width = max(map(len, names.ours))
    their_width = max(map(len, names.theirs))
    columns = f"{'score':>8} {'runner-up':>9} {'margin':>8} {'certainty':>9}"
    lines = [f"{'input half':<{width}}  {'output half':<{their_width}}  {columns}"]
    for i, j in enumerate(found.partner):
        numbers = f"{found.own[i]:>8.4f} {found.runner_up[i]:>9.4f} {found.gap[i]:>8.4f} {found.certainty[i]:>9.1f}"
        doubt = "" if found.certainty[i] >= found.clear else "  in doubt"
        lines.append(f"{names.ours[i]:<{width}}  {names.theirs[j]:<{their_width}}  {numbers}{doubt}")
    return lines


def summary(found: Judged) -> list[str]:
    """The signal, what speaks for it, and the verdict."""
    best = sorted(found.separations.items(), key=lambda item: -item[1])
    ranking = ", ".join(f"{name} {value:.3g}" for name, value in best)
    in_doubt = len(doubtful(found))
    counts = {"paired": "every pair is clear", "no signal": "these halves pair no better than shuffled ones"}
    why = counts.get(found.verdict, f"{in_doubt} of {len(found.partner)} pairs are in doubt")
    return [
        f"signal: {found.signal} (separation, in times that of shuffled halves: {ranking})",
        f"votes: {', '.join(found.voters) or 'no signal shows'}"
        + (f"; each pair chosen by {found.votes.min()} to {found.votes.max()} of them" if found.voters else ""),
        f"verdict: {found.verdict}: {why} (strength {found.strength:.3g}, a signal from {found.needed:.3g}; "
        f"least certainty {found.certainty.min():.3g}, clear from {found.clear:.3g})",
    ]


def record(names: Names, found: Judged, truth: Int[np.ndarray, " L"] | None) -> dict[str, Any]:
    """What the JSON says of one pairing."""
    pairs = [
        {
            "in": names.ours[i],
            "out": names.theirs[j],
            "score": found.own[i],
            "runner_up": found.runner_up[i],
            "margin": found.gap[i],
            "certainty": found.certainty[i],
            "votes": found.votes[i],
        }
        for i, j in enumerate(found.partner)
    ]
    checked = {} if truth is None else {"correct": int((truth == found.partner).sum()), "total": len(truth)}
    return {
        "signal": found.signal,
        "verdict": found.verdict,
        "pairs": pairs,
        **checked,
        "doubtful": [names.ours[i] for i in doubtful(found)],
        "separations": found.separations,
        "voters": found.voters,
        "strength": found.strength,
        "strength_needed": found.needed,
        "certainty_needed": found.clear,
    }


def heat_map(path: Path, title: str, found: Judged) -> None:
    """The scores as they came and with the output halves in their partners' places, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    for axes, score, what in zip(
        figure.subplots(1, 2), (found.score, found.score[:, found.partner]), ("as they came", "paired"), strict=True
    ):
        image = axes.imshow(score, cmap="viridis")
        axes.set(title=what, xlabel="output half", ylabel="input half")
        figure.colorbar(image, ax=axes, shrink=0.8)
    figure.suptitle(f"{title}: {found.signal}, {found.verdict}")
    figure.savefig(path, format="png", dpi=120)


def main(argv: list[str] | None = None) -> int:
    """Pairs one checkpoint; the exit status is 0 for `paired`, 1 for `doubtful` or `no signal`, 2 for bad input."""
    start = time.perf_counter()
    p = parser()
    args = p.parse_args(argv)
    if args.shuffles < 3:
        p.error(f"--shuffles: expected at least 3, got {args.shuffles}")
    for path, folder in ((args.out_dir, True), (args.json, False)):
        if path is not None:
            ensure_writable(path, folder=folder)
    if args.out_dir is not None:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            p.error("--out-dir: expected matplotlib to draw with, got none: pip install 'dropjax[report]'")
    checkpoint = checkpoints.open_checkpoint(args.file)
    mlps = checkpoints.find_halves(checkpoint, args.ins, args.outs, args.gate, args.transposed, args.fold_norm)
    depth = len(mlps.sides["out"].names)
    if args.check:
        rng = np.random.default_rng(args.random_seed)
        shuffled = {name: side.reordered(rng.permutation(depth)) for name, side in mlps.sides.items()}
        mlps = checkpoints.Mlps(checkpoint, mlps.hidden, mlps.width, shuffled, mlps.others)
    if not args.quiet:
        kind = "gated MLPs" if "gate" in mlps.sides else "MLPs"
        print(f"{args.file.name}: {depth} {kind}, d = {mlps.width:,}, h = {mlps.hidden:,}", flush=True)
        for other in mlps.others:
            print(f"also there: {other} (choose with --in and --out)")

    device.configure()
    signals = None if args.signal == "auto" else (args.signal,)

    def run(halves: Halves) -> Judged:
        try:
            return portfolio(halves, signals, shuffles=args.shuffles, seed=args.random_seed)
        except ValueError as error:
            return p.error(f"--signal: {error}")

    kinds = [(mlps.first, "out")] + ([("gate", "out"), ("gate", "up")] if "gate" in mlps.sides else [])
    found: dict[str, Judged] = {}
    records: dict[str, dict[str, Any]] = {}
    for ours, theirs in kinds:
        key = f"{ours}/{theirs}"
        sides = mlps.sides[ours], mlps.sides[theirs]
        names = Names(*([name + side.label for name in side.names] for side in sides))
        found[key] = run(mlps.halves(ours, theirs))
        truth = None
        if args.check:
            partners = _truth(args.file, sides[0].names, sides[1].names)
            truth = np.array(partners)
        records[key] = record(names, found[key], truth)
        if args.quiet:
            print("\n".join(f"{pair['in']} {pair['out']}" for pair in records[key]["pairs"]))
            continue
        lines = [f"{key}:", *table(names, found[key]), *summary(found[key])] if len(kinds) > 1 else []
        print("\n".join(lines or [*table(names, found[key]), *summary(found[key])]))
        if truth is not None:
            print(f"check: {records[key]['correct']} of {depth} right; {chance(depth)}", flush=True)
    first = f"{mlps.first}/out"
    result = {
        **records[first],
        "pairings": {key: value for key, value in records.items() if key != first},
        "d": mlps.width,
        "h": mlps.hidden,
        "baselines": {"chance": 1.0},
    }
    if "gate" in mlps.sides:
        result["consistent"] = consistent(found)
        if not args.quiet:
            print(
                f"three ways: of {depth} output halves, {result['consistent']} have an up and a gate that are a pair as well"
            )
    if args.baselines:
        fresh = run(RandomHalves((depth, mlps.hidden, mlps.width), args.random_seed))
        right = int((fresh.partner == np.arange(depth)).sum())
        result["baselines"]["untrained"] = {"verdict": fresh.verdict, "signal": fresh.signal, "correct": right}
        if not args.quiet:
            print(f"untrained weights of the same shapes: {fresh.verdict}, {right} of {depth} right")
    result |= {"seconds": time.perf_counter() - start, "device": device.describe(), "versions": _versions()}
    text = json.dumps(plain(result), indent=1, allow_nan=False) + "\n"
    if args.json is not None:
        atomic_write(args.json, lambda path: path.write_text(text))
    if args.out_dir is not None:
        atomic_write(args.out_dir / "heatmap.png", lambda path: heat_map(path, args.file.name, found[first]))
        atomic_write(args.out_dir / "pairing.json", lambda path: path.write_text(text))
    if not args.quiet:
        print(f"time: {result['seconds']:.1f} s")
    return VERDICTS[found[first].verdict]


def consistent(found: Mapping[str, Judged]) -> int:
    """Output halves whose up and gate projections, each paired with it alone, are paired with each other as well."""
    up_of = np.argsort(found["up/out"].partner)
    gate_of = np.argsort(found["gate/out"].partner)
    return int((found["gate/up"].partner[gate_of] == up_of).sum())


def _truth(path: Path, ours: tuple[str, ...], theirs: tuple[str, ...]) -> list[int]:
    if ours == theirs:
        return list(range(len(ours)))
    partners = checkpoints.true_partners(ours, theirs)
    if partners is None and set(ours) == set(theirs):
        partners = [theirs.index(name) for name in ours]
    if partners is None:
        raise checkpoints.InputError(f"{path}: --check: expected names that tell each pair, got {ours[0]} and {theirs[0]}")
    return partners


if __name__ == "__main__":
    console.run_command(main)
