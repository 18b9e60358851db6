"""Every number and figure of the report: the analysis applied to one solved puzzle."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp

from dropjax.core.puzzle import Puzzle
from dropjax.core.solution import Solution, plain
from dropjax.make import training
from dropjax.reporting.exhibits.blocks import show_blocks, show_commutators, show_fresh
from dropjax.reporting.exhibits.orders import show_orders
from dropjax.reporting.exhibits.pairing import show_pairing
from dropjax.reporting.exhibits.puzzle import show_puzzle, show_table
from dropjax.reporting.exhibits.report import Report, Solved, Step
from dropjax.search.problem import Problem

__all__ = ["PARTS", "SEARCH_ROWS", "Report", "Step", "measure"]

SEARCH_ROWS = 2000
"""The paper's N_cmp: the number of rows, from the first, that its searches use. Every MSE is over all rows."""

PARTS: Mapping[str, Callable[[Report, Solved, Solution], None]] = {
    "the puzzle": show_puzzle,
    "the table": show_table,
    "pairs of halves": show_pairing,
    "blocks and Jacobians": show_blocks,
    "commutators": show_commutators,
    "seed orders, all swaps, repairs": show_orders,
}


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
        show_fresh(report, solved, fresh)
        report.numbers = plain(report.numbers)
    return report
