"""The result of ordering a network: the arrangement, how it was found, and how certain it is."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, PyTree

from dropjax.core.solution import Outcome, plain
from dropjax.network.moves import INSERTION


class Minimum(StrEnum):
    """The kind of minimum found for a loss without a target. A low loss proves nothing: none of these counts as solved."""

    LOCAL = "local_minimum"
    """No exchange and no insertion, of parts of one kind or of whole blocks, lowers the loss over all rows."""
    GLOBAL = "global_minimum"
    """Every arrangement was tried, and none has a lower loss over all rows."""
    STOPPED = "stopped"
    """The search was stopped before it reached a minimum."""

    @property
    def solved(self) -> bool:
        """False: it is not known whether another arrangement was meant."""
        return False


@dataclass(frozen=True)
class Move:
    """The parts at positions i and j exchange places, or those at i are taken out and put in at j."""

    insertion: bool
    i: int
    j: int
    kinds: tuple[int, ...]
    """Kinds of parts that move."""
    whole: bool
    """Whether these are all kinds, so that blocks move."""

    @classmethod
    def of(cls, row: Int[np.ndarray, "4"], kinds: int) -> "Move":
        """The move in a row of `moves.Moves`."""
        what, i, j, mask = map(int, row)
        moving = tuple(p for p in range(kinds) if mask >> p & 1)
        return cls(what == INSERTION, i, j, moving, len(moving) == kinds)

    def __str__(self) -> str:
        return self.named(())

    def named(self, names: Sequence[str]) -> str:
        """The move in words; `names` are the names of the kinds of parts, which are numbered by default."""
        kinds = " and ".join(names[p] if names else f"part {p}" for p in self.kinds)
        what = "" if self.whole else f"{kinds} of "
        if self.insertion:
            return f"take {what}block {self.i} out and put it in at {self.j}"
        return f"exchange {what}blocks {self.i} and {self.j}"


@dataclass(frozen=True)
class Stage:
    """One stage's record."""

    name: str
    seconds: float
    loss: float
    """Loss of the best arrangement so far, over `rows` rows."""
    rows: int
    evaluations: int
    """Arrangements scored exactly."""
    moves: int = 0
    """Moves accepted."""


class Progress:
    """Receives a report of every stage. This base class ignores them; subclasses override its methods."""

    def begins(self, stage: str) -> None:
        """Called when a stage begins."""

    def ends(self, stage: Stage) -> None:
        """Called when a stage has ended."""


@dataclass(frozen=True)
class Ordering:
    """The best arrangement found, judged on every row."""

    arrangement: Int[np.ndarray, "L P"]
    """Row k: which of the given parts of each kind stand at position k."""
    loss: float
    """Mean loss over all rows."""
    start_loss: float
    """Mean loss over all rows of the arrangement that the search started from."""
    outcome: Outcome | Minimum
    """The outcome, as in a `Solution`; without a target that the outputs could reproduce, the kind of minimum."""
    rows: int
    error: float | None
    """RMS(f − target) over all rows as a fraction of the target's spread; None without such a target."""
    tolerance: float | None
    """The largest error that counts as exact: 1e-5, or float32's noise if that is larger."""
    ties: tuple[Move, ...]
    """Moves from the answer that change its outputs by no more than float32's noise, so that no table can tell."""
    undecided: tuple[Move, ...]
    """Moves that raise the loss by less than two standard errors over the rows, if there is no target."""
    stages: Sequence[Stage]
    evaluations: int
    """Arrangements scored exactly, each from the first position where it parts from another one."""
    passes: float
    """Cost of these evaluations, in passes of all rows through all blocks."""
    seconds: float
    stop_reason: str
    random_seed: int

    @property
    def solved(self) -> bool:
        """Whether the outputs reproduce the target."""
        return self.outcome.solved

    def arranged(self, parts: Sequence[PyTree]) -> tuple[PyTree, ...]:
        """The parts in this order."""
        return tuple(jax.tree.map(lambda a, p=p: a[self.arrangement[:, p]], part) for p, part in enumerate(parts))

    def to_json(self) -> dict[str, Any]:
        """The result as plain numbers, text, lists and dicts, with null for numbers that are not finite."""
        record = {name: getattr(self, name) for name in self.__dataclass_fields__}
        record |= {"solved": self.solved, "outcome": self.outcome.value}
        record |= {name: list(map(str, getattr(self, name))) for name in ("ties", "undecided")}
        return plain(record | {"stages": [asdict(stage) for stage in self.stages]})


@dataclass(frozen=True)
class Check:
    """Whether the parts stand in the right order and, if not, the moves that mend it."""

    ordering: Ordering
    """The best arrangement found; row k is k, k, … if nothing is wrong."""
    wrong: tuple[int, ...]
    """Positions at which another part belongs, in the arrangement found."""
    mending: tuple[Move, ...]
    """Moves that, one after another, make that arrangement of the parts as they stand."""

    @property
    def sound(self) -> bool:
        """Whether the parts reproduce the target as they stand."""
        return self.ordering.solved and not self.wrong

    def __str__(self) -> str:
        return self.described(())

    def described(self, names: Sequence[str]) -> str:
        """The finding in words; `names` are the names of the kinds of parts."""
        found = self.ordering
        if self.sound:
            noisy = found.outcome is Outcome.NOISE_FLOOR
            return "right as it stands, as far as the target's noise tells" if noisy else "exact as it stands"
        if not found.solved:
            if found.error is None:
                lower = f"{len(self.mending)} moves lower it to" if self.mending else "no move lowers"
                return f"nothing to compare the outputs with; of the loss {found.start_loss:.6g}, {lower} {found.loss:.6g}"
            return (
                f"not exact as it stands, and no arrangement found is: the lowest error is {found.error:.2g} of the spread"
            )
        wrong = ", ".join(map(str, self.wrong))
        moves = [f"  {move.named(names)}" for move in self.mending]
        return "\n".join([f"wrong at position {wrong}; this mends it, one after another:", *moves])
