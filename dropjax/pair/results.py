"""The results of `python -m dropjax.pair`: lines for readers, a record for the JSON, and a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from dropjax.io.families import natural
from dropjax.io.halves import Mlps
from dropjax.pairing.certainty import Judged, doubtful


class Names(NamedTuple):
    """Names of two kinds of halves."""

    ours: list[str]
    theirs: list[str]


def chosen(name: str, mlps: Mlps) -> list[str]:
    """Lines about what is paired and what is not."""
    kind = "gated MLPs" if "gate" in mlps.sides else "MLPs"
    lines = [f"{name}: {mlps.depth} {kind}, d = {mlps.width:,}, h = {mlps.hidden:,}"]
    return [
        *lines,
        *mlps.account.lines(mlps.transposed),
        *(f"also there: {one} (choose with --in and --out)" for one in mlps.others),
    ]


def selection(mlps: Mlps) -> dict[str, Any]:
    """The selection as JSON holds it."""
    chosen = {kind: [name + side.label for name in sorted(side.names, key=natural)] for kind, side in mlps.sides.items()}
    return {"mlps": mlps.depth, "chosen": chosen, **mlps.account.record(mlps.transposed), "others": mlps.others}


def chance(count: int) -> str:
    """Words about what guessing gets right: one pair on average, and all of them once in L! times."""
    return f"guessing gets 1 of {count} right on average"


def table(names: Names, found: Judged) -> list[str]:
    """A line for each pair."""
    width = max(map(len, names.ours))
    their_width = max(map(len, names.theirs))
    columns = f"{'score':>8} {'runner-up':>9} {'margin':>8} {'certainty':>9}"
    lines = [f"{'input half':<{width}}  {'output half':<{their_width}}  {columns}"]
    for i, j in enumerate(found.partner):
        numbers = f"{found.own[i]:>8.4f} {found.runner_up[i]:>9.4f} {found.gap[i]:>8.4f} {found.certainty[i]:>9.1f}"
        doubt = "" if found.certainty[i] >= found.clear else "  in doubt"
        lines.append(f"{names.ours[i]:<{width}}  {names.theirs[j]:<{their_width}}  {numbers}{doubt}")
    return lines


def summary(found: Judged, limits: str) -> list[str]:
    """The signal, the evidence for it, and the verdict; `limits` tells what the verdict does not cover."""
    best = sorted(found.separations.items(), key=lambda item: -item[1])
    ranking = ", ".join(f"{name} {value:.3g}" for name, value in best)
    in_doubt = len(doubtful(found))
    counts = {"paired": "every pair is clear", "no signal": "these halves pair no better than shuffled ones"}
    why = counts.get(found.verdict, f"{in_doubt} of {len(found.partner)} pairs are in doubt")
    return [
        f"signal: {found.signal} (separation, in times that of shuffled halves: {ranking})",
        f"votes: {', '.join(found.voters) or 'no signal shows'}"
        + (f"; each pair chosen by {found.votes.min()} to {found.votes.max()} of them" if found.voters else ""),
        f"verdict: {found.verdict}: {why} (strength {found.strength:.3g}, a signal from {found.needed:.3g}; "
        f"least certainty {found.certainty.min():.3g}, clear from {found.clear:.3g}){limits}",
    ]


def record(names: Names, found: Judged, truth: Int[np.ndarray, " L"] | None) -> dict[str, Any]:
    """One pairing as JSON holds it."""
    pairs = [
        {
            "in": names.ours[i],
            "out": names.theirs[j],
            "score": found.own[i],
            "runner_up": found.runner_up[i],
            "margin": found.gap[i],
            "certainty": found.certainty[i],
            "votes": found.votes[i],
        }
        for i, j in enumerate(found.partner)
    ]
    checked = {} if truth is None else {"correct": int((truth == found.partner).sum()), "total": len(truth)}
    return {
        "signal": found.signal,
        "verdict": found.verdict,
        "pairs": pairs,
        **checked,
        "doubtful": [names.ours[i] for i in doubtful(found)],
        "separations": found.separations,
        "voters": found.voters,
        "strength": found.strength,
        "strength_needed": found.needed,
        "certainty_needed": found.clear,
    }


def heat_map(path: Path, title: str, found: Judged) -> None:
    """Draws the scores, in the order of the file and with the output halves in their partners' places, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    for axes, score, what in zip(
        figure.subplots(1, 2), (found.score, found.score[:, found.partner]), ("as they came", "paired"), strict=True
    ):
        image = axes.imshow(score, cmap="viridis")
        axes.set(title=what, xlabel="output half", ylabel="input half")
        figure.colorbar(image, ax=axes, shrink=0.8)
    figure.suptitle(f"{title}: {found.signal}, {found.verdict}")
    figure.savefig(path, format="png", dpi=120)


def consistent(found: Mapping[str, Judged]) -> int:
    """Output halves whose up and gate projections, each paired with it alone, are paired with each other as well."""
    up_of = np.argsort(found["up/out"].partner)
    gate_of = np.argsort(found["gate/out"].partner)
    return int((found["gate/up"].partner[gate_of] == up_of).sum())
