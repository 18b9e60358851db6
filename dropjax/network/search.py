"""The search for the arrangement of the lowest loss: descents by exact scores, and what follows where they stall."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import permutations, product
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from dropjax.core.protocols import Keep, keep_nothing
from dropjax.network import first_order, moves
from dropjax.network.scorer import Scorer

Arrangement = Int[np.ndarray, "L P"]
Arrangements = Int[np.ndarray, "K L P"]

ALL_ARRANGEMENTS = 720
"""All arrangements are tried if there are no more than this."""

BATCH = 24
"""Moves scored before the best of them are made."""

TOGETHER = np.array([2, 3, 4, 6, 8, 12, 16, 24])
"""Numbers of moves, the best ones that do not touch the same places, that are tried together."""

GUIDED_FROM = 12
"""With at least this many steps, moves are scored to first order before any is tried: that needs another compiled
program."""
JOINTLY_FROM = 20
"""The threshold in blocks instead, if one function runs all parts of a block: scores then take P·L² runs of a block."""
SAMPLES = 64
"""Rows times combinations of outputs that first-order scores and regressions on flips use, with at least two combinations.
More of them tell hardly more, and each combination costs a pass back."""

PAIRS_OF = 14
"""Number of least harmful moves at a local minimum of which any two are tried together."""

GAIN = 1e-6
"""Fraction of the loss by which a move has to lower it."""

ANNEALED = 60
"""Batches of an annealing."""
HOT, COLD = 0.3, 0.003
"""First and last temperature of an annealing, in units of the typical change by a move at the local minimum it leaves."""


class Descent(NamedTuple):
    """A descent under way, from one batch of moves to the next."""

    arrangement: Arrangement
    loss: float
    """Loss over the rows that the descent uses; ∞ before the first evaluation."""
    expected: Float[np.ndarray, " K"]
    """Change of the loss by each move when it was last tried, or its predicted change."""
    tried: Bool[np.ndarray, " K"]
    """Which moves have been tried from this arrangement."""
    made: int
    """Number of batches of which a move was made."""


@dataclass
class Search:
    """One search: its scorer, its tests for being solved and for stopping, and the keeper of its results."""

    scorer: Scorer
    solved: Callable[[Arrangement, float], bool]
    """Whether an arrangement of this loss reproduces the target on all rows."""
    stop: Callable[[], str | None] = lambda: None
    keep: Keep = keep_nothing
    random_seed: int = 0
    listed: moves.Moves = field(init=False)
    """Moves of parts of one kind and of whole blocks."""
    others: moves.Moves = field(init=False)
    """Moves of parts of some kinds, but not all."""
    guided: bool = field(init=False)
    """Whether moves are scored to first order first."""

    def __post_init__(self) -> None:
        network = self.scorer.network
        first, others = moves.kind_sets(network.kinds)
        self.listed = moves.every_move(network.depth, first)
        self.others = moves.every_move(network.depth, others)
        least = GUIDED_FROM if first_order.is_complete(network) else JOINTLY_FROM
        self.guided = first_order.steps(network) >= least and first_order.is_possible(network, self.scorer.chunks[0][0])

    def random(self, *what: int) -> np.random.Generator:
        """Random numbers that depend on the seed and on what they are for."""
        return np.random.default_rng((self.random_seed, *what))

    # Descents

    def descend(self, arrangement: Arrangement, rows: int, seed: int = 0) -> Descent:
        """Makes moves that lower the loss, or two at once if no single move does, until none is found or the search is
        solved or has to stop."""
        count = len(self.listed)
        at = Descent(arrangement, np.inf, self.random(seed).random(count) * 1e-12, np.zeros(count, bool), 0)
        while not self.stop():
            step = self._two_moves if at.tried.all() else self._batch
            next_at = self.keep(partial(step, at, rows), at)
            if at.tried.all() and next_at.tried.all():
                break
            at = next_at
            if not at.tried.all() and self.solved(at.arrangement, at.loss):
                break
        return at

    def _batch(self, at: Descent, rows: int) -> Descent:
        """Tries the next batch of moves, and makes those that lower the loss most."""
        asked = at.arrangement[None][:0]
        if self.guided and not at.tried.any():
            expected, asked = self._guidance(at)
            at = at._replace(expected=expected)
        batch = np.argsort(np.where(at.tried, np.inf, at.expected), kind="stable")[:BATCH]
        batch = batch[~at.tried[batch]]
        after = np.concatenate([moves.moved(at.arrangement, self.listed[batch]), asked])
        if at.loss < np.inf:
            losses = self.scorer.losses(after, rows)
        else:
            loss, *rest = self.scorer.losses(np.concatenate([at.arrangement[None], after]), rows)
            at, losses = at._replace(loss=float(loss)), np.array(rest)
        expected, tried = at.expected.copy(), at.tried.copy()
        expected[batch], tried[batch] = losses[: len(batch)] - at.loss, True
        at = at._replace(expected=np.nan_to_num(expected, nan=np.inf), tried=tried)
        together = self._together(at, np.flatnonzero(tried & (expected < 0)))
        candidates = np.concatenate([after, together])
        return self._lowered(at, candidates, np.concatenate([losses, self.scorer.losses(together, rows)]))

    def _lowered(self, at: Descent, candidates: Arrangements, losses: Float[np.ndarray, " K"]) -> Descent:
        """The descent at the best of the candidates, if that lowers the loss."""
        best = int(np.argmin(losses))
        if not losses[best] < at.loss - GAIN * abs(at.loss):
            return at
        return Descent(candidates[best], float(losses[best]), at.expected, np.zeros_like(at.tried), at.made + 1)

    def _together(self, at: Descent, chosen: Int[np.ndarray, " n"]) -> Arrangements:
        """Arrangements after several of the chosen moves at once, the best first."""
        chosen = chosen[np.argsort(at.expected[chosen], kind="stable")]
        several = moves.combined(at.arrangement, self.listed[chosen], int(TOGETHER[-1]))
        return several[TOGETHER[len(several) > TOGETHER - 2] - 2]

    def _guidance(self, at: Descent) -> tuple[Float[np.ndarray, " K"], Int[np.ndarray, "n L P"]]:
        """The predicted change by each move, and arrangements that all predictions together suggest."""
        network, (x, target) = self.scorer.network, self.scorer.chunks[0]
        combinations = min(self.scorer.outputs, max(2, SAMPLES // self.scorer.chunk))
        key = jax.random.key(self.random_seed)
        linear = jax.tree.map(np.asarray, first_order.linearise(network, at.arrangement, x, target, key, combinations))
        if not np.isfinite(linear.flips).all():
            return at.expected, at.arrangement[None][:0]
        predicted = first_order.predicted(network, linear, self.listed)
        together = self._together(at._replace(expected=predicted), np.flatnonzero(predicted < 0))
        return predicted, np.concatenate([together, first_order.proposals(network, at.arrangement, linear)])

    def _two_moves(self, at: Descent, rows: int) -> Descent:
        """Tries any two of the moves that harm least, one after the other, and moves of some kinds of parts together."""
        least = self.listed[np.argsort(at.expected, kind="stable")[:PAIRS_OF]]
        twice = [moves.moved(once, least) for once in moves.moved(at.arrangement, least)]
        candidates = np.unique(np.concatenate([*twice, moves.moved(at.arrangement, self.others)]), axis=0)
        return self._lowered(at, candidates, self.scorer.losses(candidates, rows))

    # Other starts

    def kicked(self, arrangement: Arrangement, times: int, seed: int) -> Arrangement:
        """The arrangement after some random moves."""
        for move in self.random(1, seed).permutation(self.listed)[:times]:
            (arrangement,) = moves.moved(arrangement, move[None])
        return arrangement

    def shuffled(self, seed: int) -> Arrangement:
        """A random arrangement."""
        network, random = self.scorer.network, self.random(2, seed)
        return np.stack([random.permutation(network.depth) for _ in range(network.kinds)], axis=1).astype(np.int32)

    def annealed(self, at: Descent, rows: int, seed: int) -> Arrangement:
        """The best arrangement of an annealing from a descent's end.

        A batch of random moves is scored at once. The moves before the first one that passes the Metropolis test are
        rejected, that one is made, and the rest are ignored, so that the moves made are those of one trial after another.
        """
        typical = float(np.median(np.abs(at.expected[np.isfinite(at.expected)])))
        now = best = (at.arrangement, at.loss)
        for k in range(ANNEALED):
            if self.stop():
                break
            now = self.keep(
                partial(self._annealing, now, HOT * typical * (COLD / HOT) ** (k / ANNEALED), rows, seed, k), now
            )
            best = min(best, now, key=lambda found: found[1])
        return best[0]

    def _annealing(self, at: tuple[Arrangement, float], temperature: float, rows: int, seed: int, k: int):
        random = self.random(3, seed, k)
        after = moves.moved(at[0], random.choice(self.listed, BATCH))
        losses = self.scorer.losses(after, rows)
        passes = losses - at[1] < -temperature * np.log(random.random(BATCH))
        first = int(np.argmax(passes))
        return (after[first], float(losses[first])) if passes[first] else at

    def all_arrangements(self) -> Arrangements | None:
        """Tries every arrangement, if there are few."""
        network = self.scorer.network
        if math.factorial(network.depth) ** network.kinds > ALL_ARRANGEMENTS:
            return None
        orders = list(permutations(range(network.depth)))
        return np.array([np.stack(columns, axis=1) for columns in product(orders, repeat=network.kinds)], np.int32)
