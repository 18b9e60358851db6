"""What verification makes of a search's answer."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from dropjax.core.puzzle import Puzzle
from dropjax.core.solution import Outcome
from dropjax.search import verify
from dropjax.search.run import Run
from dropjax.search.stages import guided


def finished(run: Run, arrangement: Int[np.ndarray, "L 2"]) -> Int[np.ndarray, "L 2"]:
    """A solved arrangement, repaired on where float32 tells it from the answer: of a deep stack, exchanges of neighbours can
    do less than an exact answer's MSE allows."""
    if run.pred_noise is not None or not run.solved(arrangement):
        return arrangement
    tolerance = (verify.ALIKE * run.float32_noise(arrangement)) ** 2
    if run.full_pass(arrangement).mse <= tolerance:
        return arrangement
    repaired = guided(run, arrangement, (tolerance,))
    return min(arrangement, repaired, key=lambda of: run.full_pass(of).mse)


class Verdict(NamedTuple):
    """What verification says of an answer."""

    arrangement: Int[np.ndarray, "L 2"]
    passed: verify.Pass
    outcome: Outcome
    noise: verify.Noise
    ties: Sequence[Sequence[int]]
    replay: Mapping[str, float] | None


def judged(run: Run, puzzle: Puzzle, arrangement: Int[np.ndarray, "L 2"]) -> Verdict:
    """Judges an arrangement on all rows, and looks for others that do as well or better within float32's noise."""
    stack, x, pred, table = run.problem
    full, memory = run.options.verify == "full", run.options.memory
    while True:
        passed = run.full_pass(arrangement)
        noise = verify.Noise(run.float32_noise(arrangement), run.pred_noise)
        outcome = verify.judge(passed.mse, puzzle.pred, noise, ties=False)
        near = (
            verify.Near.none()
            if not outcome.solved
            else verify.near_moves(
                stack, arrangement, x, pred, table.x, passed, noise.float32, not full, memory, run.interrupted
            )
        )
        if near.better is None:
            break
        arrangement = near.better
    ties = verify.tie_groups(puzzle, arrangement, near.ties) if outcome.solved else ()
    return Verdict(
        arrangement,
        passed,
        verify.judge(passed.mse, puzzle.pred, noise, ties=bool(ties)),
        noise,
        ties,
        verify.float64_errors(stack, arrangement, *table, run.interrupted) if full else None,
    )
