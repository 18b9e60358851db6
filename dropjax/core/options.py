"""What a solve can be told."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

MEMORY = 1 << 30
"""Bytes that a kernel's intermediate arrays may take together, unless its caller says otherwise."""


@dataclass(frozen=True)
class Options:
    """What a solve can be told; every default is what somebody with a puzzle would want."""

    method: Literal["auto", "paper"] = "auto"
    pairing: str | None = None
    """A signal of `pairing.pair`. None: ddr and, for `auto`, where that does not solve it, the one that separates best."""
    seed_order: str | None = None
    """One of `seeding.SEED_ORDERS`. None: delta_norm for `paper`, the best of all for `auto`."""
    direction: Literal["ascending", "descending"] | None = None
    """Of a named seed order; None: ascending."""
    rank: Literal["bradley_terry", "none"] = "bradley_terry"
    """Whether `paper` ranks the blocks by all swaps before it repairs their order."""
    bt_solver: Literal["mm", "newton"] = "mm"
    temperature: float = 1e-3
    """T of the paper's Eq. 8, in units of the MSE."""
    initial_order: Sequence[int] | None = None
    """A permutation to start from, its pairing included."""
    activation: str = "relu"
    """One of `stack.ACTIVATIONS`, or "auto": every one is tried, and the right one is the one that can reproduce pred."""
    search_rows: int = 2000
    """Rows that `paper`'s searches decide on: the table's first."""
    pred_decimals: int | None = None
    """Decimals that pred is rounded to; found where None."""
    pred_noise: float | None = None
    """Standard deviation of the noise in pred, where it has any."""
    time_limit: float | None = None
    """Seconds after which the search stops, and until which `auto` starts again; what it has by then is verified."""
    random_seed: int = 0
    screen_precision: Literal["highest", "high", "default"] = "highest"
    """Of the products behind the scores that guided repair takes its proposals from, as `jax.lax.Precision` names it; what
    is kept is decided at the highest. Makes no difference on a CPU."""
    verify: Literal["fast", "full"] = "fast"
    memory: int = MEMORY
    """Bytes that a kernel's intermediate arrays may take together."""
