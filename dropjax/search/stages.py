"""The stages that the strategies are made of: each is timed and recorded, and returns an arrangement."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import Float, Int

from dropjax.core.protocols import ALONE, Context
from dropjax.core.solution import Pairing
from dropjax.moves.arrangements import SWAP, nothing, pairs_of_positions
from dropjax.moves.exact import score_moves
from dropjax.ordering import bradley_terry, seeding
from dropjax.ordering.bubble import bubble_repair
from dropjax.ordering.guided import guided_repair
from dropjax.ordering.seeding import Start
from dropjax.ordering.straightening import rows_to_straighten, straighten
from dropjax.pairing.portfolio import pair
from dropjax.runtime.device import scored_together
from dropjax.search.problem import Problem
from dropjax.search.run import Run

SEED_ROWS = 64
"""Rows on which `auto` computes its portfolio of seed orders."""
MOVES_PER_CALL = 256
"""Swaps scored between two looks at the clock."""
OVERFLOWED = float(np.finfo(np.float32).max)
"""The MSE that counts for an arrangement whose outputs overflow."""


def separating(run: Run) -> Pairing:
    """The pairing that separates best."""
    with run.stage("pairing"):
        return pair(run.problem.stack.w_in, run.problem.stack.w_out, run.options.memory, "auto")


def seed_orders(run: Run, pairs: Int[np.ndarray, "L 2"], initial: Int[np.ndarray, "L 2"] | None) -> list[Start]:
    """The given start or the named seed order, each also in reverse; without either, the whole portfolio, the best first."""
    options, few = run.options, run.problem.first(SEED_ROWS)
    if initial is not None:
        return both_ways(Start("given", initial))
    with run.stage("seed order") as record:
        if options.seed_order is not None:
            direction = options.direction or "ascending"
            arrangement = seeding.seed_order(options.seed_order, direction, few.stack, pairs, few.x, options.random_seed)
            record["order"] = arrangement
            return both_ways(Start(f"{options.seed_order} {direction}", arrangement))
        seeds = seeding.portfolio(few.stack, pairs, few.x, few.pred)
        starts = [seeds[k] for k in np.argsort([seed.mse for seed in seeds])]  # an order that overflowed, NaN, comes last
        record |= {"mse": starts[0].mse, "rows": min(len(few.x), seeding.SCORED_ROWS), "evaluations": len(starts)}
        record["order"] = starts[0].arrangement
    return starts


def both_ways(start: Start) -> list[Start]:
    """The start and its reverse, because a proxy may also fall with depth."""
    return [start, Start(f"{start.name}, reversed", start.arrangement[::-1].copy())]


def straightened(run: Run, arrangement: Int[np.ndarray, "L 2"]) -> Int[np.ndarray, "L 2"]:
    """Straightens the order on few rows, which mostly solves it."""
    few = run.problem.first(rows_to_straighten(len(arrangement)))
    tolerance = 0.0 if run.pred_noise is not None else run.yardstick.tolerance
    with run.stage("straightening") as record:
        found = straighten(few.stack, arrangement, few.x, few.pred, tolerance, run.context)
        record |= {"mse": float(found.mse) if np.isfinite(found.mse) else None, "rows": len(few.x)}
        arrangement = found.arrangement
        record |= {"evaluations": int(found.rounds), "order": arrangement}
    # Where pred is noisy, the neighbours of a solved order count as solved too; the best of them is still to be found.
    noisy = run.pred_noise is not None and run.solved(arrangement)
    return guided(run, arrangement) if noisy else arrangement


def guided(
    run: Run, arrangement: Int[np.ndarray, "L 2"], tolerances: Sequence[float] | None = None
) -> Int[np.ndarray, "L 2"]:
    """Runs guided repair on few rows first, and on all rows if pred is noisy or the few rows misled it."""
    (stack, x, pred, _), options = run.problem, run.options
    if tolerances is None:
        tolerances = (0.0,) if run.pred_noise is not None else (run.yardstick.tolerance, 0.0)
    for tolerance in tolerances:
        with run.stage("guided repair") as record:
            repaired = guided_repair(stack, arrangement, x, pred, tolerance, run.context, options.screen_precision)
            arrangement = np.asarray(repaired.arrangement)
            mse = float(repaired.proposals.mse)
            record |= {"mse": mse if np.isfinite(mse) else None, "rows": repaired.rows(len(x))}
            record |= {"evaluations": int(repaired.rounds), "swaps": int(repaired.swaps), "order": arrangement}
        if run.agreed_stop() or mse > tolerance or run.solved(arrangement):
            break
    return arrangement


def ranked(run: Run, few: Problem, arrangement: Int[np.ndarray, "L 2"]) -> Int[np.ndarray, "L 2"]:
    """The blocks by their Bradley–Terry strengths over all swaps of `arrangement` (paper, Section 4.3)."""
    with run.stage("bradley-terry") as record:
        gaps = swap_gaps(few, arrangement, run.context, MOVES_PER_CALL)
        if gaps is not None:
            wins = bradley_terry.log_soft_wins(gaps, run.options.temperature)
            arrangement = arrangement[bradley_terry.order(bradley_terry.fit(wins, run.options.bt_solver))]
            record["evaluations"] = len(gaps) * (len(gaps) - 1) // 2
        record |= run.on_all_rows(arrangement)
    return arrangement


def bubbled(run: Run, few: Problem, arrangement: Int[np.ndarray, "L 2"]) -> Int[np.ndarray, "L 2"]:
    """The paper's repair (Section 4.4), decided on the search rows."""
    with run.stage("bubble repair") as record:
        repaired = bubble_repair(few.stack, arrangement, few.x, few.pred, run.context)
        record |= run.on_all_rows(repaired.arrangement)
        record |= {"evaluations": repaired.evaluations, "swaps": repaired.swaps}
    return repaired.arrangement


def swap_gaps(
    problem: Problem, arrangement: Int[np.ndarray, "L 2"], context: Context = ALONE, per_call: int = MOVES_PER_CALL
) -> Float[np.ndarray, "L L"] | None:
    """g_AB of every two positions, antisymmetric: what their swap adds to the MSE (paper, Eq. 7); None where stopped.

    The clock is looked at every `per_call` swaps.
    """
    depth = len(arrangement)
    swaps = pairs_of_positions(depth, SWAP)
    per_call = max(per_call, depth)
    # The last call is filled up with empty swaps. There is at least one of them, and it scores the arrangement itself.
    moves = np.concatenate([swaps, nothing(depth, per_call - len(swaps) % per_call)])
    scores: list[np.ndarray] = []
    for start in range(0, len(moves), per_call):
        if context.agreed_stop():
            return None
        context.tell(done=start, of=len(moves))
        part = moves[start : start + per_call]
        score = partial(score_moves, problem.stack, arrangement, part, problem.x, problem.pred)
        scores.append(context.keep(partial(score, scored_together(depth), context.memory), np.zeros(per_call, np.float32)))
    mse = np.nan_to_num(np.concatenate(scores, dtype=np.float64), nan=OVERFLOWED, posinf=OVERFLOWED)
    gaps = np.zeros((depth, depth))
    gaps[swaps[:, 1], swaps[:, 2]] = mse[: len(swaps)] - mse[-1]
    return gaps - gaps.T
