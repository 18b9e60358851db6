"""Bad input, each with the words that its one line must hold. Every case edits a small sound puzzle."""

import gzip
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

CSV = "historical_data.csv"


class Code:
    """Makes a folder when it is unpickled carelessly."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.mkdir, (self.path,)


def piece(number: int, content: Callable[[], object] | bytes) -> Callable[[Path], None]:
    """Put other content into a piece's file."""

    def edit(folder: Path) -> None:
        path = folder / "pieces" / f"piece_{number}.pth"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content(), path)

    return edit


def state(weight: object, bias: object = None) -> Callable[[], dict]:
    return lambda: {"weight": weight() if callable(weight) else weight, "bias": torch.zeros(7) if bias is None else bias}


def cut(name: str, keep: float) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((data := (folder / name).read_bytes())[: int(len(data) * keep)])


def table(change: Callable[[list[str]], object]) -> Callable[[Path], None]:
    """Change the table's lines: [header, row 1, row 2, …]."""

    def edit(folder: Path) -> None:
        lines = (folder / CSV).read_text().splitlines()
        changed = change(lines)
        changed = lines if changed is None else changed
        data = changed if isinstance(changed, bytes) else "\n".join(changed if isinstance(changed, list) else [str(changed)])
        (folder / CSV).write_bytes(data if isinstance(data, bytes) else data.encode())

    return edit


def cell(row: int, column: int, text: str) -> Callable[[Path], None]:
    def change(lines: list[str]) -> None:
        cells = lines[row].split(",")
        lines[row] = ",".join([*cells[:column], text, *cells[column + 1 :]])

    return table(change)


def copy_piece(old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "pieces" / new).write_bytes((folder / "pieces" / old).read_bytes())


def remove(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def flip(folder: Path) -> None:
    """Change one bit of a weight."""
    path = folder / "pieces" / "piece_0.pth"
    with zipfile.ZipFile(path) as archive:
        record = next(name for name in archive.namelist() if name.endswith("data/0"))
        number = archive.read(record)[:8]
    data = path.read_bytes()
    path.write_bytes(data.replace(number, bytes([number[0] ^ 1]) + number[1:]))


def ring() -> dict:
    state: dict = {}
    state["state_dict"] = state
    return state


def compress(folder: Path) -> None:
    path = folder / "pieces" / "piece_0.pth"
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in records.items():
            archive.writestr(name, data)


w = torch.randn(7, 5)
nan, inf = float("nan"), float("inf")

# The sound puzzle: L = 2, d = 5, h = 7, o = 1, pieces 0 to 4 in the order in, out, in, out, last; rows 1 to 6.
FOLDERS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    # pieces as files
    "no piece": (remove(*(f"pieces/piece_{n}.pth" for n in range(5))), ["got no pieces/piece_<n>.pth"]),
    "a piece missing": (remove("pieces/piece_1.pth"), ["2 of [7, 5]", "1 of [5, 7]", "lacks 1"]),
    "the last layer missing": (remove("pieces/piece_4.pth"), ["pieces", "2 of [7, 5]", "2 of [5, 7]"]),
    "a piece too many": (copy_piece("piece_0.pth", "piece_9.pth"), ["3 of [7, 5]", "lacks 5, 6, 7, 8"]),
    "two last layers": (
        copy_piece("piece_4.pth", "piece_5.pth"),
        ["piece_4.pth and", "piece_5.pth both look like the last"],
    ),
    "one number twice": (copy_piece("piece_2.pth", "piece_02.pth"), ["piece_02.pth and piece_2.pth"]),
    "an empty piece": (piece(0, b""), ["piece_0.pth", "an empty file"]),
    "a Git-LFS pointer": (
        piece(0, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        ["piece_0.pth", "Git-LFS"],
    ),
    "an HTML page": (piece(0, b"\n<!DOCTYPE html><html>404</html>"), ["piece_0.pth", "an HTML page"]),
    "a text": (piece(0, b"hello"), ["piece_0.pth", "begins with b'hello'"]),
    "zeros": (piece(0, bytes(1000)), ["piece_0.pth", "begins with b'\\x00"]),
    "cut at once": (cut("pieces/piece_0.pth", 0.01), ["piece_0.pth", "cut short"]),
    "cut in the middle": (cut("pieces/piece_0.pth", 0.5), ["piece_0.pth", "cut short"]),
    "cut at the end": (cut("pieces/piece_0.pth", 0.99), ["piece_0.pth", "cut short"]),
    "a folder for a piece": (
        lambda f: (remove("pieces/piece_0.pth")(f), (f / "pieces/piece_0.pth").mkdir()),
        ["piece_0.pth"],
    ),
    "a pipe for a piece": (lambda f: os.mkfifo(f / "pieces/piece_9.pth"), ["piece_9.pth", "no ordinary file"]),
    "a link to nowhere": (lambda f: (f / "pieces/piece_9.pth").symlink_to("x"), ["piece_9.pth", "No such file"]),
    "a number changed": (flip, ["piece_0.pth", "checksum"]),
    "compressed": (compress, ["piece_0.pth", "compressed archive"]),
    # pieces as pickles
    "code": (lambda f: piece(0, lambda: {"weight": Code(f / "evil")})(f), ["piece_0.pth", "refused, not run"]),
    "a whole module": (
        piece(0, lambda: torch.nn.Linear(5, 7)),
        ["piece_0.pth", "torch.nn.modules.linear.Linear", "refused"],
    ),
    "a NumPy array": (piece(0, state(np.zeros((7, 5)))), ["piece_0.pth", "refused"]),
    "a tensor alone": (piece(0, lambda: w), ["piece_0.pth", "state dict with weight and bias", "a Tensor"]),
    "a list": (piece(0, lambda: [w, w[:, 0]]), ["piece_0.pth", "a list"]),
    "nothing": (piece(0, lambda: {}), ["piece_0.pth", "one weight tensor, got none"]),
    "a dictionary in itself": (piece(0, ring), ["piece_0.pth", "one weight tensor, got none"]),
    "a long name": (piece(0, lambda: {"x" * 10**5: w}), ["piece_0.pth", "one weight tensor, got none"]),
    "another name": (piece(0, lambda: {"kernel": w}), ["piece_0.pth", "one weight tensor, got none", "'kernel'"]),
    "two layers": (
        piece(0, lambda: {"a.weight": w, "b.weight": w}),
        ["piece_0.pth", "one weight tensor, got 2", "'a.weight'"],
    ),
    "another's bias": (piece(0, lambda: {"a.weight": w, "b.bias": w[:, 0]}), ["piece_0.pth", "'a.bias'", "'b.bias'"]),
    "a number as weight": (piece(0, state(3.5)), ["piece_0.pth", "one weight tensor, got none"]),
    # pieces as tensors
    "integers": (piece(0, state(torch.ones(7, 5, dtype=torch.int64))), ["piece_0.pth: weight", "floating-point", "int64"]),
    "complex": (piece(0, state(w.to(torch.complex64))), ["piece_0.pth: weight", "complex64"]),
    "quantised": (
        piece(0, state(lambda: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8))),
        ["piece_0.pth: weight", "qint8"],
    ),
    "sparse": (piece(0, state(w.to_sparse())), ["piece_0.pth: weight", "dense", "sparse_coo"]),
    "without data": (piece(0, state(torch.zeros(7, 5, device="meta"))), ["piece_0.pth: weight", "meta"]),
    "a view of one number": (piece(0, state(torch.zeros(1).expand(10**7, 10**7))), ["piece_0.pth: weight", "10000000"]),
    "three axes": (piece(0, state(torch.zeros(7, 5, 1))), ["piece_0.pth: weight", "a matrix", "[7, 5, 1]"]),
    "no rows of weights": (piece(0, state(torch.zeros(0, 5), torch.zeros(0))), ["piece_0.pth: weight", "[0, 5]"]),
    "a bias too long": (piece(0, state(w, torch.zeros(8))), ["piece_0.pth: bias", "[7]", "[8]"]),
    "another shape": (piece(0, state(torch.zeros(6, 6), torch.zeros(6))), ["piece_0.pth: weight", "[6, 6]"]),
    "NaN": (piece(0, state(torch.full((7, 5), nan))), ["piece_0.pth: weight", "finite", "nan at [0, 0]"]),
    "infinity in a bias": (piece(0, state(w, torch.full((7,), inf))), ["piece_0.pth: bias", "finite", "inf at [0]"]),
    "too large for float32": (piece(0, state(w.double() * 1e300)), ["piece_0.pth: weight", "finite", "inf"]),
    # tables
    "no table": (remove(CSV), [f"got no {CSV}"]),
    "an empty table": (table(lambda _: b""), [CSV, "empty"]),
    "only a header": (table(lambda lines: lines[:1]), [CSV, "at least one row, got none"]),
    "no header": (table(lambda lines: lines[1:]), [CSV, "expected a column measurement_0"]),
    "no pred": (table(lambda lines: [lines[0].replace("pred", "prod"), *lines[1:]]), [CSV, "expected a column pred"]),
    "pred twice": (table(lambda lines: [lines[0].replace("true", "pred"), *lines[1:]]), [CSV, "pred twice"]),
    "pred and pred_0": (table(lambda lines: [lines[0].replace("true", "pred_0"), *lines[1:]]), [CSV, "got pred and pred_0"]),
    "too many outputs": (
        table(lambda lines: [lines[0].replace("pred,true", "pred_0,pred_1"), *lines[1:]]),
        ["pred", "expected width 1", "got 2"],
    ),
    "a gap in the columns": (
        table(lambda lines: [lines[0].replace("ment_2", "ment_9"), *lines[1:]]),
        [CSV, "expected a column measurement_2"],
    ),
    "a feature too few": (table(lambda lines: [line.partition(",")[2] for line in lines]), [CSV, "measurement_0"]),
    "a last feature too few": (
        table(lambda lines: [lines[0].replace("measurement_4", "other"), *lines[1:]]),
        ["x", "expected width 5", "measurement_0", "got 4"],
    ),
    "a word": (cell(1, 0, "abc"), [CSV, "measurement_0", "row 1", "'abc'"]),
    "a word lower down": (cell(5, 5, "NA"), [CSV, "pred", "row 5", "'NA'"]),
    "a blank cell": (cell(1, 0, ""), [CSV, "measurement_0", "row 1", "a blank cell"]),
    "a cell of spaces": (cell(6, 6, "  "), [CSV, "true", "row 6", "a blank cell"]),
    "NaN in the table": (cell(2, 3, "nan"), [CSV, "measurement_3", "row 2", "finite", "nan"]),
    "infinity in the table": (cell(2, 3, "-inf"), [CSV, "measurement_3", "row 2", "finite", "-inf"]),
    "past float32": (cell(3, 1, "1e39"), [CSV, "measurement_1", "row 3", "finite float32", "1e+39"]),
    "thousands": (cell(1, 1, '"1,234.5"'), [CSV, "measurement_1", "row 1", "'1,234.5'"]),
    "underscores": (cell(1, 1, "1_000"), [CSV, "measurement_1", "row 1", "'1_000'"]),
    "other digits": (cell(1, 1, "١"), [CSV, "measurement_1", "row 1", "'١'"]),
    "decimal commas": (
        table(lambda lines: [line.replace(",", ";").replace(".", ",") for line in lines]),
        [CSV, "measurement_0", "row 1", "expected a number"],
    ),
    "a row too long": (cell(2, 2, "1,2"), [CSV, "row 2", "expected 7 cells", "got 8"]),
    "a row too short": (table(lambda lines: [*lines[:3], "1,2,3"]), [CSV, "row 3", "expected 7 cells", "got 3"]),
    "row names without a header": (
        table(lambda lines: [lines[0], *(f"{n},{line}" for n, line in enumerate(lines[1:]))]),
        [CSV, "row 1", "expected 7 cells", "got 8"],
    ),
    "an open quote": (cell(6, 6, '"1'), [CSV, "expected a table", "unexpected end"]),
    "UTF-16": (table(lambda lines: "\n".join(lines).encode("utf-16")), [CSV, "UTF-8"]),
    "a compressed table": (table(lambda lines: gzip.compress("\n".join(lines).encode())), [CSV, "UTF-8"]),
    "a binary table": (table(lambda _: bytes(100)), [CSV, "measurement_0"]),
}


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """The sound puzzle's arrays, as a converted file names them."""
    from dropjax import files

    puzzle = files.read_folder(folder)
    named = {f"piece_{n}.{k}": a for n, wb in puzzle.pieces.items() for k, a in zip(("weight", "bias"), wb, strict=True)}
    return named | {"table.x": puzzle.x, "table.pred": puzzle.pred}


META = {"format": 1, "inputs": {}}


def converted(change: Callable[[dict], object], meta: object = META) -> Callable[[Path, Path], None]:
    def write(folder: Path, path: Path) -> None:
        named = arrays(folder)
        change(named)
        save_file(named, path, None if meta is None else {"dropjax": meta if isinstance(meta, str) else json.dumps(meta)})

    return write


def header(change: Callable[[bytes], bytes]) -> Callable[[Path, Path], None]:
    """Change the bytes of a sound file's JSON header, keeping its length right."""

    def write(folder: Path, path: Path) -> None:
        converted(lambda _: None)(folder, path)
        data = path.read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        changed = change(data[8 : 8 + length])
        path.write_bytes(struct.pack("<Q", len(changed)) + changed + data[8 + length :])

    return write


def raw(change: Callable[[bytes], bytes]) -> Callable[[Path, Path], None]:
    def write(folder: Path, path: Path) -> None:
        converted(lambda _: None)(folder, path)
        path.write_bytes(change(path.read_bytes()))

    return write


CONVERTED: dict[str, tuple[Callable[[Path, Path], object], list[str]]] = {
    "an empty file": (raw(lambda _: b""), ["cut short or damaged"]),
    "another kind of file": (raw(lambda _: b"PK\x03\x04 and so on"), ["cut short or damaged"]),
    "cut in the header": (raw(lambda data: data[:100]), ["cut short or damaged"]),
    "cut in the data": (raw(lambda data: data[:-4]), ["cut short or damaged"]),
    "bytes too many": (raw(lambda data: data + b"1234"), ["cut short or damaged"]),
    "a header longer than the file": (raw(lambda data: b"\xff" * 6 + bytes(2) + data[8:]), ["cut short or damaged"]),
    "a lie about a shape": (header(lambda h: h.replace(b'"shape":[7,5]', b'"shape":[7,6]', 1)), ["cut short or damaged"]),
    "a lie about a dtype": (header(lambda h: h.replace(b'"F32"', b'"F16"', 1)), ["cut short or damaged"]),
    "overlapping offsets": (header(lambda h: h.replace(b'"data_offsets":[0,', b'"data_offsets":[4,', 1)), ["damaged"]),
    "another writer's file": (converted(lambda _: None, None), ["another .safetensors file"]),
    "metadata that is no JSON": (converted(lambda _: None, "{"), ["metadata", "expected JSON"]),
    "metadata too deep": (converted(lambda _: None, "[" * 100_000), ["metadata", "expected JSON"]),
    "a later format": (converted(lambda _: None, {"format": 2}), ["expected format 1", "got 2"]),
    "metadata that is a list": (converted(lambda _: None, "[]"), ["expected format 1"]),
    "no x": (converted(lambda named: named.pop("table.x")), ["got no table.x"]),
    "no pred in the file": (converted(lambda named: named.pop("table.pred")), ["got no table.pred"]),
    "no bias": (converted(lambda named: named.pop("piece_0.bias")), ["piece_0.bias"]),
    "no weight": (converted(lambda named: named.pop("piece_0.weight")), ["piece_0.weight"]),
    "a name of its own": (converted(lambda named: named.update(extra=named["table.x"])), ["'extra'"]),
    "a number written otherwise": (
        converted(lambda named: named.update({"piece_00.weight": named["piece_0.weight"]})),
        ["'piece_00.weight'"],
    ),
    "float64": (converted(lambda named: named.update({"table.x": np.zeros((6, 5))})), ["'table.x'", "F32", "F64"]),
    "NaN in x": (converted(lambda named: named.update({"table.x": np.full((6, 5), nan, "f")})), ["x", "finite", "row 1"]),
    "x too wide": (converted(lambda named: named.update({"table.x": np.zeros((6, 6), "f")})), ["x", "width 5", "got 6"]),
    "rows that differ": (
        converted(lambda named: named.update({"table.pred": np.zeros((5, 1), "f")})),
        ["pred", "6 rows", "got 5"],
    ),
    "no rows in the file": (converted(lambda named: named.update({"table.x": np.zeros((0, 5), "f")})), ["x", "one row"]),
    "NaN in a converted piece": (
        converted(lambda named: named.update({"piece_0.bias": np.full(7, nan, "f")})),
        ["piece_0", "bias", "nan"],
    ),
    "a piece missing in the file": (
        converted(lambda named: (named.pop("piece_1.weight"), named.pop("piece_1.bias"))),
        ["2 of [7, 5]", "1 of [5, 7]", "lacks 1"],
    ),
    "roles that are no roles": (converted(lambda _: None, {"format": 1, "roles": {"0": "middle"}}), ["'middle'"]),
    "roles that are no object": (converted(lambda _: None, {"format": 1, "roles": 5}), ["roles", "JSON object"]),
}
