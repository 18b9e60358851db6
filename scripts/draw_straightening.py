"""Draw how an order straightens, round by round, as an SVG: draw_straightening.py OUT.svg [PUZZLE]; else of the example."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from dropjax import console
from dropjax.core.puzzle import Puzzle
from dropjax.io.loading import example, load
from dropjax.ordering import straightening
from dropjax.ordering.seeding import portfolio
from dropjax.pairing.portfolio import pair
from dropjax.runtime import device
from dropjax.runtime.writing import atomic_write
from dropjax.search.problem import Problem
from dropjax.search.stages import SEED_ROWS
from dropjax.search.strategies import as_arrangement
from dropjax.search.yardstick import Yardstick

WIDTH, HEIGHT, SIDE, TOP, BOTTOM = 720, 545, 24, 90, 450
"""Size of the picture, and the edges of the box that holds its lines."""

BLUE, VIOLET, ORANGE = (0x1F, 0x77, 0xC8), (0x9A, 0x5F, 0xB8), (0xE0, 0x6C, 0x0A)
"""Colours of the first, the middle and the last blocks, which are seen on white and on black."""

STYLE = """
svg{background:#fff}
text{font:24px system-ui,sans-serif;fill:#1f2328}
path{fill:none;stroke-width:3.5;stroke-linejoin:round}
@media (prefers-color-scheme:dark){svg{background:#0d1117}text{fill:#e6edf3}}
"""


class Column(NamedTuple):
    """An order on the way."""

    order: Int[np.ndarray, " L"]
    """Input halves, from the first block to the last."""
    mse: float


def straightened(puzzle: Puzzle) -> list[Column]:
    """The seed order that `dropjax.solve` takes for the best, and the order after each round of straightening."""
    problem = Problem.of(puzzle.stack("relu"), puzzle.x, puzzle.pred)
    pairs = as_arrangement(pair(problem.stack.w_in, problem.stack.w_out))
    few = problem.first(SEED_ROWS)
    seed = min(portfolio(few.stack, pairs, few.x, few.pred), key=lambda start: start.mse)
    few = problem.first(straightening.rows_to_straighten(len(pairs)))
    tolerance = Yardstick.of(puzzle.pred).tolerance
    at, columns = straightening.start_straightening(seed.arrangement), []
    while at.falling and at.mse > tolerance:
        before, at = at.mse, straightening.straightened(few.stack, few.x, few.pred, at)
        if at.mse < before:
            columns.append(Column(at.arrangement[:, 0], float(at.mse)))
    return columns


def drawing(columns: Sequence[Column]) -> str:
    """A line for each block, from its place in the seed order to its place in the last order."""
    orders = [column.order for column in columns]
    places = np.stack([np.argsort(order) for order in orders])
    depth, step = len(orders[0]), (WIDTH - 2 * SIDE) / (len(columns) - 1)
    across = [SIDE + step * k for k in range(len(columns))]
    down = TOP + (places + 0.5) * (BOTTOM - TOP) / depth
    marks = []
    for place, block in enumerate(orders[-1]):
        ends = [f"M{across[0]:g} {down[0, block]:.1f}"]
        for k in range(1, len(columns)):
            middle, before, after = across[k] - step / 2, down[k - 1, block], down[k, block]
            ends.append(f"C{middle:.1f} {before:.1f} {middle:.1f} {after:.1f} {across[k]:.1f} {after:.1f}")
        marks.append(f'<path d="{"".join(ends)}" stroke="{_colour(place / max(1, depth - 1))}"/>')
    for k, x in enumerate(across):
        marks.append(_text(x, TOP - 16, str(k), "middle"))
        marks.append(_text(x, BOTTOM + 34, str(int((orders[k] == orders[-1]).sum())), "middle"))
    marks.append(_text(SIDE / 2, TOP - 54, "seed order (0), and the order after each round"))
    marks.append(_text(SIDE / 2, BOTTOM + 76, f"blocks in their final place, of {depth}"))
    ends = [f"{column.mse:.2g}" for column in (columns[0], columns[-1])]
    marks.append(_text(WIDTH - SIDE / 2, BOTTOM + 76, f"MSE {ends[0]} → {ends[1]}", "end"))
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}">'
    return "\n".join([svg, f"<style>{STYLE}</style>", *marks, "</svg>\n"])


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:g}" text-anchor="{anchor}">{text}</text>'


def _colour(share: float) -> str:
    ends, part = ((BLUE, VIOLET), 2 * share) if share < 0.5 else ((VIOLET, ORANGE), 2 * share - 1)
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in zip(*ends, strict=True))


def main(argv: list[str] | None = None) -> int:
    """Writes the picture."""
    parser = console.Parser(prog="draw_straightening.py", description=(__doc__ or "").split(":")[0])
    parser.add_argument("out", type=Path, metavar="OUT.svg")
    parser.add_argument("puzzle", type=Path, nargs="?", metavar="PUZZLE", help="default: the example in the package")
    args: argparse.Namespace = parser.parse_args(argv)
    device.configure(None)
    puzzle = example() if args.puzzle is None else load(args.puzzle)
    atomic_write(args.out, lambda temporary: temporary.write_text(drawing(straightened(puzzle)), encoding="utf-8"))
    return 0


if __name__ == "__main__":
    console.run_command(main)
