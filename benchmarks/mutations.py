"""Sound files, mutated: mutations.py [--count N] [--seed N] [--processes N] [--json FILE].

Every kind of file that is read is changed at random (bits flipped, bytes overwritten, inserted and taken out, cuts, lengths
and numbers made extreme), also behind checksums that are right again, and read. Each must end in a puzzle or in the one-line
`InputError`: another exception, a crash, more than `SECONDS` for one file or more than `MEMORY` above what the process had
is a failure, and exit status 1. So is another reading of a .pth file than PyTorch's, bit for bit, where both read it.
"""

import argparse
import faulthandler
import gzip
import importlib.util
import io
import json
import multiprocessing
import os
import re
import resource
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from measuring import table, write_report
from safetensors.torch import save_file
from torch.utils.serialization import config

from dropjax import console
from dropjax.core.errors import InputError
from dropjax.core.puzzle import Puzzle
from dropjax.io import checkpoints, halves, pth
from dropjax.io.arguments import read_permutation, read_roles
from dropjax.io.converted import write_converted
from dropjax.io.folders import TABLE, write_folder
from dropjax.io.loading import load
from dropjax.io.pytorch import load_pth, read_pth
from dropjax.runtime.journal import read_checkpoint, write_checkpoint
from dropjax.runtime.writing import ensure_writable

SECONDS = 5.0
"""One file may take this long to be read or refused."""
MEMORY = 256 << 20
"""Bytes that reading may add to what the process had."""
CHUNK = 250
"""Files that a process mutates before it reports."""


class Kind(NamedTuple):
    """One kind of file: where a sound one lies, what of it is mutated, and how it is read."""

    name: str
    path: Path
    read: Callable[[], Any]
    payload: Callable[[bytes], tuple[bytes, Callable[[bytes], bytes]]] = lambda data: (data, lambda changed: changed)
    """A function that takes the file's bytes and returns those to mutate and a function that rebuilds the file."""


@dataclass
class Tally:
    """The counts of what happened to the files of one kind."""

    kind: str
    tried: int = 0
    read: int = 0
    refused: int = 0
    slowest: float = 0.0
    """The seconds that the slowest file took."""
    grown: int = 0
    """Bytes that the process's peak memory grew by meanwhile."""
    failures: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Adds another process's tally of the same kind."""
        self.tried, self.read, self.refused = (
            self.tried + other.tried,
            self.read + other.read,
            self.refused + other.refused,
        )
        self.slowest, self.grown = max(self.slowest, other.slowest), max(self.grown, other.grown)
        self.failures += other.failures


# Sound files


def sound_puzzle() -> Puzzle:
    """L = 2, d = 5, h = 7, one output, 6 rows; pieces 0 to 4."""
    rng = np.random.default_rng(0)
    shapes = [(7, 5), (5, 7), (7, 5), (5, 7), (1, 5)]
    pieces = {
        n: (rng.normal(size=shape).astype("f"), rng.normal(size=shape[0]).astype("f")) for n, shape in enumerate(shapes)
    }
    return Puzzle.from_arrays(pieces, rng.normal(size=(6, 5)), rng.normal(size=6), rng.normal(size=6))


def kinds(folder: Path) -> list[Kind]:
    """Every kind, each with a sound file of its own under `folder`."""
    puzzle = sound_puzzle()
    layers = {f"piece_{n}.{k}": torch.tensor(a) for n, p in puzzle.pieces.items() for k, a in zip("wb", p, strict=True)}
    layers = {name.replace(".w", ".weight").replace(".b", ".bias"): a for name, a in layers.items()}

    def place(name: str) -> Path:
        write_folder(puzzle, folder / name)
        return folder / name

    def whole(name: str, end: str) -> Path:
        path = place(name)
        for piece in (path / "pieces").iterdir():
            piece.unlink()
        save_file(layers, path / "all.safetensors") if end == ".safetensors" else torch.save(layers, path / "all.pth")
        return path

    zipped, legacy, table, gz = (place(name) for name in ("zip", "legacy", "table", "gzip"))
    half = dict(zip(("weight", "bias"), map(torch.tensor, puzzle.pieces[0]), strict=True))
    torch.save(half, legacy / "pieces/piece_0.pth", _use_new_zipfile_serialization=False)
    (gz / TABLE).write_bytes(gzip.compress((gz / TABLE).read_bytes()))
    all_tensors, all_pth = whole("tensors", ".safetensors"), whole("whole", ".pth")
    converted, model, old_model = folder / "converted.safetensors", folder / "model.safetensors", folder / "model.pth"
    roles, permutation, index = folder / "roles.json", folder / "permutation.txt", folder / "model.safetensors.index.json"
    write_converted(puzzle, converted)
    mlps = {f"layers.{k}.{n}.weight": torch.randn(s) for k in range(2) for n, s in (("up", (12, 4)), ("down", (4, 12)))}
    save_file(mlps, model)
    torch.save({"state_dict": mlps, "epoch": 3}, old_model)
    roles.write_text(json.dumps({n: ("in", "out", "in", "out", "last")[n] for n in range(5)}))
    permutation.write_text("0,1,2,3,4")
    index.write_text(json.dumps({"metadata": {"total_size": 768}, "weight_map": dict.fromkeys(mlps, model.name)}))
    eighth, bins, bin_index = folder / "float8.safetensors", folder / "model.bin", folder / "model.bin.index.json"
    scales = {name.replace("weight", "weight_scale_inv"): torch.rand(2, 2) for name in mlps}
    save_file({name: a.to(torch.float8_e4m3fn) for name, a in mlps.items()} | scales, eighth)
    torch.save(mlps, bins)
    bin_index.write_text(json.dumps({"weight_map": dict.fromkeys(mlps, bins.name)}))

    def loading(path: Path) -> Callable[[], Any]:
        return lambda: load(path)

    def pair(path: Path) -> Callable[[], Any]:
        def read() -> None:
            checkpoint = checkpoints.open_checkpoint(path)
            for side in halves.find_halves(checkpoint).sides.values():
                for name in side.names:
                    checkpoint.read(name)

        return read

    both, bare = folder / "both.pth", folder / "bare.pth"
    base = torch.randn(40)
    state = {"weight": torch.nn.Parameter(torch.randn(7, 5)), "bias": base[3:10], "view": base.view(8, 5).T}
    rich = {"state_dict": OrderedDict(state), "half": torch.randn(3, 4).bfloat16(), "sizes": torch.Size([2]), "epoch": 3}
    torch.save(rich, both)
    config.save.compute_crc32 = False
    torch.save(rich, bare)
    config.save.compute_crc32 = True

    search = place("search") / "kept"
    results = [np.arange(6, dtype=np.int32).reshape(3, 2), np.array(0.5, np.float32)]
    write_checkpoint(search, [[results, results], [results]], {"puzzle": "this"})
    piece = zipped / "pieces/piece_0.pth"
    found = [
        Kind("piece .pth", piece, loading(zipped)),
        Kind("piece .pth, checksums right", piece, lambda: read_pth(piece), repacked),
        Kind("piece .pth, older", legacy / "pieces/piece_0.pth", loading(legacy)),
        Kind("beside PyTorch", both, lambda: read_twice(both)),
        Kind("beside PyTorch, checksums right", both, lambda: read_twice(both), repacked),
        Kind("beside PyTorch, no checksums", bare, lambda: read_twice(bare)),
        Kind("all layers .pth, checksums right", all_pth / "all.pth", loading(all_pth), repacked),
        Kind("all layers .safetensors", all_tensors / "all.safetensors", loading(all_tensors)),
        Kind("all layers, header", all_tensors / "all.safetensors", loading(all_tensors), reheaded),
        Kind("converted .safetensors", converted, loading(converted)),
        Kind("converted, header", converted, loading(converted), reheaded),
        Kind("checkpoint .pth, checksums right", old_model, pair(old_model), repacked),
        Kind("checkpoint .safetensors", model, pair(model)),
        Kind("checkpoint, header", model, pair(model), reheaded),
        Kind("checkpoint index", index, pair(index)),
        Kind("checkpoint index of .bin", bin_index, pair(bin_index)),
        Kind("float8 checkpoint", eighth, pair(eighth)),
        Kind("float8 checkpoint, header", eighth, pair(eighth), reheaded),
        Kind("CSV", table / TABLE, loading(table)),
        Kind("gzip CSV", gz / TABLE, loading(gz)),
        Kind("gzip CSV, checksum right", gz / TABLE, loading(gz), regzipped),
        Kind("roles", roles, lambda: load(zipped, read_roles(roles))),
        Kind("search checkpoint", search, lambda: read_checkpoint(search, {"puzzle": "this"})),
        Kind("search checkpoint, header", search, lambda: read_checkpoint(search, {"puzzle": "this"}), reheaded),
        Kind("permutation", permutation, lambda: puzzle.arrangement(read_permutation(permutation))),
    ]
    if importlib.util.find_spec("pyarrow"):
        found.append(Kind("Parquet", *parquet(place("parquet"), loading)))
    return found


def read_twice(path: Path) -> None:
    """Read an archive with our reader and with PyTorch. Raises `AssertionError` where both read it, but differently."""
    try:
        ours = pth.read(path)
    except pth.NotKnown:
        load_pth(path)
        return
    try:
        theirs = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # whatever its parsers raise: it refuses some that we read, such as those without its own records
        return
    assert alike(ours, theirs), "another reading than PyTorch's"


def alike(ours: Any, theirs: Any) -> bool:
    """Whether what we read is what PyTorch read: the same tensors, bit for bit, under the same names."""
    if isinstance(theirs, torch.Tensor):
        if (ours.dtype, ours.shape) != (str(theirs.dtype).removeprefix("torch."), tuple(theirs.shape)):
            return False
        if ours.values is None:
            return True
        numbers = theirs.detach().resolve_neg().clone(memory_format=torch.contiguous_format).reshape(-1)
        return ours.values.tobytes() == numbers.view(torch.uint8).numpy().tobytes()
    if isinstance(theirs, dict) and isinstance(ours, dict):
        pairs = zip(ours.items(), theirs.items(), strict=False)
        same = all(type(b) not in (str, int) or (a == b and alike(v, w)) for (a, v), (b, w) in pairs)
        return same and len(ours) == len(theirs)
    if type(theirs) in (list, tuple) and type(ours) is type(theirs):
        return len(ours) == len(theirs) and all(map(alike, ours, theirs))
    return type(ours) is type(theirs) or isinstance(ours, pth.Other | np.dtype)


def parquet(folder: Path, load: Callable[[Path], Callable[[], Any]]) -> tuple[Path, Callable[[], Any]]:
    """The folder's table as Parquet."""
    import pyarrow
    from pyarrow import parquet

    path = folder / "historical_data.parquet"
    names = (folder / TABLE).read_text().splitlines()[0].split(",")
    values = np.loadtxt(folder / TABLE, delimiter=",", skiprows=1)
    parquet.write_table(pyarrow.table({name: values[:, k] for k, name in enumerate(names)}), path)
    (folder / TABLE).unlink()
    return path, load(folder)


def repacked(data: bytes) -> tuple[bytes, Callable[[bytes], bytes]]:
    """The pickle in torch.save's archive: a changed one gets a checksum of its own."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in records if name.endswith("data.pkl"))

    def back(changed: bytes) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for other, content in (records | {name: changed}).items():
                archive.writestr(zipfile.ZipInfo(other), content)
        return file.getvalue()

    return records[name], back


def reheaded(data: bytes) -> tuple[bytes, Callable[[bytes], bytes]]:
    """The header of a .safetensors file: its length is set right again."""
    length = int.from_bytes(data[:8], "little")
    return data[8 : 8 + length], lambda changed: len(changed).to_bytes(8, "little") + changed + data[8 + length :]


def regzipped(data: bytes) -> tuple[bytes, Callable[[bytes], bytes]]:
    """What a gzip file unpacks to."""
    return gzip.decompress(data), lambda changed: gzip.compress(changed, 1)


# Mutations

EXTREMES = (0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
NUMBERS = (
    b"0",
    b"-1",
    b"1e999",
    b"nan",
    b"4294967296",
    b"9223372036854775807",
    b"99999999999999999999",
    b"9" * 5000,
    b"[" * 99,
)


def flipped(data: bytearray, rng: np.random.Generator) -> None:
    """A few bits turned over."""
    for at in rng.integers(len(data), size=rng.integers(1, 9)):
        data[at] ^= 1 << int(rng.integers(8))


def overwritten(data: bytearray, rng: np.random.Generator) -> None:
    """A run of other bytes: random, zeros, or ones."""
    at, length = int(rng.integers(len(data))), int(rng.integers(1, 17))
    run = (rng.bytes(length), bytes(length), b"\xff" * length)[rng.integers(3)]
    data[at : at + length] = run[: len(data) - at]


def shortened(data: bytearray, rng: np.random.Generator) -> None:
    """The end cut off."""
    del data[int(rng.integers(len(data))) :]


def taken_out(data: bytearray, rng: np.random.Generator) -> None:
    """A run removed."""
    at = int(rng.integers(len(data)))
    del data[at : at + int(rng.integers(1, 65))]


def inserted(data: bytearray, rng: np.random.Generator) -> None:
    """A run of random bytes, or of the file's own, put in."""
    at, start, length = int(rng.integers(len(data))), int(rng.integers(len(data))), int(rng.integers(1, 65))
    data[at:at] = rng.bytes(length) if rng.integers(2) else data[start : start + length]


def resized(data: bytearray, rng: np.random.Generator) -> None:
    """An integer of 1, 2, 4 or 8 bytes, as lengths are stored, made extreme."""
    width = int(2 ** rng.integers(4))
    at = int(rng.integers(max(1, len(data) - width)))
    number = EXTREMES[rng.integers(len(EXTREMES))] if rng.integers(4) else len(data) + int(rng.integers(-2, 3))
    data[at : at + width] = (number % 256**width).to_bytes(width, ("little", "big")[rng.integers(2)])


def renumbered(data: bytearray, rng: np.random.Generator) -> None:
    """A number written in digits made extreme."""
    runs = list(re.finditer(rb"-?\d+", data))
    if runs:
        run = runs[rng.integers(len(runs))]
        data[run.start() : run.end()] = NUMBERS[rng.integers(len(NUMBERS))]


MUTATIONS = (flipped, overwritten, shortened, taken_out, inserted, resized, renumbered)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One mutation, or up to three one behind the other."""
    changed = bytearray(data)
    for which in rng.integers(len(MUTATIONS), size=max(1, rng.integers(-2, 4))):
        if changed:
            MUTATIONS[which](changed, rng)
    return bytes(changed)


def try_files(kind: Kind, seed: int, first: int, count: int) -> Tally:
    """Reads `count` mutations of the kind's sound file; the n-th is the same whatever the first is."""
    sound = kind.path.read_bytes()
    payload, back = kind.payload(sound)
    tally = Tally(kind.name)
    before = peak_memory()
    try:
        for n in range(first, first + count):
            rng = np.random.default_rng([seed, zlib.crc32(kind.name.encode()), n])
            kind.path.write_bytes(back(mutated(payload, rng)))
            faulthandler.dump_traceback_later(10 * SECONDS, exit=True)
            start = time.perf_counter()
            try:
                kind.read()
                tally.read += 1
            except InputError as error:
                tally.refused += 1
                if len(str(error).splitlines()) != 1 or len(str(error)) > 600:
                    tally.failures.append(f"{kind.name} {n}: a message that is no line: {str(error)[:600]!r}")
            except Exception:
                tally.failures.append(f"{kind.name} {n}: {traceback.format_exc()}")
            seconds = time.perf_counter() - start
            faulthandler.cancel_dump_traceback_later()
            tally.tried, tally.slowest = tally.tried + 1, max(tally.slowest, seconds)
            if seconds > SECONDS:
                tally.failures.append(f"{kind.name} {n}: {seconds:.1f} s")
    finally:
        kind.path.write_bytes(sound)
    tally.grown = peak_memory() - before
    if tally.grown > MEMORY:
        tally.failures.append(f"{kind.name} from {first}: memory grew by {tally.grown >> 20} MiB")
    return tally


def peak_memory() -> int:
    """Bytes that the process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


_kinds: list[Kind] = []
_folder: tempfile.TemporaryDirectory | None = None


def start_process() -> None:
    """Sound files of this process's own; a bound on what it may ask the system for, so that a bomb ends it alone."""
    global _folder
    torch.set_num_threads(1)
    _folder = tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    _kinds.extend(kinds(Path(_folder.name)))
    for kind in _kinds:  # what is imported and set up at the first call is not reading's own memory
        kind.read()
    if sys.platform == "linux":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 30), resource.RLIM_INFINITY))


def try_chunk(which: int, seed: int, first: int, count: int) -> Tally:
    """`try_files` in a process that `start_process` started."""
    return try_files(_kinds[which], seed, first, count)


def try_all(count: int, seed: int, processes: int, names: Sequence[str]) -> Iterator[Tally]:
    """Tallies of chunks of all kinds, as they come in; every kind gets its share of `count`."""
    share = -(-count // len(names))
    chunks = [(k, seed, at, min(CHUNK, share - at)) for at in range(0, share, CHUNK) for k in range(len(names))]
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), start_process) as pool:
        for future in as_completed([pool.submit(try_chunk, *chunk) for chunk in chunks]):
            yield future.result()


def main() -> int:
    """Exit status 0, 1 where a file ended otherwise than it should."""
    parser = console.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="files (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.json is not None:
        ensure_writable(args.json)
    with tempfile.TemporaryDirectory() as folder:
        tallies = {kind.name: Tally(kind.name) for kind in kinds(Path(folder))}
    start, shown = time.perf_counter(), 0.0
    for tally in try_all(args.count, args.seed, args.processes, list(tallies)):
        tallies[tally.kind].add(tally)
        print(*tally.failures, sep="\n", end="\n" if tally.failures else "", flush=True)
        if (elapsed := time.perf_counter() - start) > shown + 10:
            shown = elapsed
            print(f"{sum(t.tried for t in tallies.values()):,} files in {elapsed:.0f} s", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - start
    rows = pd.DataFrame([asdict(t) for t in tallies.values()])
    frame = rows.assign(**{"failed": rows.failures.map(len), "seconds": rows.slowest, "MiB": rows.grown / (1 << 20)})
    counts = dict.fromkeys(("tried", "read", "refused", "failed"), ">8,")
    print(table(frame, {"kind": "<34", **counts, "seconds": ">8.3f", "MiB": ">6.0f"}))
    total = frame[list(counts)].sum()
    print(
        f"{total.tried:,} mutated files in {seconds:.0f} s: {total.read:,} read, {total.refused:,} refused in one line, "
        f"{total.failed} ended otherwise"
    )
    write_report(args.json, rows, seed=args.seed, seconds=seconds)
    return 1 if total.failed else 0


if __name__ == "__main__":
    console.run_command(main)
