"""Bradley-Terry on dense soft wins: ours, choix's ILSR and evalica's Newman iteration, all to the same residual.

Each solver gets the loosest power of ten for a tolerance with which no item's wins differ from those its strengths predict
by more than `--residual`, and is then timed with that. Ours is compiled before, the others' input prepared before.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import choix
import evalica
import numpy as np
import pandas as pd
from measuring import table, write_report
from scipy.special import expit

from dropjax.ordering import bradley_terry

LIMIT = 100_000
"""The most iterations of each solver."""


class Result(NamedTuple):
    """The result of one run of a solver."""

    log_strengths: np.ndarray
    iterations: int | None
    """The number of iterations; None if the solver does not report it."""


Solver = Callable[[float], Result]
"""A function of a tolerance that returns a result."""


COLUMNS = {
    **{"solver": "<24", "seconds": ">9.4f", "iterations": ">10.0f", "tolerance": ">9.0e"},
    **{"residual": ">8.1e", "from Newton": ">11.1e"},
}


def main() -> None:
    """Measure, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1000, help="items (default %(default)s)")
    parser.add_argument("--spread", type=float, default=3.0, help="standard deviation of the planted log strengths")
    parser.add_argument("--noise", type=float, default=3.0, help="standard deviation of the noise in each gap")
    parser.add_argument("--residual", type=float, default=1e-8, help="to be reached, in wins (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--random-seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()

    log_wins = soft_wins(args.n, args.spread, args.noise, args.random_seed)
    rows = pd.DataFrame(measure(log_wins, args.residual, args.repeats))
    print(f"{args.n} items, dense soft wins, residual at most {args.residual:g}, median of {args.repeats}")
    print(table(rows.rename(columns={"difference": "from Newton"}), COLUMNS))
    given = {name: value for name, value in vars(args).items() if name != "json"}
    others = {name: version(name) for name in ("choix", "evalica")}
    write_report(args.json, rows, arguments=given, others=others)


def soft_wins(n: int, spread: float, noise: float, seed: int) -> np.ndarray:
    """Logarithms of soft wins at temperature 1, from planted strengths and noisy gaps."""
    rng = np.random.default_rng(seed)
    strengths = spread * rng.normal(size=n)
    errors = noise * np.triu(rng.normal(size=(n, n)), 1)
    return bradley_terry.log_soft_wins(strengths[:, None] - strengths + errors - errors.T, temperature=1)


def measure(log_wins: np.ndarray, residual: float, repeats: int) -> Iterator[dict]:
    """One row for each solver; Newton's comes first and is what the others' strengths are compared with."""
    wins = np.exp(log_wins)
    newton = None
    for name, solver in solvers(log_wins, wins).items():
        tolerance, result = loosest(solver, wins, residual)
        newton = result.log_strengths if newton is None else newton
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            solver(tolerance)
            seconds.append(time.perf_counter() - start)
        yield {
            "solver": name,
            "n": len(wins),
            "seconds": statistics.median(seconds),
            "iterations": result.iterations,
            "tolerance": tolerance,
            "residual": largest_residual(wins, result.log_strengths),
            "difference": float(np.abs(result.log_strengths - newton).max()),
        }


def loosest(solver: Solver, wins: np.ndarray, residual: float) -> tuple[float, Result]:
    """The largest power of ten that reaches the residual, and its result."""
    for exponent in range(-1, -16, -1):
        result = solver(10.0**exponent)
        if largest_residual(wins, result.log_strengths) <= residual:
            return 10.0**exponent, result
    raise SystemExit(f"no tolerance brings the residual down to {residual:g}")


def largest_residual(wins: np.ndarray, log_strengths: np.ndarray) -> float:
    """The largest difference, over the items, between the wins and the wins that the strengths predict."""
    expected = (wins + wins.T) * expit(log_strengths[:, None] - log_strengths)
    np.fill_diagonal(expected, 0)
    return float(np.abs(wins.sum(axis=1) - expected.sum(axis=1)).max())


def solvers(log_wins: np.ndarray, wins: np.ndarray) -> dict[str, Solver]:
    """The four solvers, and evalica's compiled kernel without its indexing of a million comparisons."""
    xs, ys = (index.tolist() for index in np.nonzero(wins))
    first = [evalica.Winner.X] * len(xs)
    weights = wins[xs, ys].tolist()

    def ours(solver) -> Solver:
        def run(tolerance: float) -> Result:
            fitted = bradley_terry.fit(log_wins, solver, tolerance, LIMIT)
            return Result(fitted.log_strengths, fitted.iterations)

        return run

    def ilsr(tolerance: float) -> Result:
        return Result(centred(choix.ilsr_pairwise_dense(wins, max_iter=LIMIT, tol=tolerance)), None)

    def public(tolerance: float) -> Result:
        fitted = evalica.bradley_terry(xs, ys, first, weights=weights, tolerance=tolerance, limit=LIMIT)
        return Result(centred(np.log(fitted.scores.sort_index().to_numpy())), fitted.iterations)

    xs_indexed, ys_indexed, _ = evalica.indexing(xs, ys)
    items = list(dict.fromkeys(index for pair in zip(xs, ys, strict=True) for index in pair))

    def kernel(tolerance: float) -> Result:
        scores, iterations = evalica._brzo.bradley_terry(  # pyright: ignore[reportAttributeAccessIssue]
            xs=xs_indexed,
            ys=ys_indexed,
            winners=first,
            weights=weights,
            total=len(wins),
            win_weight=1.0,
            tie_weight=0.5,
            tolerance=tolerance,
            limit=LIMIT,
        )
        return Result(centred(np.log(scores)[np.argsort(items)]), iterations)

    return {
        "dropjax newton": ours("newton"),
        "dropjax mm": ours("mm"),
        "choix ilsr": ilsr,
        "evalica": public,
        "evalica, kernel alone": kernel,
    }


def centred(values: np.ndarray) -> np.ndarray:
    """The values minus their mean."""
    return values - values.mean()


if __name__ == "__main__":
    main()
