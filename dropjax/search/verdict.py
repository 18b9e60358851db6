"""The verdict on a search's answer, from its verification."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from dropjax.core.protocols import StopReason
from dropjax.core.puzzle import Puzzle
from dropjax.core.solution import Outcome
from dropjax.core.stack import ACTIVATIONS
from dropjax.search import causes, verify
from dropjax.search.answer import Answer
from dropjax.search.rivals import Rivals, near_rivals, searched_rivals, towards_fitting
from dropjax.search.run import Run, Searched
from dropjax.search.stages import guided
from dropjax.search.twins import twin_pieces
from dropjax.search.yardstick import FAR_BELOW, tells_enough

SETTLING = 2
"""At most this many moves for each block repair an answer that pred's rounding still contradicts."""


def finished(run: Run, arrangement: Int[np.ndarray, "L 2"]) -> Int[np.ndarray, "L 2"]:
    """Repairs a solved arrangement further if float32 tells it from the answer: in a deep stack, an exchange of neighbours
    can change the outputs by less than the MSE of an exact answer allows."""
    if run.pred_noise is not None or not run.solved(arrangement):
        return arrangement
    tolerance = (verify.ALIKE * run.float32_noise(arrangement)) ** 2
    if run.full_pass(arrangement).mse <= tolerance:
        return arrangement
    repaired = guided(run, arrangement, (tolerance,))
    return min(arrangement, repaired, key=lambda of: run.full_pass(of).mse)


class Verdict(NamedTuple):
    """The result of an answer's verification."""

    arrangement: Int[np.ndarray, "L 2"]
    passed: verify.Pass
    outcome: Outcome
    noise: verify.Noise
    ties: Sequence[Sequence[int]] = ()
    rivals: Sequence[Int[np.ndarray, "L 2"]] = ()
    """Other arrangements that fit as well, if they are the reason why it is not solved."""
    stop_reason: StopReason | None = None
    """Why it is not solved although the search took it for solved."""
    reason: str | None = None
    """The evidence for that, in words."""
    notes: Sequence[str] = ()
    """Remarks on a solved answer."""

    def not_told(self, reason: str, rivals: Sequence[Int[np.ndarray, "L 2"]] = ()) -> "Verdict":
        """The verdict on an answer that nothing contradicts but that cannot be told from others."""
        return self._replace(outcome=Outcome.NOT_SOLVED, stop_reason=StopReason.UNTOLD, reason=reason, rivals=rivals)


def judged(run: Run, puzzle: Puzzle, arrangement: Int[np.ndarray, "L 2"]) -> Verdict:
    """Judges an arrangement on all rows, and looks for others that do as well or better."""
    answer, near, rivals = _settled(run, arrangement)
    arrangement, yardstick, by_output, float32 = (
        answer.arrangement,
        answer.yardstick,
        answer.passed.by_output,
        answer.float32,
    )
    verdict = Verdict(arrangement, answer.passed, answer.outcome, verify.Noise(float32, yardstick.pred_noise))
    if not yardstick.spread.any():
        return verdict.not_told("pred is the same in every row, which tells no order from another")
    if not answer.outcome.solved:
        return verdict
    if not tells_enough(len(arrangement), puzzle.x, yardstick, by_output, float32):
        rows = f"the table's {len(puzzle.x):,} rows, the same ones counted once,"
        return verdict.not_told(f"{rows} hold too few digits to tell all arrangements of {len(arrangement)} blocks apart")
    if rivals:
        within = yardstick.words or "the error that is left"
        return verdict.not_told(f"at least {len(rivals)} other arrangements fit pred as well, within {within}", rivals)
    ties = verify.tie_groups(puzzle, arrangement, near.ties, twin_pieces(puzzle, answer, run.options.memory))
    outcome = Outcome.EXACT_UP_TO_TIES if ties and answer.outcome is Outcome.EXACT else answer.outcome
    by_noise = yardstick.words is not None and (outcome is Outcome.NOISE_FLOOR or answer.is_by_rounding)
    return verdict._replace(outcome=outcome, ties=ties, notes=(f"measured by {yardstick.words}",) if by_noise else ())


def _settled(run: Run, arrangement: Int[np.ndarray, "L 2"]) -> tuple[Answer, verify.Near, Sequence[Int[np.ndarray, "L 2"]]]:
    """The answer, after any single moves that fit better, with its ties and with the orders it cannot be told from."""
    (stack, x, pred, table), memory, full = run.problem, run.options.memory, run.options.verify == "full"
    left = SETTLING * len(arrangement)
    while True:
        answer, near, found, better = _answer(run, arrangement), verify.Near.none(), Rivals(), None
        if answer.outcome.solved:
            near = verify.near_moves(
                stack, arrangement, x, pred, table.x, answer.passed, answer.float32, not full, memory, run.interrupted
            )
            better = near.better if answer.outcome is Outcome.EXACT else None
            if better is None and answer.unexplained:
                found = near_rivals(answer, memory)
                better = found.better
        elif not answer.fits and answer.is_near and not run.agreed_stop():
            better = towards_fitting(answer, memory)
        if better is None or left == 0:
            break
        arrangement, left = better, left - 1
    searched = searched_rivals(answer, run.passes) if answer.outcome.solved and answer.unexplained else []
    return answer, near, [*found.orders, *searched]


def _answer(run: Run, arrangement: Int[np.ndarray, "L 2"]) -> Answer:
    """The arrangement as an answer; its yardstick includes the noise of x's rounding if that explains the remaining
    error."""
    answer = run.answer(arrangement)
    if answer.outcome.solved:
        return answer
    of_x = causes.noise_of_x(verify.arranged_on_host(run.problem.stack, arrangement), run.problem.table.x)
    if of_x is None:
        return answer
    noise = np.hypot(of_x.noise, answer.yardstick.noise)
    if not causes.is_explained(answer.passed.by_output, noise):
        return answer
    words = f"x's rounding to {of_x.decimals} decimals, pred having been computed before it"
    return answer._replace(
        yardstick=answer.yardstick._replace(
            noise=np.maximum(noise, np.sqrt(answer.passed.by_output)), bound=None, words=words
        )
    )


def explained(run: Run, searched: Searched) -> tuple[Run, Searched] | None:
    """Explains the remaining error of a result far below pred's variance, by another activation or by x's rounding.

    Returns the run and the result with that explanation if they solve the puzzle or leave nothing to search for; else None.
    """
    arrangement, mse = searched.arrangement, run.full_pass(searched.arrangement).mse
    if not mse < FAR_BELOW * run.yardstick.variance:
        return None
    stack, _, _, table = run.problem
    name = causes.other_activation(verify.arranged_on_host(stack, arrangement), *table)
    if name is None:
        return (run, searched) if _answer(run, arrangement).outcome.solved else None
    other = run.with_activation(name)
    with other.stage("activation") as record:
        record |= {"evaluations": len(ACTIVATIONS)} | other.on_all_rows(arrangement)
    if not other.solved(arrangement):
        arrangement = guided(other, arrangement)
    if not other.solved(arrangement):
        return None
    left = f"{mse / run.yardstick.variance:.2g} of pred's variance"
    note = f"activation: {stack.activation} leaves {left} in this order; {name} is what reproduces pred"
    return other, searched._replace(arrangement=arrangement, notes=(*searched.notes, note))
