"""Halves and their pairs, compared with theory."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from dropjax.core.solution import Solution
from dropjax.pairing.ratio import diagonal_dominance, match
from dropjax.reporting import analysis, figures
from dropjax.reporting.exhibits.report import Report, Solved


def show_pairing(report: Report, solved: Solved, _: Solution) -> None:
    """d of all pairs, the products of right ones and of wrong ones (paper, Figs. 3 to 5), and Appendix B.3's predictions."""
    puzzle, arrangement = solved.puzzle, solved.arrangement
    score, trace = diagonal_dominance(puzzle.w_in, puzzle.w_out)
    right = right_mask(arrangement)
    wrong = analysis.wrong_pairs(puzzle.w_in, puzzle.w_out, right, score, trace)
    products = analysis.products(solved.stack)
    split, width = analysis.right_pairs(products), products.shape[-1]
    report.numbers["pairing"] = _pairing_numbers(score, trace, arrangement, split)
    report.numbers["theory"] = _theory_numbers(score, arrangement, split, wrong, width)
    _draw_pairs(report, solved, score, products)
    report.add(
        "pairing_theory",
        "Left: d of right pairs against the relative size of the rest, on the curve of Eq. 18. Middle: histogram of "
        "standardised traces of wrong pairs under the normal density. Right: their d under its predicted density. Of one "
        "block the left one alone.",
        figures.pairing_theory,
        *(split, wrong, width, score[~right]),
    )


def _pairing_numbers(
    score: Float[np.ndarray, "L L"],
    trace: Float[np.ndarray, "L L"],
    arrangement: Int[np.ndarray, "L 2"],
    split: analysis.RightPairs,
) -> dict[str, Any]:
    right = right_mask(arrangement)
    matched = match("ddr", score)
    partner = np.argmax(right, axis=1)
    return {
        "correct_min": score[right].min(),
        "correct_max": score[right].max(),
        "incorrect_min": score[~right].min(initial=np.inf),
        "incorrect_max": score[~right].max(initial=0),
        "trace_min": trace[right].min(),
        "trace_max": trace[right].max(),
        "greedy_equals_hungarian": matched.greedy_equals_hungarian,
        "found": int(np.sum(matched.partner == partner)),
        "wrong_pairs": int(np.sum(~right)),
        "negative_traces": int(np.sum(trace[right] < 0)),
        "by_position": [
            {"position": k + 1, "d": d, "trace": t, "epsilon": e, "rest": r}
            for k, (d, t, e, r) in enumerate(
                zip(score[tuple(arrangement.T)], trace[tuple(arrangement.T)], split.epsilon, split.rest_norm, strict=True)
            )
        ],
    }


def _theory_numbers(
    score: Float[np.ndarray, "L L"],
    arrangement: Int[np.ndarray, "L 2"],
    split: analysis.RightPairs,
    wrong: analysis.WrongPairs,
    width: int,
) -> dict[str, Any]:
    right = right_mask(arrangement)
    return {
        "bound": width**0.5,
        "epsilon_min": split.epsilon.min(),
        "epsilon_max": split.epsilon.max(),
        "rest_share_min": (split.rest_norm / (split.epsilon * width**0.5)).min(),
        "rest_share_max": (split.rest_norm / (split.epsilon * width**0.5)).max(),
        "eq_18_error": np.abs(split.predicted - score[tuple(arrangement.T)]).max(),
        "trace_deviation": wrong.trace_deviation,
        "predicted_deviation": wrong.predicted_deviation,
        "standardised_mean": wrong.standardised.mean() if wrong.standardised.size else None,
        "standardised_deviation": wrong.standardised.std() if wrong.standardised.size else None,
        "ratio": wrong.ratio,
        "predicted_ratio": wrong.predicted_ratio,
        "wrong_d_median": np.median(score[~right]) if wrong.standardised.size else None,
        "wrong_d_median_predicted": stats.norm.ppf(0.75) * wrong.predicted_ratio,
    }


def _draw_pairs(
    report: Report, solved: Solved, score: Float[np.ndarray, "L L"], products: Float[np.ndarray, "L d d"]
) -> None:
    right = right_mask(solved.arrangement)
    depth, partner = len(right), np.argmax(right, axis=1)
    report.add(
        "pairing_matrices",
        "Two matrices on one colour scale, input halves down and output halves across.",
        figures.pairing_matrices,
        *(score, partner),
    )
    report.add(
        "pairing_histogram",
        "Histogram of d on a logarithmic count axis, right pairs in red, wrong ones in grey.",
        figures.pairing_histogram,
        *(score, right),
    )
    some = np.unique(np.linspace(0, depth - 1, 4).round().astype(int))
    others = np.roll(some, 1)
    crossed = np.asarray(solved.stack.w_out)[others] @ np.asarray(solved.stack.w_in)[some]
    report.add(
        "product_examples",
        "Matrices W_out·W_in of right pairs, and of wrong ones below where there are any, on one scale; blue is negative.",
        figures.product_examples,
        *(products[some], crossed if len(some) > 1 else crossed[:0]),
    )
    report.add(
        "products",
        "A small matrix for each block, with its position and its trace, on one colour scale, blue is negative.",
        figures.all_products,
        *(products, "by position in the stack"),
    )


def right_mask(arrangement: Int[np.ndarray, "L 2"]) -> Bool[np.ndarray, "L L"]:
    """Whether input half i (row) and output half j (column) are in one block."""
    right = np.zeros((len(arrangement), len(arrangement)), bool)
    right[arrangement[:, 0], arrangement[:, 1]] = True
    return right
