"""Each kernel's time, useful FLOP/s and share of the machine's rate: kernels.py [PUZZLE] [--rows N] [--json FILE].

The machine's rate is that of its best square matrix product.
Useful operations are those that the arithmetic needs: 4·d·h a block evaluation and row, twice that for the block's adjoint
with the activation's slope recomputed counted as half a block. The last rows time the whole route as `solve` takes it.
"""

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from measuring import machine, matmul_flop_per_s, median_seconds, table, write_report

import dropjax
from dropjax import console
from dropjax.core.puzzle import Puzzle
from dropjax.io.loading import example, load
from dropjax.moves.arrangements import SWAP, adjacent_swaps, moved, pairs_of_positions
from dropjax.moves.exact import score_arrangements, score_moves
from dropjax.moves.first_order import linearise, pair_swap_changes, score_first_order
from dropjax.ordering import seeding
from dropjax.pairing.ratio import traces_and_norms
from dropjax.reporting.analysis import rank_correlation
from dropjax.runtime import device, mesh
from dropjax.runtime.writing import ensure_writable
from dropjax.search import verify
from dropjax.search.problem import Problem

ROWS = 2000
"""Rows of the searches' kernels; forward passes over the whole table take all."""


class Kernel(NamedTuple):
    """One line of the report."""

    name: str
    rows: int
    seconds: float
    flop: float
    """Useful floating-point operations; 0 where counting them says nothing."""


def kernels(puzzle: Puzzle, repeats: int, rows_too: int | None = None) -> Iterator[Kernel]:
    """Every kernel on this puzzle, from the delta-norm seed order; a pass over the table repeated to `rows_too`, too."""
    stack = mesh.put(puzzle.stack())
    depth, hidden, width = puzzle.w_in.shape
    problem = Problem.of(stack, puzzle.x, puzzle.pred)
    few = problem.first(ROWS)
    rows, all_rows = len(few.x), len(problem.x)
    block = 4.0 * width * hidden
    partner = dropjax.pair(stack.w_in, stack.w_out).partner
    pairs = np.stack([np.arange(depth), partner], axis=1).astype(np.int32)
    order = seeding.seed_order("delta_norm", "ascending", stack, pairs, few.x)
    together = device.scored_together(depth)

    def time(call) -> float:
        return median_seconds(call, repeats)

    yield Kernel(
        "pairing: traces and norms",
        0,
        time(lambda: traces_and_norms(stack.w_in, stack.w_out)),
        depth**2 * 2.0 * (width * hidden + hidden**2) + 4.0 * depth * hidden**2 * width,
    )
    yield Kernel(
        "forward pass, verified",
        all_rows,
        time(lambda: verify.full_pass(stack, order, problem.x, problem.pred)),
        depth * block * all_rows,
    )
    if rows_too is not None:
        long = Problem.of(stack, *(np.resize(part, (rows_too, part.shape[1])) for part in (puzzle.x, puzzle.pred)))
        yield Kernel(
            "forward pass, verified, table repeated",
            rows_too,
            time(lambda: verify.full_pass(stack, order, long.x, long.pred)),
            depth * block * rows_too,
        )
        del long
    states_and_adjoints = jax.jit(linearise)
    both_ways = depth * 2.5 * block * rows
    yield Kernel("trajectory and adjoints", rows, time(lambda: states_and_adjoints(stack, order, few.x)), both_ways)
    flips = 4.0 * depth**2 * width * rows
    yield Kernel(
        "first order: swaps, insertions, neighbours",
        rows,
        time(lambda: score_first_order(stack, order, few.x, few.pred)),
        both_ways + (depth - 1) * 2 * block * rows + flips,
    )

    there = jnp.asarray(order)

    @jax.jit
    def pair_swaps(x):
        return jnp.mean(pair_swap_changes(stack, there, linearise(stack, there, x)) ** 2, axis=(2, 3))

    fewer = few.x[:256]
    per_pair = 2.0 * width * hidden + 2.0 * hidden
    yield Kernel(
        "first order: pair swaps",
        len(fewer),
        time(lambda: pair_swaps(fewer)),
        (depth**2 * per_pair + depth * 2.5 * block) * len(fewer),
    )
    adjacent = adjacent_swaps(depth)
    yield Kernel(
        "exact: swaps of neighbours",
        rows,
        time(lambda: score_moves(stack, order, adjacent, few.x, few.pred, together=together)),
        (depth * (depth + 1) / 2 - 1) * block * rows,
    )
    swaps = pairs_of_positions(depth, SWAP)
    yield Kernel(
        "exact: all swaps, shared prefixes",
        rows,
        median_seconds(lambda: score_moves(stack, order, swaps, few.x, few.pred, together=together), 1),
        depth * (depth**2 - 1) / 3 * block * rows,
    )
    whole = np.asarray(jax.vmap(moved, (None, 0))(order, jnp.asarray(swaps)))
    yield Kernel(
        "exact: all swaps, naive",
        rows,
        median_seconds(lambda: score_arrangements(stack, whole, few.x, few.pred, together=together), 1),
        len(swaps) * depth * block * rows,
    )
    dropjax.solve(puzzle)
    solves, passes = [], []
    for _ in range(2 * repeats):
        solves.append(dropjax.solve(puzzle).seconds)
        passes.append(median_seconds(lambda: verify.full_pass(stack, order, problem.x, problem.pred), 1))
    searched = statistics.median(seconds["solve"] for seconds in solves)
    ties = statistics.median(seconds["verify"] for seconds in solves)
    yield Kernel("forward pass, verified, between the solves", all_rows, statistics.median(passes), depth * block * all_rows)
    yield Kernel("solve: pair, seed, order, one pass over all rows", all_rows, searched, 0)
    yield Kernel("solve: float32 noise, search for ties", all_rows, ties, 0)


def correlations(puzzle: Puzzle) -> dict[str, float]:
    """How well first-order scores rank the moves as exact scores do, from the delta-norm seed order."""
    stack = mesh.put(puzzle.stack())
    partner = dropjax.pair(stack.w_in, stack.w_out).partner
    pairs = np.stack([np.arange(puzzle.depth), partner], axis=1).astype(np.int32)
    x, pred = jnp.asarray(puzzle.x[:ROWS]), jnp.asarray(puzzle.pred[:ROWS])
    order = seeding.seed_order("delta_norm", "ascending", stack, pairs, x)
    scores = score_first_order(stack, order, x, pred)
    swaps, adjacent = pairs_of_positions(puzzle.depth, SWAP), adjacent_swaps(puzzle.depth)
    exact = np.asarray(score_moves(stack, order, swaps, x, pred)) - float(scores.mse)
    near = np.asarray(score_moves(stack, order, adjacent, x, pred)) - float(scores.mse)
    predicted = np.asarray(scores.far[2])[swaps[:, 1], swaps[:, 2]]
    return {
        "swaps": rank_correlation(predicted, exact),
        "swaps_sign": float(np.mean(np.sign(predicted) == np.sign(exact))),
        "adjacent": rank_correlation(np.asarray(scores.adjacent), near),
    }


COLUMNS = {"kernel": "<50", "rows": ">7,", "ms": ">9.1f", "GFLOP/s": ">9.1f", "of limit": ">8.0%"}


def line(row: dict[str, Any], head: bool) -> str:
    """One kernel's line of the table."""
    frame = pd.DataFrame([row])
    counted = frame.flop > 0
    rate, share = frame.flop_per_s.where(counted) / 1e9, frame.fraction_of_matmul.where(counted)
    named = {"rows": frame.N, "ms": 1e3 * frame.seconds, "GFLOP/s": rate, "of limit": share}
    return table(frame.assign(**named), COLUMNS, head)


def main() -> int:
    """Exit status 0, or 2 for bad input."""
    parser = console.Parser(description=__doc__)
    parser.add_argument("puzzle", nargs="?", type=Path, help="default: the example")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, metavar="N", help="a pass over the table repeated to N rows, too")
    parser.add_argument("--platform", choices=("cpu", "gpu", "cuda", "rocm", "tpu"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.json is not None:
        ensure_writable(args.json)
    device.configure(args.platform)
    device.ensure_usable()
    puzzle = load(args.puzzle) if args.puzzle else example()
    depth, hidden, width = puzzle.w_in.shape
    limit = matmul_flop_per_s(args.repeats)
    print(f"{machine()['processor']}, {device.describe()}, {device.PRECISION}")
    print(f"L = {depth}, d = {width}, h = {hidden}; square products {limit / 1e9:.0f} GFLOP/s\n")
    rows: list[dict[str, Any]] = []
    for kernel in kernels(puzzle, args.repeats, args.rows):
        rate = kernel.flop / kernel.seconds
        rows.append(
            {
                "kernel": kernel.name,
                "L": depth,
                "d": width,
                "h": hidden,
                "N": kernel.rows,
                "seconds": kernel.seconds,
                "flop": kernel.flop,
                "flop_per_s": rate,
                "fraction_of_matmul": rate / limit,
                "device": device.describe(),
                "precision": device.PRECISION,
            }
        )
        print(line(rows[-1], head=len(rows) == 1), flush=True)
    found = correlations(puzzle)
    print(f"\nfirst order against exact: rank correlation {found['adjacent']:.3f} for neighbours,", end=" ")
    print(f"{found['swaps']:.3f} for all swaps, sign right for {found['swaps_sign']:.0%}")
    write_report(args.json, rows, matmul_flop_per_s=limit, rank_correlation=found)
    return 0


if __name__ == "__main__":
    console.run_command(main)
