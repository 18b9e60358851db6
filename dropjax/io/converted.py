"""Converted puzzles: one `.safetensors` file each."""

import hashlib
import json
import re
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dropjax.core.errors import InputError
from dropjax.core.puzzle import Piece, Puzzle
from dropjax.io.arguments import parse_roles
from dropjax.io.checks import naming, reading
from dropjax.io.folders import TABLE
from dropjax.io.pytorch import not_data
from dropjax.io.tables import Table
from dropjax.runtime.writing import write_all

FORMAT = 1
"""Version of the converted format."""


def read_converted(path: str | Path, roles: Mapping[int, str] | None = None) -> Puzzle:
    """The puzzle in a file that `write_converted` wrote. Raises `InputError`."""
    path = Path(path)
    with reading(path):
        meta, arrays = _read_tensors(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    x, pred, true = (arrays.pop(f"table.{name}", None) for name in Table._fields)
    if x is None or pred is None:
        raise InputError(f"{path}: expected table.x and table.pred, got no table.{'x' if x is None else 'pred'}")
    pieces = {}
    for name, weight in arrays.items():
        number = re.fullmatch(r"piece_(0|[1-9][0-9]{0,8})\.(weight|bias)", name)
        if not number:
            raise InputError(f"{path}: expected piece_<n>.weight, piece_<n>.bias and table.*, got {name[:40]!r}")
        other = {"weight": "bias", "bias": "weight"}[number[2]]
        if f"piece_{number[1]}.{other}" not in arrays:
            raise InputError(f"{path}: expected piece_{number[1]}.{other} beside {name}, got none")
        if number[2] == "weight":
            pieces[int(number[1])] = Piece(weight, arrays[f"piece_{number[1]}.bias"], f"{path}: piece_{number[1]}")
    if roles is None and meta.get("roles") is not None:
        roles = parse_roles(path, list(meta["roles"].items()) if isinstance(meta["roles"], dict) else None)
    inputs = meta.get("inputs")
    inputs = {str(k): str(v) for k, v in inputs.items()} if isinstance(inputs, dict) else {}
    with naming(path):
        return Puzzle.from_pieces(pieces, x, pred, true, roles, {**inputs, "converted": digest})


def write_converted(puzzle: Puzzle, path: str | Path) -> None:
    """Write the puzzle as one file, which is read back and compared before it appears at `path`.

    One puzzle always gives the same bytes. Raises `InputError` if the file cannot be written.
    """
    arrays = {
        f"piece_{n}.{name}": a
        for n, piece in puzzle.pieces.items()
        for name, a in zip(("weight", "bias"), piece, strict=True)
    }
    arrays |= {f"table.{name}": a for name in Table._fields if (a := getattr(puzzle, name)) is not None}
    meta = {"format": FORMAT, "inputs": {k: v for k, v in puzzle.hashes.items() if k != "converted"}}
    if puzzle.roles:
        meta["roles"] = puzzle.roles

    write_all(
        {Path(path): lambda temporary: write_tensors(temporary, arrays, {"dropjax": json.dumps(meta, sort_keys=True)})}
    )


def _read_tensors(path: Path) -> tuple[dict, dict[str, NDArray[np.float32]]]:
    """The metadata under the key dropjax, and every array, of a converted file."""
    try:
        with safe_open(path, "numpy") as file:
            meta = (file.metadata() or {}).get("dropjax")
            if meta is None:
                got = f"another .safetensors file; if it holds all layers, put it into a folder with {TABLE}"
                raise InputError(f"{path}: expected a converted puzzle (metadata key dropjax), got {got}")
            try:
                meta = json.loads(meta)
            except (ValueError, RecursionError):
                raise InputError(f"{path}: metadata: expected JSON under the key dropjax, got something else") from None
            version = meta.get("format") if isinstance(meta, dict) else None
            if version != FORMAT:
                raise InputError(f"{path}: expected format {FORMAT}, got {str(version)[:40]}")
            names = list(file.keys())
            _check_names(path)
            for name in names:
                if (dtype := file.get_slice(name).get_dtype()) != "F32":
                    raise InputError(f"{path}: {name[:40]!r}: expected F32, got {dtype}")
            return meta, {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        with path.open("rb") as file:
            head = file.read(512)
        what = not_data(head) or (f"a PyTorch file: put it into a folder with {TABLE}" if head.startswith(b"PK") else None)
        what = what or f"one cut short or damaged ({str(error)[:120]})"
        raise InputError(f"{path}: expected a converted .safetensors file, got {what}") from None


def _check_names(path: Path) -> None:
    """Refuse a header in which a name stands twice, because the library would read the last one."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        pairs = json.loads(file.read(length), object_pairs_hook=list)
    twice = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
    if twice:
        raise InputError(f"{path}: expected every name once, got {twice[0][:40]!r} twice")


def write_tensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Write the arrays and read them back. Raises OSError if an array differs from what was written."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}  # safetensors corrupts others in silence
    path.write_bytes(save(arrays, metadata))
    with safe_open(path, "numpy") as file:
        for name, array in arrays.items():
            if (back := file.get_tensor(name)).shape != array.shape or back.tobytes() != array.tobytes():
                raise OSError(f"another {name} back than was written")
