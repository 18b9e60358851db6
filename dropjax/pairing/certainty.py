"""The certainty of a matching: the loss by every exchange of two partners, compared with the wrong pairs' spread."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import scipy
from jaxtyping import Float, Int

from dropjax.core.solution import Pairing

KNOWN = 4.0
"""Strength of a judged pairing from which its scores are believed beside what the table says: of unrelated halves one in
fifty is stronger."""

PAIR_ERROR = 0.01
"""The probability, given the wrong pairs' spread, that some wrong pair of a matching is called clear."""


def regrets(score: Float[np.ndarray, "L L"], partner: Int[np.ndarray, " L"]) -> Float[np.ndarray, " L"]:
    """Loss of total score by each pair's best exchange of output halves with another pair; ∞ for a lone pair.

    Unlike a row's margin, this regret does not change when something is added to all scores of a row or a column.
    """
    mine = score[:, partner]
    own = np.diag(mine)
    loss = own[:, None] + own - mine - mine.T
    return np.where(np.eye(len(own), dtype=bool), np.inf, loss).min(axis=1)


def without_effects(score: Float[np.ndarray, "L L"], partner: Int[np.ndarray, " L"]) -> tuple[Float[np.ndarray, "L L"], int]:
    """The scores less their rows' and columns' effects, and the degrees of freedom that are left to the pairs not chosen.

    Column k is input half k's chosen partner, so that the chosen pairs are the diagonal. The effects are the least-squares
    fit to the table without the diagonal (Griffing's diallel analysis); with fewer than 4 halves there is too little to
    take effects from, and only the mean is taken.
    """
    count = len(partner)
    table = score[:, partner].astype(np.float64)
    if count < 2:
        return table, 1
    off = ~np.eye(count, dtype=bool)
    table -= table[off].mean()
    freedom = count * (count - 1) - 1
    if count > 3:
        rows, columns = np.where(off, table, 0).sum(axis=1), np.where(off, table, 0).sum(axis=0)
        by_row, by_column = (count - 1) * rows + columns, (count - 1) * columns + rows
        table -= (by_row[:, None] + by_column) / (count * (count - 2))
        freedom -= 2 * (count - 1)
    return table, freedom


def wrong_spread(score: Float[np.ndarray, "L L"], partner: Int[np.ndarray, " L"]) -> tuple[float, int]:
    """Standard deviation of the scores of the pairs not chosen, less their rows' and columns' effects, and its degrees of
    freedom."""
    table, freedom = without_effects(score, partner)
    return float(np.sqrt(np.square(table[~np.eye(len(table), dtype=bool)]).sum() / freedom)), freedom


def advantage(pairing: Pairing, least_spread: float = 0.0) -> float:
    """The chosen pairs' mean score less the others', divided by the others' spread (at least `least_spread`)."""
    own, count = pairing.own, len(pairing.partner)
    spread = max(wrong_spread(pairing.score, pairing.partner)[0], least_spread)
    others = (pairing.score.sum() - own.sum()) / max(1, count * (count - 1))
    return float((own.mean() - others) / spread) if spread > 0 else 0.0


def log_odds(pairing: Pairing) -> Float[np.ndarray, "L L"]:
    """What the scores say of each pair, in nats, up to a constant for each half: the slope of log-likelihood ratios between
    Gaussians of one spread, right pairs' mean being that of the chosen ones.

    It is 0 where nothing is known: where the chosen pairs stand no further out than those of shuffled halves, or, where no
    shuffled ones are at hand, than the largest of L wrong scores does by chance.
    """
    partner, count = pairing.partner, len(pairing.partner)
    spread, _ = wrong_spread(pairing.score, partner)
    table = without_effects(pairing.score, partner)[0] / max(spread, 1e-30)
    mean = float(np.mean(np.diag(table)))
    known = pairing.strength > KNOWN if isinstance(pairing, Judged) else mean > (2 * np.log(count)) ** 0.5
    found = np.empty_like(table)
    found[:, partner] = mean * table if known else 0.0
    return found


def certainty(pairing: Pairing, least_spread: float = 0.0, tries: int = 1) -> tuple[Float[np.ndarray, " L"], float]:
    """Each pair's regret in standard deviations of an exchange between wrong pairs, and the value that makes it clear.

    An exchange weighs four scores, so its standard deviation is twice the wrong pairs' spread (or `least_spread`, if that
    is larger). A pair is clear where none of the L(L − 1)/2 exchanges, in any of `tries` matchings of which this is the
    best, would get as far by chance with probability `PAIR_ERROR`: Bonferroni over Student's t.
    """
    spread, freedom = wrong_spread(pairing.score, pairing.partner)
    regret, count = regrets(pairing.score, pairing.partner), len(pairing.partner)
    unit = 2 * max(spread, least_spread)
    sure = np.where(regret > 0, np.inf, 0.0) if unit == 0 else regret / unit
    return sure, float(-scipy.special.stdtrit(freedom, PAIR_ERROR / (tries * max(1, count * (count - 1) / 2))))


def doubtful(pairing: Pairing) -> Int[np.ndarray, " D"]:
    """Input halves whose partner is not clear of chance (see `certainty`), the most doubtful first."""
    if isinstance(pairing, Judged):
        sure, clear = pairing.certainty, pairing.clear
    else:
        sure, clear = certainty(pairing)
    order = np.argsort(sure, kind="stable")
    return order[sure[order] < clear]


@dataclass(frozen=True)
class Judged(Pairing):
    """A pairing with the evidence for it."""

    certainty: Float[np.ndarray, " L"] = field(default_factory=lambda: np.zeros(0))
    """Each pair's regret in standard deviations of an exchange between wrong pairs (see `certainty`)."""
    clear: float = 0.0
    """The certainty from which a pair is beyond chance."""
    strength: float = 0.0
    """How far the chosen pairs stand above the others, compared with shuffled halves and in their standard deviations."""
    needed: float = 0.0
    """The strength from which there is a signal at all: Student's t over the shuffled copies, Bonferroni over signals."""
    separations: Mapping[str, float] = field(default_factory=dict)
    """The mean regret of every signal tried, divided by that of shuffled halves; about 1 means no signal."""
    votes: Int[np.ndarray, " L"] = field(default_factory=lambda: np.zeros(0, int))
    """The number of `voters` that chose each pair."""
    voters: tuple[str, ...] = ()
    """The names of the signals that show pairs."""

    @property
    def verdict(self) -> str:
        """`no signal`, or `paired` where every pair is clear, or `doubtful`."""
        if not self.strength > self.needed:
            return "no signal"
        return "paired" if (self.certainty >= self.clear).all() else "doubtful"
