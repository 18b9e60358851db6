"""An answer and its yardstick: the outcome that its errors amount to, and the comparison of other orders with it."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from dropjax.core.solution import Outcome
from dropjax.runtime import mesh
from dropjax.search.problem import Problem
from dropjax.search.verify import ALIKE, Pass
from dropjax.search.yardstick import EXACT, FAR_BELOW, Yardstick

FINE = 0.3
"""Rounding finer than this fraction of pred's spread acts like noise that is independent of the outputs."""

SURE = 3.0
"""An order is distinguished from the answer if its MSE is this many standard errors higher."""


class Compared(NamedTuple):
    """Comparison of orders with the answer: means over all predictions of some rows."""

    mse: Float[np.ndarray, "*K"]
    change: Float[np.ndarray, "*K"]
    """Mean square of the difference between an order's outputs and the answer's."""
    beyond: Float[np.ndarray, "*K"]
    """The excess of the order's errors over what rounding explains."""


class Answer(NamedTuple):
    """An answer, with everything needed to compare other orders with it."""

    problem: Problem
    yardstick: Yardstick
    arrangement: Int[np.ndarray, "L 2"]
    passed: Pass
    float32: float
    """RMS of float32's noise in the outputs."""

    @property
    def outcome(self) -> Outcome:
        """The outcome that the answer's errors amount to, if no other order fits as well."""
        yardstick, mse = self.yardstick, self.passed.by_output
        if yardstick.is_exact(mse) and (self.fits or not self.is_by_rounding):
            return Outcome.EXACT
        if self.fits and yardstick.is_within_noise(mse, self.float32, len(self.problem.table.pred)):
            return Outcome.NOISE_FLOOR
        return Outcome.NOT_SOLVED

    @property
    def is_by_rounding(self) -> bool:
        """Whether float32's own rounding of pred is the yardstick of an output that varies."""
        yardstick = self.yardstick
        return bool(np.any((yardstick.exact > EXACT * yardstick.spread) & (yardstick.spread > 0)))

    @property
    def is_near(self) -> bool:
        """Whether the answer's errors are hardly larger than pred's noise, and far below its variance."""
        noise = self.yardstick.pred_noise
        return noise is not None and self.passed.mse <= min((2 * noise) ** 2, FAR_BELOW * self.yardstick.variance)

    @property
    def unexplained(self) -> bool:
        """Whether the answer's errors are larger than float32's noise."""
        return bool(np.sqrt(self.passed.mse) > ALIKE * self.float32)

    @property
    def fits(self) -> bool:
        """Whether rounding explains all of the answer's errors."""
        return self.yardstick.bound is None or not self.beyond(mesh.fetch(self.passed.outputs)).any()

    def beyond(self, outputs: Float[np.ndarray, "N o"]) -> Float[np.ndarray, "N o"]:
        """The excess of an order's errors over what rounding explains, value by value."""
        limit = self.yardstick.limit(self.float32)
        return np.maximum(np.abs(outputs - self.problem.table.pred) - limit, 0)

    def told(self, other: Compared, mse: float, predictions: int) -> Bool[np.ndarray, "*K"]:
        """Whether some rows, of that many predictions, on which the answer has that MSE, tell each order from it.

        Rounding leaves no error beyond half of what it rounds to. Noise of standard deviation σ makes the MSEs of two orders
        whose outputs differ by δ themselves differ by mean(δ²) ± 2σ·RMS(δ)/√n; so does rounding that is fine.
        """
        told = other.beyond > 0
        sigma = np.sqrt(np.max(self.passed.by_output))
        if self.yardstick.bound is None or sigma < FINE * np.sqrt(self.yardstick.variance):
            standard_error = 2 * sigma * np.sqrt(other.change.astype(np.float64) / predictions)
            told = told | (other.mse - mse > SURE * standard_error)
        return told

    def alike(self, change: Float[np.ndarray, "*K"]) -> Bool[np.ndarray, "*K"]:
        """Whether a mean square difference of the outputs is no more than float32's noise: such an order is a tie, not a
        rival."""
        return np.sqrt(change) <= ALIKE * self.float32
