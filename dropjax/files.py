"""Files: puzzle folders, converted puzzles, tables, result folders. What is written appears whole or not at all."""

import csv
import gzip
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import struct
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dropjax.checkpoints import open_checkpoint
from dropjax.convert import not_data, read_pth, write_pth
from dropjax.page import short_page
from dropjax.puzzle import ROLES, InputError, Piece, Puzzle
from dropjax.solution import Solution

FORMAT = 1
"""Version of the converted format."""
TABLE = "historical_data.csv"
TABLES = (TABLE, f"{TABLE}.gz", "historical_data.parquet")
"""A puzzle folder's table is the first of these that is there."""
LAYERS = (".pth", ".pt", ".safetensors")
"""Ends of the name of a file that holds all layers."""
UNPACKED = 1 << 30
"""Bytes that a compressed table may unpack to: a small file could ask for any memory."""


def load(path: str | Path, roles: Mapping[int, str] | None = None) -> Puzzle:
    """The puzzle in a folder (`pieces/piece_<n>.pth`, `historical_data.csv`) or in a converted `.safetensors` file.

    `roles` ("in", "out" or "last" by piece number) is needed only where shapes cannot tell the pieces apart. Raises
    `InputError`.
    """
    path = Path(path)
    with _reading(path):
        if path.is_dir():
            return read_folder(path, roles)
        if path.is_file():
            return read_converted(path, roles)
    got = "something else" if path.exists() else "nothing there"
    raise InputError(f"{path}: expected a puzzle folder or a converted .safetensors file, got {got}")


def example() -> Puzzle:
    """The puzzle that ships in the package: L = 48, d = 48, h = 96, o = 1, N = 5,000."""
    with resources.as_file(resources.files("dropjax") / "example.safetensors") as path:
        return load(path)


# Puzzle folders


def read_folder(folder: str | Path, roles: Mapping[int, str] | None = None) -> Puzzle:
    """The puzzle in a folder as published; its casts are told in `notes`. Raises `InputError`.

    In place of `pieces/piece_<n>.pth` one .pth or .safetensors file may hold all layers, as `piece_<n>.weight` and
    `piece_<n>.bias`; the table may be gzip (`historical_data.csv.gz`) or Parquet (`historical_data.parquet`).
    """
    folder = Path(folder)
    with _reading(folder):
        paths = _piece_paths(folder / "pieces")
        whole = None if paths else _whole_path(folder)
        table_path = next((path for name in TABLES if (path := folder / name).is_file()), None)
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
    with _naming(folder):
        return Puzzle.from_pieces(pieces, *table, roles, hashes, notes)


def _whole_path(folder: Path) -> Path | None:
    """The one file with all layers that lies in a folder without piece files."""
    places = [place for place in (folder / "pieces", folder) if place.is_dir()]
    found = [path for place in places for path in sorted(place.iterdir()) if path.suffix in LAYERS and path.name[0] != "."]
    if len(found) > 1:
        got = f"{found[0].name} and {found[1].name}"
        raise InputError(f"{folder}: expected pieces/piece_<n>.pth, or one file with all layers, got {got}")
    return found[0] if found else None


def _layers(path: Path) -> dict[int, tuple[NDArray[np.float32], NDArray[np.float32] | None, str | None, str]]:
    """Weight, bias, note and origin of each layer in one file, by number."""
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
    """The puzzle as a folder that `read_folder` reads back bit for bit. `folder` may exist only if it is empty.

    Raises `InputError` where it cannot be written, or PyTorch is missing.
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

    _write_all({folder: write})


def _piece_paths(folder: Path) -> dict[int, Path]:
    """Piece files by number; whatever else lies there is not ours."""
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if match := re.fullmatch(r"piece_([0-9]{1,9})\.pth", path.name):
            number = int(match[1])
            if number in found:
                both = f"{found[number].name} and {path.name}"
                raise InputError(f"{folder}: expected one file for each piece number, got {both}")
            found[number] = path
    return found


# Tables


class Table(NamedTuple):
    """The data: inputs, the stack's outputs, and the true values where they are given."""

    x: Float32[np.ndarray, "N d"]
    pred: Float32[np.ndarray, "N o"]
    true: Float32[np.ndarray, "N o"] | None


def read_table(path: str | Path) -> Table:
    """The table in a text file with a header, separated by commas, semicolons or tabs, plain or gzip, or in a Parquet file.

    Columns are found by name: `measurement_0`, …, `pred` or `pred_0`, …, and, if given, `true` or `true_0`, …; others are
    not read. Every number is the float32 nearest to the float64 nearest to its text. Raises `InputError`.
    """
    path = Path(path)
    with _reading(path), path.open("rb") as file:
        head = file.read(512)
    names, wide, parts = (_read_parquet if head.startswith(b"PAR1") else _read_text)(path)
    wanted = sorted(column for part in parts for column in part)
    with np.errstate(over="ignore"):
        values = wide.astype(np.float32)
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        got = wide[row, column]
        raise InputError(f"{path}: {names[wanted[column]]}: row {row + 1}: expected a finite float32 number, got {got}")
    x, pred, true = (np.ascontiguousarray(values[:, np.searchsorted(wanted, part)]) for part in parts)
    return Table(x, pred, true if parts[2] else None)


class Columns(NamedTuple):
    """What a table's file holds of ours."""

    names: Sequence[str]
    """Of all its columns."""
    wide: Float[np.ndarray, "N wanted"]
    """The wanted columns, in the file's order."""
    parts: Sequence[Sequence[int]]
    """Where x's, pred's and true's columns stand among all."""


def _read_text(path: Path) -> Columns:
    try:
        text = _unpacked(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: expected UTF-8 text, got byte {error.object[error.start]:#04x} at {error.start}"
        ) from None
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{path}: expected a header and rows, got an empty file")
    separator = max(",;\t", key=lines[0].count)
    try:
        names = [name.strip() for name in next(csv.reader(lines[:1], delimiter=separator))]
        _check_widths(path, lines, separator, len(names), quoted='"' in text)
    except csv.Error as error:
        raise InputError(f"{path}: expected a table, got {error}") from None
    parts = _parts(path, names)
    if len(lines) == 1:
        raise InputError(f"{path}: expected at least one row, got none")
    wanted = sorted(column for part in parts for column in part)
    try:
        wide = np.loadtxt(lines[1:], delimiter=separator, comments=None, quotechar='"', usecols=wanted, ndmin=2)
    except ValueError as error:
        raise InputError(f"{path}: {_bad_cell(lines, separator, names, wanted) or error}") from None
    return Columns(names, wide, parts)


def _unpacked(path: Path) -> bytes:
    """The file's bytes, or what they unpack to."""
    with _reading(path):
        data = path.read_bytes()
    if what := not_data(data[:512]) if data else None:
        raise InputError(f"{path}: expected a table, got {what}")
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        with gzip.open(io.BytesIO(data)) as file:
            text = file.read(UNPACKED + 1)
    except (EOFError, OSError, zlib.error):
        raise InputError(f"{path}: expected a table, got a gzip file cut short or damaged") from None
    if len(text) > UNPACKED:
        raise InputError(f"{path}: expected a gzip file of at most {UNPACKED >> 20} MiB of text, got more: unpack it first")
    return text


def _read_parquet(path: Path) -> Columns:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"{path}: expected pyarrow to read Parquet, got none: pip install 'dropjax[parquet]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            names, rows = file.schema_arrow.names, file.metadata.num_rows
            parts = _parts(path, names)
            wanted = sorted(column for part in parts for column in part)
            if rows == 0:
                raise InputError(f"{path}: expected at least one row, got none")
            if 8 * rows * len(wanted) > UNPACKED:
                raise InputError(
                    f"{path}: expected at most {UNPACKED >> 20} MiB of numbers, got {rows} rows of {len(wanted)}"
                )
            for column in wanted:
                kind = file.schema_arrow.field(column).type
                if not (arrow.types.is_floating(kind) or arrow.types.is_integer(kind)):
                    raise InputError(f"{path}: {names[column]}: expected numbers, got {kind}")
            table = file.read([names[column] for column in wanted])
            columns = []
            for column in wanted:
                values = table.column(names[column])
                if values.null_count:
                    row = values.is_null().to_pylist().index(True) + 1
                    raise InputError(f"{path}: {names[column]}: row {row}: expected a number, got a blank cell")
                columns.append(values.to_numpy().astype(np.float64))
    except InputError:
        raise
    except (arrow.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        got = " ".join(str(error).split())[:80]
        raise InputError(f"{path}: expected a Parquet table, got one cut short or damaged ({got})") from None
    return Columns(names, np.stack(columns, axis=1), parts)


def _parts(path: Path, names: Sequence[str]) -> Sequence[Sequence[int]]:
    return [_columns(path, names, stem) for stem in ("measurement", "pred", "true")]


def _columns(path: Path, names: Sequence[str], stem: str) -> list[int]:
    """Where the columns `stem`_0, `stem`_1, … or the only column `stem` stand."""
    ours = [name for name in names if re.fullmatch(stem + r"(_[0-9]{1,9})?", name)]
    doubled = [name for name, times in Counter(ours).items() if times > 1]
    if doubled:
        raise InputError(f"{path}: expected every column once, got {doubled[0]} twice")
    if ours == [stem] and stem != "measurement":
        return [names.index(stem)]
    if stem in ours and len(ours) > 1:
        raise InputError(f"{path}: expected {stem} or {stem}_0, {stem}_1, …, got {stem} and {ours[ours[0] == stem]}")
    expected = [f"{stem}_{k}" for k in range(max(len(ours), 1))]
    if stem == "true" and not ours:
        return []
    missing = [name for name in expected if name not in names]
    if missing:
        what = f"{stem} or {missing[0]}" if stem != "measurement" else missing[0]
        got = ours or names
        shown = ", ".join(repr(name[:40]) for name in got[:4]) + (", …" if len(got) > 4 else "")
        raise InputError(f"{path}: expected a column {what}, got {shown}")
    return [names.index(name) for name in expected]


def _check_widths(path: Path, lines: Sequence[str], separator: str, width: int, quoted: bool) -> None:
    """Every row is as long as the header, or has one empty cell more; else its cells are not under their names."""
    rows = csv.reader(lines, delimiter=separator, strict=True) if quoted else None
    counts = map(len, rows) if rows else (line.count(separator) + 1 for line in lines)
    for row, cells in enumerate(counts):
        if cells != width and not (cells == width + 1 and lines[row].endswith(separator)):
            raise InputError(f"{path}: row {row}: expected {width} cells as the header has, got {cells}")


def _bad_cell(lines: Sequence[str], separator: str, names: Sequence[str], wanted: Sequence[int]) -> str | None:
    """The first cell that is no number."""
    for row, cells in enumerate(csv.reader(lines[1:], delimiter=separator), 1):
        for column in wanted:
            cell = cells[column].strip() if column < len(cells) else ""
            try:
                if not cell.isascii() or "_" in cell:
                    raise ValueError
                float(cell)
            except ValueError:
                got = repr(cell[:40]) if cell else "a blank cell"
                return f"{names[column]}: row {row}: expected a number, got {got}"
    return None


# Converted puzzles


def read_converted(path: str | Path, roles: Mapping[int, str] | None = None) -> Puzzle:
    """The puzzle in a file that `write_converted` wrote. Raises `InputError`."""
    path = Path(path)
    with _reading(path):
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
        roles = _roles(path, list(meta["roles"].items()) if isinstance(meta["roles"], dict) else None)
    inputs = meta.get("inputs")
    inputs = {str(k): str(v) for k, v in inputs.items()} if isinstance(inputs, dict) else {}
    with _naming(path):
        return Puzzle.from_pieces(pieces, x, pred, true, roles, {**inputs, "converted": digest})


def write_converted(puzzle: Puzzle, path: str | Path) -> None:
    """The puzzle as one file: the same bytes for the same puzzle, read back and compared before it appears at `path`.

    Raises `InputError` where it cannot be written.
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

    _write_all(
        {Path(path): lambda temporary: _write_tensors(temporary, arrays, {"dropjax": json.dumps(meta, sort_keys=True)})}
    )


def _read_tensors(path: Path) -> tuple[dict, dict[str, NDArray[np.float32]]]:
    """Our metadata and every array of a converted file."""
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
    """Every name stands once in the header: of several the library would read the last."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        pairs = json.loads(file.read(length), object_pairs_hook=list)
    twice = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
    if twice:
        raise InputError(f"{path}: expected every name once, got {twice[0][:40]!r} twice")


def _write_tensors(path: Path, arrays: Mapping[str, NDArray], metadata: dict[str, str] | None = None) -> None:
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}  # safetensors corrupts others in silence
    path.write_bytes(save(arrays, metadata))
    with safe_open(path, "numpy") as file:
        for name, array in arrays.items():
            if (back := file.get_tensor(name)).shape != array.shape or back.tobytes() != array.tobytes():
                raise OSError(f"another {name} back than was written")


# Results, roles, permutations


def write_result(folder: str | Path, solution: Solution, expected_sha256: str | None = None) -> None:
    """The result folder: `permutation.txt`, `solution.json`, the reassembled stack as `model.safetensors`, and `index.html`,
    a page for people.

    The model's names are those of PyTorch's `nn.Sequential` over the paper's two classes: `0.inp.weight`, …,
    `L.layer.weight`. Raises `InputError` where the folder cannot be written.
    """
    folder, stack = Path(folder), solution.stack
    halves = {"inp.weight": stack.w_in, "inp.bias": stack.b_in, "out.weight": stack.w_out, "out.bias": stack.b_out}
    model = {f"{k}.{name}": layer for name, layers in halves.items() for k, layer in enumerate(np.asarray(layers))}
    last = {"weight": stack.w_last, "bias": stack.b_last}
    model |= {f"{stack.depth}.layer.{name}": np.asarray(layer) for name, layer in last.items()}
    record, page = _json(solution, expected_sha256), short_page(solution, expected_sha256)
    _write_all(
        {
            folder / "model.safetensors": lambda path: _write_tensors(path, model),
            folder / "permutation.txt": lambda path: path.write_text(solution.permutation_text),
            folder / "solution.json": lambda path: path.write_text(record),
            folder / "index.html": lambda path: path.write_text(page, encoding="utf-8"),
        }
    )


def write_json(path: str | Path, solution: Solution, expected_sha256: str | None = None) -> None:
    """`solution.json` alone. Raises `InputError` where it cannot be written."""
    record = _json(solution, expected_sha256)
    _write_all({Path(path): lambda temporary: temporary.write_text(record)})


def _json(solution: Solution, expected_sha256: str | None) -> str:
    return json.dumps(solution.to_json(expected_sha256), indent=1, allow_nan=False) + "\n"


def read_roles(path: str | Path) -> dict[int, str]:
    """Role ("in", "out" or "last") by piece number, from a JSON object. Raises `InputError`."""
    path = Path(path)
    try:
        with _reading(path):
            pairs = json.loads(path.read_bytes(), object_pairs_hook=list)
    except (ValueError, RecursionError):
        raise InputError(
            f'{path}: expected JSON such as {{"0": "in", "1": "out", "2": "last"}}, got something else'
        ) from None
    return _roles(path, pairs)


def _roles(path: Path, pairs: object) -> dict[int, str]:
    """Roles from the pairs of a JSON object."""
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise InputError(f"{path}: roles: expected a JSON object from piece numbers to roles, got something else")
    roles: dict[int, str] = {}
    for number, role in pairs:
        if role not in ROLES or not re.fullmatch("[0-9]{1,9}", number):
            got = f"{number[:40]!r}: {str(role)[:40]!r}"
            raise InputError(f'{path}: roles: expected a piece number with "in", "out" or "last", got {got}')
        if int(number) in roles:
            raise InputError(f"{path}: roles: expected each piece once, got piece {int(number)} twice")
        roles[int(number)] = role
    return roles


def read_permutation(path: str | Path) -> tuple[int, ...]:
    """Piece numbers from a text, separated by commas or white space. Raises `InputError`."""
    path = Path(path)
    try:
        with _reading(path):
            words = re.split(r"\s*,\s*|\s+", path.read_text("utf-8-sig").strip())
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected piece numbers separated by commas, got no text") from None
    for place, word in enumerate(words, 1):
        if not re.fullmatch("[0-9]{1,9}", word):
            raise InputError(f"{path}: place {place}: expected a piece number, got {word[:40]!r}")
    return tuple(map(int, words))


# Writing whole or not at all


def atomic_write(path: str | Path, writer: Callable[[Path], object]) -> None:
    """What `writer` writes to the path that it is given appears at `path` whole, or not at all.

    On any failure nothing is left: neither the temporary file nor a folder made for it. Raises `InputError` where the path
    cannot be written.
    """
    _write_all({Path(path): writer})


def ensure_writable(path: str | Path, folder: bool = False) -> None:
    """Raise `InputError` now if a file (or a folder) at `path` could not be written later; leaves nothing behind."""
    path = Path(path)
    with _writing(path):
        if path.exists() and path.is_dir() != folder:
            raise InputError(f"{path}: expected {'a folder' if folder else 'a file'} to write, got the other kind")
        parents = (path, *path.parents) if folder else path.parents
        with tempfile.TemporaryFile(dir=next(p for p in parents if p.exists())):
            pass


def _write_all(writers: Mapping[Path, Callable[[Path], object]]) -> None:
    """`atomic_write` for several files or folders: none appears before all are on the disk."""
    temporaries = {path: path.with_name(f".{secrets.token_hex(8)}.tmp") for path in writers}
    some = next(iter(writers))
    with _writing(some), _parents(writers):
        try:
            for path, temporary in temporaries.items():
                writers[path](temporary)
                for written in (temporary, *temporary.rglob("*")):
                    _sync(written)
            for path, temporary in temporaries.items():
                temporary.replace(path)
        except BaseException:
            for temporary in temporaries.values():
                shutil.rmtree(temporary, ignore_errors=True)
                with suppress(OSError):
                    temporary.unlink()
            raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _parents(paths: Mapping[Path, object]) -> Iterator[None]:
    """Make the folders that are missing; on failure remove them again."""
    missing = sorted({p for path in paths for p in path.parents if not p.exists()}, reverse=True)
    try:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the path in what the puzzle's checks say, where they do not."""
    try:
        yield
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(str(path)) else f"{path}: {message}") from None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{error.filename or path}: expected a file that can be read, got {error.strerror or error}"
        ) from None


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        got = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: expected a place that can be written, got {got}") from None
