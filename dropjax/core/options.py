"""The options of a solve, and the checks of their values."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, TypedDict

import numpy as np

from dropjax.core.stack import ACTIVATIONS

PAIRINGS = (
    "auto", "ddr", "negative_trace", "positive_trace", "cosines", "squared_cosines", "cubed_cosines", "norms", "norm_ranks",
    "peaks", "gram", "symmetry", "movement", "template", "coherence", "discriminant",
)  # fmt: skip
"""The signals of `pairing.signals.CHOICES`, which this package cannot import."""

SEED_ORDERS = (
    "delta_norm", "w_out_norm", "w_out_l1", "residual_std", "w_in_norm", "norm_product", "read_out_alignment",
    "contribution_std", "mean_input_bias", "activation_fraction", "greedy", "random",
)  # fmt: skip
"""The orders of `ordering.seeding.SEED_ORDERS`, which this package cannot import."""

MEMORY = 1 << 30
"""Bytes that a kernel's intermediate arrays may take together, unless its caller says otherwise."""


@dataclass(frozen=True)
class Options:
    """The options of a solve; the defaults suit somebody who has a puzzle and wants it solved."""

    method: Literal["auto", "paper"] = "auto"
    pairing: str | None = None
    """A signal of `dropjax.pair`. With None it is ddr; where that does not solve the puzzle, `auto` takes the signal that
    separates best."""
    seed_order: str | None = None
    """One of `seeding.SEED_ORDERS`. With None, `paper` takes delta_norm and `auto` the best of all."""
    direction: Literal["ascending", "descending"] | None = None
    """The direction of a named seed order; None means ascending."""
    rank: Literal["bradley_terry", "none"] = "bradley_terry"
    """Whether `paper` ranks the blocks by all swaps before it repairs their order."""
    bt_solver: Literal["mm", "newton"] = "mm"
    temperature: float = 1e-3
    """T of the paper's Eq. 8, in units of the MSE."""
    initial_order: Sequence[int] | None = None
    """A permutation to start from, its pairing included."""
    activation: str = "relu"
    """One of `ACTIVATIONS`, or "auto", which tries every one and keeps the one that can reproduce pred. If a named
    activation leaves an error that another one does not, the solver takes the other one and says so in a note."""
    search_rows: int = 2000
    """Number of rows, from the table's first on, that the searches of `paper` decide on."""
    pred_decimals: int | None = None
    """Decimals that pred is rounded to; with None they are found from pred itself."""
    pred_noise: float | None = None
    """Standard deviation of the noise in pred; None if it has none. It is never inferred."""
    time_limit: float | None = None
    """Seconds after which the search stops. Until then `auto` keeps starting new attempts; the best arrangement is then
    verified."""
    random_seed: int = 0
    screen_precision: Literal["highest", "high", "default"] = "highest"
    """Precision, as `jax.lax.Precision` names it, of the products behind the scores that propose moves to guided repair.
    What is kept is always decided at the highest precision. It makes no difference on a CPU."""
    verify: Literal["fast", "full"] = "fast"
    memory: int = MEMORY
    """Bytes that a kernel's intermediate arrays may take together."""

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field, if a value makes no sense."""
        for name, expected, holds in _CHECKS:
            value = getattr(self, name)
            if not (value is None and name in _OPTIONAL) and not holds(value):
                raise ValueError(f"{name}: expected {expected}, got {value!r}")


class OptionChanges(TypedDict, total=False):
    """The fields of `Options`, for editors and type checkers: what `solve` takes by name."""

    method: Literal["auto", "paper"]
    pairing: str | None
    seed_order: str | None
    direction: Literal["ascending", "descending"] | None
    rank: Literal["bradley_terry", "none"]
    bt_solver: Literal["mm", "newton"]
    temperature: float
    initial_order: Sequence[int] | None
    activation: str
    search_rows: int
    pred_decimals: int | None
    pred_noise: float | None
    time_limit: float | None
    random_seed: int
    screen_precision: Literal["highest", "high", "default"]
    verify: Literal["fast", "full"]
    memory: int


Check = tuple[str, str, Callable[[Any], bool]]
"""A field's name, a description of the values expected, and a test for them."""


def _one_of(name: str, *legal: str) -> Check:
    return name, f"one of {', '.join(legal)}", lambda value: isinstance(value, str) and value in legal


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_positive(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < math.inf


def _is_order(value: object) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) and all(map(_is_whole, value))


_OPTIONAL = ("pairing", "seed_order", "direction", "initial_order", "pred_decimals", "pred_noise", "time_limit")
_CHECKS: tuple[Check, ...] = (
    _one_of("method", "auto", "paper"),
    _one_of("pairing", *PAIRINGS),
    _one_of("seed_order", *SEED_ORDERS),
    _one_of("direction", "ascending", "descending"),
    _one_of("rank", "bradley_terry", "none"),
    _one_of("bt_solver", "mm", "newton"),
    ("temperature", "a number above 0", _is_positive),
    ("initial_order", "piece numbers", _is_order),
    (
        "activation",
        f"auto, {', '.join(ACTIVATIONS)}, or leaky_relu(SLOPE)",
        lambda value: isinstance(value, str) and (value == "auto" or value in ACTIVATIONS),
    ),
    ("search_rows", "a whole number above 0", lambda value: _is_whole(value) and value > 0),
    ("pred_decimals", "a whole number from 0 to 15", lambda value: _is_whole(value) and 0 <= value <= 15),
    ("pred_noise", "a number above 0", _is_positive),
    ("time_limit", "a number above 0", _is_positive),
    ("random_seed", "a whole number from 0", lambda value: _is_whole(value) and value >= 0),
    _one_of("screen_precision", "highest", "high", "default"),
    _one_of("verify", "fast", "full"),
    ("memory", "a whole number of bytes above 0", lambda value: _is_whole(value) and value > 0),
)
