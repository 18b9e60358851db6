"""Runs the same solve and kernels on every kind of device that JAX sees: devices.py [PUZZLE] [--json FILE] [--plot FILE].

Each run is a process of its own. "cold" starts with an empty cache of compiled programs, "warm" with the one that it left.
The kernels are those of kernels.py, each device's own matrix-product rate beside them. With --counts, the same work on one
device and on several: GPUs, or a CPU's virtual devices, which share its cores and so show what the sharing itself costs.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import pandas as pd
from measuring import table, write_report

from dropjax import console
from dropjax.runtime.writing import atomic_write, ensure_writable

PARTS = ("load", "compile", "solve", "verify", "total")


def platforms() -> list[str]:
    """The kinds of devices that JAX sees here."""
    found = []
    for name in ("cpu", "gpu", "tpu"):
        try:
            jax.devices(name)
        except RuntimeError:
            continue
        found.append(name)
    return found


def reported(*command: str, **environment: str) -> dict[str, Any]:
    """The JSON of one Python process."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record.json"
        command = (sys.executable, *command, "--json", str(record))
        ran = subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, check=False)
        if not record.exists():
            ran.check_returncode()
        return json.loads(record.read_text())


def run(puzzle: Path, platform: str, cache: Path) -> dict[str, Any]:
    """One process's solve; its record."""
    solve = ("-m", "dropjax.solve", str(puzzle), "--platform", platform, "--quiet")
    return reported(*solve, DROPJAX_CACHE_DIR=str(cache))


def measure(puzzle: Path, platform: str, repeats: int) -> list[dict[str, Any]]:
    """A cold and a warm row; medians over `repeats` runs each."""
    cold, warm = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(run(puzzle, platform, Path(cache)))
            warm.append(run(puzzle, platform, Path(cache)))
    return [
        {
            "device": records[0]["device"],
            "devices": len(jax.devices(platform)),
            "precision": records[0]["precision"],
            "cache": name,
            **{part: statistics.median(record["seconds"][part] for record in records) for part in PARTS},
            "outcome": records[0]["outcome"],
        }
        for name, records in (("cold", cold), ("warm", warm))
    ]


def kernels(puzzle: Path, platform: str) -> dict[str, Any]:
    """The report of kernels.py."""
    return reported(str(Path(__file__).with_name("kernels.py")), str(puzzle), "--platform", platform)


def print_kernels(reports: dict[str, dict[str, Any]]) -> None:
    """Every kernel's time on each device, and its share of that device's matrix-product rate."""
    frames = {platform: pd.DataFrame(report["rows"]) for platform, report in reports.items()}
    columns = {"kernel": "<50", "N": ">7,"}
    whole = pd.DataFrame(next(iter(reports.values()))["rows"], columns=list(columns))
    for platform, frame in frames.items():
        times = {f"{platform}, ms": 1e3 * frame.seconds}
        shares = {f"{platform}, of limit": frame.fraction_of_matmul.where(frame.flop > 0)}
        whole = whole.assign(**times, **shares)
        columns |= dict.fromkeys(times, ">9.1f") | dict.fromkeys(shares, ">14.0%")
    print("\n" + table(whole, columns))
    rates = [f"{platform} {report['matmul_flop_per_s'] / 1e9:.0f} GFLOP/s" for platform, report in reports.items()]
    print("square products: " + ", ".join(rates))


CHILD = """
import json, sys
import jax, numpy as np
from measuring import median_seconds
from dropjax.core.stack import identity_arrangement
from dropjax.io.loading import load
from dropjax.moves.arrangements import SWAP, pairs_of_positions
from dropjax.moves.exact import score_moves
from dropjax.moves.first_order import score_first_order
from dropjax.runtime import device, mesh
from dropjax.search import verify
device.configure(sys.argv[2])
puzzle = load(sys.argv[1])
devices = mesh.make()
if devices is not None:
    jax.set_mesh(devices)
stack, order = mesh.put((puzzle.stack(), identity_arrangement(puzzle.depth)))
rows = int(sys.argv[3])
x, pred = mesh.put_rows([np.tile(a, (-(-rows // len(a)), 1))[:rows] for a in (puzzle.x, puzzle.pred)])
few = mesh.put_rows((puzzle.x[:2000], puzzle.pred[:2000]))
swaps = pairs_of_positions(puzzle.depth, SWAP)
together = device.scored_together(puzzle.depth)
report = {
    "devices": len(jax.devices()),
    "one pass": median_seconds(lambda: verify.full_pass(stack, order, x, pred), 3),
    "all swaps, exact": median_seconds(lambda: score_moves(stack, order, swaps, *few, together), 3),
    "all moves, first order": median_seconds(lambda: score_first_order(stack, order, *few), 3),
}
with open(sys.argv[sys.argv.index("--json") + 1], "w") as file:
    json.dump(report, file)
"""
"""The work that is done on any number of devices: a pass over many rows, and moves from an arbitrary order."""
WORK = ("one pass", "all swaps, exact", "all moves, first order")
PASS_ROWS = 200_000
"""Rows of that pass: the table's, again and again."""


def on_devices(puzzle: Path, platform: str, count: int) -> dict[str, Any]:
    """Seconds of the same work on that many devices."""
    gpus = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(count)))}
    virtual = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"}
    environment = {"PYTHONPATH": str(Path(__file__).parent), **(gpus if platform == "gpu" else virtual)}
    return reported("-c", CHILD, str(puzzle), platform, str(PASS_ROWS), **environment)


def compare_counts(puzzle: Path, platform: str, counts: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each count. The speed-up over the first count and the efficiency of each work are printed as well."""
    columns = {"devices": "<7", "work": "<24", "seconds": ">9.3f", "speed-up": ">9.2f", "efficiency": ">10.0%"}
    rows: list[dict[str, Any]] = []
    for count in counts:
        rows.append(on_devices(puzzle, platform, count))
        first, last = rows[0], rows[-1]
        works = pd.DataFrame({"devices": last["devices"], "work": WORK, "seconds": [last[work] for work in WORK]})
        faster = pd.Series([first[work] for work in WORK]) / works.seconds
        named = {"speed-up": faster, "efficiency": faster * first["devices"] / last["devices"]}
        print(table(works.assign(**named), columns, head=len(rows) == 1), flush=True)
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Where each row's time goes, as stacked bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = [f"{row['device']}\n{row['cache']} cache" for row in rows]
    figure, axes = plt.subplots(figsize=(7, 1 + 0.7 * len(rows)), layout="constrained")
    left = [0.0] * len(rows)
    for part in PARTS[:-1]:
        widths = [row[part] for row in rows]
        axes.barh(names, widths, left=left, label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_xlabel("seconds in the process, imports not counted")
    axes.invert_yaxis()
    axes.legend(ncols=len(PARTS) - 1, loc="upper center", bbox_to_anchor=(0.5, -0.3))
    atomic_write(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:] or "png", dpi=150))
    plt.close(figure)


def main() -> int:
    """Exit status 0, or 2 for bad input."""
    parser = console.Parser(description=__doc__)
    parser.add_argument("puzzle", nargs="?", type=Path, help="default: the example")
    parser.add_argument("--platform", choices=("cpu", "gpu", "tpu"), help="this one alone")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--counts", type=int, nargs="+", metavar="N", default=[], help="numbers of devices, such as 1 2 4")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    args = parser.parse_args()
    for path in (args.json, args.plot):
        if path is not None:
            ensure_writable(path)
    seen = [args.platform] if args.platform else platforms()
    if seen == ["cpu"]:
        print("JAX sees no accelerator here: the CPU alone")
    rows: list[dict[str, Any]] = []
    columns = {"device": "<24", "cache": "<6", **dict.fromkeys(PARTS, ">8.2f"), "outcome": "<7"}
    with resources.as_file(resources.files("dropjax") / "example.safetensors") as example:
        for platform in seen:
            for row in measure(args.puzzle or example, platform, args.repeats):
                print(table(pd.DataFrame([row]), columns, head=not rows), flush=True)
                rows.append(row)
        reports = {platform: kernels(args.puzzle or example, platform) for platform in seen}
        print_kernels(reports)
        counted = compare_counts(args.puzzle or example, seen[-1], args.counts) if args.counts else []
    write_report(args.json, rows, kernels=reports, counts=counted)
    if args.plot is not None:
        plot(rows, args.plot)
    return 0


if __name__ == "__main__":
    console.run_command(main)
