"""The report's figures: each function takes the numbers and returns a matplotlib Figure whose title says what is seen.

With `narrow` the panels stand below one another, for a phone. Colours are Okabe and Ito's, and viridis and a red-blue
scale for values, which colour-blind readers can tell apart.
"""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.ticker import NullFormatter
from scipy import stats

from dropjax.reporting.analysis import (
    Blocks,
    Commutators,
    Exchange,
    RightPairs,
    Table,
    WrongPairs,
    by_distance,
    effective_rank,
    rank_correlation,
)

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
"""To be set (`matplotlib.rc_context`) while figures are made and saved."""


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


def pairing_matrices(score: Float[np.ndarray, "L L"], partner: Int[np.ndarray, " L"], narrow: bool = False) -> Figure:
    """d(i, j) as found, and with each input half's partner on the diagonal (paper, Fig. 3a)."""
    figure, axes = panels(2, narrow, height=3.9)
    best = int(np.sum(score.argmax(axis=1) == partner))
    headline(figure, f"d(i, j): {best} of {len(score)} input halves score highest with their own output half")
    scale = Normalize(0, float(score.max()))
    for ax, values, title in zip(
        axes, (score, score[:, partner]), ("As numbered", "Output halves put in the order of their partners"), strict=True
    ):
        ax.imshow(values, cmap=DEPTH, norm=scale, interpolation="nearest")
        ax.set(title=title, xlabel="output half j", ylabel="input half i")
    figure.colorbar(
        ScalarMappable(scale, DEPTH), ax=axes, label="d(i, j)", shrink=0.7, location="bottom" if narrow else "right"
    )
    return figure


def pairing_histogram(score: Float[np.ndarray, "L L"], right: Bool[np.ndarray, "L L"], narrow: bool = False) -> Figure:
    """d(i, j) of right pairs against wrong ones (paper, Fig. 3b)."""
    figure, (ax,) = panels(1, narrow, height=3.0)
    least, most = float(score[right].min()), float(score[~right].max(initial=0))
    if not np.any(~right):
        headline(figure, f"One block, d = {least:.2f}: no wrong pair to compare it with")
    elif least > most:
        headline(figure, f"Right pairs (d ≥ {least:.2f}) and wrong ones (d ≤ {most:.2f}) do not overlap")
    else:
        headline(figure, f"Right pairs reach down to {least:.2f}, wrong ones up to {most:.2f}: they overlap")
    bins = np.linspace(0, float(score.max()) * 1.02, 60).tolist()
    for mark, colour, name in ((~right, GREY, "wrong"), (right, RED, "right")):
        ax.hist(score[mark], bins, color=colour, alpha=0.85, label=f"{name} pairs: {int(mark.sum()):,}")
    ax.set(xlabel="diagonal dominance ratio d(i, j)", ylabel="pairs", yscale="log")
    ax.legend()
    return figure


def product_examples(right: Float[np.ndarray, "n d d"], wrong: Float[np.ndarray, "m d d"], narrow: bool = False) -> Figure:
    """W_out·W_in of some right pairs above wrong ones, on one scale (paper, Fig. 4); `wrong` may be empty."""
    count, rows = len(right), 2 if len(wrong) else 1
    negative = int(np.sum(np.trace(right, axis1=1, axis2=2) < 0))
    figure = Figure(figsize=(4.2, 2.9) if narrow else (8.6, 4.6), layout="constrained")
    axes = np.array([figure.add_subplot(rows, count, k + 1) for k in range(rows * count)]).reshape(rows, count)
    beside = ", no structure in wrong ones" if len(wrong) else ""
    headline(figure, f"A negative diagonal in {negative} of {count} right pairs{beside}")
    scale = _symmetric(np.concatenate([right, wrong]))
    for row, matrices, name in zip(axes, (right, wrong), ("right", "wrong"), strict=False):
        for ax, matrix in zip(row, matrices, strict=True):
            ax.imshow(matrix, cmap=SIGNED, norm=scale, interpolation="nearest")
            title = f"tr {np.trace(matrix):.1f}" if narrow else f"{name}, tr = {np.trace(matrix):.2f}"
            ax.set(title=title, xticks=[], yticks=[])
        row[0].set_ylabel(f"{name} pairs")
    figure.colorbar(
        ScalarMappable(scale, SIGNED), ax=axes, shrink=0.7, label="entry", location="bottom" if narrow else "right"
    )
    return figure


def all_products(products: Float[np.ndarray, "L d d"], order: str, narrow: bool = False) -> Figure:
    """Every W_out·W_in on one scale, row by row in the order given, each with its trace (paper, Figs. 5 and 7)."""
    count, d = products.shape[:2]
    columns = min(count, 6 if narrow else 12)
    rows = -(-count // columns)
    traces = np.trace(products, axis1=1, axis2=2)
    negative = int(np.sum(traces < 0))
    pad = max(2, d // 4)
    mosaic = np.full((rows * (d + pad), columns * (d + 1)), np.nan)
    width = 4.2 if narrow else 8.6
    figure = Figure(figsize=(width, width * mosaic.shape[0] / mosaic.shape[1] + 1.1), layout="constrained")
    headline(
        figure,
        f"{negative} of {count} products have a negative trace: {traces.min():.3g} to {traces.max():.3g}, {order}",
    )
    ax = figure.add_subplot()
    for k, (matrix, trace) in enumerate(zip(products, traces, strict=True)):
        top, left = k // columns * (d + pad) + pad, k % columns * (d + 1)
        mosaic[top : top + d, left : left + d] = matrix
        ax.text(left, top - 0.7, f"{k + 1}: {trace:.1f}", fontsize=6, va="bottom")
    image = ax.imshow(mosaic, cmap=SIGNED, norm=_symmetric(products), interpolation="nearest")
    ax.set_axis_off()
    figure.colorbar(image, ax=ax, location="bottom", shrink=0.4, aspect=40, label="entry")
    return figure


def _symmetric(values: np.ndarray) -> Normalize:
    """A scale about 0 that the largest hundredth of the entries may leave."""
    most = float(np.quantile(np.abs(values), 0.995)) or 1.0
    return Normalize(-most, most)


def progression(stages: Sequence[tuple[str, Int[np.ndarray, " L"], float]], narrow: bool = False) -> Figure:
    """Right places of the blocks, as (name, places, MSE) of each stage lists them (paper, Fig. 6)."""
    figure, axes = panels(len(stages), narrow, columns=3, height=2.4)
    headline(figure, f"From MSE {stages[0][2]:.3g} to {stages[-1][2]:.2g}: the bars become a staircase")
    for ax, (name, places, mse) in zip(axes, stages, strict=True):
        off = np.abs(places - np.arange(len(places)))
        ax.bar(np.arange(1, len(places) + 1), places + 1, 0.9, color=_colours(len(places), places))
        ax.set(title=f"{name}, MSE {mse:.2g}\n{np.sum(off > 0)} out of place", xlabel="position")
        ax.set_ylim(0, len(places) + 1)
    axes[0].set_ylabel("right position")
    return figure


def _colours(depth: int, places) -> np.ndarray:
    return ScalarMappable(Normalize(0, max(depth - 1, 1)), DEPTH).to_rgba(np.asarray(places))


def activation_fractions(activation: Float[np.ndarray, "L h"], narrow: bool = False) -> Figure:
    """Share of rows on which each unit is active, block by block (paper, Fig. 8), against the ½ of Proposition 1."""
    figure, (ax,) = panels(1, narrow, height=3.0)
    mean = activation.mean(axis=1)
    headline(figure, f"Units are active on {mean.min():.0%} to {mean.max():.0%} of the rows, block by block")
    position = np.arange(1, len(mean) + 1)
    low, high = np.quantile(activation, (0.05, 0.95), axis=1)
    ax.bar(position, mean, 0.85, color=SKY, label="mean of the block's units")
    ax.vlines(position, low, high, color=BLACK, lw=0.8, label="5% to 95% of its units")
    ax.axhline(0.5, color=RED, ls="--", label="½, as Proposition 1 assumes")
    ax.set(xlabel="position", ylabel="active share of rows", ylim=(0, max(0.75, float(high.max()) * 1.1)))
    ax.legend(fontsize=8, loc="upper center", ncols=1 if narrow else 3)
    return figure


def block_properties(blocks: Blocks, narrow: bool = False) -> Figure:
    """Singular values, effective rank, delta-norm and active share by position (paper, Fig. 9)."""
    figure, (spectra, rank, delta, active) = panels(4, narrow, height=2.7)
    depth = len(blocks.trace)
    position = np.arange(1, depth + 1)
    delta_norm = np.asarray(blocks.delta_norm)
    correlation = rank_correlation(position, delta_norm)
    across = (
        f" against position: rank correlation {correlation:.2f}" if depth > 1 else f" of the one block: {delta_norm[0]:.3g}"
    )
    headline(figure, f"Delta-norm{across}")
    for values, colour in zip(np.asarray(blocks.singular_values), _colours(depth, position - 1), strict=True):
        spectra.plot(np.arange(1, len(values) + 1), values, color=colour, lw=0.8)
    spectra.set(title="Singular values of W_out·W_in", xlabel="index", ylabel="singular value")
    mappable = ScalarMappable(Normalize(1, max(depth, 2)), DEPTH)
    figure.colorbar(mappable, ax=spectra, label="position")
    ranks = effective_rank(np.asarray(blocks.singular_values))
    for ax, values, title in (
        (rank, ranks, "Effective rank (entropy)"),
        (delta, delta_norm, "Delta-norm, at the raw inputs"),
        (active, np.asarray(blocks.activation).mean(axis=1), "Active share of rows"),
    ):
        ax.plot(position, values, "o-", color=BLUE, ms=3, lw=0.8)
        ax.set(title=title, xlabel="position")
    delta.plot(position, blocks.residual_norm, "-", color=ORANGE, label="at the states that reach it")
    delta.legend(fontsize=8)
    active.axhline(0.5, color=RED, ls="--")
    return figure


def proposition_1(blocks: Blocks, narrow: bool = False) -> Figure:
    """What Proposition 1 equates, block by block, and how far its two assumptions hold (paper, Eqs. 11 to 15)."""
    figure, (sides, step, isometry) = panels(3, narrow, columns=3, height=3.2)
    trace, squared, half = (np.asarray(a) for a in (blocks.trace, blocks.jacobian_squared, blocks.jacobian_trace))
    width = blocks.singular_values.shape[1]
    position = np.arange(1, len(trace) + 1)
    ratio = np.median(squared / np.abs(trace)) if np.all(trace != 0) else np.nan
    negative = int(np.sum(trace < 0))
    headline(
        figure,
        f"The sign is as Proposition 1 says in {negative} of {len(trace)} blocks; the size is not: "
        f"E‖J_r‖² is {ratio:.2f} of |tr| in the middle block",
    )
    sides.plot(position, trace, "o", color=BLUE, ms=3, label="tr(W_out·W_in)")
    sides.plot(position, 2 * half, "^", color=GREEN, ms=3, label="2·E[tr J_r] (Eq. 14)")
    sides.plot(position, -squared, "s", color=RED, ms=3, label="−E‖J_r‖² (Eq. 15)")
    sides.set(title="Three numbers said to be equal", xlabel="position", ylim=(None, 0.35 * np.ptp(trace) + 1))
    sides.legend(fontsize=8)
    step.plot(position, 2 * half + squared, "o-", color=PINK, ms=3, lw=0.8)
    step.axhline(0, color=BLACK, lw=0.8)
    step.set(title="2·E[tr J_r] + E‖J_r‖² (0 by Eq. 12)", xlabel="position")
    isometry.plot(position, np.asarray(blocks.isometry) / width**0.5, "o-", color=BLUE, ms=3, lw=0.8, label="of the mean")
    isometry.plot(
        position, np.asarray(blocks.row_isometry) / width**0.5, "s-", color=ORANGE, ms=3, lw=0.8, label="mean, row by row"
    )
    isometry.set(title="‖J_fᵀ·J_f − I‖ / √d", xlabel="position", ylim=(0, None))
    isometry.legend(fontsize=8)
    return figure


def pairing_theory(
    right: RightPairs, wrong: WrongPairs, width: int, wrong_scores: Float[np.ndarray, " K"], narrow: bool = False
) -> Figure:
    """Eqs. 18, 20 and 21, predicted against measured; Eq. 18 alone where there are no wrong pairs."""
    figure, (bound, *others) = panels(3 if wrong_scores.size else 1, narrow, columns=3, height=3.1)
    if others:
        headline(
            figure,
            f"Wrong pairs against random matrices: the trace spreads {np.std(wrong.standardised):.2f} times as far, "
            f"d is about {wrong.ratio:.3f} for {wrong.predicted_ratio:.3f}",
        )
    else:
        headline(figure, "Right pairs as Eq. 18 has them; there are no wrong ones")
    ratio = right.rest_norm / np.where(right.epsilon > 0, right.epsilon * width**0.5, 1)
    curve = np.linspace(0, max(4.0, float(ratio.max()) * 1.05), 200)
    bound.plot(curve, np.sqrt(width / (1 + curve**2)), color=GREY, label="√d / √(1 + …²)")
    bound.plot(ratio, right.predicted, "o", color=RED, ms=4, label="right pairs")
    bound.axhline(width**0.5, color=BLACK, ls="--", lw=0.8, label=f"√d = {width**0.5:.2f}")
    bound.set(title="Right pairs (Eq. 18)", xlabel="‖E‖ / (ε·√d)", ylabel="d(i, i)", ylim=(0, None))
    bound.legend(fontsize=8)
    if not others:
        return figure
    traces, scores = others
    grid = np.linspace(-4, 4, 200)
    traces.hist(wrong.standardised, 50, range=(-4, 4), density=True, color=GREY, label="wrong pairs")
    traces.plot(grid, stats.norm.pdf(grid), color=BLUE, label="predicted: N(0, 1)")
    traces.set(title="tr / (σ_out·σ_in·√(d·h)) (Eq. 20)", xlabel="standard deviations", yticks=[])
    traces.set_ylim(0, 1.35 * traces.get_ylim()[1])
    traces.legend(fontsize=8, loc="upper left")
    top = float(wrong_scores.max(initial=0.5))
    scores.hist(wrong_scores, 50, range=(0, top), density=True, color=GREY, label="wrong pairs")
    grid = np.linspace(0, top, 200)
    scores.plot(grid, 2 * stats.norm.pdf(grid, scale=width**-0.5), color=BLUE, label="predicted: |N(0, 1/d)|")
    scores.axvline(width**-0.5, color=BLACK, ls="--", lw=0.8, label=f"1/√d = {width**-0.5:.2f}")
    scores.set(title="d(i, j) (Eq. 21)", xlabel="d(i, j)", yticks=[])
    scores.legend(fontsize=8)
    return figure


def commutator_sizes(sizes: Commutators, narrow: bool = False) -> Figure:
    """How far blocks are from commuting, by their distance in depth and against ‖r_A‖·‖r_B‖ (paper, Eq. 6)."""
    figure, (distance, relative, scatter) = panels(3, narrow, columns=3, height=3.1)
    size, product, change = (np.asarray(a, np.float64) for a in (sizes.size, sizes.product, sizes.change))
    upper = np.triu_indices(len(size), 1)
    share = size / np.where(change > 0, change, 1)
    median = np.median(share[upper]) if len(upper[0]) else 0.0
    headline(figure, f"The order of two blocks decides {median:.0%} of what they do together (median over pairs)")
    for ax, values, title in (
        (distance, size, "Size of the commutator"),
        (relative, share, "… over all that the two do"),
    ):
        low, middle, high = by_distance(values).T
        steps = np.arange(1, len(middle) + 1)
        ax.fill_between(steps, low, high, color=SKY, alpha=0.5, lw=0, label="middle half of the pairs")
        ax.plot(steps, middle, "-" if len(steps) > 1 else "o", color=BLUE, label="median")
        ax.set(title=title, xlabel="distance in depth", ylim=(0, None))
    distance.set_ylabel("E‖B(A(x)) − A(B(x))‖")
    distance.legend(fontsize=8, loc="upper left")
    dots = scatter.scatter(
        product[upper], size[upper], 6, np.subtract(*upper[::-1]), cmap=DEPTH, linewidths=0, rasterized=True
    )
    scatter.set(title="Against the scale of Eq. 6", xlabel="E[‖r_A‖·‖r_B‖]", ylabel="commutator")
    if np.minimum(size, product)[upper].min(initial=np.inf if len(upper[0]) else 0) > 0:
        scatter.set(xscale="log", yscale="log")
        scatter.xaxis.set_minor_formatter(NullFormatter())
        scatter.yaxis.set_minor_formatter(NullFormatter())
    figure.colorbar(dots, ax=scatter, label="distance in depth")
    return figure


def preference_cycles(
    members: Int[np.ndarray, "c 3"],
    places: Int[np.ndarray, " L"],
    margins: Float[np.ndarray, " c"],
    gaps: Float[np.ndarray, "L L"],
    narrow: bool = False,
) -> Figure:
    """Each three-cycle of "A before B" across the places of its members, and its margin among all (paper, Section 4.3).

    `members` and `gaps` are numbered as in the seed order, `places` are right places (from 0).
    """
    figure, (drawn, sizes) = panels(2, narrow, height=3.6)
    count, depth = len(members), len(places)
    spans = np.ptp(places[members], axis=1) if count else np.zeros(0, int)
    widest = f" within {spans.max() + 1} neighbouring places" if count else ""
    headline(figure, f"{count} three-cycles among the preferences{widest}: few and weak" if count else "No three-cycles")
    order = np.argsort(places[members].min(axis=1)) if count else np.zeros(0, int)
    scale = Normalize(0, max(depth - 1, 1))
    for row, cycle in enumerate(order):
        at = places[members[cycle]]
        drawn.plot(np.sort(at) + 1, [row] * 3, "-", color=GREY, lw=0.8, zorder=1)
        for start, end in zip(at, np.roll(at, -1), strict=True):
            bend = 0.5 if end > start else 0.35
            drawn.add_patch(
                FancyArrowPatch(
                    (start + 1, row),
                    (end + 1, row),
                    arrowstyle="->",
                    mutation_scale=5,
                    lw=0.7,
                    connectionstyle=f"arc3,rad={-bend}",
                    color=BLUE if end > start else RED,
                    shrinkA=1,
                    shrinkB=1,
                )
            )
        drawn.scatter(at + 1, [row] * 3, 12, at, cmap=DEPTH, norm=scale, zorder=2)
    drawn.plot([], [], color=BLUE, label="prefers the right order")
    drawn.plot([], [], color=RED, label="prefers the wrong order")
    drawn.set(title="Cycles: arrows point to the block preferred later", xlabel="right position")
    drawn.set(xlim=(0, depth + 1), ylim=(-1.5, count + 0.16 * count + 2), ylabel="cycle", yticks=[])
    drawn.legend(fontsize=8, loc="upper left", ncols=1 if narrow else 2)
    absolute = np.abs(gaps[np.triu_indices(depth, 1)])
    positive = np.concatenate([absolute, margins])
    positive = positive[positive > 0]
    if positive.size:
        bins = np.geomspace(positive.min() * 0.99, positive.max() * 1.01, 40)
        sizes.hist(absolute, bins.tolist(), color=GREY, label=f"|g| of all {len(absolute):,} pairs")
        sizes.hist(margins, bins.tolist(), color=RED, label="smallest |g| of each cycle")
        sizes.set_xscale("log")
        sizes.legend(fontsize=8, loc="upper left")
        sizes.set_ylim(0, 1.25 * sizes.get_ylim()[1])
    sizes.set(title="How sure the preferences are", xlabel="|g|, change of the MSE by the swap", ylabel="pairs")
    return figure


def seed_league(rows: Sequence[Mapping], narrow: bool = False) -> Figure:
    """Every seed order by rank correlation with the answer and initial MSE (`seed`, `spearman`, `mse` of each row)."""
    figure, (ranks, errors) = panels(2, narrow, height=max(2.4, 0.2 * len(rows) + 0.8))
    rows = sorted(rows, key=lambda row: row["mse"], reverse=True)
    best = rows[-1]
    floor = min((row["mse"] for row in rows if row["mse"] > 0), default=1.0) / 2
    headline(figure, f"Best seed order: {best['seed']}, MSE {best['mse']:.3g}, rank correlation {best['spearman']:.3f}")
    for ax, name, colour in ((ranks, "spearman", BLUE), (errors, "mse", ORANGE)):
        values = [row[name] if name == "spearman" else max(row[name], floor) for row in rows]
        ax.hlines(range(len(rows)), 0 if name == "spearman" else floor, values, color=GREY, lw=0.8)
        ax.plot(values, range(len(rows)), "o", color=colour)
        ax.set_yticks(range(len(rows)), [row["seed"] for row in rows])
        ax.set_ylim(-0.6, len(rows) - 0.4)
    ranks.set(title="Rank correlation with the answer", xlim=(-1.05, 1.05))
    ranks.axvline(0, color=BLACK, lw=0.8)
    errors.set(title="Initial MSE, search rows", xscale="log")
    if not narrow:
        errors.set_yticklabels([])
    return figure


def repairs(
    tables: Mapping[str, Sequence[Sequence[float]]],
    places: Mapping[str, Int[np.ndarray, " L"]],
    exchanges: Mapping[str, Sequence[Exchange]],
    narrow: bool = False,
) -> Figure:
    """Bubble repair from each start: MSE by round (tables as round, swaps, MSE, swaps so far), how far each block has to
    go, and which exchanges put two blocks the wrong way round.
    """
    figure, (curves, counts, kept) = panels(3, narrow, columns=3, height=3.1)
    colours = dict(zip(tables, (BLUE, ORANGE, GREEN, PINK, RED, SKY), strict=False))
    rounds = {name: len(table) - 1 for name, table in tables.items()}
    headline(figure, "Rounds of repair: " + ", ".join(f"{rounds[name]} from {name}" for name in rounds))
    floor = min((row[2] for table in tables.values() for row in table[:-1] if row[2] > 0), default=1e-6)
    for name, table in tables.items():
        mse = [max(row[2], floor / 10) for row in table]
        curves.plot([row[0] for row in table], mse, "o-", color=colours[name], ms=3, label=name)
        before = np.triu(places[name][:, None] > places[name], 1).sum(axis=0)
        counts.plot(np.sort(before)[::-1], "-", color=colours[name], drawstyle="steps-mid", label=name)
    curves.set(title="MSE over all rows (0 at the foot)", xlabel="round", yscale="log")
    curves.legend(fontsize=8)
    counts.set(title="Later blocks standing left of a block", xlabel="blocks, most hindered first", ylabel="blocks")
    names = list(tables)
    for k, name in enumerate(names):
        sorting = sum(exchange.sorts for exchange in exchanges[name])
        wrong = len(exchanges[name]) - sorting
        kept.bar(k, sorting, color=colours[name], width=0.6)
        kept.bar(k, wrong, bottom=sorting, color="white", edgecolor=colours[name], hatch="////", width=0.6)
        kept.text(k, sorting + wrong, f"{sorting} + {wrong}", ha="center", va="bottom", fontsize=8)
    kept.set_ylim(0, 1.1 * max(kept.get_ylim()[1], 1))
    kept.set_xticks(range(len(names)), [name.replace("–", "–\n") for name in names])
    kept.set(title="Exchanges (hatched: wrong)", ylabel="exchanges")
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


def training_curves(curves: Sequence[Mapping[str, float]], narrow: bool = False) -> Figure:
    """A stack while it is trained: loss, negative traces, separation of d and what norms say of depth.

    Each row holds `epoch`, `loss`, `negative_traces`, `paired`, `own_median`, `other_max`, `w_out_norm`, `delta_norm`.
    """
    figure, (loss, pairs, depth) = panels(3, narrow, columns=3, height=3.0)
    epoch = [row["epoch"] for row in curves]
    last = curves[-1]
    headline(figure, f"After {last['epoch']} epochs {last['paired']:.0%} of the pairs are found by d")
    loss.plot(epoch, [row["loss"] for row in curves], color=BLUE)
    loss.set(title="Training loss (MSE)", xlabel="epoch", yscale="log")
    for name, label, colour in (
        ("negative_traces", "blocks with a negative trace", GREEN),
        ("paired", "pairs found by d", RED),
    ):
        pairs.plot(epoch, [row[name] for row in curves], color=colour, label=label)
    pairs.set(title="The signal for pairing", xlabel="epoch", ylim=(-0.03, 1.25))
    pairs.legend(fontsize=8, loc="upper left")
    for name, label, colour in (("w_out_norm", "‖W_out‖_F", BLUE), ("delta_norm", "delta-norm", ORANGE)):
        depth.plot(epoch, [row[name] for row in curves], color=colour, label=label)
    depth.axhline(0, color=BLACK, lw=0.8)
    depth.set(title="Rank correlation with depth", xlabel="epoch", ylim=(-1.05, 1.3))
    depth.legend(fontsize=8, loc="upper left")
    return figure
