"""Other people's checkpoints: tensors by name. Each is read on request, and only the part that is requested.

`halves` tells which of the tensors are halves of MLPs.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open

from dropjax.core.errors import InputError
from dropjax.io import pytorch
from dropjax.io.pth import Tensor

FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Types that safetensors can read into NumPy: its name for each and the usual one. All become float32."""
OTHERS = {"BOOL": "bool"} | {f"{kind[0].upper()}{n}": f"{kind}{n}" for kind in ("int", "uint") for n in (8, 16, 32, 64)}
"""Types that cannot be read."""
BYTES = {
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
"""One-byte types, which safetensors cannot read into NumPy."""
SCALES = re.compile(r"(.+)(?:[._](?:scale|scale_inv)|\.scale_weight)")
"""Names of the scales that float8 weights are multiplied by. DeepSeek's name ends in `_inv`, and it multiplies as well."""
INDICES = (".safetensors.index.json", ".bin.index.json")
SHARD = re.compile(r"-[0-9]{1,9}-of-0*([0-9]{1,9})\.")
Slice = tuple[slice, ...]


class Scale(NamedTuple):
    """The tensor of scales that a float8 weight is multiplied by, one for each block of `rows` × `columns` weights."""

    name: str
    rows: int
    columns: int


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's tensors by name."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    """The shape of every floating-point tensor that is read, scales included."""
    part: Callable[[str, Slice], np.ndarray]
    types: Mapping[str, str]
    """The type of every tensor, including those that are not read."""
    unread: Mapping[str, tuple[int, ...]]
    """The shape of every tensor that is not read: integers, packed numbers, float8 whose scales do not fit."""
    scales: Mapping[str, Scale]
    """The scales that `read` multiplies float8 weights by."""
    notes: tuple[str, ...] = ()
    """What else is there and was not looked at."""

    def read(self, name: str, where: Slice = ()) -> Float32[np.ndarray, "..."]:
        """Part of a tensor (by default all of it) as float32. Raises `InputError` if a number is not finite."""
        with np.errstate(over="ignore"):
            values = np.asarray(self.part(name, where)).astype(np.float32)
            if name in self.scales:
                values = values * self._scale(name, where)
        if not np.isfinite(values).all():
            raise InputError(f"{self.path}: {name[:80]}: expected finite float32 numbers, got {_first_bad(values)}")
        return values

    def _scale(self, name: str, where: Slice) -> Float32[np.ndarray, "..."]:
        scale, (rows, columns) = self.scales[name], self.shapes[name]
        values = np.asarray(self.part(scale.name, ())).astype(np.float32)
        values = values.reshape(math.ceil(rows / scale.rows), math.ceil(columns / scale.columns))
        row, column = (np.arange(n)[cut] for n, cut in zip((rows, columns), where or (slice(None),) * 2, strict=True))
        return values[np.ix_(row // scale.rows, column // scale.columns)]


def counted(count: int) -> str:
    """The count in words: "1 tensor", "2 tensors"."""
    return f"{count} tensor{'' if count == 1 else 's'}"


def _first_bad(values: np.ndarray) -> str:
    return str(values[~np.isfinite(values)][0])


class Held(NamedTuple):
    """The tensors of one file."""

    shapes: dict[str, tuple[int, ...]]
    types: dict[str, str]
    readable: set[str]
    part: Callable[[str, Slice], np.ndarray]
    notes: tuple[str, ...] = ()


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint in a .safetensors or PyTorch file, or in the shards of either kind that an index names.

    An index (*.safetensors.index.json, *.bin.index.json) decides which shard holds a tensor. No code in a PyTorch file is
    ever run: see `pytorch.load_pth`. Raises `InputError`.
    """
    path = Path(path)
    if not path.is_file():
        got = "something else" if path.exists() else "nothing there"
        raise InputError(f"{path}: expected a .safetensors, .index.json, .pth or .bin file, got {got}")
    try:
        held = _shards(path) if path.suffix == ".json" else _held(path)
    except OSError as error:
        raise InputError(
            f"{error.filename or path}: expected a file that can be read, got {error.strerror or error}"
        ) from None
    return _scaled(path, held)


def _held(path: Path) -> Held:
    held = _safetensors(path) if path.suffix == ".safetensors" else _pth(path)
    shard = SHARD.search(path.name)
    if not shard:
        return held
    beside = next((one.name for end in INDICES for one in sorted(path.parent.glob(f"*{end}"))), None)
    whole = f": {beside} names them all" if beside else ""
    return held._replace(
        notes=(*held.notes, f"not looked at: the other shards of {shard[1]}, of which {path.name} is one{whole}")
    )


# An index and its shards


def _shards(path: Path) -> Held:
    """The tensors that an index names, each from the shard that the index gives for it."""
    homes = _weight_map(path)
    shards = {name: _held(path.parent / name) for name in sorted(set(homes.values()))}
    for name, shard in homes.items():
        if name not in shards[shard].shapes:
            raise InputError(f"{path}: weight_map: expected {name[:80]} in {shard}, got no such tensor there")
    beside = {name for held in shards.values() for name in held.shapes} - set(homes)
    again = {name for shard, held in shards.items() for name in held.shapes if homes.get(name, shard) != shard}
    notes = []
    for found, words in ((beside, "that the index does not name"), (again, "that the index places in another shard")):
        if found:
            notes.append(f"not looked at: {counted(len(found))} in shards {words}, such as {min(found)[:80]}")

    def part(name: str, where: Slice) -> np.ndarray:
        return shards[homes[name]].part(name, where)

    return Held(
        {name: shards[shard].shapes[name] for name, shard in homes.items()},
        {name: shards[shard].types[name] for name, shard in homes.items()},
        {name for name, shard in homes.items() if name in shards[shard].readable},
        part,
        tuple(notes),
    )


def _weight_map(path: Path) -> dict[str, str]:
    """The shard that holds each tensor. Every shard must be a file beside the index."""
    try:
        homes = dict(json.loads(path.read_bytes())["weight_map"].items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f'{path}: expected an index with "weight_map" from names to files, got something else') from None
    for name in homes.values():
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or "\0" in name:
            raise InputError(f"{path}: weight_map: expected names of files beside it, got {str(name)[:60]!r}")
        if Path(name).suffix == ".json":
            raise InputError(f"{path}: weight_map: expected names of shards, got {name[:60]!r}")
        if not (path.parent / name).is_file():
            raise InputError(f"{path}: weight_map: expected {name[:60]} beside it, got nothing there")
    return homes


# .safetensors


def _safetensors(path: Path) -> Held:
    shapes: dict[str, tuple[int, ...]] = {}
    kinds: dict[str, str] = {}
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118  # no mapping
            tensor = file.get_slice(name)
            shapes[name], kinds[name] = tuple(tensor.get_shape()), str(tensor.get_dtype())
    places = _places(path) if set(kinds.values()) & set(BYTES) else {}

    def part(name: str, where: Slice) -> np.ndarray:
        # The file is opened anew each time: pages read from a mapped file count as this process's memory while it is open.
        if kinds[name] in BYTES:
            mapped = np.memmap(path, BYTES[kinds[name]], "r", places[name], shapes[name])
            return np.array(mapped[where])
        with _opened(path) as file:
            return file.get_slice(name)[where] if where else file.get_tensor(name)

    types = {name: BYTES[kind].name if kind in BYTES else (FLOATS | OTHERS).get(kind, kind) for name, kind in kinds.items()}
    empty = {name for name, shape in shapes.items() if kinds[name] in BYTES and not math.prod(shape)}
    readable = {name for name, kind in kinds.items() if kind in FLOATS or kind in BYTES}
    return Held(shapes, types, readable - empty, part)


def _places(path: Path) -> dict[str, int]:
    """The offset of each tensor in a file that `safe_open` has accepted."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    return {name: 8 + size + one["data_offsets"][0] for name, one in header.items() if name != "__metadata__"}


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "numpy")
    except SafetensorError as error:
        with path.open("rb") as file:
            what = pytorch.not_data(file.read(512)) or f"one cut short or damaged ({str(error)[:120]})"
        raise InputError(f"{path}: expected a .safetensors file, got {what}") from None


# PyTorch's files


def _pth(path: Path) -> Held:
    loaded = pytorch.load_pth(path)
    data = pytorch.unwrapped(loaded)
    if not isinstance(data, Mapping):
        raise InputError(f"{path}: expected a state dict, got {pytorch._kind(data)}")
    tensors = dict(_tensors(data))
    values = {name: tensor.values for name, tensor in tensors.items() if tensor.is_floating and tensor.values is not None}

    def part(name: str, where: Slice) -> np.ndarray:
        return np.asarray(values[name][where], np.float32)

    others = loaded.items() if isinstance(loaded, Mapping) and loaded is not data else ()
    notes = (
        f"not looked at: {counted(len(found))} under {str(key)[:40]!r}, beside the state dict"
        for key, value in others
        if value is not data and isinstance(value, Mapping) and (found := dict(_tensors(value)))
    )
    shapes, types = ({name: getattr(of, field) for name, of in tensors.items()} for field in ("shape", "dtype"))
    return Held(shapes, types, set(values), part, tuple(notes))


def _tensors(data: Mapping[Any, Any]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a state dict by name. A layer may be a state dict inside it."""
    for name, value in data.items():
        if isinstance(value, Mapping) and set(value) in ({"weight"}, {"weight", "bias"}):
            inner = {f"{name}.{kind}": tensor for kind, tensor in value.items()}
        else:
            inner = {name: value}
        yield from ((one, x) for one, x in inner.items() if isinstance(one, str) and isinstance(x, Tensor))


# Float8 and its scales


def _scaled(path: Path, held: Held) -> Checkpoint:
    """The checkpoint with each float8 weight joined to its scales. Weights whose scales do not fit are not read."""
    shapes, scales, bad = held.shapes, {}, set()
    for name in held.shapes:
        match = SCALES.fullmatch(name)
        weight = match and next((w for w in (match[1], f"{match[1]}.weight") if w in shapes), None)
        if not weight or not held.types[weight].startswith("float8"):
            continue
        blocks = _blocks(shapes[weight], shapes[name]) if name in held.readable and weight not in scales else None
        if blocks is None:
            bad.add(weight)
        else:
            scales[weight] = Scale(name, *blocks)
    read = {name: shape for name, shape in shapes.items() if name in held.readable and name not in bad}
    unread = {name: shape for name, shape in shapes.items() if name not in read}
    scales = {name: scale for name, scale in scales.items() if name in read}
    plain = [n for n in read if held.types[n].startswith("float8") and "e8m0" not in held.types[n] and n not in scales]
    notes = [*held.notes, *([f"taken as they are, without scales: {counted(len(plain))} of float8"] if plain else [])]
    if bad:
        notes.append(f"scales that do not fit: {counted(len(bad))} of float8, such as {min(bad)[:80]}")
    return Checkpoint(path, read, held.part, held.types, unread, scales, tuple(notes))


def _blocks(weight: Sequence[int], scale: Sequence[int]) -> tuple[int, int] | None:
    """The numbers of rows and columns of the blocks that share a scale; None if the shapes allow no such blocks."""
    if len(weight) != 2:
        return None
    rows, columns = weight
    by_row = (*scale, 1) if len(scale) == 1 and scale[0] == rows else tuple(scale)
    if math.prod(scale) == 1:
        return rows, columns
    if len(by_row) != 2:
        return None
    row, column = (_block(n, count) for n, count in zip(weight, by_row, strict=True))
    return (row, column) if row and column else None


def _block(length: int, count: int) -> int | None:
    """The length of `count` equal blocks, the last of which may be shorter; a power of two if one fits."""
    if not 1 <= count <= length:
        return None
    if count == 1:
        return length
    power = 1 << (math.ceil(length / count) - 1).bit_length()
    if math.ceil(length / power) == count:
        return power
    return length // count if length % count == 0 else None
