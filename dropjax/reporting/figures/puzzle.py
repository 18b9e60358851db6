"""Figures of the puzzle: the stack's shape and the table."""

import numpy as np
from jaxtyping import Float
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from dropjax.reporting.analysis import Table
from dropjax.reporting.figures.style import BLACK, BLUE, DEPTH, GREY, ORANGE, SIGNED, headline, panels


def architecture(depth: int, hidden: int, width: int, outputs: int, activation: str, narrow: bool = False) -> Figure:
    """The stack as boxes: first and last block, what is in one, and the last layer (paper, Fig. 1)."""
    figure, (ax,) = panels(1, narrow, height=5.4 if narrow else 1.9)
    blocks = "residual block" if depth == 1 else "residual blocks"
    headline(figure, f"{depth} {blocks} of {width} → {hidden} → {width}, then a last layer to {outputs}")
    inside = f"W_in  {hidden}×{width}\n{activation}\nW_out  {width}×{hidden}"
    last = f"block {depth}" if depth > 1 else None
    boxes = [
        *(("x", f"input\n{width}", "white"), ("block 1", f"block 1\n{inside}", "#DCEBF5")),
        *((("…", "…", "none"), (last, f"{last}\n{inside}", "#DCEBF5")) if last else ()),
        *(("last", f"last layer\n{outputs}×{width}", "#FBE3C8"), ("y", f"output\n{outputs}", "white")),
    ]
    span = len(boxes)
    place = (lambda k: (0.5, span - 1 - k)) if narrow else (lambda k: (k, 0.0))
    w, h = (0.42, 0.62) if narrow else (0.72, 0.8)
    for k, (name, text, colour) in enumerate(boxes):
        x, y = place(k)
        if colour != "none":
            box = FancyBboxPatch(
                (x - w / 2, y - h / 2), w, h, "round,pad=0,rounding_size=0.05", facecolor=colour, edgecolor=BLACK
            )
            ax.add_patch(box)
        ax.text(x, y, text, ha="center", va="center", fontsize=8)
        if k + 1 < span:
            nx, ny = place(k + 1)
            ends = ((x, y - h / 2), (nx, ny + h / 2)) if narrow else ((x + w / 2, y), (nx - w / 2, ny))
            ax.add_patch(FancyArrowPatch(*ends, arrowstyle="->", mutation_scale=10, shrinkA=0, shrinkB=0))
        if name.startswith("block"):
            # The identity leaves before the block and comes back behind it.
            if narrow:
                path = [(x, y + 0.44), (x - 0.33, y + 0.44), (x - 0.33, y - 0.44), (x, y - 0.44)]
            else:
                path = [(x - 0.46, 0), (x - 0.46, 0.62), (x + 0.46, 0.62), (x + 0.46, 0)]
            ax.plot(*zip(*path[:-1], strict=True), color=BLUE, lw=1.2, zorder=0)
            ax.annotate("", path[-1], path[-2], arrowprops={"arrowstyle": "->", "color": BLUE, "lw": 1.2, "shrinkA": 0})
            ax.text(
                *((x - 0.35, y) if narrow else (x, 0.7)), "+ x", color=BLUE, ha="right" if narrow else "center", va="center"
            )
    ax.set(xlim=(0, 1) if narrow else (-0.6, span - 0.4), ylim=(-0.6, span - 0.4) if narrow else (-0.5, 0.85))
    ax.set_axis_off()
    return figure


def table_overview(
    x: Float[np.ndarray, "N d"],
    pred: Float[np.ndarray, "N o"],
    true: Float[np.ndarray, "N o"] | None,
    narrow: bool = False,
) -> Figure:
    """Every feature's values in order of size, and the outputs' (paper, Fig. 2); at most 400 quantiles of each."""
    figure, (left, right) = panels(2, narrow)
    share = np.linspace(0, 1, min(len(x), 400))
    near = float(np.mean(np.abs(np.abs(x) - 1) <= 0.1))
    headline(figure, f"Features of one scale, {near:.0%} of their values within 0.1 of ±1")
    values = np.quantile(x, share, axis=0)
    for k, feature in enumerate(values.T):
        left.plot(share, feature, color=BLUE, alpha=0.35, lw=0.7, label=f"{x.shape[1]} features" if k == 0 else None)
    left.set(title="Features, each sorted", xlabel="share of rows", ylabel="value")
    left.legend()
    for name, outputs, colour in (("true", true, ORANGE), ("pred", pred, BLUE)):
        for k, output in enumerate(outputs.T if outputs is not None else ()):
            right.plot(share, np.quantile(output, share), color=colour, label=name if k == 0 else None)
    right.set(title="pred" if true is None else "pred and true, each sorted", xlabel="share of rows")
    right.legend()
    return figure


def table_character(table: Table, narrow: bool = False) -> Figure:
    """Correlations between features, the spectrum, and how each feature is distributed."""
    figure, (matrix, spectrum, shape) = panels(3, narrow, columns=3, height=3.2)
    d = len(table.mean)
    headline(figure, f"{d} features with an effective rank of {table.effective_rank:.1f}")
    image = matrix.imshow(table.correlation, cmap=SIGNED, norm=Normalize(-1, 1), interpolation="nearest")
    matrix.set(title="Correlation of features", xlabel="feature", ylabel="feature")
    figure.colorbar(image, ax=matrix, shrink=0.7)
    spectrum.plot(np.arange(1, d + 1), np.cumsum(table.spectrum), "o-", color=BLUE, ms=3, lw=0.8)
    spectrum.plot([0, d], [0, 1], color=GREY, ls="--", label="all independent")
    spectrum.set(title="Variance in the first components", xlabel="components", ylabel="share", ylim=(0, 1.03))
    spectrum.legend(fontsize=8, loc="lower right")
    dots = shape.scatter(table.skewness, table.kurtosis, 14, table.near_one, cmap=DEPTH)
    grid = np.linspace(*_padded(table.skewness), 100)
    shape.plot(grid, grid**2 - 2, color=GREY, label="two-point values")
    shape.set(title="Shape of each feature", xlabel="skewness", ylabel="excess kurtosis")
    shape.legend(fontsize=8, loc="upper left", handlelength=1)
    figure.colorbar(dots, ax=shape, label="share within 0.1 of ±1")
    return figure


def _padded(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()) - 0.1, float(values.max()) + 0.1
