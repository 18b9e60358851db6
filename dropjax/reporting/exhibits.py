"""Every number and figure of the report: the analysis applied to one solved puzzle."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from dropjax.core.puzzle import Puzzle
from dropjax.core.solution import Solution, plain
from dropjax.core.stack import Stack
from dropjax.make import training
from dropjax.ordering import bradley_terry, seeding
from dropjax.pairing.ratio import diagonal_dominance, match
from dropjax.reporting import analysis, figures
from dropjax.search.problem import Problem
from dropjax.search.strategies import swap_gaps

SEARCH_ROWS = 2000
"""The paper's N_cmp: its searches look at the table's first rows; every MSE is over all of them."""

TEMPERATURE = 1e-3
"""T of the paper's Eq. 8."""

COMMUTATOR_ROWS = 256

Step = Callable[[str], object]
"""Told what begins."""

PAPERS = {"delta_norm": "delta-norm", "w_out_norm": "‖W_out‖_F"}
"""The paper's two seed orders, both ascending."""


class Drawing(NamedTuple):
    """A figure to be drawn: its file's name, what its axes show, and how to draw it, wide or narrow."""

    name: str
    description: str
    draw: Callable[..., Any]


@dataclass
class Report:
    """All that the page shows."""

    numbers: dict[str, Any] = field(default_factory=dict)
    drawings: list[Drawing] = field(default_factory=list)

    def add(self, name: str, description: str, draw: Callable[..., Any], *args: Any) -> None:
        """One more figure, to be drawn later."""
        self.drawings.append(Drawing(name, description, partial(draw, *args)))


class Solved(NamedTuple):
    """The solved puzzle as every part of the report looks at it."""

    puzzle: Puzzle
    problem: Problem
    """Halves as numbered, all rows."""
    few: Problem
    """The rows that searches decide on."""
    arrangement: Int[np.ndarray, "L 2"]
    stack: Stack
    """In order."""


def measure(
    puzzle: Puzzle,
    solution: Solution,
    fresh: training.Recipe | None,
    step: Step,
    so_far: Callable[[Report], object] = lambda report: None,
) -> Report:
    """Every number and figure, for the order that `solution` found; `so_far` is given the report after each of its parts."""
    arrangement = puzzle.arrangement(solution.permutation)
    stack = puzzle.stack(solution.stack.activation)
    problem = Problem.of(stack, puzzle.x, puzzle.pred)
    solved = Solved(
        puzzle, problem, problem.first(SEARCH_ROWS), arrangement, problem.stack.arranged(jnp.asarray(arrangement))
    )
    report = Report()
    for name, part in PARTS.items():
        step(name)
        part(report, solved, solution)
        report.numbers = plain(report.numbers)
        so_far(report)
    if fresh is not None:
        step("training a stack afresh")
        _fresh(report, solved, fresh)
        report.numbers = plain(report.numbers)
    return report


# Parts


def _puzzle(report: Report, solved: Solved, solution: Solution) -> None:
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


def _table(report: Report, solved: Solved, _: Solution) -> None:
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


def _pairing(report: Report, solved: Solved, _: Solution) -> None:
    puzzle, arrangement = solved.puzzle, solved.arrangement
    score, trace = diagonal_dominance(puzzle.w_in, puzzle.w_out)
    right = right_mask(arrangement)
    matched = match("ddr", score)
    partner = np.argmax(right, axis=1)
    wrong = analysis.wrong_pairs(puzzle.w_in, puzzle.w_out, right, score, trace)
    products = analysis.products(solved.stack)
    split = analysis.right_pairs(products)
    width = products.shape[-1]
    report.numbers["pairing"] = {
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
    report.numbers["theory"] = {
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
    some = np.unique(np.linspace(0, puzzle.depth - 1, 4).round().astype(int))
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
    report.add(
        "pairing_theory",
        "Left: d of right pairs against the relative size of the rest, on the curve of Eq. 18. Middle: histogram of "
        "standardised traces of wrong pairs under the normal density. Right: their d under its predicted density. Of one "
        "block the left one alone.",
        figures.pairing_theory,
        *(split, wrong, width, score[~right]),
    )


def right_mask(arrangement: Int[np.ndarray, "L 2"]) -> Bool[np.ndarray, "L L"]:
    """Which input half (row) and output half (column) stand in one block."""
    right = np.zeros((len(arrangement), len(arrangement)), bool)
    right[arrangement[:, 0], arrangement[:, 1]] = True
    return right


def _blocks(report: Report, solved: Solved, _: Solution) -> None:
    blocks = jax.tree.map(np.asarray, analysis.measure_blocks(solved.stack, solved.problem.x))
    depth, width = blocks.singular_values.shape
    rank = analysis.effective_rank(blocks.singular_values)
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
    report.numbers["proposition_1"] = {
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
        "delta_norm_correlation": analysis.rank_correlation(np.arange(depth), blocks.delta_norm),
        "residual_norm_correlation": analysis.rank_correlation(np.arange(depth), blocks.residual_norm),
        "rank_min": rank.min(),
        "rank_max": rank.max(),
    }
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


def _commutators(report: Report, solved: Solved, _: Solution) -> None:
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


def _order(report: Report, solved: Solved, _: Solution) -> None:
    if solved.stack.depth == 1:
        return
    problem, few, arrangement = solved.problem, solved.few, solved.arrangement
    pairs = arrangement[np.argsort(arrangement[:, 0])]
    places = partial(analysis.places_in, solved=arrangement)
    seeds = {name: seeding.seed_order(name, "ascending", few.stack, pairs, few.x) for name in PAPERS}

    league = [
        {"seed": name.replace("_", " "), "mse": mse, **analysis.disorder(places(order))._asdict()}
        for name, order, mse in seeding.portfolio(few.stack, pairs, few.x, few.pred)
    ]
    report.numbers["league"] = sorted(league, key=lambda row: row["mse"])

    gaps = swap_gaps(few, seeds["delta_norm"])
    assert gaps is not None, "nothing stops it here"
    seed_places = places(seeds["delta_norm"])
    wins = bradley_terry.log_soft_wins(gaps, TEMPERATURE)
    fitted, newton = bradley_terry.fit(wins, "mm"), bradley_terry.fit(wins, "newton")
    transitivity = bradley_terry.transitivity(gaps, seed_places)
    ranked = seeds["delta_norm"][bradley_terry.order(fitted)]
    spans = np.zeros(0, int) if transitivity.spans is None else transitivity.spans

    starts = {"table1": ranked, "table2": seeds["delta_norm"], "table3": seeds["w_out_norm"]}
    names = {"table1": "Bradley–Terry", "table2": PAPERS["delta_norm"], "table3": PAPERS["w_out_norm"]}
    routes = {table: analysis.repair_route(problem, few, start) for table, start in starts.items()}
    decided = {table: analysis.decisions([places(a) for a in route.arrangements]) for table, route in routes.items()}
    report.numbers |= {
        "seeds": {"delta_norm": routes["table2"].table[0][2], "w_out_norm": routes["table3"].table[0][2]},
        "bradley_terry": {
            "mse": routes["table1"].table[0][2],
            "violating_triples": transitivity.violating_triples,
            "three_cycles": transitivity.three_cycles,
            "median_margin_cycles": transitivity.median_margin_cycles,
            "median_margin_all": transitivity.median_margin_all,
            "cycle_span_max": int(spans.max(initial=0)),
            "iterations": fitted.iterations,
            "converged": fitted.converged,
            "strength_span": np.ptp(fitted.log_strengths),
            "newton_iterations": newton.iterations,
            "newton_converged": newton.converged,
            "orders_agree": bool(np.array_equal(bradley_terry.order(fitted), bradley_terry.order(newton))),
            "pairs": len(gaps) * (len(gaps) - 1) // 2,
            "agree_with_answer": _agreement(gaps, seed_places),
            "cycles": [
                {"places": np.sort(seed_places[cycle]) + 1, "margin": margin, "span": span}
                for cycle, margin, span in zip(transitivity.members, transitivity.margins, spans, strict=True)
            ],
        },
        **{table: route.table for table, route in routes.items()},
        "cost": {
            "bradley_terry_and_repair": len(gaps) * (len(gaps) - 1) // 2 + routes["table1"].evaluations,
            "delta_norm_repair": routes["table2"].evaluations,
            "w_out_norm_repair": routes["table3"].evaluations,
            "rows": len(few.x),
        },
        "sweeps": [
            {"start": names[table], **_sweeps(few, route, decided[table], places)} for table, route in routes.items()
        ],
    }
    stages = [
        (names["table2"], seed_places, routes["table2"].table[0][2]),
        ("Bradley–Terry", places(ranked), routes["table1"].table[0][2]),
        ("repaired", places(routes["table1"].arrangements[-1]), routes["table1"].table[-1][2]),
    ]
    report.add(
        "seed_orders",
        "A row for each seed order: rank correlation with the answer, and initial MSE on a logarithmic axis.",
        figures.seed_league,
        league,
    )
    report.add(
        "cycles",
        "Left: each three-cycle as three dots at the right positions of its blocks, joined by arrows. Right: histogram of "
        "the preferences' strength, all pairs in grey, the weakest of each cycle in red.",
        figures.preference_cycles,
        *(transitivity.members, seed_places, transitivity.margins, gaps),
    )
    report.add(
        "progression",
        "Three bar charts of the blocks' right positions in the order of the seed, after ranking, and after repair.",
        figures.progression,
        stages,
    )
    report.add(
        "repairs",
        "Left: MSE by round of repair from each start. Middle: how many later blocks stand left of each block. Right: "
        "exchanges kept, those that put two blocks the wrong way round hatched.",
        figures.repairs,
        {names[table]: route.table for table, route in routes.items()},
        {names[table]: places(start) for table, start in starts.items()},
        {names[table]: decided[table].kept for table in starts},
    )


def _agreement(gaps: Float[np.ndarray, "L L"], places: Int[np.ndarray, " L"]) -> float:
    """Share of the preferences that put two blocks the right way round."""
    upper = np.triu_indices(len(gaps), 1)
    return float(np.mean((gaps > 0)[upper] == (places[:, None] < places)[upper]))


def _sweeps(
    few: Problem,
    route: analysis.Route,
    decided: analysis.Decisions,
    places: Callable[[Int[np.ndarray, "L 2"]], Int[np.ndarray, " L"]],
) -> dict[str, Any]:
    start = analysis.disorder(places(route.arrangements[0]))
    both = analysis.repair_both_ways(few, route.arrangements[0])
    wrong = [exchange for exchange in decided.kept if not exchange.sorts]
    return {
        "mse": route.table[0][2],
        "inversions": start.inversions,
        "largest_displacement": start.largest_displacement,
        "predicted_rounds": start.rounds,
        "rounds": len(route.table) - 1,
        "swaps": len(decided.kept),
        "wrong_exchanges": len(wrong),
        "missed_exchanges": len(decided.missed),
        "wrong_in_round_1": sum(exchange.round == 1 for exchange in wrong),
        "wrong_distance_median": float(np.median([e.right - e.left for e in wrong])) if wrong else None,
        "inversions_left": analysis.disorder(places(route.arrangements[-1])).inversions,
        "mse_left": route.table[-1][2],
        "both_ways_sweeps": len(both.swaps),
        "both_ways_swaps": sum(both.swaps),
        "both_ways_inversions_left": analysis.disorder(places(both.arrangement)).inversions,
    }


PARTS: Mapping[str, Callable[[Report, Solved, Solution], None]] = {
    "the puzzle": _puzzle,
    "the table": _table,
    "pairs of halves": _pairing,
    "blocks and Jacobians": _blocks,
    "commutators": _commutators,
    "seed orders, all swaps, repairs": _order,
}


def _fresh(report: Report, solved: Solved, recipe: training.Recipe) -> None:
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
