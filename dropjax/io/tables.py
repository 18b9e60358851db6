"""Reading of tables: text with a header (plain or gzip), Parquet, Feather and Excel."""

import csv
import gzip
import io
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dropjax.core.errors import InputError
from dropjax.core.table import Parts, Table, parts_of, table_of, table_of_frame
from dropjax.io.checks import reading
from dropjax.io.pytorch import not_data

UNPACKED = 1 << 30
"""The most bytes that a compressed table may unpack to, because a small file can unpack to any size."""


def read_table(path: str | Path) -> Table:
    """The table in a text file with a header, separated by commas, semicolons or tabs, plain or gzip; in a Parquet file; or,
    if pandas is installed, in a Feather file or on the first sheet of an Excel workbook (`.xlsx`).

    Columns are found by name: `measurement_0`, …, `pred` or `pred_0`, …, and, if given, `true` or `true_0`, …; others are
    not read. A number's text is rounded to float64 and then to float32. Raises `InputError`.
    """
    path = Path(path)
    with reading(path), path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"ARROW1"):
        return _read_frame(path, "Feather", "pyarrow", "read_feather")
    if path.suffix == ".xlsx" and head.startswith(b"PK\x03\x04"):
        return _read_frame(path, "Excel", "openpyxl", "read_excel")
    names, wide, parts = (_read_parquet if head.startswith(b"PAR1") else _read_text)(path)
    return table_of(path, names, wide, parts)


class Columns(NamedTuple):
    """The columns of a file that a puzzle needs."""

    names: Sequence[str]
    """The names of all columns in the file."""
    wide: Float[np.ndarray, "N wanted"]
    """The wanted columns, in the file's order."""
    parts: Parts


def _read_text(path: Path) -> Columns:
    try:
        text = _unpacked(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: expected UTF-8 text, got byte {error.object[error.start]:#04x} at {error.start}"
        ) from None
    whole = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")  # only CR and LF end a line, as in any CSV
    lines = [line for line in whole if line.strip()]
    if not lines:
        raise InputError(f"{path}: expected a header and rows, got an empty file")
    separator, quoted = max(",;\t", key=lines[0].count), '"' in text
    try:
        header = csv.reader(lines, delimiter=separator, strict=True)
        names = [name.strip() for name in next(header)]
        if trouble := _bad_header(lines[0], names):
            raise InputError(f"{path}: expected a header such as measurement_0,…,pred, got {trouble}")
        parts = parts_of(path, names)
        rows = lines[header.line_num :]
        if not rows:
            raise InputError(f"{path}: expected at least one row, got none")
        _check_widths(path, rows, separator, names, parts, quoted)
        wanted = sorted(column for part in parts for column in part)
        try:
            wide = np.loadtxt(rows, delimiter=separator, comments=None, quotechar='"', usecols=wanted, ndmin=2)
        except ValueError as error:
            raise InputError(f"{path}: {_bad_cell(rows, separator, names, wanted) or error}") from None
    except csv.Error as error:
        raise InputError(f"{path}: expected a table, got {error}") from None
    return Columns(names, wide, parts)


def _bad_header(line: str, names: Sequence[str]) -> str | None:
    """What the first line is instead of a header; None if its columns are those of a puzzle."""
    if "measurement_0" in names:
        return None
    if re.match(r'"?sep=', line, re.IGNORECASE):
        return "a line sep=…, which tells Excel the separator: take the line away"
    if line.lstrip('" ').startswith("#"):
        return "a line that begins with #: take the # away, or the whole line if it is a comment"
    return None


def _unpacked(path: Path) -> bytes:
    """The bytes of the file, unpacked if it is gzip."""
    with reading(path):
        data = path.read_bytes()
    zipped = "a zip archive, as Excel's workbooks are" if data.startswith(b"PK\x03\x04") else None
    if what := (not_data(data[:512]) or zipped) if data else None:
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
            parts = parts_of(path, names)
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


def _read_frame(path: Path, kind: str, engine: str, reader: str) -> Table:
    """The table in a file that pandas reads with this engine."""
    try:
        import_module(engine)
        pandas = import_module("pandas")
    except ImportError:
        extra = "pandas" if kind == "Feather" else "excel"
        what = f"expected pandas and {engine} to read {kind}, got none: pip install 'dropjax[{extra}]'"
        raise InputError(f"{path}: {what}") from None
    try:
        if kind == "Excel":
            with zipfile.ZipFile(path) as archive:
                size = sum(part.file_size for part in archive.infolist())
            if size > UNPACKED:
                raise InputError(
                    f"{path}: expected a workbook of at most {UNPACKED >> 20} MiB unpacked, got {size >> 20} MiB"
                )
        frame = getattr(pandas, reader)(path)
    except InputError:
        raise
    except Exception as error:  # whatever the reader of a damaged file comes upon
        got = " ".join(str(error).split())[:80]
        raise InputError(f"{path}: expected {kind}'s format, got a file cut short or damaged ({got})") from None
    return table_of_frame(frame, path)


def _check_widths(path: Path, rows: Sequence[str], separator: str, names: Sequence[str], parts: Parts, quoted: bool) -> None:
    """Refuse rows that are not as long as the header, unless every row has one empty cell more: cells would be shifted."""
    width = len(names)
    if quoted:
        counts = [len(cells) for cells in csv.reader(rows, delimiter=separator, strict=True)]
    else:
        counts = [row.count(separator) + 1 for row in rows]
    times = Counter(counts)
    usual = width if 2 * times[width] >= len(counts) else times.most_common(1)[0][0]
    trailing = usual == width + 1 and _trailing(rows, separator, names, parts)
    expected, why = (usual, "most rows have") if trailing else (width, "the header has")
    for row, count in enumerate(counts, 1):
        if count != expected:
            raise InputError(f"{path}: row {row}: expected {expected} cells as {why}, got {count}")


def _trailing(rows: Sequence[str], separator: str, names: Sequence[str], parts: Parts) -> bool:
    """Whether the extra cell of each row is only a separator at the row's end, not a first cell that shifts the rest.

    The extra cell must be empty, and the last column must be one that a puzzle needs; else a shift would go unnoticed. A
    first column that counts the rows is one that the header does not name, so the cells are shifted.
    """
    cells = list(csv.reader(rows, delimiter=separator, strict=True))
    ours = len(names) - 1 in {column for part in parts for column in part}
    firsts = [row[0].strip() for row in cells]
    counted = len(firsts) > 1 and any(firsts == [str(k) for k in range(at, at + len(firsts))] for at in (0, 1))
    return ours and not counted and not any(row[-1].strip() for row in cells if len(row) == len(names) + 1)


def _bad_cell(rows: Sequence[str], separator: str, names: Sequence[str], wanted: Sequence[int]) -> str | None:
    """A message about the first cell that is not a number."""
    for row, cells in enumerate(csv.reader(rows, delimiter=separator), 1):
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
