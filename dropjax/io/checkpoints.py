"""Input and output halves of MLPs in other people's checkpoints, read a few hidden units at a time.

Names tell which half of which layer a tensor is; pairing never looks at them. They select the halves, and afterwards they
can say whether the pairs are right (`true_partners`).
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # NumPy knows bfloat16 through it, and safetensors reads that
import numpy as np
from jaxtyping import Float, Float32, Int
from safetensors import SafetensorError, safe_open

from dropjax.core.errors import InputError
from dropjax.io import pytorch
from dropjax.io.pth import Tensor

FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Types that are read, as safetensors and as everybody else calls them; all become float32."""
GATES = re.compile(r"(^|[._])(gate\w*|w1|wi_0|wg)$")
"""Names of the gate among a gated MLP's two input halves; the other is the up projection."""
Slice = tuple[slice, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's tensors by name; each is read when it is asked for, and only the part that is asked for."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    """Of every floating-point tensor."""
    part: Callable[[str, Slice], np.ndarray]
    types: Mapping[str, str]
    """Of every tensor, those that are not read included."""

    def read(self, name: str, where: Slice = ()) -> Float32[np.ndarray, "..."]:
        """A part of a tensor (all of it by default) as float32. Raises `InputError` where a number is not finite."""
        with np.errstate(over="ignore"):
            values = np.asarray(self.part(name, where)).astype(np.float32)
        if not np.isfinite(values).all():
            raise InputError(f"{self.path}: {name[:80]}: expected finite float32 numbers, got {_first_bad(values)}")
        return values


def _first_bad(values: np.ndarray) -> str:
    return str(values[~np.isfinite(values)][0])


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint in a .safetensors file, in the shards that a .safetensors.index.json names, or in a .pth file.

    Nothing in a .pth file is ever run. Raises `InputError`.
    """
    path = Path(path)
    if not path.is_file():
        got = "something else" if path.exists() else "nothing there"
        raise InputError(f"{path}: expected a .safetensors, .safetensors.index.json or .pth file, got {got}")
    try:
        if path.suffix == ".json":
            return _open_shards(path, _shards(path))
        if path.suffix == ".safetensors":
            return _open_shards(path, [path])
        return _open_pth(path)
    except OSError as error:
        raise InputError(
            f"{error.filename or path}: expected a file that can be read, got {error.strerror or error}"
        ) from None


def _shards(path: Path) -> list[Path]:
    """The files that an index names, all of them beside it."""
    try:
        names = set(json.loads(path.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f'{path}: expected an index with "weight_map" from names to files, got something else') from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise InputError(f"{path}: weight_map: expected names of files beside it, got {str(name)[:60]!r}")
        if not (path.parent / name).is_file():
            raise InputError(f"{path}: weight_map: expected {name[:60]} beside it, got nothing there")
    return [path.parent / name for name in sorted(names)]


def _open_shards(path: Path, shards: Sequence[Path]) -> Checkpoint:
    shapes: dict[str, tuple[int, ...]] = {}
    types: dict[str, str] = {}
    home: dict[str, Path] = {}
    for shard in shards:
        with _safetensors(shard) as file:
            for name in file.keys():  # noqa: SIM118  # no mapping
                tensor = file.get_slice(name)
                kind = str(tensor.get_dtype())
                types[name] = FLOATS.get(kind, kind)
                if kind in FLOATS:
                    shapes[name], home[name] = tuple(tensor.get_shape()), shard

    def part(name: str, where: Slice) -> np.ndarray:
        # Opened anew each time: what was read of a memory-mapped file counts as ours only while it is open.
        with _safetensors(home[name]) as file:
            return file.get_slice(name)[where] if where else file.get_tensor(name)

    return Checkpoint(path, shapes, part, types)


def _safetensors(path: Path) -> Any:
    try:
        return safe_open(path, "numpy")
    except SafetensorError as error:
        with path.open("rb") as file:
            what = pytorch.not_data(file.read(512)) or f"one cut short or damaged ({str(error)[:120]})"
        raise InputError(f"{path}: expected a .safetensors file, got {what}") from None


def _open_pth(path: Path) -> Checkpoint:
    data = pytorch.unwrapped(pytorch.load_pth(path))
    if not isinstance(data, Mapping):
        raise InputError(f"{path}: expected a state dict, got {pytorch._kind(data)}")
    named = {}
    for name, value in data.items():
        if isinstance(value, Mapping) and set(value) in ({"weight"}, {"weight", "bias"}):  # a layer's own state dict
            named |= {f"{name}.{kind}": tensor for kind, tensor in value.items()}
        else:
            named[name] = value
    tensors = {name: value for name, value in named.items() if isinstance(name, str) and isinstance(value, Tensor)}
    values = {name: tensor.values for name, tensor in tensors.items() if tensor.is_floating and tensor.values is not None}

    def part(name: str, where: Slice) -> np.ndarray:
        return values[name][where]

    shapes = {name: tensors[name].shape for name in values}
    return Checkpoint(path, shapes, part, {name: tensor.dtype for name, tensor in tensors.items()})


# Which tensors are halves


@dataclass(frozen=True)
class Side:
    """One kind of half, as its tensors hold it: `units` are rows of [h, d], or columns of [d, h] where `transposed`."""

    names: tuple[str, ...]
    transposed: bool
    offset: int = 0
    """First of the tensor's rows (or columns) that are ours: fused gates hold two halves in one tensor."""
    gains: tuple[str, ...] = ()
    """Normalisation gains to fold in, one tensor [d] for each half."""
    label: str = ""
    """What to add to the names where one tensor holds two halves."""

    def reordered(self, order: Int[np.ndarray, " L"]) -> "Side":
        """The same halves in another order."""
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
    """Two kinds of halves of the same MLPs, as `pairing.Halves`: usually W_in and W_out, or the gate and up projections."""

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
        """Hidden units `start` to `stop` of every half, read now. Raises `InputError`."""
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
    """`in` and `out`; of gated MLPs `gate`, `up` and `out`."""
    others: tuple[str, ...] = ()
    """Other pairs of shapes that look like halves, in words."""

    def halves(self, ours: str, theirs: str) -> CheckpointHalves:
        """Two of the sides."""
        return CheckpointHalves(self.checkpoint, self.sides[ours], self.sides[theirs], self.hidden, self.width)

    @property
    def first(self) -> str:
        """The side that output halves are paired with first."""
        return "in" if "in" in self.sides else "up"


def find_halves(
    checkpoint: Checkpoint,
    ins: str | None = None,
    outs: str | None = None,
    gates: str | None = None,
    transposed: bool | None = None,
    gains: str | None = None,
) -> Mlps:
    """The halves whose names match the patterns `ins`, `outs` (and, of gated MLPs, `gates`), or that their shapes give away.

    By shape, halves are the commonest two shapes [h, d] and [d, h] with h > d, at least two of each; twice as many of the
    first, or [2h, d], are gated MLPs. `transposed` weights are stored [in, out], as GPT-2's Conv1D does; None: told by the
    biases' lengths. `gains` names the normalisations before the input halves, to be folded into them. Raises `InputError`.
    """
    path = checkpoint.path
    matrices = {name: shape for name, shape in checkpoint.shapes.items() if len(shape) == 2}
    others: tuple[str, ...] = ()
    if ins is None and outs is None and gates is None:
        in_names, out_names, others = _by_shape(checkpoint, matrices, transposed)
        gate_names: list[str] = []
        if len(in_names) == 2 * len(out_names):
            gate_names = [name for name in in_names if GATES.search(name.removesuffix(".weight"))]
            in_names = [name for name in in_names if name not in gate_names]
    elif ins is None or outs is None:
        raise InputError(f"{path}: expected patterns for both halves (--in and --out), got one")
    else:
        in_names, out_names = _matching(path, matrices, "--in", ins), _matching(path, matrices, "--out", outs)
        gate_names = _matching(path, matrices, "--gate", gates) if gates else []
    for what, names in (("gate", gate_names), ("output", out_names)):
        if names and len(names) != len(in_names):
            got = f"{len(in_names)} and {len(names)}"
            raise InputError(
                f"{path}: expected as many input as {what} halves, got {got}: name them with --in, --out, --gate"
            )
    if len(in_names) < 2:
        raise InputError(f"{path}: expected at least 2 input halves, got {len(in_names)}")
    return _oriented(checkpoint, in_names, out_names, gate_names, transposed, gains, others)


def _matching(path: Path, matrices: Mapping[str, tuple[int, ...]], option: str, pattern: str) -> list[str]:
    names = [name for name in matrices if fnmatchcase(name, pattern)]
    if not names:
        some = ", ".join(repr(name[:60]) for name in list(matrices)[:3])
        raise InputError(
            f"{path}: {option} {pattern!r}: expected matrices of such names, got none (there are {some or 'none'})"
        )
    return sorted(names, key=_natural)


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Layer 10 behind layer 9: numbers by their length first, for they may be longer than `int` takes."""
    words = re.split(r"0*([0-9]+)", name)
    return [(k % 2 == 1, len(word) if k % 2 else 0, word) for k, word in enumerate(words)]


def _by_shape(
    checkpoint: Checkpoint, matrices: Mapping[str, tuple[int, ...]], transposed: bool | None
) -> tuple[list[str], list[str], tuple[str, ...]]:
    by_shape: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name in sorted(matrices, key=_natural):
        by_shape[matrices[name]].append(name)
    found = []
    for (rows, columns), tall in by_shape.items():
        wide = by_shape.get((columns, rows), [])
        if rows > columns and len(wide) >= 2 and len(tall) in (len(wide), 2 * len(wide)):
            flipped = _is_transposed(checkpoint, tall, wide) if transposed is None else transposed
            found.append((len(wide), rows * columns, *((wide, tall) if flipped else (tall, wide))))
        fused = by_shape.get((columns, rows // 2), []) if rows % 2 == 0 and rows // 2 != columns else []
        if len(fused) >= 2 and len(fused) == len(tall):
            found.append((len(fused), rows * columns, tall, fused))
    if not found:
        shapes = ", ".join(f"{len(names)} of {list(shape)}" for shape, names in list(by_shape.items())[:4])
        raise InputError(
            f"{checkpoint.path}: expected as many matrices [h, d] as [d, h] with h > d, at least 2 of each, got "
            f"{shapes or 'no matrix'}: name them with --in and --out"
        )
    found.sort(key=lambda one: one[:2], reverse=True)
    words = tuple(f"{len(tall)} like {tall[0]} with {len(wide)} like {wide[0]}" for _, _, tall, wide in found[1:])
    return found[0][2], found[0][3], words


def _is_transposed(checkpoint: Checkpoint, tall: Sequence[str], wide: Sequence[str]) -> bool:
    """Whether the biases say that weights are stored [in, out]: a bias has one number for each output."""
    says = []
    for name in (*tall, *wide):
        rows, columns = checkpoint.shapes[name]
        bias = checkpoint.shapes.get(re.sub("weight$", "bias", name)) if name.endswith("weight") else None
        if bias is not None and len(bias) == 1 and rows != columns:
            says.append(bias[0] == columns)
    return bool(says) and all(says)


def _oriented(
    checkpoint: Checkpoint,
    ins: Sequence[str],
    outs: Sequence[str],
    gates: Sequence[str],
    transposed: bool | None,
    gains: str | None,
    others: tuple[str, ...],
) -> Mlps:
    path, shapes = checkpoint.path, checkpoint.shapes
    flipped = _is_transposed(checkpoint, ins, outs) if transposed is None else transposed
    stored = shapes[ins[0]], shapes[outs[0]]
    (hidden, width), (out_width, out_hidden) = (shape[::-1] for shape in stored) if flipped else stored
    fused = not gates and hidden == 2 * out_hidden
    for first, names in ((ins[0], (*ins, *gates)), (outs[0], outs)):
        for name in names:
            if shapes[name] != shapes[first]:
                raise InputError(f"{path}: {name}: expected {list(shapes[first])} as {first} has, got {list(shapes[name])}")
    if out_width != width or (out_hidden != hidden and not fused):
        wanted = [hidden, width] if flipped else [width, hidden]
        raise InputError(f"{path}: {outs[0]}: expected {wanted} to go with {ins[0]}, got {list(shapes[outs[0]])}")
    folded = _aligned(path, ins, _vectors(path, shapes, gains, width)) if gains else ()
    sides = {"out": Side(tuple(outs), not flipped)}
    if fused:
        sides["gate"] = Side(tuple(ins), flipped, 0, folded, " (first half)")
        sides["up"] = Side(tuple(ins), flipped, out_hidden, folded, " (second half)")
    elif gates:
        gate_gains = _aligned(path, gates, _vectors(path, shapes, gains, width)) if gains else ()
        sides["gate"], sides["up"] = Side(tuple(gates), flipped, 0, gate_gains), Side(tuple(ins), flipped, 0, folded)
    else:
        sides["in"] = Side(tuple(ins), flipped, 0, folded)
    return Mlps(checkpoint, out_hidden, width, sides, others)


def _vectors(path: Path, shapes: Mapping[str, tuple[int, ...]], pattern: str, width: int) -> list[str]:
    names = [name for name, shape in shapes.items() if shape == (width,) and fnmatchcase(name, pattern)]
    if not names:
        raise InputError(f"{path}: --fold-norm {pattern!r}: expected vectors [{width}] of such names, got none")
    return names


def _aligned(path: Path, names: Sequence[str], gains: Sequence[str]) -> tuple[str, ...]:
    """The gain of each half's own layer."""
    partners = true_partners(names, gains)
    if partners is None:
        raise InputError(f"{path}: --fold-norm: expected one gain for each input half by its name, got {len(gains)}")
    return tuple(gains[k] for k in partners)


def true_partners(names: Sequence[str], others: Sequence[str]) -> list[int] | None:
    """Which of `others` stands in the same layer as each of `names`, by the longest common beginning; None if unclear."""

    def common(a: str, b: str) -> int:
        parts = list(zip(a.split("."), b.split("."), strict=False))
        return next((k for k, (x, y) in enumerate(parts) if x != y), len(parts))

    found = []
    for name in names:
        lengths = [common(name, other) for other in others]
        best = max(lengths, default=0)
        if lengths.count(best) != 1:
            return None
        found.append(lengths.index(best))
    return found if len(set(found)) == len(names) == len(others) else None
