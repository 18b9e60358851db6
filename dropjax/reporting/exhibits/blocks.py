"""Blocks at work, their commutators, and a stack trained afresh."""

from typing import Any

import jax
import numpy as np

from dropjax.core.solution import Solution
from dropjax.make import training
from dropjax.reporting import analysis, figures
from dropjax.reporting.exhibits.report import Report, Solved

COMMUTATOR_ROWS = 256


def show_blocks(report: Report, solved: Solved, _: Solution) -> None:
    """The sizes, activations and Jacobians of each block, and the predictions of Proposition 1 (paper, Figs. 8 and 9)."""
    blocks = jax.tree.map(np.asarray, analysis.measure_blocks(solved.stack, solved.problem.x))
    report.numbers["proposition_1"] = _block_numbers(blocks)
    report.add(
        "activation",
        "A bar for each block's mean share of active rows, with the range of its units, and a dashed line at one half.",
        figures.activation_fractions,
        blocks.activation,
    )
    report.add(
        "block_properties",
        "Four panels by position: singular value spectra coloured from early (purple) to late (yellow), effective rank, "
        "delta-norm, active share.",
        figures.block_properties,
        blocks,
    )
    report.add(
        "proposition_1",
        "By position. Left: trace, twice the mean trace of the Jacobian, minus its mean squared norm. Middle: the sum that "
        "isometry makes zero. Right: distance from isometry.",
        figures.proposition_1,
        blocks,
    )


def _block_numbers(blocks: analysis.Blocks) -> dict[str, Any]:
    depth, width = blocks.singular_values.shape
    rank = analysis.effective_rank(np.asarray(blocks.singular_values))
    sides = {
        "trace": blocks.trace,
        "minus_jacobian_squared": -blocks.jacobian_squared,
        "twice_jacobian_trace": 2 * blocks.jacobian_trace,
        "step": 2 * blocks.jacobian_trace + blocks.jacobian_squared,
        "isometry": blocks.isometry / width**0.5,
        "row_isometry": blocks.row_isometry / width**0.5,
        "activation": blocks.activation.mean(axis=1),
        "delta_norm": blocks.delta_norm,
        "residual_norm": blocks.residual_norm,
        "effective_rank": rank,
    }
    thirds = {"early": slice(0, -(-depth // 3)), "late": slice(depth - -(-depth // 3), depth)}
    return {
        "by_position": [{"position": k + 1, **{name: values[k] for name, values in sides.items()}} for k in range(depth)],
        **{name: {side: np.median(values[part]) for side, values in sides.items()} for name, part in thirds.items()},
        "thirds": [
            {"part": part, **{side: np.median(values[cut]) for side, values in sides.items()}}
            for part, cut in thirds.items()
        ],
        "squared_over_trace_min": (blocks.jacobian_squared / np.abs(blocks.trace)).min(),
        "squared_over_trace_max": (blocks.jacobian_squared / np.abs(blocks.trace)).max(),
        "twice_over_trace_min": (2 * blocks.jacobian_trace / blocks.trace).min(),
        "twice_over_trace_max": (2 * blocks.jacobian_trace / blocks.trace).max(),
        "activation_min": sides["activation"].min(),
        "activation_max": sides["activation"].max(),
        "units_near_half": np.mean(np.abs(blocks.activation - 0.5) <= 0.1),
        "unit_activation_low": np.quantile(blocks.activation, 0.05),
        "unit_activation_high": np.quantile(blocks.activation, 0.95),
        "isometry_min": sides["isometry"].min(),
        "isometry_max": sides["isometry"].max(),
        "contracting": int(np.sum(sides["step"] < 0)),
        "delta_norm_correlation": analysis.rank_correlation(np.arange(depth), np.asarray(blocks.delta_norm)),
        "residual_norm_correlation": analysis.rank_correlation(np.arange(depth), np.asarray(blocks.residual_norm)),
        "rank_min": rank.min(),
        "rank_max": rank.max(),
    }


def show_commutators(report: Report, solved: Solved, _: Solution) -> None:
    """How far every two blocks are from commuting (paper, Section 4.2)."""
    if solved.stack.depth == 1:
        return
    sizes = jax.tree.map(np.asarray, analysis.commutators(solved.stack, solved.problem.x[:COMMUTATOR_ROWS]))
    upper = np.triu_indices(len(sizes.size), 1)
    size, product, change, first = (a[upper] for a in (sizes.size, sizes.product, sizes.change, sizes.first_order))
    depth = len(sizes.size)
    distances = sorted({k for k in (1, 2, 5, 10, 20, 40, depth - 1) if 0 < k < depth})
    report.numbers["commutators"] = {
        "rows": min(COMMUTATOR_ROWS, len(solved.puzzle.x)),
        "share_median": np.median(size / change),
        "over_product_median": np.median(size / product),
        "over_product_low": np.quantile(size / product, 0.05),
        "over_product_high": np.quantile(size / product, 0.95),
        "first_order_median": np.median(first / size),
        "correlation": analysis.rank_correlation(size, product),
        "slope": np.polyfit(np.log(product), np.log(size), 1)[0] if len(size) > 1 else None,
        "by_distance": [
            {
                "distance": k,
                "size": np.median(np.diagonal(sizes.size, k)),
                "product": np.median(np.diagonal(sizes.product, k)),
                "share": np.median(np.diagonal(sizes.size, k) / np.diagonal(sizes.change, k)),
            }
            for k in distances
        ],
    }
    report.add(
        "commutators",
        "Left and middle: median and quartiles of the commutator by distance in depth, absolute and relative. Right: a dot "
        "for each pair, commutator against the product of both residuals' norms, logarithmic.",
        figures.commutator_sizes,
        sizes,
    )


def show_fresh(report: Report, solved: Solved, recipe: training.Recipe) -> None:
    """A stack of the same shape while it is trained (paper, Appendix A)."""
    puzzle = solved.puzzle
    _, hidden, _ = puzzle.w_in.shape
    recipe = training.Recipe(
        **{**vars(recipe), "depth": puzzle.depth, "hidden": hidden, "activation": solved.stack.activation}
    )
    target, true = ("pred", puzzle.pred) if puzzle.true is None else ("true", puzzle.true)
    curves, last = [], solved.stack
    for epoch in training.epochs(recipe, puzzle.x, true):
        last = epoch.stack(0)
        curves.append({"epoch": epoch.number, "loss": float(epoch.loss[0]), **analysis.signals(last, solved.few.x)})
    products = analysis.products(last)
    products = products[np.argsort(np.linalg.norm(products, axis=(1, 2)))]
    traces = np.trace(products, axis1=1, axis2=2)
    report.numbers["fresh"] = {
        "target": target,
        "optimizer": recipe.optimizer,
        "rate": recipe.rate,
        "batch": recipe.batch,
        "epochs": recipe.epochs,
        "curves": curves,
        "loss": curves[-1]["loss"],
        "trace_min": traces.min(),
        "trace_max": traces.max(),
        "negative_traces": int(np.sum(traces < 0)),
        "paired": curves[-1]["paired"],
        "w_out_norm": curves[-1]["w_out_norm"],
        "delta_norm": curves[-1]["delta_norm"],
    }
    report.add(
        "fresh_products",
        "A small matrix for each block of the freshly trained stack, smallest norm first, with its trace.",
        figures.all_products,
        *(products, "smallest norm first"),
    )
    report.add(
        "fresh_curves",
        "By epoch: training loss; shares of blocks with a negative trace and of pairs found; rank correlations of two norms "
        "with depth.",
        figures.training_curves,
        curves,
    )
