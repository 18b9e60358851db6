"""Input and output halves of the MLPs in other people's checkpoints, read a few hidden units at a time.

Names select the halves (`families`), and afterwards they can tell whether the pairs are right (`true_partners`). The pairing
itself never looks at them.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import numpy as np
from jaxtyping import Float, Int

from dropjax.core.errors import InputError
from dropjax.io import families
from dropjax.io.checkpoints import Checkpoint
from dropjax.io.families import Evidence, Found, Mlp, natural
from dropjax.io.selection import Account, distinct, left_out


@dataclass(frozen=True)
class Side:
    """One kind of half as its tensors store it: `units` are rows of [h, d], or columns of [d, h] if `transposed`."""

    names: tuple[str, ...]
    transposed: bool
    offset: int = 0
    """The first row (or column) of the half in its tensor. A fused gate has two halves in one tensor."""
    gains: tuple[str, ...] = ()
    """Names of the normalisation gains to fold in, one tensor [d] for each half."""
    label: str = ""
    """The suffix that distinguishes two halves in one tensor."""

    def reordered(self, order: Int[np.ndarray, " L"]) -> "Side":
        """These halves in another order."""
        pick = [int(k) for k in order]
        return Side(
            tuple(self.names[k] for k in pick),
            self.transposed,
            self.offset,
            tuple(self.gains[k] for k in pick) if self.gains else (),
            self.label,
        )


@dataclass(frozen=True)
class CheckpointHalves:
    """Two kinds of halves of the same MLPs, usually W_in and W_out, or gate and up; a `pairing.evidence.Halves`."""

    checkpoint: Checkpoint
    ours: Side
    theirs: Side
    hidden: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(L, h, d)."""
        return len(self.ours.names), self.hidden, self.width

    def units(self, start: int, stop: int) -> tuple[Float[np.ndarray, "L s d"], Float[np.ndarray, "L s d"]]:
        """Read hidden units `start` to `stop` of every half. Raises `InputError`."""
        ours, theirs = (self._side(side, start, stop) for side in (self.ours, self.theirs))
        return ours, theirs

    def _side(self, side: Side, start: int, stop: int) -> Float[np.ndarray, "L s d"]:
        out = np.empty((len(side.names), stop - start, self.width), np.float32)
        cut, every = slice(side.offset + start, side.offset + stop), slice(None)
        for k, name in enumerate(side.names):
            part = self.checkpoint.read(name, (every, cut) if side.transposed else (cut, every))
            out[k] = part.T if side.transposed else part
            if side.gains:
                out[k] *= self.checkpoint.read(side.gains[k])
        return out


@dataclass(frozen=True)
class Mlps:
    """The halves of a checkpoint's MLPs, not yet paired."""

    checkpoint: Checkpoint
    hidden: int
    width: int
    sides: Mapping[str, Side] = field(default_factory=dict)
    """`in` and `out`; in gated MLPs `gate`, `up` and `out`."""
    others: tuple[str, ...] = ()
    """Descriptions of the other MLPs in the checkpoint."""
    account: Account = field(default_factory=Account)

    def halves(self, ours: str, theirs: str) -> CheckpointHalves:
        """Two of the sides."""
        return CheckpointHalves(self.checkpoint, self.sides[ours], self.sides[theirs], self.hidden, self.width)

    @property
    def first(self) -> str:
        """The name of the side that output halves are paired with first."""
        return "in" if "in" in self.sides else "up"

    @property
    def depth(self) -> int:
        """The number of MLPs."""
        return len(self.sides["out"].names)

    @property
    def transposed(self) -> bool:
        """Whether the matrices are stored [in, out]."""
        return self.sides[self.first].transposed


def find_halves(
    checkpoint: Checkpoint,
    ins: str | None = None,
    outs: str | None = None,
    gates: str | None = None,
    transposed: bool | None = None,
    gains: str | None = None,
) -> Mlps:
    """The halves whose names match the patterns `ins`, `outs` and, in gated MLPs, `gates`, or else the most numerous.

    Without patterns, halves are found by names (`families.FAMILIES`), or else by shapes: the commonest two shapes [h, d] and
    [d, h], at least two matrices of each. Twice as many of the first, or [2h, d], make gated MLPs. `transposed` weights are
    stored [in, out], as in GPT-2's Conv1D and in Flax; if it is None, biases, names and normalisations decide. `gains` names
    the normalisations before the input halves, whose gains are folded into them. Averaged copies of other halves are left
    out. Raises `InputError`.
    """
    path, seen = checkpoint.path, families.evidence(checkpoint.shapes, transposed)
    scales = {scale.name for scale in checkpoint.scales.values()}
    matrices = [name for name, shape in checkpoint.shapes.items() if len(shape) == 2 and all(shape) and name not in scales]
    if ins is None and outs is None and gates is None:
        mlps = _recognised(checkpoint, matrices, seen)
    elif ins is None or outs is None:
        raise InputError(f"{path}: expected patterns for both halves (--in and --out), got one")
    else:
        globs = {"--in": ins, "--out": outs, **({"--gate": gates} if gates else {})}
        mlps = _named(checkpoint, matrices, globs, seen)
    return _folded(mlps, gains) if gains else mlps


# Without patterns


def _recognised(checkpoint: Checkpoint, matrices: Sequence[str], seen: Evidence) -> Mlps:
    """The most numerous MLPs found by names, or else by shapes."""
    possible = [name for name in matrices if not families.reason_to_skip(name)]
    named = families.by_name(possible, seen)
    pools = [pool for pool in named if len(pool.mlps) >= 2]
    if not pools:
        pools = families.by_shape(possible, seen)
    if not pools:
        raise InputError(_nothing(checkpoint, matrices, possible, named))
    best, singles = pools[0], [pool for pool in named if len(pool.mlps) == 1]
    chosen, twins, alike = distinct(checkpoint, best)
    if len(chosen) < 2:
        what = f"{best.words}, of which {twins[0].copy} is a copy of {twins[0].of}" if twins else "one"
        raise InputError(f"{checkpoint.path}: expected at least 2 MLPs, got {what}")
    used = _names(chosen)
    reasons = dict.fromkeys(_names(mlp for pool in [*pools, *named] for mlp in pool.mlps), "of other MLPs")
    reasons |= dict.fromkeys(_names(best.mlps), "of twins")
    masks = {_mask(name) for name in used}
    incomplete = [name for name in possible if name not in reasons and _mask(name) in masks]
    reasons |= dict.fromkeys(incomplete, "of incomplete MLPs")
    unreadable = [name for name in checkpoint.unread if families.is_half(name) and not families.reason_to_skip(name)]
    account = Account(
        direction=" or ".join(sorted({mlp.told for mlp in chosen})),
        direction_known=all(mlp.known for mlp in chosen),
        layout=" and ".join(sorted({mlp.layout for mlp in chosen})) if all(mlp.layout for mlp in chosen) else "",
        **left_out(checkpoint, [name for name in matrices if name not in used], unreadable, reasons),
        incomplete=tuple(incomplete),
        twins=twins,
        alike=alike,
    )
    others = tuple(pool.words for pool in [*pools[1:], *(pool for pool in singles if pool not in pools)])
    return Mlps(checkpoint, best.hidden, best.width, _sides(chosen, best.hidden), others, account)


def _sides(mlps: Sequence[Mlp], hidden: int) -> dict[str, Side]:
    transposed = mlps[0].transposed
    ups, outs, gates = (tuple(getattr(mlp, role) for mlp in mlps) for role in ("up", "out", "gate"))
    sides = {"out": Side(outs, not transposed)}
    if mlps[0].fused:
        parts = ("up", "gate") if mlps[0].gate_second else ("gate", "up")
        for part, offset, words in zip(parts, (0, hidden), ("first", "second"), strict=True):
            sides[part] = Side(ups, transposed, offset, (), f" ({words} half)")
    elif mlps[0].gate:
        sides |= {"gate": Side(gates, transposed), "up": Side(ups, transposed)}
    else:
        sides["in"] = Side(ups, transposed)
    return sides


def _nothing(checkpoint: Checkpoint, matrices: Sequence[str], possible: Sequence[str], named: Sequence[Found]) -> str:
    """The message about a checkpoint without MLPs, which says what it has instead."""
    skipped = Counter(filter(None, map(families.reason_to_skip, matrices)))
    got = [families.shapes_in_words(possible, checkpoint.shapes)] if possible else []
    got += [f"{count} {reason}" for reason, count in skipped.items()]
    unread = Counter(checkpoint.types[name] for name, shape in checkpoint.unread.items() if len(shape) > 1)
    got += [f"{count} of {kind}, which is not read" for kind, count in unread.items()]
    one = f" (by name 1 MLP: {named[0].mlps[0].up} with {named[0].mlps[0].out})" if named else ""
    return (
        f"{checkpoint.path}: expected names of MLPs' halves, or as many matrices [h, d] as [d, h] with h > d, at least 2 of "
        f"each, got {', '.join(got) or 'no matrix'}{one}: name them with --in and --out"
    )


def _names(mlps: Iterable[Mlp]) -> set[str]:
    return {name for mlp in mlps for name in (mlp.up, mlp.out, mlp.gate) if name}


def _mask(name: str) -> str:
    return re.sub("[0-9]+", "#", name)


# By patterns


def _named(checkpoint: Checkpoint, matrices: Sequence[str], globs: Mapping[str, str], seen: Evidence) -> Mlps:
    """The halves that the patterns of `--in`, `--out` and `--gate` name."""
    path, shapes = checkpoint.path, checkpoint.shapes
    ins, outs, gates = (_matching(checkpoint, matrices, option, globs.get(option)) for option in ("--in", "--out", "--gate"))
    for what, names in (("gate", gates), ("output", outs)):
        if names and len(names) != len(ins):
            got = f"{len(ins)} and {len(names)}"
            raise InputError(
                f"{path}: expected as many input as {what} halves, got {got}: name them with --in, --out, --gate"
            )
    if len(ins) < 2:
        raise InputError(f"{path}: expected at least 2 input halves, got {len(ins)}")
    for first, names in ((ins[0], (*ins, *gates)), (outs[0], outs)):
        for name in names:
            if shapes[name] != shapes[first]:
                raise InputError(f"{path}: {name}: expected {list(shapes[first])} as {first} has, got {list(shapes[name])}")
    threes = zip(ins, outs, gates or [""] * len(ins), strict=True)
    family = families.Family("", "")
    mlps = [families.oriented(*three, family, seen) for three in threes]
    chosen = [mlp for mlp in mlps if mlp is not None]
    pools = families.pooled(chosen, shapes)
    if len(chosen) < len(mlps) or len(pools) != 1:
        wanted = list(shapes[ins[0]][::-1])
        raise InputError(f"{path}: {outs[0]}: expected {wanted} to go with {ins[0]}, got {list(shapes[outs[0]])}")
    used = {*ins, *outs, *gates}
    unread = [name for name in checkpoint.unread if any(fnmatchcase(name, glob) for glob in globs.values())]
    account = Account(
        layout=chosen[0].layout,
        **left_out(checkpoint, [name for name in matrices if name not in used], unread),
        alike=distinct(checkpoint, pools[0], drop=False).alike,
    )
    return Mlps(checkpoint, pools[0].hidden, pools[0].width, _sides(chosen, pools[0].hidden), (), account)


def _matching(checkpoint: Checkpoint, matrices: Sequence[str], option: str, pattern: str | None) -> list[str]:
    if pattern is None:
        return []
    names = [name for name in matrices if fnmatchcase(name, pattern)]
    if not names:
        unread = Counter(checkpoint.types[name] for name in checkpoint.unread if fnmatchcase(name, pattern))
        some = ", ".join(repr(name[:60]) for name in list(matrices)[:3])
        got = ", ".join(f"{count} of {kind}" for kind, count in unread.items()) or "none"
        raise InputError(
            f"{checkpoint.path}: {option} {pattern!r}: expected matrices of such names that can be read, got {got} "
            f"(there are {some or 'none'})"
        )
    return sorted(names, key=natural)


# Normalisation gains


def _folded(mlps: Mlps, pattern: str) -> Mlps:
    """The MLPs with the gains that match this pattern folded into their input halves."""
    path, shapes = mlps.checkpoint.path, mlps.checkpoint.shapes
    gains = [name for name, shape in shapes.items() if shape == (mlps.width,) and fnmatchcase(name, pattern)]
    if not gains:
        raise InputError(f"{path}: --fold-norm {pattern!r}: expected vectors [{mlps.width}] of such names, got none")
    sides = dict(mlps.sides)
    for kind, side in sides.items():
        if kind != "out":
            partners = true_partners(side.names, gains)
            if partners is None:
                raise InputError(f"{path}: --fold-norm: expected one gain for each input half by its name, got {len(gains)}")
            sides[kind] = replace(side, gains=tuple(gains[k] for k in partners))
    return replace(mlps, sides=sides)


def true_partners(names: Sequence[str], others: Sequence[str]) -> list[int] | None:
    """For each of `names`, the index in `others` with the longest common prefix; None if that is ambiguous."""

    def common(a: str, b: str) -> int:
        parts = list(zip(re.split("[./]", a), re.split("[./]", b), strict=False))
        return next((k for k, (x, y) in enumerate(parts) if x != y), len(parts))

    found = []
    for name in names:
        lengths = [common(name, other) for other in others]
        best = max(lengths, default=0)
        if lengths.count(best) != 1:
            return None
        found.append(lengths.index(best))
    return found if len(set(found)) == len(names) == len(others) else None
