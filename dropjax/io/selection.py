"""What is chosen of a checkpoint's MLPs, what is left out, and how that is said."""

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
"""Cosine from which both halves of two MLPs are copies, as raw and averaged weights are; other layers' have about 0."""
LOOK, LOOKED = 64, 1 << 24
"""Hidden units that twins are told by, and the most numbers of a side that are held for it."""
AVERAGED = re.compile(r"(?:^|[._])(?:ema|avg|averaged?|shadow|swa|polyak|teacher|momentum)(?:[._]|\d|$)", re.IGNORECASE)
"""What averaged weights are called beside the raw ones."""


class Twin(NamedTuple):
    """Two input halves that are nearly the same."""

    copy: str
    of: str
    cosine: float


@dataclass(frozen=True)
class Account:
    """What was chosen, by what, and what was left out."""

    direction: str = "--in and --out"
    """What tells which half comes first."""
    direction_known: bool = True
    """Whether it does tell, or is a guess."""
    layout: str = ""
    """What tells how the matrices are stored; empty: nothing does."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """How many matrices were not chosen, by the reason."""
    unreadable: Mapping[str, int] = field(default_factory=dict)
    """How many matrices could not be read, by their type."""
    halves_unreadable: tuple[str, ...] = ()
    """Those among them that are called halves of MLPs."""
    incomplete: tuple[str, ...] = ()
    """Matrices that are called as the chosen ones are, but for numbers, and have no partner."""
    twins: tuple[Twin, ...] = ()
    """MLPs left out, since they are copies of others."""
    alike: tuple[Twin, ...] = ()
    """Chosen MLPs that are nearly the same, so that nothing may tell their partners apart."""
    notes: tuple[str, ...] = ()
    """Remarks on the files as such, whole lines."""

    @property
    def whole(self) -> bool:
        """Whether every half that the names tell of was read."""
        return not self.halves_unreadable and not self.incomplete

    @property
    def limits(self) -> str:
        """What a verdict about the chosen MLPs says nothing of, to be written behind it."""
        missing = {"not read": self.halves_unreadable, "incomplete": self.incomplete, "left out as twins": self.twins}
        words = [f"{len(names)} {what}" for what, names in missing.items() if names]
        return f", of those chosen alone ({', '.join(words)})" if words else ""

    def lines(self, transposed: bool) -> list[str]:
        """All of it for people, a line for each kind of thing."""
        direction = f"told by {self.direction}" if self.direction_known else f"unknown (taken from: {self.direction})"
        stored = "[in, out]" if transposed else "[out, in]"
        layout = f"told by {self.layout}" if self.layout else "as nothing says otherwise"
        lines = [f"in and out: {direction}; stored {stored}, {layout}"]
        if self.skipped:
            lines.append("left out: " + ", ".join(f"{count} {what}" for what, count in self.skipped.items()))
        if self.unreadable:
            kinds = ", ".join(f"{count} of {kind}" for kind, count in self.unreadable.items())
            halves = f"; {_some(self.halves_unreadable)} called halves of MLPs" if self.halves_unreadable else ""
            lines.append(f"not read: {kinds}{halves}")
        if self.incomplete:
            lines.append(f"incomplete: {_some(self.incomplete)} without a partner of the same layer")
        for twins, words in ((self.twins, "left out as twins"), (self.alike, "chosen though twins")):
            if twins:
                some, least = twins[0], min(twin.cosine for twin in twins)
                lines.append(f"{words}: {len(twins)} MLPs, such as {some.copy} of {some.of} (cosine {least:.4f} or more)")
        return [*lines, *self.notes]

    def record(self, transposed: bool) -> dict[str, Any]:
        """All of it for the JSON."""
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
    """The part of an `Account` that is about what was not chosen."""

    skipped: Mapping[str, int]
    unreadable: Mapping[str, int]
    halves_unreadable: tuple[str, ...]
    notes: tuple[str, ...]


def left_out(
    checkpoint: Checkpoint, matrices: Sequence[str], halves: Sequence[str], reasons: Mapping[str, str] | None = None
) -> LeftOut:
    """What the matrices are that were not chosen, as `reasons` or else their names say, and the unreadable tensors, of which
    `halves` are called halves of MLPs."""
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
    """MLPs of a pool that are no copies."""

    mlps: list[Mlp]
    twins: tuple[Twin, ...]
    alike: tuple[Twin, ...]


def distinct(checkpoint: Checkpoint, pool: Found, drop: bool = True) -> Distinct:
    """The pool without the MLPs whose halves are both copies of another one's, under a name that differs in more than
    numbers: raw and averaged weights side by side. Copies that only numbers tell apart stay, and are named as `alike`.

    The raw ones are kept, or those that come first. With `drop` false all are kept. Raises `InputError`.
    """
    cosine = np.minimum(*(_cosines(checkpoint, pool, side) for side in ("up", "out")))
    kept, *twins = apart([mlp.up for mlp in pool.mlps], cosine, drop)
    return Distinct([pool.mlps[k] for k in kept], *twins)


class Apart(NamedTuple):
    """Which of several places to keep, and which of them are copies of others."""

    kept: list[int]
    twins: tuple[Twin, ...]
    alike: tuple[Twin, ...]


def apart(names: Sequence[str], cosine: Float[np.ndarray, "L L"], drop: bool = True) -> Apart:
    """The places whose cosines tell that they are no copies under another name; see `distinct`."""
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
    """Cosines between the first hidden units of one side's halves."""
    units = max(1, min(LOOK, pool.hidden, LOOKED // (len(pool.mlps) * pool.width)))
    cut, every = slice(0, units), slice(None)
    rows = []
    for mlp in pool.mlps:
        where = (every, cut) if mlp.transposed == (side == "up") else (cut, every)
        rows.append(checkpoint.read(getattr(mlp, side), where))
    return cosines(rows)


def cosines(tensors: Sequence[Float[np.ndarray, "..."]]) -> Float[np.ndarray, "L L"]:
    """Cosines between tensors of the same shape; 0 with one that is 0."""
    flat = [one.ravel().astype(np.float64) for one in tensors]  # its square may be beyond float32
    stacked = np.stack([one / max(float(np.linalg.norm(one)), 1e-300) for one in flat]).astype(np.float32)
    return stacked @ stacked.T
