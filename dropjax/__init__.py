"""dropjax puts the dropped layers of a residual network back in order.

`load` reads a puzzle, `solve` (or `solve_many`) solves it and returns a `Solution`. `pair` pairs halves from their weights
and needs no table. `order` puts the parts of any other residual network in order, given its blocks as functions, and
`check_order` says whether they are in order already.
"""

import gc
from importlib.metadata import version

_collecting = gc.isenabled()
gc.disable()  # or the collector would go through all that is imported, again and again: a tenth of the time it takes

# The commands' packages come first: loading one later would put it in the place of the function of its name.
import dropjax.order
import dropjax.pair
import dropjax.solve  # noqa: F401  # for the import itself
from dropjax.core.citing import citation
from dropjax.core.errors import InputError
from dropjax.core.options import Options
from dropjax.core.protocols import Progress, Status, StopReason
from dropjax.core.puzzle import Puzzle
from dropjax.core.solution import Outcome, Pairing, Solution, Stage
from dropjax.core.stack import Stack
from dropjax.io.loading import load
from dropjax.network.protocol import stack_parts
from dropjax.network.result import Check, Minimum, Move, Ordering
from dropjax.network.solving import check_order, order
from dropjax.pairing.certainty import Judged
from dropjax.pairing.portfolio import pair
from dropjax.runtime.journal import Journal
from dropjax.runtime.processes import process_pool
from dropjax.search.many import solve_many
from dropjax.search.solving import identity, solve

if _collecting:
    gc.enable()

__version__ = version("dropjax")

__all__ = [
    "Check",
    "InputError",
    "Journal",
    "Judged",
    "Minimum",
    "Move",
    "Options",
    "Ordering",
    "Outcome",
    "Pairing",
    "Progress",
    "Puzzle",
    "Solution",
    "Stack",
    "Stage",
    "Status",
    "StopReason",
    "__version__",
    "check_order",
    "citation",
    "identity",
    "load",
    "order",
    "pair",
    "process_pool",
    "solve",
    "solve_many",
    "stack_parts",
]
