"""Advice on what to try next if a puzzle was not solved."""

from collections.abc import Sequence
from pathlib import Path

from dropjax.core.options import Options
from dropjax.core.protocols import StopReason
from dropjax.core.solution import Solution

NEAR = 1e-3
"""The share of pred's variance below which the activation is not in doubt."""


def advice(solution: Solution, options: Options, checkpoint: Path | None = None) -> list[str]:
    """Lines that say what to try next, the likeliest help first; none if the puzzle was solved.

    `options` are those of the search, and `checkpoint` is the file that it was kept in.
    """
    if solution.solved:
        return []
    reason = solution.stop_reason
    tips: list[str] = []
    if reason in (StopReason.TIME_LIMIT, StopReason.INTERRUPTED):
        tips.append(_more_time(options, checkpoint, interrupted=reason == StopReason.INTERRUPTED))
    if reason == StopReason.UNTOLD:
        tips.append("a table with more rows, or with more decimals of pred: this one does not tell the answers apart")
        if options.pred_decimals is None and options.pred_noise is None:
            tips.append("--pred-decimals K or --pred-noise SIGMA, where you know how pred was rounded or disturbed")
    if reason == StopReason.NOTHING_TO_FIND:
        tips.append("see whether the table belongs to these pieces: its rows may be of another network, or in another order")
    tips += _stronger(options, reason)
    if options.activation != "auto" and (solution.mse_of_variance is None or solution.mse_of_variance > NEAR):
        tips.append(f"--activation auto: the search took {options.activation} for granted")
    if reason == StopReason.STALLED and options.method == "auto" and options.time_limit is None:
        tips.append("--time-limit SECONDS: the search then starts again from other orders until the time is up")
    return ["", "what to try next:", *(f"- {tip}" for tip in tips)] if tips else []


def _more_time(options: Options, checkpoint: Path | None, interrupted: bool) -> str:
    """How to go on with a search that was stopped."""
    limit = options.time_limit
    longer = "" if interrupted or limit is None else f"a --time-limit longer than {limit:g} seconds"
    if checkpoint is not None:
        same = f"--checkpoint {checkpoint} --resume: the search goes on where it was stopped"
        return f"{longer} with {same}" if longer else same
    kept = "--checkpoint FILE keeps what a search has found, and --resume goes on from there"
    return f"{longer}; {kept}" if longer else kept


def _stronger(options: Options, reason: str) -> Sequence[str]:
    """Advice about options that held the search back."""
    if reason not in (StopReason.STALLED, StopReason.NOTHING_TO_FIND):
        return []
    tips = ["--method auto: it goes on where the paper's method ends"] if options.method == "paper" else []
    if options.initial_order is not None:
        tips.append("no --initial-order: the search then pairs and orders the pieces by itself")
    elif options.pairing is not None:
        tips.append("no --pairing: the search then tries other signals where the first leaves pairs in doubt")
    return tips
