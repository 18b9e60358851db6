"""The measure of an answer's errors: pred's spread, its rounding, and how many arrangements the table can tell apart."""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dropjax.core.puzzle import Puzzle
from dropjax.search.verify import Pass

EXACT = 1e-5
"""An exact answer's RMS error, as a fraction of the standard deviation of each output of pred."""

ATTAINED = 1.1
"""The answer's RMS error is below this many times the noise in pred; hardly any other order's is."""

FAR_BELOW = 0.1
"""The MSE of an answer within pred's noise must be below this fraction of pred's variance."""

SLACK = 32
"""An error may exceed half of pred's rounding step by this many times float32's RMS noise, because rows differ in noise."""

SPARE = 3
"""Decimal digits that the table must hold beyond those that distinguish every arrangement from every other."""

DECIMALS = 6
"""The largest number of decimals at which rounding is detected."""

UNEVEN = 4
"""Outputs are levelled if an offset is this many times its spread, or the largest spread this many times the smallest."""


class Yardstick(NamedTuple):
    """The measure of an answer's errors, for each output."""

    spread: Float[np.ndarray, " o"]
    """Standard deviation of pred; 0 if it is constant."""
    exact: Float[np.ndarray, " o"]
    """RMS error up to which an answer is exact: `EXACT` of the spread, or half a unit in the last place of float32 at pred's
    size, where that is more."""
    noise: Float[np.ndarray, " o"]
    """RMS of pred's own noise, declared or from its rounding; 0 if it has none."""
    bound: Float[np.ndarray, "N o"] | None
    """Largest error that rounding can explain, for each value; None if nothing is rounded."""
    words: str | None
    """A description of the noise."""

    @classmethod
    def of(cls, pred: Float[np.ndarray, "N o"], decimals: int | None = None, sigma: float | None = None) -> "Yardstick":
        """The yardstick of a pred with this rounding (None: detected) or this declared noise, which is never inferred."""
        spread = np.where(np.ptp(pred, axis=0) == 0, 0.0, pred.astype(np.float64).std(axis=0))
        last_place = np.spacing(np.abs(pred)).astype(np.float64)
        exact = np.maximum(EXACT * spread, last_place.max(axis=0) / 2)
        if sigma is not None:
            return cls(spread, exact, np.full(len(spread), float(sigma)), None, "the noise declared")
        varies = spread > 0
        found = [
            (rounded_to(of) if decimals is None else decimals) if of_k else None
            for of, of_k in zip(pred.T, varies, strict=True)
        ]
        coarse = (exact > EXACT * spread) & varies
        steps = np.zeros_like(last_place)
        for k, (to, own) in enumerate(zip(found, coarse, strict=True)):
            steps[:, k] = last_place[:, k] if own else 0 if to is None else 10.0**-to
        if not steps.any():
            return cls(spread, exact, np.zeros(len(spread)), None, None)
        known = sorted({to for to, own in zip(found, coarse, strict=True) if to is not None and not own})
        words = f"pred's rounding to {' or '.join(map(str, known))} decimals" if known else _coarse(exact, spread, coarse)
        bound = np.where(steps > 0, steps / 2, SLACK * exact)
        return cls(spread, exact, np.sqrt(np.mean(steps**2, axis=0) / 12), bound, words)

    def scaled(self, by: Float[np.ndarray, " o"]) -> "Yardstick":
        """The yardstick of the outputs divided by `by`."""
        bound = None if self.bound is None else self.bound / by
        return self._replace(spread=self.spread / by, exact=self.exact / by, noise=self.noise / by, bound=bound)

    @property
    def pred_noise(self) -> float | None:
        """RMS of the noise over all outputs; None if pred has none."""
        return float(np.sqrt(np.mean(self.noise**2))) if self.noise.any() else None

    @property
    def variance(self) -> float:
        """The mean variance of the outputs."""
        return float(np.mean(self.spread**2))

    @property
    def tolerance(self) -> float:
        """The MSE up to which an answer is exact, whichever output its error is in."""
        telling = self.exact[self.spread > 0]
        return float(np.min(telling if len(telling) else self.exact)) ** 2 / len(self.exact)

    @property
    def attainable(self) -> float:
        """The MSE up to which a search has nothing left to find: an exact answer's, or what pred's noise leaves to any."""
        noise = ATTAINED * (self.pred_noise or 0)
        return max(self.tolerance, min(noise**2, FAR_BELOW * self.variance))

    def is_exact(self, mse: Float[np.ndarray, " o"]) -> bool:
        """Whether these MSEs, one for each output, are an exact answer's. A pred without spread tells nothing."""
        return bool(self.spread.any() and np.all(np.sqrt(mse) <= self.exact))

    def limit(self, float32: float) -> Float[np.ndarray, "N o"]:
        """Largest error that rounding and float32's noise explain, value by value."""
        return np.full((1, len(self.spread)), np.inf) if self.bound is None else self.bound + SLACK * float32

    def is_within_noise(self, mse: Float[np.ndarray, " o"], float32: float, rows: int) -> bool:
        """Whether these MSEs over so many rows are no more than pred's noise makes them: far below pred's variance and,
        where noise was declared, within `ATTAINED` of it but for chance. Rounding is judged by `limit`."""
        noisy = self.noise > 0
        if not noisy.any() or np.any(mse[noisy] > FAR_BELOW * self.spread[noisy] ** 2):
            return False
        if self.bound is not None:
            return bool(np.all(np.sqrt(mse[~noisy]) <= self.exact[~noisy]))
        chance = 1 + 4 / math.sqrt(2 * rows)
        return bool(np.all(np.sqrt(mse) <= max(ATTAINED, chance) * np.hypot(self.noise, float32)))


def _coarse(exact: np.ndarray, spread: np.ndarray, coarse: np.ndarray) -> str:
    worst = float(np.max(exact[coarse] / spread[coarse]))
    return f"float32's own rounding of pred, half a unit in the last place, which is {worst:.2g} of its spread"


def rounded_to(values: Float[np.ndarray, "*n"]) -> int | None:
    """The number of decimals that every value is rounded to; None where float32 itself is as coarse."""
    exactly = values.astype(np.float64)
    own = np.spacing(np.abs(values)).astype(np.float64)
    for decimals in range(DECIMALS + 1):
        if 10.0**-decimals < 8 * own.max():
            return None
        if np.all(np.abs(exactly - np.round(exactly, decimals)) <= own):
            return decimals
    return None


def attainable_mse(pred: Float[np.ndarray, "N o"], noise: float | None) -> float:
    """The MSE up to which a search has nothing left to find, where pred has that noise."""
    yardstick = Yardstick.of(pred, sigma=noise)
    return yardstick.attainable if noise is not None else yardstick.tolerance


class Level(NamedTuple):
    """Outputs brought to one scale for the search: each is (f − offset)/scale, which changes no bit but the exponents'."""

    offset: Float[np.ndarray, " o"]
    """The last layer's bias, where it is far larger than pred's spread and pred − bias is a float32 as it is; else 0."""
    scale: Float[np.ndarray, " o"]
    """Powers of two; 1 where the spreads are of one size."""

    @classmethod
    def of(cls, puzzle: Puzzle, spread: Float[np.ndarray, " o"]) -> "Level":
        """The levels of a puzzle whose pred has these standard deviations."""
        bias = puzzle.b_last.astype(np.float64)
        less = puzzle.pred.astype(np.float64) - bias
        taken = (np.abs(bias) > UNEVEN * spread) & np.all(less.astype(np.float32) == less, axis=0)
        sizes = np.where(spread > 0, spread, spread.max() or 1.0)
        uneven = sizes.max() > UNEVEN * sizes.min()
        scale = np.exp2(np.round(np.log2(sizes / sizes.max()))) if uneven else np.ones_like(sizes)
        return cls(np.where(taken, bias, 0.0), scale)

    @property
    def is_nothing(self) -> bool:
        """Whether it leaves the outputs unchanged."""
        return not self.offset.any() and bool(np.all(self.scale == 1))

    def levelled(self, puzzle: Puzzle) -> Puzzle:
        """The puzzle with levelled outputs; the puzzle itself if that changes nothing."""
        if self.is_nothing:
            return puzzle
        pred, bias = ((a - self.offset) / self.scale for a in (puzzle.pred.astype(np.float64), puzzle.b_last))
        weights = puzzle.w_last / self.scale[:, None]
        pred, bias, weights = (a.astype(np.float32) for a in (pred, bias, weights))
        return replace(puzzle, pred=pred, b_last=bias, w_last=weights)

    def restored(self, passed: Pass) -> Pass:
        """A pass over levelled outputs in pred's own units; the pass itself if it is in them."""
        if self.is_nothing:
            return passed
        outputs = passed.outputs * self.scale.astype(np.float32) + self.offset.astype(np.float32)
        return Pass(outputs, passed.by_output * self.scale**2, passed.largest * self.scale)


def tells_enough(
    depth: int, x: Float[np.ndarray, "N d"], yardstick: Yardstick, mse: Float[np.ndarray, " o"], float32: float
) -> bool:
    """Whether the table holds enough digits to tell all (L!)² arrangements apart: each distinct row holds, for each output,
    those of its spread over its RMS error."""
    error = np.maximum(np.maximum(np.sqrt(mse), float32), np.finfo(np.float32).tiny)
    by_row = float(np.sum(np.log10(np.maximum(yardstick.spread / error, 1))))
    needed = 2 * math.lgamma(depth + 1) / math.log(10) + SPARE
    rows = math.ceil(needed / by_row) if by_row > 0 else len(x) + 1
    return distinct_rows(x, rows) >= rows


def distinct_rows(x: Float[np.ndarray, "N d"], enough: int) -> int:
    """Rows that differ from one another; `enough` where there are as many, or more."""
    seen: set[bytes] = set()
    for row in x:
        seen.add(row.tobytes())
        if len(seen) >= enough:
            break
    return len(seen)
