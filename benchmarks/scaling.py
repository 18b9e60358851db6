"""How time and memory grow: scaling.py FOLDER [--short] [--trained] [--time-limit S] [--json FILE] [--plot FILE].

Planted stacks along three lines through one point, in depth, in width and in rows, and with --trained freshly trained ones
in depth; each is solved in a process of its own, compiling not counted. Stacks and records are kept in FOLDER, so that an
interrupted run goes on where it stopped. First-order scores are timed apart, from the answer. With `--executor` the stacks
are spread over its workers, which have to see FOLDER.
"""

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from measuring import add_executor, done, executor, median_seconds, table, write_report

from dropjax import console
from dropjax.core.protocols import Status
from dropjax.io.arguments import read_permutation
from dropjax.io.loading import load
from dropjax.moves.first_order import score_first_order
from dropjax.runtime import device, mesh
from dropjax.runtime.writing import atomic_write, ensure_writable
from dropjax.train.__main__ import main as train

MIB = 1 << 20


class Point(NamedTuple):
    """One stack and table."""

    kind: str
    L: int
    d: int
    N: int

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"{self.kind}-{self.L}-{self.d}-{self.N}"


HERE = Point("planted", 48, 64, 2000)
"""Where the three lines meet."""
LINES = {"L": (24, 48, 96, 192, 384, 768, 1024), "d": (32, 64, 128, 256), "N": (500, 2000, 10_000, 50_000)}
TRAINED = (24, 48, 96, 192)
"""Depths."""
RECIPE = ("--optimizer=adamw", "--rate=1e-4", "--decay=1", "--epochs=200")
"""Recipe of the trained stacks: the paper's Appendix A, and a decay that keeps the residuals of many blocks small."""
TIMES = ("pair", "order", "verify", "total", "first_order")


def points(short: bool, trained: bool) -> Iterator[Point]:
    """Every point once, the small ones first along each line."""
    seen = set()
    for axis, values in LINES.items():
        for value in values[: 2 if short else None]:
            point = HERE._replace(**{axis: value})
            if point not in seen:
                seen.add(point)
                yield point
    for depth in TRAINED[: 1 if short else None] if trained else ():
        yield Point("trained", depth, 48, 10_000)


def made(point: Point, folder: Path) -> Path:
    """The dropped stack and, beside it, its answer; from the folder where they are there."""
    path = folder / f"{point.name}.safetensors"
    if not (path.exists() and answer_of(path).exists()):
        recipe = ("--planted", f"--keep-rows={point.N}") if point.kind == "planted" else RECIPE
        shape = {"depth": point.L, "width": point.d, "hidden": 2 * point.d, "rows": max(point.N, 10_000)}
        train([str(path), "--quiet", *recipe, *(f"--{name}={value}" for name, value in shape.items())])
    return path


def answer_of(path: Path) -> Path:
    """Where the command that makes a stack puts its answer."""
    return path.with_name(f"{path.stem}-ANSWER.txt")


CHILD = """
import json, resource, sys
from pathlib import Path
import dropjax
from dropjax.runtime import device
device.configure()
puzzle, limit = dropjax.load(sys.argv[1]), float(sys.argv[2])
solution = dropjax.solve(puzzle, time_limit=limit)
if sum(solution.seconds.values()) < 60:
    solution = dropjax.solve(puzzle, time_limit=limit)
status = Path("/proc/self/status")
peak = [int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line] if status.exists() else []
peak = peak or [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]
print(json.dumps({**solution.to_json(), "peak_bytes": 1024 * peak[0]}))
"""
"""One puzzle's solve; where compiling would be a part of its time, a second one."""


def solved(path: Path, limit: float) -> dict[str, Any]:
    """The result of one solve in a process of its own, and that process's peak memory."""
    command = [sys.executable, "-c", CHILD, str(path), str(limit)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)


def record(point: Point, folder: Path, limit: float) -> dict[str, Any]:
    """One row of the report."""
    path = made(point, folder)
    result = solved(path, limit)
    answer = read_permutation(answer_of(path))
    stages = result["stages"]
    seconds = {name: sum(stage["seconds"] for stage in stages if stage["name"] == name) for name in ("pairing", "verify")}
    puzzle = load(path)
    stack, order = mesh.put(puzzle.stack()), puzzle.arrangement(answer)
    few = jax.device_put((puzzle.x[:2000], puzzle.pred[:2000]))
    return {
        "kind": point.kind,
        "L": point.L,
        "d": point.d,
        "h": puzzle.w_in.shape[1],
        "N": point.N,
        "pair": seconds["pairing"],
        "order": sum(stage["seconds"] for stage in stages) - sum(seconds.values()),
        "verify": seconds["verify"],
        "total": result["seconds"]["solve"] + result["seconds"]["verify"],
        "first_order": median_seconds(lambda: score_first_order(stack, order, *few), 3),
        "evaluations": sum(stage["evaluations"] for stage in stages),
        "peak_bytes": result["peak_bytes"],
        "data_bytes": path.stat().st_size,
        "outcome": result["outcome"],
        "right": result["permutation"] == list(answer),
        "stop_reason": result["stop_reason"],
        "mse_of_variance": result["mse"] / float(np.var(puzzle.pred)),
    }


def rows_of(todo: Sequence[Point], folder: Path, limit: float, executor: Executor | None = None) -> list[dict[str, Any]]:
    """The points' records, in their order; those in the folder are not run again."""
    paths = [folder / f"{point.name}-record.json" for point in todo]
    missing = [partial(named, point, folder, limit) for point, path in zip(todo, paths, strict=True) if not path.exists()]
    with console.progress() as progress:
        progress.begins("stacks")
        for count, (name, found) in enumerate(done(missing, executor), 1):
            atomic_write(folder / f"{name}-record.json", lambda to, found=found: to.write_text(json.dumps(found)))
            progress.goes_on(Status(done=count, of=len(missing)))
    return [json.loads(path.read_text()) for path in paths]


def named(point: Point, folder: Path, limit: float) -> tuple[str, dict[str, Any]]:
    """The point's name and its record, wherever it is run."""
    return point.name, record(point, folder, limit)


def along(rows: Sequence[dict[str, Any]], axis: str) -> list[dict[str, Any]]:
    """The rows on one of the lines, in its order."""
    others = [name for name in ("kind", "L", "d", "N") if name != axis]
    return sorted((row for row in rows if all(row[n] == getattr(HERE, n) for n in others)), key=lambda row: row[axis])


def exponents(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Slopes of the logarithms along each line, of solved points for the times that depend on the search."""
    slopes: dict[str, dict[str, float]] = {}
    for axis in LINES:
        for time in TIMES:
            searched = time not in ("pair", "first_order")
            line = [row for row in along(rows, axis) if not searched or row["outcome"] != "not_solved"]
            if len(line) > 1:
                sizes, seconds = np.log([[row[axis], max(row[time], 1e-6)] for row in line]).T
                slopes.setdefault(axis, {})[time] = float(np.polyfit(sizes, seconds, 1)[0])
    return slopes


def plot(rows: Sequence[dict[str, Any]], slopes: dict[str, dict[str, float]], path: Path) -> None:
    """Times along each line, logarithmic both ways; hollow where it was not solved."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(LINES), figsize=(11, 4), layout="constrained", sharey=True)
    for axes, axis in zip(panels, LINES, strict=True):
        line = along(rows, axis)
        for color, time in enumerate(TIMES):
            slope = slopes.get(axis, {}).get(time, math.nan)
            label = f"{time.replace('_', ' ')}, exponent {slope:.1f}"
            x, y = [row[axis] for row in line], [row[time] for row in line]
            axes.loglog(x, y, color=f"C{color}", label=label)
            for row in line:
                filled = row["outcome"] != "not_solved"
                axes.plot(row[axis], row[time], "o", color=f"C{color}", mfc=f"C{color}" if filled else "white")
        axes.set_xlabel({"L": "blocks L", "d": "features d", "N": "rows N"}[axis])
        axes.legend(fontsize=7)
    panels[0].set_ylabel("seconds")
    atomic_write(path, lambda to: figure.savefig(to, format=path.suffix[1:] or "png", dpi=150))
    plt.close(figure)


def main() -> int:
    """Exit status 0, or 2 for bad input."""
    parser = console.Parser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--short", action="store_true", help="two points along each line")
    parser.add_argument("--trained", action="store_true", help="trained stacks too")
    parser.add_argument(
        "--deepest", type=int, default=max(LINES["L"]), metavar="L", help="no stack of more blocks (%(default)s)"
    )
    parser.add_argument("--time-limit", type=float, default=600, metavar="SECONDS", help="of each solve (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    add_executor(parser)
    args = parser.parse_args()
    for path in (args.json, args.plot):
        if path is not None:
            ensure_writable(path)
    ensure_writable(args.folder, folder=True)
    args.folder.mkdir(parents=True, exist_ok=True)
    device.configure()
    todo = [point for point in points(args.short, args.trained) if args.deepest >= point.L]
    with executor(parser, args.executor) as workers:
        rows = rows_of(todo, args.folder, args.time_limit, workers)
    frame = pd.DataFrame(rows)
    frame["peak MiB"] = frame.peak_bytes / MIB
    sizes, times = {"kind": "<8", "L": ">5", "d": ">4", "N": ">7,"}, dict.fromkeys(TIMES, ">11.3f")
    print(table(frame, {**sizes, **times, "peak MiB": ">9,.0f", "outcome": "<12"}))
    slopes = exponents(rows)
    for axis, found in slopes.items():
        print(f"exponents in {axis}: " + ", ".join(f"{time.replace('_', ' ')} {slope:.2f}" for time, slope in found.items()))
    write_report(args.json, rows, exponents=slopes)
    if args.plot is not None:
        plot(rows, slopes, args.plot)
    return 0


if __name__ == "__main__":
    console.run_command(main)
