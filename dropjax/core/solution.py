"""What a solve returns: the answer, how it came about, and how sure it is."""

import hashlib
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from importlib.metadata import version
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dropjax.core.errors import InputError
from dropjax.core.stack import Stack


class Outcome(StrEnum):
    """How well the answer reproduces `pred`."""

    EXACT = "exact"
    """RMS(f − pred) ≤ 1e-5 of pred's standard deviation, output by output and over all rows, and no other answer that was
    tried does the same. If float32's own rounding of pred, half a unit in the last place, is larger than that, it takes the
    place of the bound, and a note says so."""
    EXACT_UP_TO_TIES = "exact_up_to_ties"
    """As `EXACT`, except for pieces that no table can tell apart, which are listed in `ties`."""
    NOISE_FLOOR = "noise_floor"
    """pred itself is rounded or noisy, no error is larger than that explains, the MSE is far below pred's variance, and no
    other answer that was tried fits as well."""
    NOT_SOLVED = "not_solved"

    @property
    def solved(self) -> bool:
        """True for every outcome but `NOT_SOLVED`."""
        return self is not Outcome.NOT_SOLVED


@dataclass(frozen=True)
class Pairing:
    """The output half that goes with each input half, and by how much it is the best one."""

    signal: str
    score: Float[np.ndarray, "L L"]
    """Score of input half i (row) with output half j (column); larger is likelier."""
    partner: Int[np.ndarray, " L"]
    """Output half of each input half: the assignment of largest total score."""
    greedy_equals_hungarian: bool
    """Whether each row's largest score gives the same pairs."""

    @property
    def own(self) -> Float[np.ndarray, " L"]:
        """Score of each chosen pair."""
        return self.score[np.arange(len(self.partner)), self.partner]

    @property
    def runner_up(self) -> Float[np.ndarray, " L"]:
        """Best score of each input half with any other output half; −inf where there is none."""
        others = self.score.copy()
        others[np.arange(len(self.partner)), self.partner] = -np.inf
        return others.max(axis=1)

    @property
    def gap(self) -> Float[np.ndarray, " L"]:
        """`own` less `runner_up`; negative where the pair was chosen against the row's best."""
        return self.own - self.runner_up


@dataclass(frozen=True)
class Stage:
    """One stage's record."""

    name: str
    seconds: float
    mse: float | None = None
    """The MSE after the stage; None if it decides no order."""
    rows: int = 0
    """The number of rows that `mse` is over: the whole table, or the fewer rows that the stage used."""
    evaluations: int = 0
    """The number of candidates scored exactly."""
    swaps: int = 0
    """The number of moves accepted."""
    order: tuple[int, ...] = ()
    """Piece numbers of the input halves in the order after the stage; empty if it decides none."""


@dataclass(frozen=True)
class Solution:
    """The best arrangement found, verified on every row."""

    permutation: tuple[int, ...]
    """Piece numbers in, out, in, out, …, last."""
    stack: Stack
    """The stack reassembled in that order."""
    outcome: Outcome
    mse: float
    """mean((f − pred)²) over all rows, in float32 at highest precision."""
    max_abs_error: float
    noise_floor: float
    """RMS error that float32, or pred's own rounding or noise, accounts for."""
    rows: int
    method: str
    seed_order: str
    random_seed: int
    stop_reason: str
    device: str
    precision: str
    pairing: Pairing
    stages: Sequence[Stage]
    seconds: Mapping[str, float]
    """Seconds spent, by name: `compile`, `solve`, `verify` and, from the command line, `load` and `total`."""
    ties: Sequence[Sequence[int]] = ()
    """Groups of piece numbers that can be exchanged without any table noticing."""
    doubtful: Sequence[int] = ()
    """If it is not solved: input halves whose partner is in doubt because of a small margin."""
    unsettled: Sequence[int] = ()
    """If it is not solved: input halves of the blocks whose places differ among the best orders found."""
    mse_of_variance: float | None = None
    """If it is not solved: `mse` as a fraction of pred's variance."""
    input_sha256: Mapping[str, str] = field(default_factory=dict)
    replay: Mapping[str, float] | None = None
    """`mse` and `max_abs_error` of the float64 replay, if it was requested."""
    reason: str | None = None
    """Why it is not solved, with the evidence, if there is more to say than `stop_reason`."""
    notes: Sequence[str] = ()
    """Remarks, for example that another activation than the given one was used, or what the error is measured by."""

    @property
    def solved(self) -> bool:
        """Whether the outcome counts as solved."""
        return self.outcome.solved

    @property
    def permutation_text(self) -> str:
        """The permutation in the form that is hashed: only numbers and commas."""
        return ",".join(map(str, self.permutation))

    @property
    def sha256(self) -> str:
        """SHA-256 of `permutation_text`. The page of the real puzzle publishes its answer in this form."""
        return hashlib.sha256(self.permutation_text.encode()).hexdigest()

    def to_frame(self) -> Any:
        """The answer as a pandas DataFrame with a row for each block, from the first to the last.

        `position` counts from 0, and `in` and `out` are the block's piece numbers. `score` is what the pairing's signal
        gives the two, `runner_up` the best that it gives the input half with another output half, `gap` the difference, and
        `best_by_weights` whether the pairing from the weights chose the pair. `tied`, `doubtful` and `unsettled` tell
        whether the solution's lists of these names hold its pieces. The last layer is `permutation[-1]`. Raises `InputError`
        without pandas.
        """
        try:
            import pandas
        except ImportError:
            raise InputError("to_frame: expected pandas, got none: pip install 'dropjax[pandas]'") from None
        ins, outs = (np.array(self.permutation[k:-1:2]) for k in (0, 1))
        rows, columns = (np.searchsorted(np.sort(numbers), numbers) for numbers in (ins, outs))
        chosen = replace(self.pairing, score=self.pairing.score[rows], partner=columns)
        tied = [number for group in self.ties for number in group]
        return pandas.DataFrame(
            {
                "position": np.arange(len(ins)),
                "in": ins,
                "out": outs,
                "score": chosen.own,
                "runner_up": chosen.runner_up,
                "gap": chosen.gap,
                "best_by_weights": self.pairing.partner[rows] == columns,
                "tied": np.isin(ins, tied) | np.isin(outs, tied),
                "doubtful": np.isin(ins, list(self.doubtful)),
                "unsettled": np.isin(ins, list(self.unsettled)),
            }
        )

    def to_json(self, expected_sha256: str | None = None) -> dict[str, Any]:
        """The contents of `solution.json`: plain numbers, text, lists and dicts, with null for what is not finite.

        `expected_sha256` is compared here, after the fact; without one `expected_sha256_matches` is null.
        """
        ins, outs = (np.sort(self.permutation[k:-1:2]) for k in (0, 1))
        pairing = self.pairing
        record = {
            "solved": self.solved,
            "outcome": self.outcome.value,
            "permutation": self.permutation,
            "sha256": self.sha256,
            "expected_sha256_matches": None if expected_sha256 is None else self.sha256 == expected_sha256.lower(),
            "mse": self.mse,
            "max_abs_error": self.max_abs_error,
            "noise_floor": self.noise_floor,
            "rows": self.rows,
            "method": self.method,
            "activation": self.stack.activation,
            "seed_order": self.seed_order,
            "random_seed": self.random_seed,
            "device": self.device,
            "precision": self.precision,
            "stop_reason": self.stop_reason,
            "ties": self.ties,
            "doubtful": self.doubtful,
            "stages": [{k: v for k, v in asdict(stage).items() if k != "order" or v} for stage in self.stages],
            "seconds": {name: self.seconds.get(name) for name in ("load", "compile", "solve", "verify", "total")},
            "pairing": {
                "signal": pairing.signal,
                "greedy_equals_hungarian": pairing.greedy_equals_hungarian,
                "pairs": np.stack([ins, outs[pairing.partner]], axis=1),
                "own": pairing.own,
                "runner_up": pairing.runner_up,
                "gap": pairing.gap,
            },
            "input_sha256": self.input_sha256,
            "versions": _versions(),
        }
        extra = {"replay": self.replay, "reason": self.reason, "mse_of_variance": self.mse_of_variance}
        extra |= {"unsettled": self.unsettled or None, "notes": self.notes or None}
        return plain(record | {name: value for name, value in extra.items() if value is not None})


def _versions() -> dict[str, str]:
    packages = ("dropjax", "jax", "jaxlib", "numpy", "scipy")
    return {**{name: version(name) for name in packages}, "python": platform.python_version()}


def plain(value: Any) -> Any:
    """The value in the types of JSON: arrays of NumPy and JAX become lists, and NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
