"""Seed orders, all swaps and repairs: the paper's route, and its decisions."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dropjax.core.solution import Solution
from dropjax.ordering import bradley_terry, seeding
from dropjax.reporting import analysis, figures
from dropjax.reporting.exhibits.report import Report, Solved
from dropjax.search.problem import Problem
from dropjax.search.stages import swap_gaps

TEMPERATURE = 1e-3
"""T of the paper's Eq. 8."""


PAPERS = {"delta_norm": "delta-norm", "w_out_norm": "‖W_out‖_F"}
"""The paper's two seed orders, both ascending."""


START_NAMES = {"table1": "Bradley–Terry", "table2": PAPERS["delta_norm"], "table3": PAPERS["w_out_norm"]}
"""The start of the repair in each of the paper's tables."""


class Ranked(NamedTuple):
    """The paper's ranking of the blocks, from all swaps in the delta-norm seed order."""

    gaps: Float[np.ndarray, "L L"]
    wins: Float[np.ndarray, "L L"]
    fitted: bradley_terry.Fit
    """The fit by the paper's MM iteration."""
    transitivity: bradley_terry.Transitivity
    order: Int[np.ndarray, " L"]


def show_orders(report: Report, solved: Solved, _: Solution) -> None:
    """Seed orders, the Bradley–Terry ranking, and repairs from each start (paper, Sections 4 and 5, Fig. 6)."""
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
    seed_places = places(seeds["delta_norm"])
    ranked = _rank(few, seeds["delta_norm"], seed_places)
    starts = {"table1": seeds["delta_norm"][ranked.order], "table2": seeds["delta_norm"], "table3": seeds["w_out_norm"]}
    routes = {table: analysis.repair_route(problem, few, start) for table, start in starts.items()}
    on_the_way = {table: [places(a) for a in route.arrangements] for table, route in routes.items()}
    decided = {table: analysis.decisions(of) for table, of in on_the_way.items()}
    comparisons = len(pairs) * (len(pairs) - 1) // 2
    report.numbers |= {
        "league": sorted(league, key=lambda row: row["mse"]),
        "seeds": {"delta_norm": routes["table2"].table[0][2], "w_out_norm": routes["table3"].table[0][2]},
        "bradley_terry": {"mse": routes["table1"].table[0][2], **_ranking_numbers(ranked, seed_places)},
        **{table: route.table for table, route in routes.items()},
        "cost": {
            "bradley_terry_and_repair": comparisons + routes["table1"].evaluations,
            "delta_norm_repair": routes["table2"].evaluations,
            "w_out_norm_repair": routes["table3"].evaluations,
            "rows": len(few.x),
        },
        "sweeps": [
            {"start": START_NAMES[table], **_sweeps(few, route, decided[table], places)} for table, route in routes.items()
        ],
    }
    report.add(
        "seed_orders",
        "A row for each seed order: rank correlation with the answer, and initial MSE on a logarithmic axis.",
        figures.seed_league,
        league,
    )
    _draw_ranking(report, ranked, seed_places)
    _draw_repairs(report, routes, on_the_way, decided)


def _rank(few: Problem, seed: Int[np.ndarray, "L 2"], seed_places: Int[np.ndarray, " L"]) -> Ranked:
    gaps = swap_gaps(few, seed)
    assert gaps is not None, "nothing stops it here"
    wins = bradley_terry.log_soft_wins(gaps, TEMPERATURE)
    fitted = bradley_terry.fit(wins, "mm")
    return Ranked(gaps, wins, fitted, bradley_terry.transitivity(gaps, seed_places), bradley_terry.order(fitted))


def _ranking_numbers(ranked: Ranked, seed_places: Int[np.ndarray, " L"]) -> dict[str, Any]:
    gaps, wins, fitted, transitivity, order = ranked
    newton = bradley_terry.fit(wins, "newton")
    spans = np.zeros(0, int) if transitivity.spans is None else transitivity.spans
    return {
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
        "orders_agree": bool(np.array_equal(order, bradley_terry.order(newton))),
        "pairs": len(gaps) * (len(gaps) - 1) // 2,
        "agree_with_answer": _agreement(gaps, seed_places),
        "cycles": [
            {"places": np.sort(seed_places[cycle]) + 1, "margin": margin, "span": span}
            for cycle, margin, span in zip(transitivity.members, transitivity.margins, spans, strict=True)
        ],
    }


def _draw_ranking(report: Report, ranked: Ranked, seed_places: Int[np.ndarray, " L"]) -> None:
    report.add(
        "cycles",
        "Left: each three-cycle as three dots at the right positions of its blocks, joined by arrows. Right: histogram of "
        "the preferences' strength, all pairs in grey, the weakest of each cycle in red.",
        figures.preference_cycles,
        *(ranked.transitivity.members, seed_places, ranked.transitivity.margins, ranked.gaps),
    )


def _draw_repairs(
    report: Report,
    routes: Mapping[str, analysis.Route],
    places: Mapping[str, Sequence[Int[np.ndarray, " L"]]],
    decided: Mapping[str, analysis.Decisions],
) -> None:
    """The exchanges of each route. `places` are the right places at its start and after each round."""
    report.add(
        "progression",
        "Three bar charts of the blocks' right positions in the order of the seed, after ranking, and after repair.",
        figures.progression,
        [
            (START_NAMES["table2"], places["table2"][0], routes["table2"].table[0][2]),
            (START_NAMES["table1"], places["table1"][0], routes["table1"].table[0][2]),
            ("repaired", places["table1"][-1], routes["table1"].table[-1][2]),
        ],
    )
    report.add(
        "repairs",
        "Left: MSE by round of repair from each start. Middle: how many later blocks stand left of each block. Right: "
        "exchanges kept, those that put two blocks the wrong way round hatched.",
        figures.repairs,
        {START_NAMES[table]: route.table for table, route in routes.items()},
        {START_NAMES[table]: of[0] for table, of in places.items()},
        {START_NAMES[table]: of.kept for table, of in decided.items()},
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
