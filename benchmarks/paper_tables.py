"""Every number of the paper's Sections 3 to 5 beside ours: paper_tables.py PUZZLE [--json FILE]."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from measuring import table

from dropjax import console
from dropjax.io.loading import load
from dropjax.moves.exact import score_arrangements
from dropjax.ordering import bradley_terry, seeding
from dropjax.ordering.bubble import Repaired, bubble_repair
from dropjax.pairing.ratio import diagonal_dominance, match
from dropjax.runtime import device
from dropjax.runtime.writing import atomic_write, ensure_writable
from dropjax.search.problem import Problem
from dropjax.search.stages import swap_gaps

SEARCH_ROWS = 2000
"""The paper's N_cmp: searches and delta-norm look at the table's first rows; every MSE reported is over all of them."""

TEMPERATURE = 1e-3

PAPER: dict[str, Any] = {
    "pairing": {
        "correct_min": 1.76,
        "correct_max": 3.28,
        "incorrect_min": 0.00,
        "incorrect_max": 0.58,
        "trace_min": -13.5,
        "trace_max": -7.4,
        "greedy_equals_hungarian": True,
    },
    "seeds": {"delta_norm": 0.036794, "w_out_norm": 0.075851},
    "bradley_terry": {
        "mse": 0.00299,
        "violating_triples": 66,
        "three_cycles": 22,
        "median_margin_cycles": 1.8e-4,
        "median_margin_all": 0.041,
        "cycle_span_max": 14,
        "iterations": 280,
    },
    "table1": [(0, 0, 0.002989), (1, 21, 0.001025), (2, 7, 0.000553), (3, 5, 0.000200), (4, 3, 0.000052), (5, 1, 0.0)],
    "table2": [
        *[(0, 0, 0.036794), (1, 23, 0.021690), (2, 20, 0.012919), (3, 21, 0.008559), (4, 15, 0.005873)],
        *[(5, 11, 0.004097), (6, 9, 0.002745), (7, 12, 0.001012), (8, 5, 0.000380), (9, 2, 0.000247)],
        *[(10, 1, 0.000182), (11, 1, 0.000118), (12, 1, 0.000052), (13, 1, 0.0)],
    ],
    "table3": [
        *[(0, 0, 0.075851), (1, 30, 0.005936), (2, 16, 0.003397), (3, 12, 0.001405), (4, 9, 0.000568)],
        *[(5, 4, 0.000223), (6, 1, 0.0)],
    ],
}
"""The paper's numbers as printed; tables as (round, swaps, MSE). It gives a cycle's span as below 15."""


class Route(NamedTuple):
    """A repair from one start: the table the paper prints for it, and what it cost."""

    table: list[tuple[int, int, float, int]]
    """(round, swaps, MSE over all rows, swaps so far); round 0 is the start."""
    evaluations: int
    """Candidate orders scored on the search rows, a forward pass each for the paper."""


def tabulate(problem: Problem, start: Int[np.ndarray, "L 2"], repaired: Repaired) -> Route:
    """The repair's rounds with their MSE over all rows; a last round without a swap is not a row of the paper's."""
    rounds = [(0, start), *((swaps, order) for swaps, order in repaired.history if swaps)]
    orders = jnp.asarray(np.stack([order for _, order in rounds]))
    mse = np.asarray(score_arrangements(problem.stack, orders, problem.x, problem.pred))
    total = np.cumsum([swaps for swaps, _ in rounds])
    table = [(k, swaps, float(mse[k]), int(total[k])) for k, (swaps, _) in enumerate(rounds)]
    return Route(table, repaired.evaluations)


def ranking(gaps: Float[np.ndarray, "L L"], places: Int[np.ndarray, " L"]) -> tuple[dict[str, Any], Int[np.ndarray, " L"]]:
    """The numbers of the paper's Section 4.3, and the order by strength."""
    wins = bradley_terry.log_soft_wins(gaps, TEMPERATURE)
    fitted, newton = bradley_terry.fit(wins, "mm"), bradley_terry.fit(wins, "newton")
    transitivity = bradley_terry.transitivity(gaps, places)
    return {
        "violating_triples": transitivity.violating_triples,
        "three_cycles": transitivity.three_cycles,
        "median_margin_cycles": transitivity.median_margin_cycles,
        "median_margin_all": transitivity.median_margin_all,
        "cycle_span_max": int(np.max(transitivity.spans, initial=0)) if transitivity.spans is not None else None,
        "iterations": fitted.iterations,
        "converged": fitted.converged,
        "strength_span": float(np.ptp(fitted.log_strengths)),
        "newton_iterations": newton.iterations,
        "newton_converged": newton.converged,
        "orders_agree": bool(np.array_equal(bradley_terry.order(fitted), bradley_terry.order(newton))),
    }, bradley_terry.order(fitted)


def measure(path: Path) -> dict[str, Any]:
    """All of it, for the puzzle at `path`."""
    puzzle = load(path)
    problem = Problem.of(puzzle.stack(), puzzle.x, puzzle.pred)
    few = problem.first(SEARCH_ROWS)
    score, trace = diagonal_dominance(puzzle.w_in, puzzle.w_out)
    paired = match("ddr", score)
    right = np.zeros_like(score, bool)
    right[np.arange(puzzle.depth), paired.partner] = True
    pairs = np.stack([np.arange(puzzle.depth), paired.partner], axis=1).astype(np.int32)

    def repair(start: Int[np.ndarray, "L 2"]) -> tuple[Route, Int[np.ndarray, "L 2"]]:
        repaired = bubble_repair(few.stack, start, few.x, few.pred)
        return tabulate(problem, start, repaired), repaired.arrangement

    seeds = {name: seeding.seed_order(name, "ascending", few.stack, pairs, few.x) for name in ("delta_norm", "w_out_norm")}
    (table2, solved), (table3, _) = repair(seeds["delta_norm"]), repair(seeds["w_out_norm"])
    gaps = swap_gaps(few, seeds["delta_norm"])
    assert gaps is not None, "nothing stops it here"
    # Where each block of the seed order stands in the solved one.
    place_of = {int(block): place for place, block in enumerate(solved[:, 0])}
    places = np.array([place_of[int(block)] for block in seeds["delta_norm"][:, 0]])
    numbers, order = ranking(gaps, places)
    table1, _ = repair(seeds["delta_norm"][order])
    swaps = puzzle.depth * (puzzle.depth - 1) // 2
    return {
        "pairing": {
            "correct_min": float(score[right].min()),
            "correct_max": float(score[right].max()),
            "incorrect_min": float(score[~right].min()),
            "incorrect_max": float(score[~right].max()),
            "trace_min": float(trace[right].min()),
            "trace_max": float(trace[right].max()),
            "greedy_equals_hungarian": paired.greedy_equals_hungarian,
        },
        "seeds": {"delta_norm": table2.table[0][2], "w_out_norm": table3.table[0][2]},
        "bradley_terry": {"mse": table1.table[0][2], **numbers},
        "table1": table1.table,
        "table2": table2.table,
        "table3": table3.table,
        "cost": {
            "unit": f"forward passes over {len(few.x)} rows",
            "bradley_terry_and_repair": swaps + table1.evaluations,
            "delta_norm_repair": table2.evaluations,
            "w_out_norm_repair": table3.evaluations,
        },
    }


def show(ours: dict[str, Any]) -> None:
    """Prints the paper's numbers beside ours."""
    for section in ("pairing", "seeds", "bradley_terry"):
        mine = {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in ours[section].items()}
        theirs = [None if name not in PAPER[section] else str(PAPER[section][name]) for name in mine]
        frame = pd.DataFrame({section: list(mine), "paper": theirs, "dropjax": list(mine.values())})
        print("\n" + table(frame, {section: "<24", "paper": ">12", "dropjax": ">14"}))
    for name in ("table1", "table2", "table3"):
        theirs = pd.DataFrame(PAPER[name], columns=["round", "paper: swaps", "paper: MSE"])
        mine = pd.DataFrame(ours[name], columns=["round", "dropjax: swaps", "dropjax: MSE", "so far"])
        form = {"round": ">6", "paper: swaps": ">12.0f", "paper: MSE": ">10.6f"}
        form |= {"dropjax: swaps": ">14.0f", "dropjax: MSE": ">12.6f", "so far": ">6.0f"}
        print(f"\n{name}\n" + table(theirs.merge(mine, on="round", how="outer"), form))
    cost = ours["cost"]
    print(f"\ncost in {cost['unit']}: " + ", ".join(f"{k} {v:,}" for k, v in cost.items() if k != "unit"))


def main() -> int:
    """Exit status 0, or 2 for bad input."""
    parser = console.Parser(description=__doc__)
    parser.add_argument("puzzle", type=Path, help="the real puzzle: its folder or a converted file")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.json is not None:
        ensure_writable(args.json)
    device.configure()
    ours = measure(args.puzzle)
    show(ours)
    if args.json is not None:
        atomic_write(args.json, lambda path: path.write_text(json.dumps(ours, indent=1)))
    return 0


if __name__ == "__main__":
    console.run_command(main)
