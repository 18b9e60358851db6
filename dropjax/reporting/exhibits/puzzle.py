"""The puzzle and its table."""

import numpy as np

from dropjax.core.solution import Solution
from dropjax.reporting import analysis, figures
from dropjax.reporting.exhibits.report import Report, Solved


def show_puzzle(report: Report, solved: Solved, solution: Solution) -> None:
    """Sizes, the solution's record, and the paper's Figure 1."""
    puzzle = solved.puzzle
    _, hidden, width = puzzle.w_in.shape
    rows, outputs = puzzle.pred.shape
    sizes = (puzzle.depth, hidden, width, outputs)
    names = ("blocks", "hidden", "width", "outputs")
    record = solution.to_json()
    kept = ("solved", "outcome", "sha256", "mse", "max_abs_error", "noise_floor", "stop_reason", "seed_order", "stages")
    report.numbers |= {
        "puzzle": dict(zip(names, sizes, strict=True)) | {"rows": rows, "activation": solution.stack.activation},
        "solution": {name: record[name] for name in kept} | {"groups_of_ties": len(solution.ties)},
        "made_by": {"versions": record["versions"], "device": record["device"], "precision": record["precision"]}
        | {"search_rows": len(solved.few.x)},
    }
    report.add(
        "architecture",
        "Boxes from left to right: the input, the first block, dots, the last block, the last layer, the output; an arrow "
        "past each block stands for the identity that it is added to.",
        figures.architecture,
        *sizes,
        solution.stack.activation,
    )


def show_table(report: Report, solved: Solved, _: Solution) -> None:
    """The table's features, and how pred relates to them (paper, Fig. 2)."""
    puzzle = solved.puzzle
    table = analysis.describe_table(puzzle.x, puzzle.pred)
    d = len(table.mean)
    off = np.abs(table.correlation[np.triu_indices(d, 1)])
    explained = None if puzzle.true is None else 1 - np.mean((puzzle.pred - puzzle.true) ** 2) / np.var(puzzle.true)
    report.numbers["table"] = {
        "smallest": table.smallest,
        "largest": table.largest,
        "mean_min": table.mean.min(),
        "mean_max": table.mean.max(),
        "deviation_min": table.deviation.min(),
        "deviation_max": table.deviation.max(),
        "near_one": table.near_one.mean(),
        "near_one_min": table.near_one.min(),
        "near_one_max": table.near_one.max(),
        "kurtosis_median": np.median(table.kurtosis),
        "right_skewed": int(np.sum(table.skewness > 0)),
        "distinct_min": table.distinct.min(),
        "correlation_median": np.median(off) if off.size else 0.0,
        "correlation_max": off.max(initial=0),
        "effective_rank": table.effective_rank,
        "first_component": table.spectrum[0],
        "next_row_max": np.abs(table.next_row).max(),
        "next_row_noise": len(puzzle.x) ** -0.5,
        "linear": table.linear.min(),
        "pred_explains_true": explained,
        "skewness": table.skewness,
        "kurtosis": table.kurtosis,
    }
    report.add(
        "table",
        "Left: one curve for each feature, its values from smallest to largest. Right: the same of pred and true.",
        figures.table_overview,
        *(puzzle.x, puzzle.pred, puzzle.true),
    )
    report.add(
        "table_character",
        "Left: matrix of correlations between features. Middle: cumulative share of variance by number of principal "
        "components. Right: skewness against excess kurtosis, a dot for each feature.",
        figures.table_character,
        table,
    )
