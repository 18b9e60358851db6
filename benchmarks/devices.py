"""The same solve and kernels on every kind of device that JAX sees: devices.py [PUZZLE] [--json FILE] [--plot FILE].

Each run is a process of its own. "cold" starts with an empty cache of compiled programs, "warm" with the one that it left.
The kernels are those of kernels.py, each device's own matrix-product rate beside them.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import jax
from measuring import write_report

from dropjax import console, files

PARTS = ("load", "compile", "solve", "verify", "total")


def platforms() -> list[str]:
    """Of the devices that JAX sees here."""
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
    """What kernels.py reports."""
    return reported(str(Path(__file__).with_name("kernels.py")), str(puzzle), "--platform", platform)


def print_kernels(reports: dict[str, dict[str, Any]]) -> None:
    """Every kernel's time on each device, and its share of that device's matrix-product rate."""
    print("\n" + f"{'kernel':<50}{'rows':>8}" + "".join(f"{platform:>20}" for platform in reports))
    for same in zip(*(report["rows"] for report in reports.values()), strict=True):
        shares = (f" {row['fraction_of_matmul']:>7.0%}" if row["flop"] else f"{'':>8}" for row in same)
        times = "".join(f"{row['seconds'] * 1e3:>9.1f} ms{share}" for row, share in zip(same, shares, strict=True))
        print(f"{same[0]['kernel']:<50}{same[0]['N']:>8,}{times}")
    rates = "".join(f"{report['matmul_flop_per_s'] / 1e9:>12.0f} GFLOP/s" for report in reports.values())
    print(f"{'square products':<58}{rates}")


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
    files.atomic_write(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:] or "png", dpi=150))
    plt.close(figure)


def main() -> int:
    """Exit status 0, or 2 for bad input."""
    parser = console.Parser(description=__doc__)
    parser.add_argument("puzzle", nargs="?", type=Path, help="default: the example")
    parser.add_argument("--platform", choices=("cpu", "gpu", "tpu"), help="this one alone")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    args = parser.parse_args()
    for path in (args.json, args.plot):
        if path is not None:
            files.ensure_writable(path)
    seen = [args.platform] if args.platform else platforms()
    if seen == ["cpu"]:
        print("JAX sees no accelerator here: the CPU alone")
    rows: list[dict[str, Any]] = []
    print(f"{'device':<24}{'cache':>6}" + "".join(f"{part:>10}" for part in PARTS) + "  outcome")
    with resources.as_file(resources.files("dropjax") / "example.safetensors") as example:
        for platform in seen:
            for row in measure(args.puzzle or example, platform, args.repeats):
                times = "".join(f"{row[part]:>8.2f} s" for part in PARTS)
                print(f"{row['device']:<24}{row['cache']:>6}{times}  {row['outcome']}", flush=True)
                rows.append(row)
        reports = {platform: kernels(args.puzzle or example, platform) for platform in seen}
    print_kernels(reports)
    write_report(args.json, rows, kernels=reports)
    if args.plot is not None:
        plot(rows, args.plot)
    return 0


if __name__ == "__main__":
    console.run_command(main)
