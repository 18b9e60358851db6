"""Speed from release to release: history.py [--record] [--plot FILE] [--runs N].

Measures this commit's ratios, which hardly depend on the machine, and prints them beside those of the last release that was
measured on a machine of this kind. `--record` keeps them in benchmarks/history/, one file for each release and machine;
`--plot` draws all that are kept. Whatever it finds, the exit status is 0.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from measuring import machine, matmul_flop_per_s, median_seconds, versions

import dropjax
from dropjax import console
from dropjax.io.loading import example
from dropjax.moves.arrangements import SWAP, pairs_of_positions
from dropjax.moves.exact import score_moves
from dropjax.runtime import mesh
from dropjax.runtime.writing import atomic_write, ensure_writable
from dropjax.search import verify

KEPT = Path(__file__).parent / "history"

IMPORTS = "import jax, jax.numpy as jnp, scipy.optimize; jnp.zeros(1).block_until_ready()"

RATIOS = {
    "warm": "a process that solves the example, over the imports alone",
    "empty_cache": "the first such process, which compiles, over the imports alone",
    "solve": "a solve in a warm process, over one pass of the answer over all rows",
    "verify": "its verification, over one pass of the answer over all rows",
    "swaps": "the rate of all swaps on 2,000 rows, over that of the best square product",
}
"""What is kept, and what it means; more is worse but for `swaps`."""


def seconds(*command: str, cache: str) -> float:
    """Wall time of a whole Python process, which has its modules' bytecode as an installed package has."""
    start = time.perf_counter()
    environment = {**os.environ, "DROPJAX_CACHE_DIR": cache, "PYTHONDONTWRITEBYTECODE": ""}
    subprocess.run([sys.executable, *command], env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def of_processes(runs: int) -> dict[str, float]:
    """The ratios of whole processes, medians of so many."""
    solving, importing = ("-m", "dropjax.solve", "--quiet"), ("-c", IMPORTS)
    cold, warm, imports = [], [], []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as cache:
            imports.append(seconds(*importing, cache=cache))
            cold.append(seconds(*solving, cache=cache))
            warm.append(seconds(*solving, cache=cache))
    base = statistics.median(imports)
    return {"warm": statistics.median(warm) / base, "empty_cache": statistics.median(cold) / base}


def of_kernels(runs: int) -> dict[str, float]:
    """The ratios within one process."""
    puzzle = example()
    dropjax.solve(puzzle)
    solves = [dropjax.solve(puzzle) for _ in range(2 * runs)]
    stack, x, pred = mesh.put((puzzle.stack(), puzzle.x, puzzle.pred))
    answer = puzzle.arrangement(solves[0].permutation)
    one_pass = median_seconds(lambda: verify.full_pass(stack, answer, x, pred), 2 * runs)
    few = jnp.asarray(np.resize(puzzle.x, (2000, puzzle.x.shape[1]))), jnp.asarray(np.resize(puzzle.pred, (2000, 1)))
    swaps = pairs_of_positions(puzzle.depth, SWAP)
    all_swaps = median_seconds(lambda: score_moves(stack, answer, swaps, *few), runs)
    depth, hidden, width = puzzle.w_in.shape
    flop = depth * (depth**2 - 1) / 3 * 4.0 * width * hidden * 2000
    return {
        "solve": statistics.median(solution.seconds["solve"] for solution in solves) / one_pass,
        "verify": statistics.median(solution.seconds["verify"] for solution in solves) / one_pass,
        "swaps": flop / all_swaps / matmul_flop_per_s(runs),
    }


def kept() -> list[dict[str, Any]]:
    """Every release's record, the oldest version first."""
    records = [json.loads(path.read_text()) for path in KEPT.glob("*.json")]
    return sorted(records, key=lambda record: [int(part) for part in re.findall(r"\d+", record["versions"]["dropjax"])])


def last_here(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The newest record of a machine of this kind."""
    here = machine()
    alike = [of for of in records if all(of["machine"][name] == here[name] for name in ("processor", "cores"))]
    return alike[-1] if alike else None


def table(now: Mapping[str, float], last: Mapping[str, Any] | None) -> str:
    """A line for each ratio, with the last release's where there is one."""
    then = f"of {last['versions']['dropjax']}" if last else "none kept of such a machine"
    lines = [f"{'ratio':<14}{'now':>8}  {then}"]
    for name, meaning in RATIOS.items():
        before = f"{last['ratios'][name]:.2f}" if last else ""
        lines.append(f"{name:<14}{now[name]:>8.2f}{before:>8}  {meaning}")
    return "\n".join(lines)


def record(now: Mapping[str, float]) -> Path:
    """Keeps the ratios under this release and machine, and says where."""
    here = machine()
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{dropjax.__version__} {here['processor']} {here['cores']} cores")
    path, content = KEPT / f"{name}.json", {"machine": here, "versions": versions(), "ratios": dict(now)}
    atomic_write(path, lambda temporary: temporary.write_text(json.dumps(content, indent=1)))
    return path


def plot(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Each ratio from release to release, a line for each machine."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(RATIOS), figsize=(3 * len(RATIOS), 3), layout="constrained")
    machines = sorted({(of["machine"]["processor"], of["machine"]["cores"]) for of in records})
    for name, panel in zip(RATIOS, panels, strict=True):
        for processor, cores in machines:
            own = [of for of in records if (of["machine"]["processor"], of["machine"]["cores"]) == (processor, cores)]
            of_release = [of["versions"]["dropjax"] for of in own]
            panel.plot(of_release, [of["ratios"][name] for of in own], "o-", label=f"{processor}, {cores} cores")
        panel.set_title(name)
        panel.set_ylim(bottom=0)
    if machines:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", frameon=False)
    atomic_write(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:] or "png", dpi=150))
    plt.close(figure)


def main() -> int:
    """Exit status 0, or 2 for bad input."""
    parser = console.Parser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="keep the ratios of this release")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw all releases that are kept")
    parser.add_argument("--runs", type=int, default=5, help="of each measurement (%(default)s)")
    args = parser.parse_args()
    if args.plot is not None:
        ensure_writable(args.plot)
    now = of_processes(args.runs) | of_kernels(args.runs)
    print(table(now, last_here(kept())))
    if args.record:
        print(f"kept in {record(now)}")
    if args.plot is not None:
        plot(kept(), args.plot)
    return 0


if __name__ == "__main__":
    console.run_command(main)
