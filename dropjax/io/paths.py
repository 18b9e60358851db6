"""Paths other than MLPs in other people's checkpoints: the form in which all of them are read.

`attention` and `convolutions` find their tensors. A part of a path is a set of rows (or columns) of one tensor for each
layer. If nothing shows how the tensors are stored, each way is tried.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dropjax.io.checkpoints import Checkpoint
from dropjax.io.families import Evidence
from dropjax.io.selection import LOOK, LOOKED, Apart, Twin, apart, cosines


class Part(NamedTuple):
    """One part of every path of a kind: hidden unit k is row `rows[k]` of a tensor, or that column if `transposed`."""

    names: tuple[str, ...]
    transposed: bool
    rows: Int[np.ndarray, " h"]
    label: str = ""
    """The suffix that distinguishes several parts in one tensor."""

    def reordered(self, order: Int[np.ndarray, " L"]) -> "Part":
        """These parts in another order."""
        return self._replace(names=tuple(self.names[int(k)] for k in order))


@dataclass(frozen=True)
class PathHalves:
    """Two parts of the same paths; a `pairing.evidence.Halves`."""

    checkpoint: Checkpoint
    ours: Part
    theirs: Part
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(L, h, d)."""
        return len(self.ours.names), len(self.ours.rows), self.width

    def units(self, start: int, stop: int) -> tuple[Float[np.ndarray, "L s d"], Float[np.ndarray, "L s d"]]:
        """Read hidden units `start` to `stop` of every part. Raises `InputError`."""
        ours, theirs = (self._part(part, part.rows[start:stop]) for part in (self.ours, self.theirs))
        return ours, theirs

    def _part(self, part: Part, rows: Int[np.ndarray, " s"]) -> Float[np.ndarray, "L s d"]:
        low, high = int(rows.min()), int(rows.max()) + 1
        cut, every = slice(low, high), slice(None)
        out = np.empty((len(part.names), len(rows), self.width), np.float32)
        for k, name in enumerate(part.names):
            read = self.checkpoint.read(name, (every, cut) if part.transposed else (cut, every))
            read = read.reshape(read.shape[:2])  # a 1×1 kernel is a matrix
            out[k] = (read.T if part.transposed else read)[rows - low]
        return out


class Reading(NamedTuple):
    """One way to read the parts."""

    ours: Part
    theirs: Part
    words: str
    """The layout that this reading assumes."""


@dataclass(frozen=True)
class Paths:
    """All paths of one kind and shape in a checkpoint, not yet paired."""

    kind: str
    checkpoint: Checkpoint
    width: int
    readings: tuple[Reading, ...] = ()
    """The ways to read the tensors, several if nothing shows how they are stored: the best is used, which the verdict
    allows for."""
    head: int = 0
    """The units of a head; 0 if unknown, or if there are no heads."""
    told: str = "names"
    others: tuple[str, ...] = ()
    """Descriptions of other paths of the kind."""
    incomplete: tuple[str, ...] = ()
    """Tensors with the name of such a part whose other part is missing or does not fit."""
    unreadable: tuple[str, ...] = ()
    """Tensors with the names of such parts that cannot be read."""
    twins: tuple[Twin, ...] = ()
    alike: tuple[Twin, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def depth(self) -> int:
        """The number of paths."""
        return len(self.readings[0].ours.names)

    @property
    def whole(self) -> bool:
        """Whether every part that has such a name was read."""
        return not self.incomplete and not self.unreadable and not self.others

    @property
    def limits(self) -> str:
        """The words to append to a verdict about what it does not cover."""
        missing = {
            "not read": self.unreadable,
            "incomplete": self.incomplete,
            "left out as twins": self.twins,
            "of other shapes": self.others,
        }
        words = [f"{len(names)} {what}" for what, names in missing.items() if names]
        return f", for the chosen ones only ({', '.join(words)})" if words else ""

    def halves(self, reading: Reading) -> PathHalves:
        """The parts as one reading has them."""
        return PathHalves(self.checkpoint, reading.ours, reading.theirs, self.width)

    def lines(self) -> list[str]:
        """Lines that tell a reader what is paired and what is not."""
        hidden = len(self.readings[0].ours.rows)
        heads = f", heads of {self.head}" if self.head else ""
        stored = " or ".join(reading.words for reading in self.readings)
        lines = [
            f"{self.kind}: {self.depth} paths, d = {self.width:,}, h = {hidden:,}{heads}",
            f"found by {self.told}; read as {stored}",
        ]
        for names, words in (
            (self.unreadable, "not read"),
            (self.incomplete, "incomplete"),
            (self.others, "also there, of other shapes"),
        ):
            if names:
                lines.append(f"{words}: {len(names)}, such as {names[0]}")
        for twins, words in ((self.twins, "left out as twins"), (self.alike, "kept although twins")):
            if twins:
                lines.append(f"{words}: {len(twins)}, such as {twins[0].copy} of {twins[0].of} ({twins[0].cosine:.4f})")
        return [*lines, *self.notes]

    def record(self) -> dict[str, Any]:
        """The account as JSON holds it."""
        return {
            "paths": self.depth,
            "d": self.width,
            "h": len(self.readings[0].ours.rows),
            "head": self.head,
            "told": self.told,
            "readings": [reading.words for reading in self.readings],
            "others": self.others,
            "incomplete": self.incomplete,
            "unreadable": self.unreadable,
            "twins": [twin._asdict() for twin in self.twins],
            "alike": [twin._asdict() for twin in self.alike],
            "whole": self.whole,
        }


def rows(start: int, count: int) -> Int[np.ndarray, " h"]:
    """`count` consecutive rows."""
    return np.arange(start, start + count)


def repeated(start: int, count: int, of: int, head: int) -> Int[np.ndarray, " h"]:
    """`count` rows from `start`, in heads of `head` rows; each head is repeated (grouped heads) to make `of` rows."""
    unit = np.arange(of)
    return start + unit // head // (of // count) * head + unit % head


def without_twins(checkpoint: Checkpoint, ours: Sequence[str], theirs: Sequence[str]) -> Apart:
    """The places to keep. Others are averaged copies of them: the first rows of both parts are nearly the same."""

    def first_rows(names: Sequence[str]) -> Float[np.ndarray, "L L"]:
        numbers = math.prod(checkpoint.shapes[names[0]][1:])
        count = max(1, min(LOOK, checkpoint.shapes[names[0]][0], LOOKED // (len(names) * numbers)))
        return cosines([checkpoint.read(name, (slice(0, count),)) for name in names])

    return apart(ours, np.minimum(first_rows(ours), first_rows(theirs)))


def stored(names: Sequence[str], seen: Evidence) -> tuple[bool | None, str]:
    """Whether matrices of the same layout are stored [in, out], and the evidence for it; None if there is none.

    A tensor named `….weight` is a layer's own matrix, which is stored [out, in] unless something shows otherwise.
    """
    transposed, told = seen.stored(names)
    if transposed is None:
        width = seen.width(seen.shapes[names[0]][:2])
        if width is not None:
            return width == seen.shapes[names[0]][0], "normalisations"
        if all(name.endswith((".weight", ".in_proj_weight")) for name in names):
            return False, ""
    return transposed, told
