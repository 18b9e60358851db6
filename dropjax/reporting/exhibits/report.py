"""The contents of a report, and the data that every part of it uses."""

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
"""A function that is called with the name of each step as it begins."""


class Drawing(NamedTuple):
    """A figure to be drawn: its file's name, what its axes show, and how to draw it, wide or narrow."""

    name: str
    description: str
    draw: Callable[..., Any]


@dataclass
class Report:
    """The numbers and drawings that the page shows."""

    numbers: dict[str, Any] = field(default_factory=dict)
    drawings: list[Drawing] = field(default_factory=list)

    def add(self, name: str, description: str, draw: Callable[..., Any], *args: Any) -> None:
        """Adds a figure, which is drawn later."""
        self.drawings.append(Drawing(name, description, partial(draw, *args)))


class Solved(NamedTuple):
    """The solved puzzle in the form that every part of the report uses."""

    puzzle: Puzzle
    problem: Problem
    """The problem with the halves in the order of their numbers, and all rows."""
    few: Problem
    """The problem with the rows that searches use."""
    arrangement: Int[np.ndarray, "L 2"]
    stack: Stack
    """The stack in order."""
