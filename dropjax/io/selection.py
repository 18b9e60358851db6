"""The choice among a checkpoint's MLPs: which are taken, which are left out, and the account of it."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, TypedDict

import numpy as np
from jaxtyping import Float

from dropjax.io.checkpoints import Checkpoint
from dropjax.io.families import Found, Mlp, reason_to_skip

TWIN = 0.9
"""The cosine from which two halves count as copies, such as raw and averaged weights. Those of other layers have about 0."""
LOOK, LOOKED = 64, 1 << 24
"""The number of hidden units that are compared to find twins, and the most numbers of one side held in memory for it."""
AVERAGED = re.compile(r"(?:^|[._])(?:ema|avg|averaged?|shadow|swa|polyak|teacher|momentum)(?:[._]|\d|$)", re.IGNORECASE)
"""Names of averaged weights."""


class Twin(NamedTuple):
    """Two input halves that are nearly the same."""

    copy: str
    of: str
    cosine: float


@dataclass(frozen=True)
class Account:
    """What was chosen, on what evidence, and what was left out."""

    direction: str = "--in and --out"
    """The evidence of which half comes first."""
    direction_known: bool = True
    """Whether `direction` is evidence rather than a guess."""
    layout: str = ""
    """The evidence of how the matrices are stored; empty if there is none."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """The number of matrices that were not chosen, by reason."""
    unreadable: Mapping[str, int] = field(default_factory=dict)
    """The number of matrices that could not be read, by type."""
    halves_unreadable: tuple[str, ...] = ()
    """The unreadable ones that have the name of a half of an MLP."""
    incomplete: tuple[str, ...] = ()
    """Matrices whose names differ from the chosen ones only in numbers and that have no partner."""
    twins: tuple[Twin, ...] = ()
    """MLPs that are left out because they are copies of others."""
    alike: tuple[Twin, ...] = ()
    """Chosen MLPs that are nearly the same, so that their partners may be impossible to tell apart."""
    notes: tuple[str, ...] = ()
    """Remarks about the files themselves, as whole lines."""

    @property
    def whole(self) -> bool:
        """Whether every half that has such a name was read."""
        return not self.halves_unreadable and not self.incomplete

    @property
    def limits(self) -> str:
        """The words to append to a verdict about what it does not cover."""
        missing = {"not read": self.halves_unreadable, "incomplete": self.incomplete, "left out as twins": self.twins}
        words = [f"{len(names)} {what}" for what, names in missing.items() if names]
        return f", for the chosen ones only ({', '.join(words)})" if words else ""

    def lines(self, transposed: bool) -> list[str]:
        """Lines that tell a reader what was chosen and what was left out."""
        direction = f"from {self.direction}" if self.direction_known else f"unknown (assumed from {self.direction})"
        stored = "[in, out]" if transposed else "[out, in]"
        layout = f"from {self.layout}" if self.layout else "by default"
        lines = [f"in and out: {direction}; stored {stored}, {layout}"]
        if self.skipped:
            lines.append("left out: " + ", ".join(f"{count} {what}" for what, count in self.skipped.items()))
        if self.unreadable:
            kinds = ", ".join(f"{count} of {kind}" for kind, count in self.unreadable.items())
            halves = f"; {_some(self.halves_unreadable)} with the name of a half of an MLP" if self.halves_unreadable else ""
            lines.append(f"not read: {kinds}{halves}")
        if self.incomplete:
            lines.append(f"incomplete: {_some(self.incomplete)} without a partner of the same layer")
        for twins, words in ((self.twins, "left out as twins"), (self.alike, "kept although twins")):
            if twins:
                some, least = twins[0], min(twin.cosine for twin in twins)
                lines.append(f"{words}: {len(twins)} MLPs, such as {some.copy} of {some.of} (cosine {least:.4f} or more)")
        return [*lines, *self.notes]

    def record(self, transposed: bool) -> dict[str, Any]:
        """The account as JSON holds it."""
        return {
            **asdict(self),
            "direction": self.direction if self.direction_known else "unknown",
            "direction_guess": None if self.direction_known else self.direction,
            "layout": self.layout or "unknown",
            "stored": "[in, out]" if transposed else "[out, in]",
            "twins": [twin._asdict() for twin in self.twins],
            "alike": [twin._asdict() for twin in self.alike],
            "whole": self.whole,
        }


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} {'matrix' if len(names) == 1 else 'matrices'} (such as {names[0]})"


class LeftOut(TypedDict):
    """The part of an `Account` about what was not chosen."""

    skipped: Mapping[str, int]
    unreadable: Mapping[str, int]
    halves_unreadable: tuple[str, ...]
    notes: tuple[str, ...]


def left_out(
    checkpoint: Checkpoint, matrices: Sequence[str], halves: Sequence[str], reasons: Mapping[str, str] | None = None
) -> LeftOut:
    """An account of the matrices that were not chosen, by `reasons` or else by their names, and of unreadable tensors, among
    which `halves` have the names of halves of MLPs."""
    known = reasons or {}
    skipped = Counter(known.get(name) or reason_to_skip(name) or "other matrices" for name in matrices)
    skipped["tensors of more than two dimensions"] = sum(len(shape) > 2 for shape in checkpoint.shapes.values())
    unreadable = Counter(checkpoint.types[name] for name, shape in checkpoint.unread.items() if len(shape) > 1)
    return {
        "skipped": {what: count for what, count in sorted(skipped.items()) if count},
        "unreadable": dict(sorted(unreadable.items())),
        "halves_unreadable": tuple(halves),
        "notes": checkpoint.notes,
    }


class Distinct(NamedTuple):
    """MLPs of a pool, without copies."""

    mlps: list[Mlp]
    twins: tuple[Twin, ...]
    alike: tuple[Twin, ...]


def distinct(checkpoint: Checkpoint, pool: Found, drop: bool = True) -> Distinct:
    """The pool without copies: MLPs whose halves are both nearly those of another one, and whose name differs in more than
    numbers, such as averaged weights beside raw ones. Copies whose names differ only in numbers stay, as `alike`.

    Of two copies the raw one is kept, or else the first. With `drop` false all are kept. Raises `InputError`.
    """
    cosine = np.minimum(*(_cosines(checkpoint, pool, side) for side in ("up", "out")))
    kept, *twins = apart([mlp.up for mlp in pool.mlps], cosine, drop)
    return Distinct([pool.mlps[k] for k in kept], *twins)


class Apart(NamedTuple):
    """Which of several places to keep, and which are copies of others."""

    kept: list[int]
    twins: tuple[Twin, ...]
    alike: tuple[Twin, ...]


def apart(names: Sequence[str], cosine: Float[np.ndarray, "L L"], drop: bool = True) -> Apart:
    """The places that are no copies, by these cosines and names; see `distinct`."""
    masks = [re.sub("[0-9]+", "#", name) for name in names]
    kept: list[int] = []
    twins, alike = {}, {}
    for k in sorted(range(len(names)), key=lambda k: (bool(AVERAGED.search(names[k])), k)):
        near = [kept[n] for n in np.flatnonzero(cosine[k, kept] >= TWIN)]
        copied = [j for j in near if masks[j] != masks[k] and drop]
        if near:
            of = (copied or near)[0]
            (twins if copied else alike)[k] = Twin(names[k], names[of], float(cosine[k, of]))
        if not copied:
            kept.append(k)
    return Apart(sorted(kept), *(tuple(found[k] for k in sorted(found)) for found in (twins, alike)))


def _cosines(checkpoint: Checkpoint, pool: Found, side: str) -> Float[np.ndarray, "L L"]:
    """The cosines between the first hidden units of one side's halves."""
    units = max(1, min(LOOK, pool.hidden, LOOKED // (len(pool.mlps) * pool.width)))
    cut, every = slice(0, units), slice(None)
    rows = []
    for mlp in pool.mlps:
        where = (every, cut) if mlp.transposed == (side == "up") else (cut, every)
        rows.append(checkpoint.read(getattr(mlp, side), where))
    return cosines(rows)


def cosines(tensors: Sequence[Float[np.ndarray, "..."]]) -> Float[np.ndarray, "L L"]:
    """The cosines between tensors of the same shape; 0 if one of them is 0."""
    flat = [one.ravel().astype(np.float64) for one in tensors]  # its square may be beyond float32
    stacked = np.stack([one / max(float(np.linalg.norm(one)), 1e-300) for one in flat]).astype(np.float32)
    return stacked @ stacked.T
