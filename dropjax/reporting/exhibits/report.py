"""What a report holds, and what every part of it looks at."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from dropjax.core.puzzle import Puzzle
from dropjax.core.stack import Stack
from dropjax.search.problem import Problem

Step = Callable[[str], object]
"""Told what begins."""


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
