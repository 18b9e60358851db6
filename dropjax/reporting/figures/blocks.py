"""Figures of blocks at work: sizes, activations, Jacobians, commutators, and a training."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from dropjax.reporting.analysis import Blocks, Commutators, by_distance, effective_rank, rank_correlation
from dropjax.reporting.figures.style import (
    BLACK,
    BLUE,
    DEPTH,
    GREEN,
    ORANGE,
    PINK,
    RED,
    SKY,
    by_depth,
    headline,
    panels,
)


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
    for values, colour in zip(np.asarray(blocks.singular_values), by_depth(depth, position - 1), strict=True):
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
