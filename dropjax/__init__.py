"""dropjax puts the dropped layers of a residual network back in order.

`load` a puzzle, `solve` it (or `solve_many`), look at the `Solution`; `pair` alone needs no table.
"""

from dropjax.files import load
from dropjax.pairing import pair
from dropjax.pipeline import Options, Progress, solve, solve_many
from dropjax.puzzle import InputError, Puzzle
from dropjax.solution import Outcome, Pairing, Solution, Stage
from dropjax.stack import Stack

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
