"""Figures of orders: seed orders, preferences, repairs."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from dropjax.reporting.analysis import Exchange
from dropjax.reporting.figures.style import (
    BLACK,
    BLUE,
    DEPTH,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    SKY,
    by_depth,
    headline,
    panels,
)


def progression(stages: Sequence[tuple[str, Int[np.ndarray, " L"], float]], narrow: bool = False) -> Figure:
    """Right places of the blocks, as (name, places, MSE) of each stage lists them (paper, Fig. 6)."""
    figure, axes = panels(len(stages), narrow, columns=3, height=2.4)
    headline(figure, f"From MSE {stages[0][2]:.3g} to {stages[-1][2]:.2g}: the bars become a staircase")
    for ax, (name, places, mse) in zip(axes, stages, strict=True):
        off = np.abs(places - np.arange(len(places)))
        ax.bar(np.arange(1, len(places) + 1), places + 1, 0.9, color=by_depth(len(places), places))
        ax.set(title=f"{name}, MSE {mse:.2g}\n{np.sum(off > 0)} out of place", xlabel="position")
        ax.set_ylim(0, len(places) + 1)
    axes[0].set_ylabel("right position")
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
