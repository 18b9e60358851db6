"""dropjax puts the dropped layers of a residual network back in order.

`load` a puzzle, `solve` it (or `solve_many`), look at the `Solution`; `pair` alone needs no table.
"""

# The commands' packages come first: loading one later would put it in the place of the function of its name.
import dropjax.pair
import dropjax.solve  # noqa: F401  # for the import itself
from dropjax.core.errors import InputError
from dropjax.core.options import Options
from dropjax.core.protocols import Progress
from dropjax.core.puzzle import Puzzle
from dropjax.core.solution import Outcome, Pairing, Solution, Stage
from dropjax.core.stack import Stack
from dropjax.io.loading import load
from dropjax.pairing.portfolio import pair
from dropjax.search.solving import solve, solve_many

__all__ = [
    "InputError",
    "Options",
    "Outcome",
    "Pairing",
    "Progress",
    "Puzzle",
    "Solution",
    "Stack",
    "Stage",
    "load",
    "pair",
    "solve",
    "solve_many",
]
