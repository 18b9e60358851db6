"""Recovering a stack whose seed orders say little and whose pairs are in doubt.

Rung by rung, each from the best so far: orders by least squares and by places, from seed orders and from random ones;
pairings by least squares, each judged by the order that it leads to; annealing, where neither goes on; at last every move is
scored exactly, the best one made, and so on until none helps. Of few blocks, every arrangement is tried.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from dropjax.core.options import MEMORY
from dropjax.core.protocols import Keep, keep_nothing
from dropjax.core.solution import Pairing
from dropjax.core.stack import Stack, forward
from dropjax.moves.arrangements import PAIR_SWAP, SWAP, insertions, moved, nothing, pairs_of_positions
from dropjax.moves.exact import score_arrangements, score_moves
from dropjax.moves.first_order import score_first_order
from dropjax.ordering.annealing import anneal_rounds, from_here, start_annealing
from dropjax.ordering.flip_regression import orders
from dropjax.ordering.guided import guided_rounds, start_guided
from dropjax.ordering.places import Placing, is_deep, placing_round, rows_needed, start_placing
from dropjax.pairing.certainty import regrets
from dropjax.pairing.least_squares import proposals
from dropjax.runtime import mesh
from dropjax.runtime.device import scored_together
from dropjax.search.yardstick import attainable_mse

FEW_ROWS, ROWS = 256, 512
"""Rows on which an order forms, and on which it is finished: one that fits the fewer need not fit the table."""
JUDGED_ROWS = 4000
"""Rows that flips are fitted to, and that what is proposed is judged on, or twice the number of flips, if that is more."""
HOT = 5e-3
"""Highest temperature of an annealing, in variances of pred: where an order begins to form."""
WARM = 150
"""An annealing begins at 1/150 of its start's MSE, if that is less: hotter, and what is there would melt."""
COOLING = 5, 10
"""Factors by which the temperature falls on the fewer rows, and on the more."""
ROUNDS = 3000, 1000
"""Rounds on either."""
SIZES = (12, 16, 24, 48)
"""Doubtful pairs that a regression is fitted to."""
DOUBTFUL = 16
"""Doubtful pairs whose exchanges are scored one by one."""
ROUGH = 0.5
"""Fraction of pred's variance that an order's MSE has to be under for least squares to be tried on it."""
EVERY = 1000
"""Rounds between two trials of least squares."""
PATIENCE = 4
"""Orders by least squares in a row that may be no better than the best so far."""
TRIED = 4
"""Proposed orders or pairings that are judged on many rows."""
PORTION = 512
"""Moves that are scored exactly before the best of them is made, if it helps."""
EXHAUSTIBLE = 20_000
"""Arrangements that are all tried: up to five blocks."""
PART = 20
"""Rounds between two looks at the clock."""
PLACED = 8
"""Rounds of placing that are kept as one, for what is known of deep stacks' places is large; then it is seen whether guided
repair ends it."""
REPAIRED = 16
"""Rounds of guided repair that it then has, and again as long as they halve the MSE."""


class Climbed(NamedTuple):
    """How far it got."""

    arrangement: Int[np.ndarray, "L 2"]
    mse: float
    """Over the rows that least squares look at."""
    rounds: int
    """Regressions, rounds of annealing and candidates scored exactly."""
    moves: int


Rung = Callable[[Climbed], Climbed]


class Ladder:
    """The rungs for one stack and table; all randomness from `seed`."""

    def __init__(
        self,
        stack: Stack,
        x: Float[np.ndarray, "N d"],
        pred: Float[np.ndarray, "N o"],
        pairing: Pairing,
        stop: Callable[[], object],
        seed: int,
        memory: int = MEMORY,
        keep: Keep = keep_nothing,
        pred_noise: float | None = None,
    ) -> None:
        self.stack, self.stop, self.seed, self.memory, self.keep = stack, stop, seed, memory, keep
        depth, outputs = stack.depth, stack.w_last.shape[0]
        places = rows_needed(depth, outputs)
        many = max(JUDGED_ROWS, places if is_deep(depth) else depth * (depth - 1))
        self.fewest, self.few, self.for_places, self.many = (
            mesh.put_rows((x[:rows], pred[:rows])) for rows in (FEW_ROWS, ROWS, places, many)
        )
        self.ordered: Rung = self.by_places if is_deep(depth) else self.by_flips
        """What an order is found by where the pairs have changed."""
        self.score = pairing.score
        self.doubtful = np.argsort(regrets(pairing.score, pairing.partner), kind="stable")
        """Input halves, the most doubtful first."""
        self.exact = attainable_mse(pred, pred_noise)
        """MSE from which nothing is left to find."""
        self.variance = float(np.var(pred, axis=0).mean())

    def judged(self, arrangement: Int[np.ndarray, "L 2"], rounds: int = 0, moves: int = 0) -> Climbed:
        """The arrangement with its MSE over many rows."""
        mse = score_arrangements(self.stack, arrangement[None], *self.many, memory=self.memory)
        return Climbed(arrangement, float(mse[0]) if np.isfinite(mse[0]) else np.inf, rounds, moves)

    def unfinished(self, at: Climbed) -> bool:
        """Whether something is left to find, and the outputs are numbers to find it by."""
        return self.exact < at.mse < np.inf

    def annealed(
        self,
        rows: tuple[Array, Array],
        start: Int[np.ndarray, "L 2"],
        hot: float,
        cold: float,
        rounds: int,
        seed: int,
    ) -> Climbed:
        """The best order of one annealing on some rows; on the way, pairs by least squares are taken where they help."""
        at = start_annealing(start, seed)
        schedule = np.float32(hot), np.float32(cold), np.int32(rounds), np.int32(PART)
        while int(at.rounds) < rounds and float(at.best_mse) > self.exact and not self.stop():
            at = self.keep(partial(anneal_rounds, self.stack, at, *rows, *schedule), at)
            if float(at.mse) < ROUGH * self.variance and int(at.rounds) % EVERY == 0:
                here = self.judged(np.asarray(at.arrangement))
                better = self.keep(partial(self.likeliest_pairs, here), here)
                if better.mse < here.mse:
                    at = from_here(at, better.arrangement)
        return self.judged(np.asarray(at.best), int(at.rounds), int(at.moves))

    def proposed(self, arrangement: Int[np.ndarray, "L 2"]) -> list[Int[np.ndarray, "L 2"]]:
        """Other pairings by least squares, the likeliest first."""
        return proposals(self.stack, arrangement, self.doubtful, self.score, *self.many, sizes=SIZES, memory=self.memory)

    def likeliest_pairs(self, here: Climbed) -> Climbed:
        """The best of the likeliest other pairings, as they stand; `here` where none is proposed."""
        return min(map(self.judged, self.proposed(here.arrangement)[:TRIED]), key=lambda of: of.mse, default=here)

    def by_places(self, start: Climbed) -> Climbed:
        """The order by its blocks' places (`places`), from what the start's own say."""
        if not self.unfinished(start):
            return start._replace(rounds=0)
        (x, pred), memory = self.for_places, self.memory
        at = start_placing(self.stack, start.arrangement, x, pred, memory)

        def rounds() -> Placing:
            last = at
            while last.rounds < at.rounds + PLACED and self._goes_on(last):
                last = placing_round(self.stack, start.arrangement, last, x, pred, memory)
            return last

        best = start
        while self._goes_on(at) and best.mse > self.exact:
            at = self.keep(rounds, at)
            if at.waited < PLACED:
                found = self.keep(partial(self._repaired, start.arrangement[at.order]), start)
                best = min(best, found, key=lambda of: of.mse)
        return best._replace(rounds=at.rounds)

    def _repaired(self, arrangement: Int[np.ndarray, "L 2"]) -> Climbed:
        """An order by places, or that by guided repair from it: where places are all but certain, neighbours are left."""
        exact, most = np.float32(self.exact), np.int32(REPAIRED)
        at, halved = start_guided(arrangement), True
        while halved and not (at.finished or self.stop()):
            before = float(at.proposals.mse)
            at = guided_rounds(self.stack, at, *self.for_places, exact, most, memory=self.memory // 2)  # beside places' own
            halved = float(at.proposals.mse) < before / 2
        return min(map(self.judged, (arrangement, np.asarray(at.arrangement))), key=lambda of: of.mse)

    def _goes_on(self, at: Placing) -> bool:
        return at.mse > self.exact and not (at.ended or self.stop())

    def by_flips(self, start: Climbed) -> Climbed:
        """Orders by least squares, each from the one before; ends after `PATIENCE` that are no better than the best."""
        best = at = start
        seen = {start.arrangement.tobytes()}
        rounds = waited = 0

        def another() -> Climbed:
            """The best of the orders proposed that are new; `at` where none is."""
            proposed = orders(self.stack, at.arrangement, *self.many, memory=self.memory)
            scores = np.asarray(score_arrangements(self.stack, proposed, *self.few, memory=self.memory))
            ranked = [proposed[k] for k in np.argsort(scores, kind="stable")]
            new = [order for order in ranked if order.tobytes() not in seen][:TRIED]
            return min(map(self.judged, new), key=lambda of: of.mse, default=at)

        while self.unfinished(best) and waited < PATIENCE and not self.stop():
            at = self.keep(another, start)
            if at.arrangement.tobytes() in seen:
                break
            seen.add(at.arrangement.tobytes())
            rounds += 1
            waited = 0 if at.mse < best.mse else waited + 1
            best = min(best, at, key=lambda of: of.mse)
        return best._replace(rounds=rounds)

    def settled(self, start: Climbed, ordered: Rung | None = None) -> Climbed:
        """Orders by `ordered` and pairs by least squares in turn, as long as other pairs help at once."""
        ordered = ordered or self.ordered
        best, rounds = start, 0
        while True:
            best = ordered(best)
            rounds += best.rounds
            if best.mse > ROUGH * self.variance or best.mse <= self.exact or self.stop():
                break
            better = self.keep(partial(self.likeliest_pairs, best), best)
            if better.mse >= best.mse:
                break
            best = better
        return best._replace(rounds=rounds)

    def best_of(self, starts: Sequence[Int[np.ndarray, "L 2"]], ordered: Rung | None = None) -> Climbed:
        """The best that the starts settle to; the first that is exact ends it."""
        best, rounds = self.judged(starts[0]), 0
        for start in starts:
            if best.mse <= self.exact or self.stop():
                break
            judged = self.judged(start)
            found = self.keep(partial(self.settled, judged, ordered), judged)
            best, rounds = min(best, found, key=lambda of: of.mse), rounds + found.rounds
        return best._replace(rounds=rounds)

    def warmed(self, best: Climbed) -> Climbed:
        """Annealed on few rows, then on more until it is cold, and put in order by least squares from there."""
        if not self.unfinished(best):
            return best._replace(rounds=0)
        hot = min(HOT * self.variance, best.mse / WARM)
        few, more = COOLING

        def annealed(rows: tuple[Array, Array], start: Climbed, hot: float, cold: float, stage: int) -> Climbed:
            seed = self.seed + 1 + stage
            return self.keep(partial(self.annealed, rows, start.arrangement, hot, cold, ROUNDS[stage], seed), start)

        formed = annealed(self.fewest, best, hot, hot / few, 0)
        finished = annealed(self.few, formed, hot / few, hot / few / more, 1)
        settled = self.settled(finished)
        rounds = formed.rounds + finished.rounds + settled.rounds
        return min(best, settled, key=lambda of: of.mse)._replace(rounds=rounds, moves=formed.moves + finished.moves)

    def evidence_of_nothing(self, arrangement: Int[np.ndarray, "L 2"]) -> str | None:
        """In words, where the outputs do not follow pred on rows that no search decided on; None where they do.

        Outputs that know nothing of pred correlate with it by 1/√N; six times as much is no accident.
        """
        x, pred = (a[ROWS:] for a in self.many)
        if len(x) < ROWS:
            return None
        outputs = mesh.fetch(forward(self.stack.arranged(mesh.put(arrangement)), x)).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            both = [np.corrcoef(of, wanted)[0, 1] for of, wanted in zip(outputs.T, mesh.fetch(pred).T, strict=True)]
        most, chance = max(np.nan_to_num(both)), 1 / np.sqrt(len(x))
        if most > 6 * chance:
            return None
        return (
            f"no order of these pieces reproduces pred: on {len(x):,} rows that the search did not decide on, the outputs "
            f"of the best one correlate with pred by {most:.3f}, where chance gives about {chance:.3f}"
        )

    def paired(self, best: Climbed) -> Climbed:
        """Pairings by least squares, as long as one of them leads to an order with a lower MSE."""
        tried = {best.arrangement.tobytes()}
        rounds = 0
        while self.unfinished(best) and not self.stop():
            better = None
            for pairing in [new for new in self.proposed(best.arrangement) if new.tobytes() not in tried][:TRIED]:
                tried.add(pairing.tobytes())
                judged = self.judged(pairing)
                found = self.keep(partial(self.settled, judged), judged)
                rounds += found.rounds
                if found.mse < best.mse:
                    better = found
                    break
            if better is None:
                break
            best = better
        return best._replace(rounds=rounds)

    @property
    def exhaustible(self) -> bool:
        """Whether all arrangements can be tried."""
        return math.factorial(self.stack.depth) ** 2 <= EXHAUSTIBLE

    def exhausted(self, best: Climbed) -> Climbed:
        """The best of all arrangements."""
        orders = list(itertools.permutations(range(self.stack.depth)))
        every = np.array([np.stack(halves, axis=1) for halves in itertools.product(orders, orders)], np.int32)
        scores = np.asarray(score_arrangements(self.stack, every, *self.many, memory=self.memory))
        found = self.judged(every[np.argsort(scores)[0]])
        return min(best, found, key=lambda of: of.mse)._replace(rounds=len(every))

    def scanned(self, best: Climbed) -> Climbed:
        """Swaps, insertions and doubtful pair swaps, scored exactly, those first that are predicted to help most.

        The best of the first `PORTION` with an improvement is made, as long as there is one among them all.
        """
        scored = made = 0
        together, (x, pred) = scored_together(self.stack.depth), self.few

        def best_of(portion: Int[np.ndarray, "P 3"]) -> Climbed:
            scores = score_moves(self.stack, best.arrangement, portion, x, pred, together, self.memory)
            tops = [np.asarray(moved(best.arrangement, portion[k])) for k in np.argsort(scores)[:4]]
            return min(map(self.judged, tops), key=lambda judged: judged.mse)

        while best.mse > self.exact:
            better = None
            for portion in self._portions(best.arrangement):
                if self.stop():
                    break
                found = self.keep(partial(best_of, portion), best)
                scored += len(portion)
                if found.mse < best.mse:
                    better = found
                    break
            if better is None:
                break
            best, made = better, made + 1
        return best._replace(rounds=scored, moves=made)

    def _portions(self, arrangement: Int[np.ndarray, "L 2"]) -> Iterator[Int[np.ndarray, "P 3"]]:
        """All moves that `scanned` scores, `PORTION` at a time, the last ones filled up with moves of nothing."""
        depth = self.stack.depth
        pair_swaps, swaps, inserts = pairs_of_positions(depth, PAIR_SWAP), pairs_of_positions(depth, SWAP), insertions(depth)
        places = np.argsort(arrangement[:, 0])[self.doubtful[:DOUBTFUL]]
        pair_swaps = pair_swaps[np.isin(pair_swaps[:, 1:], places).all(axis=1)]
        right, left, exchanged = np.asarray(score_first_order(self.stack, arrangement, *self.few, self.memory).far)
        i, j = inserts[:, 1:].T
        inserted = np.where(i < j, right[np.minimum(i, j), np.maximum(i, j)], left[np.minimum(i, j), np.maximum(i, j)])
        predicted = np.concatenate([exchanged[swaps[:, 1], swaps[:, 2]], inserted])
        ordered = np.concatenate([swaps, inserts])[np.argsort(predicted, kind="stable")]
        moves = np.concatenate([pair_swaps, ordered])
        yield from np.concatenate([moves, nothing(depth, -len(moves) % PORTION)]).reshape(-1, PORTION, 3)
