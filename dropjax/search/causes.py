"""Why the right order may leave an error far below pred's variance: another activation, or inputs that were rounded."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dropjax.core.stack import ACTIVATIONS, Stack, replay
from dropjax.search.yardstick import rounded_to

ROWS = 256
"""First rows on which the causes are looked for, on the host and in float64."""

FEWER = 4
"""Factor by which another activation has to lower the MSE."""

STEPS = 12
"""Gauss–Newton steps that fit a slope."""

NEARLY = 1.3
"""The rounding of x explains an error if the two differ by no more than this factor."""


def other_activation(stack: Stack, x: Float[np.ndarray, "N d"], pred: Float[np.ndarray, "N o"]) -> str | None:
    """The known activation with which a stack in order comes far nearer to pred; None if there is none.

    Each activation is tried in one pass; for leaky_relu the slope is fitted.
    """
    few, wanted = x[:ROWS], pred[:ROWS].astype(np.float64)

    def mse(name: str) -> float:
        with np.errstate(all="ignore"):
            found = float(np.mean((replay(replace(stack, activation=name), few) - wanted) ** 2))
        return found if np.isfinite(found) else np.inf

    errors = {name: mse(name) for name in (*ACTIVATIONS, *_sloped(stack, few, wanted))}
    own = errors.setdefault(stack.activation, mse(stack.activation))
    best = min(errors, key=lambda name: errors[name])
    return best if errors[best] < own / FEWER else None


def _sloped(stack: Stack, x: Float[np.ndarray, "N d"], pred: Float[np.ndarray, "N o"]) -> list[str]:
    """The names of leaky_relu with the best fitting slope, to one decimal and to more; empty if no slope fits."""

    def outputs(slope: float) -> Float[np.ndarray, "N o"]:
        return replay(replace(stack, activation=f"leaky_relu({slope:.12f})"), x)

    slope, step = 0.1, 1e-4
    for _ in range(STEPS):
        with np.errstate(all="ignore"):
            here = outputs(slope)
            direction = (outputs(slope + step) - here) / step
            slope -= float(np.sum(direction * (here - pred)) / np.sum(direction**2))
        if not -1 < slope < 1:
            return []
    return [f"leaky_relu({slope:.{decimals}f})" for decimals in range(1, 8)]


class FromX(NamedTuple):
    """The effect of x's rounding on the outputs, if pred was computed before x was rounded."""

    noise: Float[np.ndarray, " o"]
    """RMS of the effect, for each output."""
    decimals: int
    """Decimals of the column that is rounded least."""


def noise_of_x(stack: Stack, x: Float[np.ndarray, "N d"]) -> FromX | None:
    """The noise of x's rounding in the outputs of a stack in order; None if no column of x is rounded."""
    decimals = [rounded_to(column) for column in x[:ROWS].T]
    known = [to for to in decimals if to is not None]
    if not known:
        return None
    half = np.array([0.0 if to is None else 10.0**-to / 2 for to in decimals])
    few = x[:ROWS].astype(np.float64)
    shaken = few + np.random.default_rng(0).uniform(-half, half, few.shape)
    return FromX(np.sqrt(np.mean((replay(stack, shaken) - replay(stack, few)) ** 2, axis=0)), max(known))


def is_explained(mse: Float[np.ndarray, " o"], noise: Float[np.ndarray, " o"]) -> bool:
    """Whether the errors in every output are as large as the noise predicts, neither smaller nor larger."""
    rms = np.sqrt(mse)
    return bool(np.all(noise > 0) and np.all(rms <= NEARLY * noise) and np.all(noise <= NEARLY * rms))
