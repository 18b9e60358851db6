"""Pairing at the width of real models in bounded memory, and what pruning, quantising and rescaling do to it.

`wide` writes a checkpoint of random weights (bfloat16, L = 32, d = 4,096, h = 14,336 by default: 7.5 GB, removed at the
end), pairs it with `python -m dropjax.pair --check` in a process of its own, and measures that. `invariances` takes a
checkpoint's MLPs, changes them more and more, and plots how sure each signal still is. `models`, `unrelated` and
`merge` are about every kind of path: see `path_tables.py` and `path_rates.py`.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import path_rates
import path_tables

from dropjax.io import checkpoints, halves
from dropjax.pairing.evidence import Arrays
from dropjax.pairing.portfolio import portfolio
from dropjax.runtime import device
from dropjax.runtime.writing import atomic_write

SHOWN = ("ddr", "squared_cosines", "norms")
Change = Callable[[np.ndarray, np.ndarray, float, np.random.Generator], tuple[np.ndarray, np.ndarray]]
"""A function that takes W_in [L, h, d], W_outᵀ [L, h, d] and a strength, and returns the two changed."""


def write_checkpoint(path: Path, depth: int, width: int, hidden: int, coupling: float, seed: int) -> None:
    """One layer at a time: W_in uniform, W_out as much its own as `coupling` allows, the rest −W_inᵀ."""
    rng = np.random.default_rng(seed)
    size, header, offset = 2 * width * hidden, {}, 0
    for k in range(depth):
        for name, shape in (("fc1", (hidden, width)), ("fc2", (width, hidden))):
            header[f"layers.{k}.{name}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": (offset, offset + size)}
            offset += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in range(depth):
            w_in = 2 * rng.random((hidden, width), np.float32) - 1
            w_out = 2 * rng.random((width, hidden), np.float32) - 1
            w_out -= coupling * w_in.T
            for half, fan_in in ((w_in, width), (w_out, hidden)):
                file.write((half * fan_in**-0.5).astype(ml_dtypes.bfloat16).tobytes())


def wide(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Random weights without and with pairs in them. The peak is the pairing process's resident memory, file pages too."""
    for coupling in args.coupling:
        with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
            path = Path(folder) / "random.safetensors"
            write_checkpoint(path, args.depth, args.width, args.hidden, coupling, args.random_seed)
            command = [
                sys.executable,
                "-m",
                "dropjax.pair",
                str(path),
                "--check",
                "--json",
                str(Path(folder) / "pairing.json"),
            ]
            start = time.perf_counter()
            process = subprocess.Popen([*command, "--shuffles", str(args.shuffles)], stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
            if os.waitstatus_to_exitcode(status) > 1:
                raise SystemExit(f"pairing ended with status {os.waitstatus_to_exitcode(status)}")
            result = json.loads((Path(folder) / "pairing.json").read_text())
        yield {
            "kind": "wide",
            "L": args.depth,
            "d": args.width,
            "h": args.hidden,
            "coupling": coupling,
            "verdict": result["verdict"],
            "signal": result["signal"],
            "correct": result["correct"],
            "seconds": seconds,
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
            "file_bytes": 4 * args.depth * args.width * args.hidden,
        }


def permuted(a, b, strength, rng):
    """A share of each MLP's hidden units permuted, in both halves alike."""
    for x, y in zip(a, b, strict=True):
        moved = np.flatnonzero(rng.random(len(x)) < strength)
        order = rng.permutation(moved)
        x[moved], y[moved] = x[order], y[order]
    return a, b


def units_rescaled(a, b, strength, rng):
    """Every hidden unit's row × c and column ÷ c, log c normal with this standard deviation."""
    c = np.exp(strength * rng.normal(size=(*a.shape[:2], 1)))
    return a * c, b / c


def halves_scaled(a, b, strength, rng):
    """Every half × c, log c normal with this standard deviation."""
    return tuple(half * np.exp(strength * rng.normal(size=(len(half), 1, 1))) for half in (a, b))


def pruned(a, b, strength, rng):
    """The smallest share of every half's weights set to 0."""
    for half in (*a, *b):
        size = np.abs(half)
        half[size < np.quantile(size, strength)] = 0
    return a, b


def quantised(a, b, strength, rng):
    """Every half rounded to 2^bits − 1 levels between its largest weight and minus that (one scale a tensor)."""
    top = 2 ** (strength - 1) - 1
    for half in (*a, *b):
        step = np.abs(half).max() / top
        half[:] = np.round(half / step) * step
    return a, b


CHANGES: dict[str, tuple[Change, str, tuple[float, ...]]] = {
    "hidden units permuted": (permuted, "share", (0, 0.25, 0.5, 0.75, 1)),
    "hidden units rescaled": (units_rescaled, "sd of log c", (0, 0.1, 0.3, 1, 2)),
    "halves scaled": (halves_scaled, "sd of log c", (0, 1, 2, 4)),
    "pruned": (pruned, "share", (0, 0.25, 0.5, 0.75, 0.9, 0.97)),
    "quantised": (quantised, "bits", (8, 6, 4, 3, 2)),
}


def invariances(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Least certainty and right pairs, for each change, strength and signal."""
    mlps = halves.find_halves(checkpoints.open_checkpoint(args.file))
    ours, theirs = mlps.sides[mlps.first], mlps.sides["out"]
    partner = np.array(halves.true_partners(ours.names, theirs.names))
    a, b = halves.CheckpointHalves(mlps.checkpoint, ours, theirs, mlps.hidden, mlps.width).units(0, mlps.hidden)
    b = b[partner]  # partners are changed alike, and then shuffled
    order = np.random.default_rng(args.random_seed).permutation(len(b))
    truth = np.argsort(order)
    for name, (change, unit, strengths) in CHANGES.items():
        for strength in strengths:
            x, y = change(a.copy(), b.copy(), strength, np.random.default_rng(args.random_seed))
            changed = Arrays(x.astype(np.float32), np.swapaxes(y[order], 1, 2).astype(np.float32))
            for signal in SHOWN:
                found = portfolio(changed, (signal,), shuffles=args.shuffles)
                yield {
                    "kind": "invariances",
                    "change": name,
                    "unit": unit,
                    "strength": strength,
                    "signal": signal,
                    "verdict": found.verdict,
                    "correct": int((found.partner == truth).sum()),
                    "total": len(found.partner),
                    "least_certainty": float(found.certainty.min()),
                    "median_certainty": float(np.median(found.certainty)),
                    "clear": found.clear,
                }


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """A panel for each change, a line for each signal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(CHANGES), sharey=True), CHANGES, strict=True):
        ours = [row for row in rows if row["change"] == name]
        for signal in SHOWN:
            line = [row for row in ours if row["signal"] == signal]
            axes.plot([row["strength"] for row in line], [row["least_certainty"] for row in line], marker="o", label=signal)
        axes.axhline(ours[0]["clear"], color="grey", linestyle=":")
        axes.set(title=name, xlabel=ours[0]["unit"], yscale="log")
        if name == "quantised":
            axes.invert_xaxis()
    figure.axes[0].set_ylabel("least certainty (dotted: clear)")
    figure.axes[0].legend()
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))


def machine() -> str:
    """The processor, its cores and the memory."""
    names = re.findall(r"model name\s*: (.*)", text) if (text := _cpuinfo()) else []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} threads, {memory:.0f} GiB"


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--random-seed", type=int, default=0)
    parser.add_argument("--shuffles", type=int, default=4)
    what = parser.add_subparsers(dest="what", required=True)
    one = what.add_parser("wide", help="random weights of a real model's size")
    one.add_argument("--depth", type=int, default=32)
    one.add_argument("--width", type=int, default=4096)
    one.add_argument("--hidden", type=int, default=14336)
    one.add_argument("--coupling", type=float, nargs="+", default=[0.0, 0.02], help="share of −W_inᵀ in W_out")
    one.add_argument("--scratch", type=Path, help="folder for the checkpoint (default: the system's)")
    one.set_defaults(run=wide)
    two = what.add_parser("invariances", help="a checkpoint's MLPs, changed")
    two.add_argument("file", type=Path)
    two.add_argument("--plot", type=Path, metavar="PNG")
    two.set_defaults(run=invariances)
    three = what.add_parser("models", help="every path of pretrained models")
    four = what.add_parser("unrelated", help="how often unrelated halves are said to be pairs")
    five = what.add_parser("merge", help="a merge of fine-tuned copies, traced to what they were tuned from")
    five.set_defaults(run=path_tables.merge)
    for one in (three, four, five):
        one.add_argument("folder", type=Path, help="where packages are unpacked and trained networks kept")
        one.add_argument("--only", nargs="+", choices=(*path_tables.MODELS, *path_tables.TRAINED), help="some models")
    four.add_argument("--draws", type=int, default=200)
    four.add_argument("--sources", nargs="+", choices=path_rates.SOURCES)
    four.add_argument("--paths", nargs="+", choices=tuple(path_rates.PATHS))
    three.set_defaults(run=path_tables.models)
    four.set_defaults(run=path_rates.unrelated)
    args = parser.parse_args()
    device.configure()
    rows = []
    for row in args.run(args):
        rows.append(row)
        shown = (
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v:,}" if isinstance(v, int) else f"{v}"
            for k, v in row.items()
        )
        print("  ".join(shown), flush=True)
    if args.what == "invariances" and args.plot:
        plot(rows, args.plot)
    if args.what in ("models", "unrelated", "merge"):
        print(path_tables.printed(rows))
    if args.json:
        versions = {name: version(name) for name in ("dropjax", "jax", "numpy", "scipy", "safetensors")}
        record = {"machine": machine(), "versions": versions, "rows": rows}
        atomic_write(args.json, lambda path: path.write_text(json.dumps(record, indent=1) + "\n"))


if __name__ == "__main__":
    main()
