"""Puzzle folders: the published form and its variants."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dropjax.core.errors import InputError
from dropjax.core.puzzle import Piece, Puzzle
from dropjax.io.checkpoints import open_checkpoint
from dropjax.io.checks import naming, reading
from dropjax.io.pytorch import read_pth, write_pth
from dropjax.io.tables import read_table
from dropjax.runtime.writing import write_all

TABLE = "historical_data.csv"


TABLES = (TABLE, f"{TABLE}.gz", *(f"historical_data.{end}" for end in ("parquet", "feather", "xlsx")))
"""Names of a puzzle folder's table; the first one that exists is read."""


LAYERS = (".pth", ".pt", ".safetensors")
"""Suffixes of a file that holds all layers."""


def read_folder(folder: str | Path, roles: Mapping[int, str] | None = None) -> Puzzle:
    """The puzzle in a folder; its `notes` say what was cast to float32. Raises `InputError`.

    Instead of `pieces/piece_<n>.pth`, one .pth or .safetensors file may hold all layers, as `piece_<n>.weight` and
    `piece_<n>.bias`; the table may be gzip (`historical_data.csv.gz`), Parquet (`historical_data.parquet`), Feather
    (`historical_data.feather`) or Excel (`historical_data.xlsx`).
    """
    folder = Path(folder)
    with reading(folder):
        paths = _piece_paths(folder / "pieces")
        whole = None if paths else _whole_path(folder)
        table_path = next((path for name in TABLES if (path := folder / name).is_file()), None)
        if table_path is None and (parted := next((path for name in TABLES if (path := folder / name).is_dir()), None)):
            kind = "a Parquet folder" if parted.suffix == ".parquet" else "a folder"
            raise InputError(f"{parted}: expected a table in one file, got {kind}: put its parts into one file")
        if table_path is None or not (paths or whole):
            missing = TABLE if paths or whole else "pieces/piece_<n>.pth"
            raise InputError(f"{folder}: expected pieces/piece_<n>.pth and {TABLE}, got no {missing}")
        table = read_table(table_path)
        layers = _layers(whole) if whole else {n: (*read_pth(path), str(path)) for n, path in sorted(paths.items())}
        digest = hashlib.sha256()
        for path in [whole] if whole else (paths[n] for n in sorted(paths)):
            digest.update(path.read_bytes())
        hashes = {"pieces": digest.hexdigest(), "table": hashlib.sha256(table_path.read_bytes()).hexdigest()}
    pieces, casts = {}, Counter()
    for number, (weight, bias, note, source) in layers.items():
        if bias is None:
            bias, note = np.zeros(weight.shape[:1], np.float32), ", ".join(filter(None, [note, "no bias: taken as 0"]))
        pieces[number] = Piece(weight, bias, source)
        casts.update(filter(None, [note]))
    notes = [f"{count} of {len(pieces)} pieces: {note}" for note, count in casts.items()]
    with naming(folder):
        return Puzzle.from_pieces(pieces, *table, roles, hashes, notes)


def _whole_path(folder: Path) -> Path | None:
    """The file with all layers in a folder without piece files."""
    places = [place for place in (folder / "pieces", folder) if place.is_dir()]
    found = [path for place in places for path in sorted(place.iterdir()) if path.suffix in LAYERS and path.name[0] != "."]
    if len(found) > 1:
        got = f"{found[0].name} and {found[1].name}"
        raise InputError(f"{folder}: expected pieces/piece_<n>.pth, or one file with all layers, got {got}")
    return found[0] if found else None


def _layers(path: Path) -> dict[int, tuple[NDArray[np.float32], NDArray[np.float32] | None, str | None, str]]:
    """The weight, bias, note and origin of each layer in one file, by number."""
    checkpoint = open_checkpoint(path)
    numbers: dict[int, str] = {}
    for name in checkpoint.types:
        match = re.fullmatch(r"((?:piece_|[a-z.]+\.)?([0-9]{1,9})(?:\.pth)?\.)(?:weight|bias)", name)
        if not match:
            raise InputError(f"{path}: expected layers piece_<n>.weight and piece_<n>.bias, got {name[:60]!r}")
        if name not in checkpoint.shapes:
            got = checkpoint.types[name]
            raise InputError(f"{path}: {name[:60]}: expected an ordinary floating-point tensor, got {got}")
        if numbers.setdefault(int(match[2]), match[1]) != match[1]:
            got = f"{numbers[int(match[2])][:60]!r} and {match[1][:60]!r}"
            raise InputError(f"{path}: expected one layer for each piece number, got {got}")
    layers = {}
    for number, stem in sorted(numbers.items()):
        weight, bias = f"{stem}weight", f"{stem}bias"
        if weight not in checkpoint.shapes:
            raise InputError(f"{path}: expected {weight} beside {bias}, got none")
        given = [name for name in (weight, bias) if name in checkpoint.shapes]
        casts = sorted({checkpoint.types[name] for name in given} - {"float32"})
        note = f"cast from {' and '.join(casts)} to float32" if casts else None
        values = [np.ascontiguousarray(checkpoint.read(name)) for name in given]
        layers[number] = (values[0], values[1] if len(values) > 1 else None, note, f"{path}: {stem[:-1]}")
    return layers


def write_folder(puzzle: Puzzle, folder: str | Path) -> None:
    """Write the puzzle as a folder that `read_folder` reads back bit for bit. `folder` may exist only if it is empty.

    Raises `InputError` if it cannot be written or PyTorch is missing.
    """
    folder = Path(folder)

    def write(temporary: Path) -> None:
        (temporary / "pieces").mkdir(parents=True)
        for number, (weight, bias) in puzzle.pieces.items():
            write_pth(temporary / "pieces" / f"piece_{number}.pth", weight, bias)
        columns = {"measurement": puzzle.x, "pred": puzzle.pred, "true": puzzle.true}
        names = [
            name if name != "measurement" and values.shape[1] == 1 else f"{name}_{k}"
            for name, values in columns.items()
            if values is not None
            for k in range(values.shape[1])
        ]
        values = np.hstack([values for values in columns.values() if values is not None])
        np.savetxt(temporary / TABLE, values, "%.9g", ",", header=",".join(names), comments="")

    write_all({folder: write})


def _piece_paths(folder: Path) -> dict[int, Path]:
    """The piece files by number. Other files are ignored."""
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if match := re.fullmatch(r"piece_([0-9]{1,9})\.pth", path.name):
            number = int(match[1])
            if number in found:
                both = f"{found[number].name} and {path.name}"
                raise InputError(f"{folder}: expected one file for each piece number, got {both}")
            found[number] = path
    return found
