"""Bad input, each with the words that its one line must hold, and odd input, which must be read as what it is.

Every case edits a small sound puzzle: L = 2, d = 5, h = 7, o = 1, pieces 0 to 4 in the order in, out, in, out, last; rows
1 to 6; every number a multiple of 1/64 below 4, so that float16 and bfloat16 hold it too.
"""

import argparse
import gzip
import io
import json
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors
from torch._utils import _rebuild_tensor_v2
from torch.utils.serialization import config

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


def repacked(change: Callable[[str, bytes], bytes], number: int = 0, method: int = zipfile.ZIP_STORED) -> Callable:
    """Change the records of a piece's archive, by the ends of their names."""

    def edit(folder: Path) -> None:
        path = folder / "pieces" / f"piece_{number}.pth"
        with zipfile.ZipFile(path) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in records.items():
                archive.writestr(name, change(name.partition("/")[2], data))

    return edit


def one_checksum(folder: Path) -> None:
    """A checksum of 0 for one record, where the others have theirs."""
    path = folder / "pieces" / "piece_0.pth"
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 16 : entry + 20] = bytes(4)
    path.write_bytes(data)


def twice(folder: Path) -> None:
    path = folder / "pieces" / "piece_0.pth"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("piece_0/data.pkl", archive.read("piece_0/data.pkl"))


def pickled(data: bytes) -> bytes:
    """A file as torch.save writes it, with the given pickle and a storage of 35 numbers."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (("data.pkl", data), ("byteorder", b"little"), ("data/0", bytes(140)), ("version", b"3\n")):
            archive.writestr(f"piece_0/{name}", content)
    return file.getvalue()


class Call:
    """An object that pickles as a call."""

    def __init__(self, function: Callable, *args: object):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


class Saver(pickle.Pickler):
    """A pickler like torch.save's, for which a list that begins with "storage" is a storage."""

    def persistent_id(self, value: object) -> object:
        return tuple(value) if isinstance(value, list) and value[:1] == ["storage"] else None


def said(
    offset: object = 0,
    sizes: object = (7, 5),
    strides: object = (5, 1),
    storage: tuple = (torch.FloatStorage, "0", "cpu", 35),
    rest: tuple = (False, OrderedDict()),
    beside: object = None,
) -> bytes:
    """A piece's file whose weight claims to be the given view of a storage."""
    file = io.BytesIO()
    weight = Call(_rebuild_tensor_v2, ["storage", *storage], offset, sizes, strides, *rest)
    Saver(file, 2).dump({"weight": weight, "beside": beside})
    return pickled(file.getvalue())


def deep(levels: int = 300_000) -> bytes:
    """A dictionary whose key is a tuple in a tuple in a tuple …, which crashes Python when it is hashed."""
    return pickled(b"\x80\x02})" + b"\x85" * levels + b"K\x01s.")


def written(path: Path, write: Callable[[Any], object]) -> None:
    """The file as `write` fills it, under its own name: NumPy would add an ending."""
    with path.open("wb") as file:
        write(file)


def under(save: Callable[[dict, Path], object]) -> Callable[[Path], object]:
    """Another kind of file under a piece's name."""

    def edit(folder: Path) -> None:
        path = folder / "pieces" / "piece_0.pth"
        save(torch.load(path), path)

    return edit


def scripted(state: dict, path: Path) -> None:
    layer = torch.nn.Linear(*reversed(state["weight"].shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(layer).save(str(path))


def exported(state: dict, path: Path) -> None:
    layer = torch.nn.Linear(*reversed(state["weight"].shape))
    torch.export.save(torch.export.export(layer, (torch.zeros(2, layer.in_features),)), path.with_suffix(".pt2"))
    path.with_suffix(".pt2").rename(path)


def zipped(state: dict, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme/readme.txt", "hello")


class Bomb:
    """Fills 3 GB when it is unpickled, even with `weights_only=True`."""

    def __reduce__(self):
        return bytearray, (3 << 30,)


def overlap(folder: Path) -> None:
    """A central directory that names one record a thousand times."""
    path = folder / "pieces" / "piece_0.pth"
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start, count = archive.start_dir, len(archive.infolist())
    entry = data[start : data.index(b"PK\x01\x02", start + 4)]
    extra = entry * 1000
    end = data.rindex(b"PK\x05\x06")
    counts = struct.pack("<HH", count + 1000, count + 1000)
    size = struct.unpack("<I", data[end + 12 : end + 16])[0] + len(extra)
    tail = data[end : end + 8] + counts + struct.pack("<I", size) + struct.pack("<I", start) + data[end + 20 :]
    path.write_bytes(data[:start] + extra + data[start:end].partition(b"PK\x06\x06")[0] + tail)


def whole(name: str, change: Callable[[dict], dict] = dict) -> Callable[[Path], None]:
    """All layers in one file, no piece files."""

    def edit(folder: Path) -> None:
        paths = sorted((folder / "pieces").iterdir())
        named = {f"{path.stem}.{kind}": a for path in paths for kind, a in torch.load(path).items()}
        for path in paths:
            path.unlink()
        changed = change(named)
        (save_tensors if name.endswith(".safetensors") else torch.save)(changed, folder / name)

    return edit


def parquet(kind: str = "float64", extra: bool = False) -> Callable[[Path], None]:
    """The table as Parquet, with numbers of the given type."""

    def edit(folder: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        names = (folder / CSV).read_text().splitlines()[0].split(",")
        values = np.loadtxt(folder / CSV, np.float32, delimiter=",", skiprows=1).reshape(-1, len(names))
        columns = {name: pyarrow.array(values[:, k].astype(kind)) for k, name in enumerate(names)}
        columns = {"who": pyarrow.array([f"row {k}" for k in range(len(values))])} | columns if extra else columns
        parquet.write_table(pyarrow.table(columns), folder / "historical_data.parquet")
        (folder / CSV).unlink()

    return edit


def blank_cell(folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path = folder / "historical_data.parquet"
    read = parquet.read_table(path)
    cells = read.column("measurement_0").to_pylist()
    column = pyarrow.array([*cells[:1], None, *cells[2:]])
    parquet.write_table(read.set_column(0, "measurement_0", column), path)


def parted(folder: Path) -> None:
    """A folder with the Parquet file's name that contains the file."""
    path = folder / "historical_data.parquet"
    path.rename(folder / "part")
    path.mkdir()
    (folder / "part").rename(path / "part-0.parquet")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"

w = torch.randn(7, 5)
nan, inf = float("nan"), float("inf")

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
        piece(0, POINTER),
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
    "a gzip piece": (
        lambda f: piece(0, gzip.compress((f / "pieces/piece_0.pth").read_bytes()))(f),
        ["piece_0.pth", "begins with b'\\x1f\\x8b"],
    ),
    "records that overlap": (overlap, ["piece_0.pth", "records that overlap"]),
    "two files with all layers": (
        lambda f: (whole("a.pth")(f), torch.save({}, f / "b.pth")),
        ["one file with all layers", "a.pth and b.pth"],
    ),
    "all layers under other names": (
        whole("all.pth", lambda named: {f"block {name}": a for name, a in named.items()}),
        ["all.pth", "layers piece_<n>.weight", "'block piece_0.weight'"],
    ),
    "all layers, one number twice": (
        whole("all.safetensors", lambda named: named | {"piece_00.weight": named["piece_0.weight"].clone()}),
        ["all.safetensors", "one layer for each piece number", "'piece_00.'"],
    ),
    "all layers, one without a weight": (
        whole("all.pth", lambda named: {k: a for k, a in named.items() if k != "piece_2.weight"}),
        ["all.pth", "expected piece_2.weight beside piece_2.bias, got none"],
    ),
    "all layers, one of integers": (
        whole("all.safetensors", lambda named: named | {"piece_2.weight": named["piece_2.weight"].to(torch.int8)}),
        ["all.safetensors", "piece_2.weight", "floating-point", "int8"],
    ),
    "all layers, one quantised": (
        whole("all.pth", lambda named: named | {"piece_1.weight": torch.quantize_per_tensor(w, 0.1, 0, torch.qint8)}),
        ["all.pth", "piece_1.weight", "floating-point", "qint8"],
    ),
    "all layers, one a view of one number": (
        whole("all.pth", lambda named: named | {"piece_1.weight": torch.zeros(1).expand(10**7, 10**7)}),
        ["all.pth", "piece_1.weight", "an ordinary floating-point tensor"],
    ),
    "all layers, one of NaN": (
        whole("all.pth", lambda named: named | {"piece_3.bias": named["piece_3.bias"] * nan}),
        ["all.pth", "piece_3.bias", "finite", "nan"],
    ),
    "all layers, one missing": (
        whole("all.pth", lambda named: {k: a for k, a in named.items() if not k.startswith("piece_1.")}),
        ["2 of [7, 5]", "1 of [5, 7]", "lacks 1"],
    ),
    "all layers, cut short": (
        lambda f: (whole("all.safetensors")(f), cut("all.safetensors", 0.5)(f)),
        ["all.safetensors", "cut short or damaged"],
    ),
    "a pointer to all layers": (
        lambda f: (whole("all.safetensors")(f), (f / "all.safetensors").write_bytes(POINTER)),
        ["all.safetensors", "Git-LFS"],
    ),
    "a model in its own order": (
        whole("model.pth", lambda named: {f"{n}.inp.weight": w for n in range(4)}),
        ["model.pth", "'0.inp.weight'"],
    ),
    "a number changed": (flip, ["piece_0.pth", "checksum"]),
    "compressed": (repacked(lambda _, data: data, method=zipfile.ZIP_DEFLATED), ["piece_0.pth", "compressed archive"]),
    "one checksum of 0": (one_checksum, ["piece_0.pth", "checksum"]),
    "two pickles": (twice, ["piece_0.pth", "records that overlap"]),
    "a byte order of its own": (
        repacked(lambda name, data: b"middle" if name == "byteorder" else data),
        ["piece_0.pth", "a damaged file (byte order b'middle')"],
    ),
    "a storage cut short": (
        repacked(lambda name, data: data[:-4] if name == "data/0" else data),
        ["piece_0.pth", "a damaged file (a storage of 140 bytes in a record of 136)"],
    ),
    # other files by a piece's name
    "safetensors under .pth": (under(save_tensors), ["piece_0.pth", "a safetensors file: name it .safetensors"]),
    "NumPy's archive under .pth": (
        under(lambda state, path: written(path, lambda file: np.savez(file, **{k: a.numpy() for k, a in state.items()}))),
        ["piece_0.pth", "a NumPy archive (.npz)"],
    ),
    "NumPy's array under .pth": (
        under(lambda state, path: written(path, lambda file: np.save(file, state["weight"].numpy()))),
        ["piece_0.pth", "a NumPy array (.npy)"],
    ),
    "TorchScript under .pth": (under(scripted), ["piece_0.pth", "a TorchScript archive: save its state_dict()"]),
    "an exported program under .pth": (under(exported), ["piece_0.pth", "an exported program (torch.export): save its"]),
    "another zip under .pth": (under(zipped), ["piece_0.pth", "a zip archive that torch.save did not write"]),
    "HDF5 under .pth": (piece(0, b"\x89HDF\r\n\x1a\n" + bytes(90)), ["piece_0.pth", "an HDF5 file"]),
    "a plain pickle under .pth": (
        under(lambda state, path: path.write_bytes(pickle.dumps({k: a.numpy() for k, a in state.items()}))),
        ["piece_0.pth", "a pickle that torch.save did not write"],
    ),
    # pickles that say what cannot be
    "a tensor outside its storage": (
        piece(0, said(offset=1)),
        ["piece_0.pth", "a tensor of 36 numbers in a storage of 140"],
    ),
    "a stride outside its storage": (piece(0, said(strides=(6, 1))), ["piece_0.pth", "a tensor of 41 numbers in a storage"]),
    "a negative offset": (piece(0, said(offset=-1)), ["piece_0.pth", "sizes and strides that no tensor has"]),
    "a negative size": (piece(0, said(sizes=(-7, 5))), ["piece_0.pth", "sizes and strides that no tensor has"]),
    "a negative stride": (piece(0, said(strides=(-5, 1))), ["piece_0.pth", "sizes and strides that no tensor has"]),
    "a size past 64 bits": (piece(0, said(sizes=(2**70, 5))), ["piece_0.pth", "sizes and strides that no tensor has"]),
    "a stride that overflows": (piece(0, said(strides=(2**61, 1))), ["piece_0.pth", "a tensor of", "in a storage of 140"]),
    "more axes than there are": (piece(0, said(sizes=(1,) * 99, strides=(1,) * 99)), ["piece_0.pth", "that no tensor has"]),
    "a size that is no integer": (piece(0, said(sizes=(7.0, 5))), ["piece_0.pth", "sizes and strides that no tensor has"]),
    "fewer strides than sizes": (piece(0, said(strides=(5,))), ["piece_0.pth", "sizes and strides that no tensor has"]),
    "a storage longer than its record": (
        piece(0, said(storage=(torch.FloatStorage, "0", "cpu", 36))),
        ["piece_0.pth", "a storage of 144 bytes in a record of 140"],
    ),
    "a storage of less than nothing": (
        piece(0, said(storage=(torch.FloatStorage, "0", "cpu", -1))),
        ["piece_0.pth", "a storage of -4 bytes"],
    ),
    "a storage without a record": (
        piece(0, said(storage=(torch.FloatStorage, "1", "cpu", 35))),
        ["piece_0.pth", "a storage of 140 bytes in a record of 0"],
    ),
    "one storage of two types": (
        piece(0, said(beside=["storage", torch.IntStorage, "0", "cpu", 35])),
        ["piece_0.pth", "one storage of two kinds"],
    ),
    "a tensor without a storage": (piece(0, pickled(b"\x80\x02X\x01\x00\x00\x00xQ.")), ["piece_0.pth", "a damaged file"]),
    "arguments of another call": (
        piece(0, said(rest=())),
        ["piece_0.pth", "the arguments of torch._utils._rebuild_tensor_v2"],
    ),
    "an ordered dictionary of what are no pairs": (
        piece(0, said(beside=Call(OrderedDict, [[1, 2], [3]]))),
        ["piece_0.pth", "a damaged file"],
    ),
    "one list of pairs copied again and again": (
        piece(
            0,
            pickled(
                b"\x80\x02]("
                + b"NK\x01\x86" * 10**5
                + b"e\x85q\x00ccollections\nOrderedDict\nq\x01"
                + b"h\x01h\x00R" * 99
                + b"."
            ),
        ),
        ["piece_0.pth", "uses the same values again and again: refused"],
    ),
    "a key too deep to hash": (piece(0, deep()), ["piece_0.pth", "a tuple of tuples for a key: refused"]),
    "a pickle without end": (
        piece(0, pickled(b"\x80\x02" + b"}" * 2_000_001 + b".")),
        ["piece_0.pth", "a pickle of more than 2,000,000 operations"],
    ),
    "a place in memory far away": (
        piece(0, pickled(b"\x80\x02}r\xff\xff\xff\xff.")),
        ["piece_0.pth", "one weight tensor, got none"],
    ),
    "an array of any length": (
        piece(0, pickled(b"\x80\x05\x96" + (3 << 30).to_bytes(8, "little") + b"x.")),
        ["piece_0.pth", "a damaged file"],
    ),
    "an operation that no state dict needs": (
        piece(0, pickled(b"\x80\x02(U\x01xi__builtin__\nset\n.")),
        ["piece_0.pth", "asks for the operation INST: refused"],
    ),
    "one list copied again and again": (
        piece(0, pickled(b"\x80\x02](" + b"N" * 10**5 + b"e\x85q\x00c__builtin__\nset\nq\x01" + b"h\x01h\x00R" * 99 + b".")),
        ["piece_0.pth", "uses the same values again and again: refused"],
    ),
    # pieces as pickles
    "code": (lambda f: piece(0, lambda: {"weight": Code(f / "evil")})(f), ["piece_0.pth", "refused, not run"]),
    "a bomb": (piece(0, lambda: {"weight": Bomb()}), ["piece_0.pth", "a pickle that asks for", "bytearray': refused"]),
    "an older bomb": (
        lambda f: torch.save({"weight": Bomb()}, f / "pieces/piece_0.pth", _use_new_zipfile_serialization=False),
        ["piece_0.pth", "a pickle that asks for", "bytearray': refused"],
    ),
    "a name without end": (
        piece(0, pickled(b"\x80\x02ctorch\n_rebuild" + b"9" * 10**6 + b"\n)R.")),
        ["piece_0.pth", "a pickle that asks for 'torch._rebuild999", "refused"],
    ),
    "a name that never ends": (
        piece(0, pickled(b"\x80\x02ctorch\n_rebuild" + b"9" * 10**6)),
        ["piece_0.pth", "a damaged file"],
    ),
    "an optimizer's state alone": (
        piece(0, lambda: {"optimizer": {"state": {0: {"exp_avg": w}}}}),
        ["piece_0.pth", "one weight tensor, got none", "'optimizer'"],
    ),
    "arguments beside the weights": (
        piece(0, lambda: {"state_dict": {"weight": w, "bias": w[:, 0]}, "args": argparse.Namespace(lr=1)}),
        ["piece_0.pth", "argparse.Namespace", "refused, not run"],
    ),
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
    "a quantised layer": (
        piece(0, lambda: torch.ao.nn.quantized.Linear(5, 7).state_dict()),
        ["piece_0.pth", "one weight tensor, got none"],
    ),
    "boolean": (piece(0, state(w > 0)), ["piece_0.pth: weight", "floating-point", "bool"]),
    "a bias of integers": (piece(0, state(w, torch.zeros(7, dtype=torch.int32))), ["piece_0.pth: bias", "int32"]),
    "a bias that is a matrix": (piece(0, state(w, torch.zeros(7, 1))), ["piece_0.pth: bias", "[7]", "[7, 1]"]),
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
    "a gzip table cut short": (
        table(lambda lines: gzip.compress("\n".join(lines).encode())[:-20]),
        [CSV, "expected a table", "gzip file cut short or damaged"],
    ),
    "a gzip table with a wrong checksum": (
        table(lambda lines: gzip.compress("\n".join(lines).encode())[:-8] + bytes(8)),
        [CSV, "expected a table", "gzip file cut short or damaged"],
    ),
    "a pointer for a table": (table(lambda _: POINTER), [CSV, "expected a table", "Git-LFS"]),
    "an Excel workbook for a table": (table(lambda _: pickled(b"")), [CSV, "a zip archive, as Excel's workbooks are"]),
    "a web page for a table": (table(lambda _: b"<html>404</html>"), [CSV, "expected a table", "an HTML page"]),
    "unquoted thousands, the last column empty": (
        table(
            lambda lines: [
                f"{lines[0]},remark",
                *((f"1,{line}," if k == 3 else f"{line},") for k, line in enumerate(lines[1:])),
            ]
        ),
        [CSV, "row 4", "expected 8 cells", "got 9"],
    ),
    "unquoted thousands among trailing commas": (
        table(lambda lines: [lines[0], *((f"1,{line}," if k == 3 else f"{line},") for k, line in enumerate(lines[1:]))]),
        [CSV, "row 4", "expected 8 cells as most rows have", "got 9"],
    ),
    "unquoted thousands among quotes": (
        table(
            lambda lines: [f'"who",{lines[0]},', *(f'"a, b",{"1," * (k == 2)}{line},' for k, line in enumerate(lines[1:]))]
        ),
        [CSV, "row 3", "expected 9 cells", "got 10"],
    ),
    "unquoted thousands in every row, the last column empty": (
        table(lambda lines: [f"{lines[0]},remark", *(f"1,{line}," for line in lines[1:])]),
        [CSV, "row 1", "expected 8 cells as the header has", "got 9"],
    ),
    "a trailing comma on one row only": (
        table(lambda lines: [*lines[:4], f"{lines[4]},", *lines[5:]]),
        [CSV, "row 4", "expected 7 cells", "got 8"],
    ),
    "trailing commas on all rows but one": (
        table(lambda lines: [lines[0], lines[1], *(f"{line}," for line in lines[2:])]),
        [CSV, "row 1", "expected 8 cells as most rows have", "got 7"],
    ),
    "row numbers without a header, true blank": (
        table(lambda lines: [lines[0], *(f"{k},{line.rpartition(',')[0]}," for k, line in enumerate(lines[1:], 1))]),
        [CSV, "row 1", "expected 7 cells as the header has", "got 8"],
    ),
    "a header behind #": (table(lambda lines: [f"# {lines[0]}", *lines[1:]]), [CSV, "a line that begins with #"]),
    "a comment before the header": (table(lambda lines: ["# written by hand", *lines]), [CSV, "a line that begins with #"]),
    "Excel's first line": (
        table(lambda lines: ["sep=;", *(line.replace(",", ";") for line in lines)]),
        [CSV, "a line sep=…, which tells Excel the separator"],
    ),
    "a cell longer than any number": (cell(2, 2, "1" * 200_000 + "x"), [CSV, "field larger than field limit"]),
    "a number with a line separator in it": (cell(2, 2, "1\u20282"), [CSV, "measurement_2", "row 2", "'1\\u20282'"]),
    "a folder for a table": (
        lambda f: (remove(CSV)(f), (f / CSV).mkdir()),
        [CSV, "expected a table in one file, got a folder"],
    ),
    "a Parquet folder": (
        lambda f: (parquet()(f), parted(f)),
        ["historical_data.parquet", "expected a table in one file, got a Parquet folder: put its parts"],
    ),
    "unquoted thousands": (cell(1, 1, "1,234.5"), [CSV, "row 1", "expected 7 cells", "got 8"]),
    "thousands by apostrophes": (cell(1, 1, "1'234.5"), [CSV, "measurement_1", "row 1", '"1\'234.5"']),
    "thousands by spaces": (cell(1, 1, "1 234.5"), [CSV, "measurement_1", "row 1", "'1 234.5'"]),
    "hexadecimal": (cell(1, 1, "0x1p3"), [CSV, "measurement_1", "row 1", "'0x1p3'"]),
    "a currency": (cell(1, 1, "$3"), [CSV, "measurement_1", "row 1", "'$3'"]),
    "a complex number": (cell(1, 1, "1+2j"), [CSV, "measurement_1", "row 1", "'1+2j'"]),
    "a trailing comma on the header only": (
        table(lambda lines: [f"{lines[0]},", *lines[1:]]),
        [CSV, "row 1", "expected 8 cells", "got 7"],
    ),
    "a cell beyond the header": (
        table(lambda lines: [lines[0], *(f"{line},9" for line in lines[1:])]),
        [CSV, "row 1", "expected 7 cells", "got 8"],
    ),
    "spaces as separators": (table(lambda lines: [line.replace(",", " ") for line in lines]), [CSV, "measurement_0"]),
    "Parquet with a blank cell": (
        lambda f: (parquet()(f), blank_cell(f)),
        ["historical_data.parquet", "measurement_0", "row 2", "a blank cell"],
    ),
    "Parquet of words": (parquet("str"), ["historical_data.parquet", "measurement_0", "expected numbers", "string"]),
    "Parquet without rows": (
        lambda f: (table(lambda lines: lines[:1])(f), parquet()(f)),
        ["historical_data.parquet", "at least one row"],
    ),
    "Parquet without pred": (
        lambda f: (table(lambda lines: [lines[0].replace("pred", "prod"), *lines[1:]])(f), parquet()(f)),
        ["historical_data.parquet", "expected a column pred"],
    ),
    "Parquet with NaN": (lambda f: (cell(2, 3, "nan")(f), parquet()(f)), ["measurement_3", "row 2", "finite", "nan"]),
    "Parquet cut short": (
        lambda f: (parquet()(f), cut("historical_data.parquet", 0.7)(f)),
        ["historical_data.parquet", "Parquet table, got one cut short or damaged"],
    ),
    "a binary table": (table(lambda _: bytes(100)), [CSV, "measurement_0"]),
}


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """The sound puzzle's arrays, as a converted file names them."""
    from dropjax.io.folders import read_folder

    puzzle = read_folder(folder)
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
    "an empty file": (raw(lambda _: b""), ["an empty file"]),
    "a pointer in place of the file": (raw(lambda _: POINTER), ["Git-LFS"]),
    "a web page in place of the file": (raw(lambda _: b"<!doctype html>"), ["an HTML page"]),
    "a PyTorch file": (raw(lambda _: b"PK\x03\x04 and so on"), ["a PyTorch file: put it into a folder"]),
    "a table": (raw(lambda _: b"measurement_0,pred\n1,2\n"), ["cut short or damaged"]),
    "cut in the header": (raw(lambda data: data[:100]), ["cut short or damaged"]),
    "cut in the data": (raw(lambda data: data[:-4]), ["cut short or damaged"]),
    "bytes too many": (raw(lambda data: data + b"1234"), ["cut short or damaged"]),
    "a header longer than the file": (raw(lambda data: b"\xff" * 6 + bytes(2) + data[8:]), ["cut short or damaged"]),
    "a lie about a shape": (header(lambda h: h.replace(b'"shape":[7,5]', b'"shape":[7,6]', 1)), ["cut short or damaged"]),
    "a lie about a dtype": (header(lambda h: h.replace(b'"F32"', b'"F16"', 1)), ["cut short or damaged"]),
    "overlapping offsets": (header(lambda h: h.replace(b'"data_offsets":[0,', b'"data_offsets":[4,', 1)), ["damaged"]),
    "offsets beyond the end": (
        header(lambda h: re.sub(rb'"data_offsets":\[0,\d+\]', b'"data_offsets":[0,999999999]', h, count=1)),
        ["damaged"],
    ),
    "negative offsets": (header(lambda h: h.replace(b'"data_offsets":[0,', b'"data_offsets":[-4,', 1)), ["damaged"]),
    "offsets the wrong way round": (
        header(lambda h: re.sub(rb'"data_offsets":\[0,(\d+)\]', rb'"data_offsets":[\1,0]', h, count=1)),
        ["damaged"],
    ),
    "a hole between the tensors": (
        header(
            lambda h: h.replace(b'"piece_0.bias"', b'"hole":{"dtype":"F32","shape":[0],"data_offsets":[4,4]},"piece_0.bias"')
        ),
        ["damaged"],
    ),
    "a shape that overflows": (
        header(lambda h: h.replace(b'"shape":[7,5]', b'"shape":[4294967296,4294967296]', 1)),
        ["damaged"],
    ),
    "a type of its own": (header(lambda h: h.replace(b'"F32"', b'"F33"', 1)), ["damaged"]),
    "a header that is no JSON": (header(lambda h: b"!" + h[1:]), ["damaged"]),
    "a header too deep": (header(lambda h: b'{"a":' * 10_000), ["damaged"]),
    "a header of 0 bytes": (raw(lambda data: bytes(8) + data[8:]), ["damaged"]),
    "one name twice": (
        header(lambda h: b'{"piece_0.bias":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},' + h[1:]),
        ["expected every name once, got 'piece_0.bias' twice"],
    ),
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


# Odd, and read rightly: each edits the folder into another form of the same puzzle


def rewritten(change: Callable[[list[list[str]]], str | bytes]) -> Callable[[Path], None]:
    """Rewrites the cells of the table."""

    def edit(folder: Path) -> None:
        changed = change([line.split(",") for line in (folder / CSV).read_text().splitlines()])
        (folder / CSV).write_bytes(changed if isinstance(changed, bytes) else changed.encode())

    return edit


def joined(rows: list[list[str]], separator: str = ",", end: str = "\n") -> str:
    return end.join(separator.join(row) for row in rows) + end


WRITTEN: dict[str, Callable[[list[list[str]]], str | bytes]] = {
    "byte-order mark": lambda rows: b"\xef\xbb\xbf" + joined(rows).encode(),
    "CRLF": lambda rows: joined(rows, end="\r\n"),
    "CR": lambda rows: joined(rows, end="\r"),
    "no last line break": lambda rows: joined(rows).rstrip(),
    "blank lines": lambda rows: "\n" + joined(rows) + "\n \n\n",
    "semicolons": lambda rows: joined(rows, ";"),
    "tabs": lambda rows: joined(rows, "\t"),
    "spaces around": lambda rows: joined([[f" {cell} " for cell in row] for row in rows]),
    "quotes": lambda rows: joined([[f'"{cell}"' for cell in row] for row in rows]),
    "an index column": lambda rows: joined([[f"{k - 1}" if k else "", *row] for k, row in enumerate(rows)]),
    "a column of words": lambda rows: joined([["who, what" if k < 0 else f"name{k}", *row] for k, row in enumerate(rows)]),
    "separators in quotes": lambda rows: joined([[f'"a, ""{k}"""', *row] for k, row in enumerate(rows)]),
    "trailing separators": lambda rows: joined([[*row, ""] for row in rows]),
    "trailing separators on data rows": lambda rows: joined([rows[0], *([*row, ""] for row in rows[1:])]),
    "the same, quoted": lambda rows: joined([rows[0], *(['"' + row[0] + '"', *row[1:], ""] for row in rows[1:])]),
    "columns reversed": lambda rows: joined([row[::-1] for row in rows]),
    "other spellings": lambda rows: joined([rows[0], *([f"{float(cell):+.30e}" for cell in row] for row in rows[1:])]),
    "a quoted header": lambda rows: joined([[f'"{cell}"' for cell in rows[0]], *rows[1:]]),
    "a named index column": lambda rows: joined([["index" if k == 0 else f"{k - 1}", *row] for k, row in enumerate(rows)]),
    "extra columns between": lambda rows: joined(
        [[*row[:3], "measured" if k == 0 else "7", *row[3:], "note" if k == 0 else ""] for k, row in enumerate(rows)]
    ),
    "a column of blanks": lambda rows: joined([[*row, "comment" if k == 0 else ""] for k, row in enumerate(rows)]),
    "numbered outputs": lambda rows: joined(
        [[f"{name}_0" if name in ("pred", "true") else name for name in rows[0]], *rows[1:]]
    ),
    "semicolons, CRLF, a byte-order mark": lambda rows: b"\xef\xbb\xbf" + joined(rows, ";", "\r\n").encode(),
    "tabs and trailing tabs": lambda rows: joined([[*row, ""] for row in rows], "\t"),
    "CRLF and blank last lines": lambda rows: joined(rows, end="\r\n") + "\r\n\r\n",
    "signs and exponents": lambda rows: joined([rows[0], *([f"{float(cell):+.12E}" for cell in row] for row in rows[1:])]),
    "other line breaks in a column of words": lambda rows: joined(
        [[f"a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1e{k}", *row] for k, row in enumerate(rows)]
    ),
    "line breaks in quotes": lambda rows: joined([[f'"a\n\nb\r\n{k}"', *row, ""] for k, row in enumerate(rows)]),
    "a form feed behind the last row": lambda rows: joined(rows) + "\x0c\n",
    "a column named #": lambda rows: joined([["#" if k == 0 else f"{k}", *row] for k, row in enumerate(rows)]),
    "gzip under the plain name": lambda rows: gzip.compress(joined(rows).encode()),
    "gzip in two parts": lambda rows: gzip.compress(joined(rows[:3]).encode()) + gzip.compress(joined(rows[3:]).encode()),
}


def each(change: Callable[[dict], object], old: bool = False, protocol: int = 2) -> Callable[[Path], None]:
    """Save every piece's state dict in another form (`old`: as PyTorch before 1.6 did)."""

    def edit(folder: Path) -> None:
        for path in (folder / "pieces").iterdir():
            torch.save(change(torch.load(path)), path, pickle_protocol=protocol, _use_new_zipfile_serialization=not old)

    return edit


@contextmanager
def no_checksums() -> Iterator[None]:
    """torch.save writes archives without checksums."""
    config.save.compute_crc32 = False
    try:
        yield
    finally:
        config.save.compute_crc32 = True


def without_checksums(folder: Path) -> None:
    with no_checksums():
        each(dict)(folder)


def big_endian(folder: Path) -> None:
    """Rewrites the pieces as a big-endian machine would have saved them."""

    def change(name: str, data: bytes) -> bytes:
        if name == "byteorder":
            return b"big"
        return (
            np.frombuffer(data, f"V{width}").view("u1").reshape(-1, width)[:, ::-1].tobytes()
            if name[:5] == "data/"
            else data
        )

    for number in range(5):
        width = torch.load(folder / "pieces" / f"piece_{number}.pth")["weight"].element_size()
        repacked(change, number)(folder)


def tagged(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with an attribute."""
    tensor.tag = "mine"  # pyright: ignore[reportAttributeAccessIssue]  # any attribute will do
    return tensor


def cast(dtype: torch.dtype) -> Callable[[dict], dict]:
    return lambda state: {name: a.to(dtype) for name, a in state.items()}


def shared(state: dict) -> dict:
    both = torch.cat([state["weight"].flatten(), state["bias"]])
    return {"weight": both[: state["weight"].numel()].view(state["weight"].shape), "bias": both[state["weight"].numel() :]}


def saved_on(device: str) -> Callable[[Path], None]:
    """Rewrites the pieces as if every tensor had been on that device."""

    def edit(folder: Path) -> None:
        for path in (folder / "pieces").iterdir():
            with zipfile.ZipFile(path) as archive:
                records = {name: archive.read(name) for name in archive.namelist()}
            name = next(name for name in records if name.endswith("data.pkl"))
            place = device.encode()
            changed = records[name].replace(b"X\x03\x00\x00\x00cpu", b"X" + struct.pack("<I", len(place)) + place)
            assert changed != records[name]
            with zipfile.ZipFile(path, "w") as archive:
                for other, data in (records | {name: changed}).items():
                    archive.writestr(other, data)

    return edit


def renamed(name: Callable[[int], str]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        paths = sorted((folder / "pieces").iterdir())
        for path in paths:
            path.rename(path.with_suffix(".old"))
        for path in paths:
            path.with_suffix(".old").rename(path.with_name(name(int(path.stem.partition("_")[2]))))

    return edit


def stray(folder: Path) -> None:
    for name in (".DS_Store", "._piece_0.pth", "piece_0.pth.bak", "piece_x.pth", "checkpoint.pth", "piece_٣.pth", "README"):
        (folder / "pieces" / name).write_bytes(b"stray")
    for name in (".DS_Store", "model.pth", "solution.safetensors", "notes.txt"):
        (folder / name).write_bytes(b"stray")
    (folder / "pieces" / "old").mkdir()
    (folder / "pieces" / ".ipynb_checkpoints").mkdir()


def gzipped(folder: Path) -> None:
    (folder / f"{CSV}.gz").write_bytes(gzip.compress((folder / CSV).read_bytes()))
    (folder / CSV).unlink()


def read_only(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)


ODD: dict[str, Callable[[Path], object]] = {
    # pieces
    "float64": each(cast(torch.float64)),
    "float16": each(cast(torch.float16)),
    "bfloat16": each(cast(torch.bfloat16)),
    "an older file of float16": each(cast(torch.float16), old=True),
    "float64 weights, float32 biases": each(lambda state: state | {"weight": state["weight"].double()}),
    "an older file": each(dict, old=True),
    "needing gradients": each(lambda state: {name: a.requires_grad_() for name, a in state.items()}),
    "parameters": each(lambda state: {name: torch.nn.Parameter(a) for name, a in state.items()}),
    "an older file of parameters": each(lambda state: {k: torch.nn.Parameter(a) for k, a in state.items()}, old=True),
    "on CUDA": saved_on("cuda:0"),
    "on a second CUDA device": saved_on("cuda:1"),
    "on MPS": saved_on("mps"),
    "not contiguous": each(lambda state: state | {"weight": state["weight"].T.contiguous().T}),
    "strided": each(lambda state: state | {"bias": torch.stack([state["bias"]] * 2, dim=1)[:, 0]}),
    "views of larger storage": each(lambda state: {name: torch.cat([a, a])[len(a) :] for name, a in state.items()}),
    "sharing storage": each(shared),
    "sharing storage, an older file": each(shared, old=True),
    "a prefix": each(lambda state: {f"layer.{name}": a for name, a in state.items()}),
    "a wrapped model's prefix": each(lambda state: {f"module.net.0.{name}": a for name, a in state.items()}),
    "nested": each(lambda state: {"state_dict": state, "epoch": 3, "config": {"lr": 0.1}}),
    "nested beside an optimizer's state": each(
        lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {0: {"exp_avg": state["weight"]}}}}
    ),
    "nested twice": each(lambda state: {"model": {"state_dict": state}}),
    "an optimizer's state beside": each(lambda state: {**state, "optimizer": {"state": {0: {"exp_avg": state["bias"]}}}}),
    "other entries": each(lambda state: {**state, "epoch": 3, "name": "piece", "scale": torch.ones(1)}),
    "an ordered dictionary": each(OrderedDict),
    "an ordered dictionary as Python 2 pickled it": each(
        lambda state: Call(OrderedDict, [[k, a] for k, a in state.items()])
    ),
    "the same, an older file": each(lambda state: Call(OrderedDict, [[k, a] for k, a in state.items()]), old=True),
    "a layer's own state dict": each(
        lambda state: (
            (layer := torch.nn.Linear(*reversed(state["weight"].shape))).load_state_dict(state) and layer.state_dict()
        )
    ),
    "without checksums": without_checksums,
    **{f"pickled by protocol {n}": each(dict, protocol=n) for n in (3, 4, 5)},
    "big-endian": big_endian,
    "big-endian bfloat16": lambda folder: (each(cast(torch.bfloat16))(folder), big_endian(folder)),
    "repacked by another program": lambda folder: [repacked(lambda _, data: data, n)(folder) for n in range(5)],
    "with attributes": each(lambda state: {name: tagged(a) for name, a in state.items()}),
    "parameters with attributes": each(lambda state: {name: tagged(torch.nn.Parameter(a)) for name, a in state.items()}),
    "yet to be negated": each(lambda state: {name: torch.complex(-a, -a).conj().imag for name, a in state.items()}),
    "sparse tensors beside": each(lambda state: {**state, "mask": state["weight"].to_sparse()}),
    "all kinds of entries beside": each(
        lambda state: {
            **state,
            "entries": [
                {1, 2},
                3j,
                b"bytes",
                Counter("aab"),
                torch.device("cpu"),
                torch.Size([2]),
                torch.float16,
                2**70,
                -1,
            ],
            "tensors": [torch.ones(3, dtype=kind) for kind in (torch.int64, torch.bool, torch.uint16, torch.float8_e5m2)],
            "scalar": torch.tensor(3.5),
            "empty": torch.zeros(0, 3),
            "keys": {(1, "a"): 2, None: 3, 2.5: 4},
        }
    ),
    # one file with all layers
    "all layers in a .pth": whole("all.pth"),
    "all layers in a .pt": whole("all.pt"),
    "all layers in a .safetensors": whole("all.safetensors"),
    "all layers among the pieces": whole("pieces/all.pth"),
    "all layers by number": whole("all.pth", lambda named: {k.removeprefix("piece_"): a for k, a in named.items()}),
    "all layers, each a state dict": whole(
        "all.pth",
        lambda named: {n: {k: named[f"piece_{n}.{k}"] for k in ("weight", "bias")} for n in range(5)},
    ),
    "all layers, by file name": whole(
        "all.pth",
        lambda named: {f"piece_{n}.pth": {k: named[f"piece_{n}.{k}"] for k in ("weight", "bias")} for n in range(5)},
    ),
    "all layers, nested beside an optimizer's state": whole(
        "all.pth", lambda named: {"state_dict": named, "optimizer": {"state": {}}, "epoch": 3}
    ),
    "all layers in bfloat16": whole("all.safetensors", cast(torch.bfloat16)),
    "all layers in float64": whole("all.pth", cast(torch.float64)),
    # names and places
    "zero-padded": renamed(lambda n: f"piece_{n:03}.pth"),
    "stray files": stray,
    "a read-only folder": read_only,
    # tables
    **{name: rewritten(change) for name, change in WRITTEN.items()},
    "gzip": gzipped,
    "Parquet": parquet(),
    "Parquet of float32": parquet("float32"),
    "Parquet with a column of words": parquet(extra=True),
}

NUMBERED: dict[str, Callable[[int], int]] = {
    "from 1": lambda n: n + 1,
    "from 1000": lambda n: n + 1000,
    "with gaps": lambda n: n * n + 3,
    "backwards": lambda n: 4 - n,
    "of nine digits": lambda n: 999_999_999 - n,
}
"""The other number of each piece."""
