"""Figures of halves and their pairs."""

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from scipy import stats

from dropjax.reporting.analysis import RightPairs, WrongPairs
from dropjax.reporting.figures.style import BLACK, BLUE, DEPTH, GREY, RED, SIGNED, headline, panels


def pairing_matrices(score: Float[np.ndarray, "L L"], partner: Int[np.ndarray, " L"], narrow: bool = False) -> Figure:
    """d(i, j) in the given numbering, and with each input half's partner on the diagonal (paper, Fig. 3a)."""
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
    """A colour scale around 0; the largest hundredth of the entries may exceed it."""
    most = float(np.quantile(np.abs(values), 0.995)) or 1.0
    return Normalize(-most, most)


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
