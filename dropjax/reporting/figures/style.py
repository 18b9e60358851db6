"""Colours, panels and titles that all figures share."""

from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PINK = (
    *("#000000", "#E69F00", "#56B4E9", "#009E73"),
    *("#F0E442", "#0072B2", "#D55E00", "#CC79A7"),
)


GREY = "#8A8A8A"


DEPTH, SIGNED = "viridis", "RdBu_r"


STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "legend.frameon": False,
    "svg.hashsalt": "dropjax",
}
"""Settings for `matplotlib.rc_context` while figures are made and saved."""


def panels(count: int, narrow: bool, columns: int = 2, height: float = 3.0, width: float = 8.6) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, side by side or one below the other."""
    columns = 1 if narrow else min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.2 if narrow else width, rows * height + 0.5), layout="constrained")
    axes = [figure.add_subplot(rows, columns, k + 1) for k in range(count)]
    return figure, axes


def headline(figure: Figure, text: str) -> None:
    """The figure's title, broken to its width."""
    figure.suptitle(fill(text, int(figure.get_figwidth() * 10)), x=0.01, ha="left")


def by_depth(depth: int, places) -> np.ndarray:
    """A colour for each place, from the first to the last of a stack of so many blocks."""
    return ScalarMappable(Normalize(0, max(depth - 1, 1)), DEPTH).to_rgba(np.asarray(places))
