"""Reading archives of `torch.save` without PyTorch: a zip of raw numbers and a small pickle that says what they are.

In the format of PyTorch 1.6 and later (torch/serialization.py, torch/_utils.py) a record `data/<key>` holds the bytes of a
storage. In the pickle `data.pkl`, a tensor is a call of `torch._utils._rebuild_tensor_v2` with the key of a storage, an
offset, sizes and strides. Nothing is unpickled and nothing is ever called: only the few operations that build containers
and tensors are interpreted. Python's own unpickler takes unbounded memory for some pickles and crashes on others.
"""

import itertools
import math
import mmap
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from dropjax.core.errors import InputError

STORAGES = {
    **{"DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16"},
    **{"LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8"},
    **{"ByteStorage": "uint8", "BoolStorage": "bool", "UntypedStorage": "uint8"},
    **{"ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128"},
}
"""PyTorch's names of storages, and the types that they hold."""
NARROW = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
"""Types that ml_dtypes adds to NumPy."""
DTYPES = {name: np.dtype(name) for name in {*STORAGES.values(), "uint16", "uint32", "uint64"} - {"bfloat16"}}
DTYPES |= {name: np.dtype(getattr(ml_dtypes, name)) for name in NARROW}
REBUILT = {"torch._utils._rebuild_tensor_v2": 6, "torch._utils._rebuild_tensor_v3": 7}
"""Functions that make a tensor, and the number of their arguments without the metadata."""
PARAMETERS = {"torch._utils._rebuild_parameter": 3, "torch._utils._rebuild_parameter_with_state": 4}
"""Functions that turn a tensor, their first argument, into a parameter, and the number of their arguments."""
TYPED = "torch._tensor._rebuild_from_type_v2"
"""Functions that make a tensor with attributes from a function, a type, that function's arguments, and the attributes."""
TYPES = {"torch.Tensor", "torch.nn.parameter.Parameter"}
PASSED = {
    *("collections.Counter", "_codecs.encode", "torch.Size", "torch.device"),
    *("builtins.set", "builtins.complex", "__builtin__.set", "__builtin__.complex"),
}
"""Functions in other entries of a checkpoint, such as a scheduler's state. Their results are not needed."""
KNOWN = {"collections.OrderedDict", TYPED, *REBUILT, *PARAMETERS, *TYPES, *PASSED}
GRANTED = re.compile(r"torch(\._utils|\._tensor|\.storage|\.serialization|\.nn\.parameter)?\.\w+")
"""Other names, which are left to PyTorch: with `weights_only=True` it allows some of them."""

LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
"""Operations that push their argument."""
EMPTY: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: Other("set"),
}
"""Operations that push a new value."""
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
"""Operations that make a tuple, and the number of values in it."""

LONGEST = 200
"""The most characters of a name that a pickle may ask for."""
OPERATIONS = 2_000_000
"""The most operations in a pickle. Forty thousand tensors take fewer. One can take a hundred times its own size."""


class NotKnown(Exception):
    """Raised for something that this reader leaves to PyTorch; the message says what it is."""


class Refused(Exception):
    """Raised for something that must not be read as a state dict; the message says what it is."""


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of a state dict. In an archive, its numbers are read when they are used."""

    dtype: str
    """PyTorch's name of its type, such as `bfloat16`."""
    shape: tuple[int, ...]
    values: np.ndarray | None
    """The numbers; None if there are more of them than bytes in the file, or if `form` is not `strided`."""
    form: str = "strided"
    """`strided` for an ordinary dense tensor, else its layout or device."""

    @property
    def is_floating(self) -> bool:
        """Whether it holds floating-point numbers."""
        return self.dtype.startswith(("float", "bfloat"))


class Storage(NamedTuple):
    """The bytes that one or more tensors are views of."""

    data: memoryview
    dtype: np.dtype


class Other(NamedTuple):
    """A placeholder for a value in a pickle that nobody needs, or for a name that the pickle asks for."""

    name: str


def read(path: Path) -> Any:
    """Whatever `torch.save` wrote to the archive: containers of memory-mapped `Tensor`s, and plain values.

    Raises `InputError` if it is damaged or something else, `NotKnown` if only PyTorch can read it.
    """
    with path.open("rb") as file:
        try:
            spans = _spans(file)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            root = next(name for name in spans if name.partition("/")[2] == "data.pkl").partition("/")[0]
            records = {name: memoryview(data)[start:end] for name, (start, end) in spans.items()}
            pickle = Pickle(bytes(records[f"{root}/data.pkl"]), _Storages(records, root), len(data))
            found = pickle.run()
        except Refused as error:
            raise InputError(f"{path}: expected a PyTorch state dict, got {error}") from None
    if pickle.unknown:
        raise NotKnown(pickle.unknown)
    return found


# The archive


def _spans(file: BinaryIO) -> dict[str, tuple[int, int]]:
    """The offsets at which each record of a sound archive begins and ends. Raises `Refused`.

    torch.save does not compress records; compressed or overlapping ones could unpack to any size.
    """
    spans: dict[str, tuple[int, int]] = {}
    try:
        with zipfile.ZipFile(file) as archive:
            infos, stop = sorted(archive.infolist(), key=lambda info: info.header_offset), archive.start_dir
        if what := _other_archive([info.filename for info in infos]):
            raise Refused(what)
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
            raise Refused("a compressed archive")
        for info, after in itertools.zip_longest(infos, infos[1:]):
            start = _start(file, info)
            if info.filename in spans or start + info.file_size > (after.header_offset if after else stop):
                raise Refused("a damaged file (records that overlap)")
            spans[info.filename] = start, start + info.file_size
        if any(info.CRC for info in infos):  # else torch.save was told to compute none
            for info in infos:
                if _checksum(file, *spans[info.filename]) != info.CRC:
                    raise Refused(f"a damaged file (checksum of {info.filename[:40]!r})")
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, OverflowError, struct.error):
        raise Refused("a file cut short or damaged") from None
    return spans


def _start(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """The offset at which a record's bytes begin, after its own header, which must give the same name as the directory."""
    if info.header_offset < 0:  # as where the directory is said to be longer than it is
        raise ValueError
    file.seek(info.header_offset)
    signature, *_, length, extra = struct.unpack("<4s5H3L2H", file.read(30))
    name = file.read(length).decode("utf-8" if info.flag_bits & 0x800 else "cp437")
    if signature != b"PK\x03\x04" or name != info.orig_filename or info.flag_bits & 1:  # bit 0: encrypted
        raise ValueError
    return info.header_offset + 30 + length + extra


def _checksum(file: BinaryIO, start: int, end: int) -> int:
    file.seek(start)
    value, left = 0, end - start
    while left and (part := file.read(min(left, 1 << 20))):
        value, left = zlib.crc32(part, value), left - len(part)
    return value


def _other_archive(names: Sequence[str]) -> str | None:
    """The kind of another archive, by its records; None if torch.save wrote it."""
    inner = {name.partition("/")[2] for name in names}
    if any(name.endswith(".npy") for name in names):
        return "a NumPy archive (.npz)"
    if "constants.pkl" in inner:
        return "a TorchScript archive: save its state_dict() with torch.save"
    if {"archive_format", "serialized_exported_program.json"} & {*inner, *names}:
        return "an exported program (torch.export): save its state_dict with torch.save"
    return None if "data.pkl" in inner else "a zip archive that torch.save did not write"


class _Storages:
    """The storages in an archive, which the pickle refers to by key, type and size."""

    def __init__(self, records: dict[str, memoryview], root: str):
        self.records, self.root = records, root
        order = bytes(records.get(f"{root}/byteorder", b"little"))
        if order not in (b"little", b"big"):
            raise Refused(f"a damaged file (byte order {order[:40]!r})")
        self.swapped = order == b"big"
        self.found: dict[str, Storage] = {}

    def __call__(self, said: Any) -> Storage | Other:
        kind, dtype, key, _, count = said
        if kind != "storage" or type(key) is not str or type(count) is not int:
            raise ValueError("no storage")
        if isinstance(dtype, Other):
            return dtype
        size, record = count * dtype.itemsize, self.records.get(f"{self.root}/data/{key}", memoryview(b""))
        if not 0 <= size <= len(record):
            raise ValueError(f"a storage of {size} bytes in a record of {len(record)}")
        known = self.found.get(key)
        if known is None:
            data = record[:size]
            if self.swapped:
                data = memoryview(np.frombuffer(data, dtype).byteswap().tobytes())
            known = self.found[key] = Storage(data, dtype)
        if known.dtype != dtype or len(known.data) != size:
            raise ValueError("one storage of two kinds")
        return known


# The pickle


class Pickle:
    """An interpreter of the operations in the pickle of a state dict."""

    def __init__(self, data: Any, storage: Callable[[Any], Any], bound: int):
        """`data` is the pickle, or a file positioned at its start; `bound` is the file's size in bytes."""
        self.data, self.storage, self.bound = data, storage, bound
        self.unknown = ""
        """What only PyTorch can read, in words; empty if there is nothing of the kind."""
        self.passed = 0
        """The number of entries that are copied or hashed so far, here or in PyTorch."""

    def run(self) -> Any:
        """The value that the pickle builds. Raises `Refused`."""
        try:
            return self._run()
        except Refused:
            raise
        except EOFError:
            raise Refused("a file cut short") from None
        except Exception as error:  # genops raises whatever its readers do, and the stack may hold anything
            raise Refused(f"a damaged file ({str(error)[:80] or type(error).__name__})") from None

    def _run(self) -> Any:
        stack: list[Any] = []
        outer: list[list[Any]] = []
        memo: dict[Any, Any] = {}
        for number, (operation, value, _) in enumerate(pickletools.genops(self.data)):
            name = operation.name
            if number > OPERATIONS:
                raise Refused(f"a pickle of more than {OPERATIONS:,} operations")
            if name in LITERALS:
                stack.append(value)
            elif name in EMPTY:
                stack.append(EMPTY[name]())
            elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
                memo[len(memo) if value is None else value] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[value])
            elif name in TUPLES:
                stack[-TUPLES[name] :] = [tuple([stack[-k] for k in range(TUPLES[name], 0, -1)])]
            elif name == "MARK":
                outer.append(stack)
                stack = []
            elif name in ("TUPLE", "APPENDS", "SETITEMS"):
                items, stack = stack, outer.pop()
                self._gathered(name, stack, items)
            elif name in ("APPEND", "SETITEM"):
                items = stack[-1 - (name == "SETITEM") :]
                del stack[-len(items) :]
                self._gathered(f"{name}S", stack, items)
            elif name == "GLOBAL":
                stack.append(self._named(str(value).replace(" ", ".", 1)))
            elif name == "STACK_GLOBAL":
                names = stack.pop(-2), stack.pop()
                stack.append(self._named(".".join(names)))
            elif name in ("REDUCE", "NEWOBJ"):
                arguments = stack.pop()
                stack[-1] = self._called(stack[-1], arguments)
            elif name == "BUILD":  # attributes, such as a state dict's versions, hold no numbers
                self._leave(stack.pop())
            elif name == "BINPERSID":
                stack[-1] = self.storage(stack[-1])
            elif name == "STOP":
                return stack.pop()
            elif name not in ("PROTO", "FRAME"):
                raise Refused(f"a pickle that asks for the operation {name}: refused, not run")
        raise EOFError

    def _gathered(self, name: str, stack: list[Any], items: list[Any]) -> None:
        """Put items into a tuple, a list or a dictionary."""
        if name == "TUPLE":
            stack.append(tuple(items))
        elif isinstance(stack[-1], Other):
            self._leave(items)
        elif name == "APPENDS" and type(stack[-1]) is list:
            stack[-1].extend(items)
        elif name == "SETITEMS" and type(stack[-1]) is dict:
            for key, value in zip(items[::2], items[1::2], strict=True):
                self._hashed(key)
                stack[-1][key] = value
        else:
            raise ValueError(f"{name} into {type(stack[-1]).__name__}")

    def _named(self, name: str) -> Any:
        """The stand-in for a name that the pickle asks for."""
        module, _, last = name.rpartition(".")
        if module in ("torch", "torch.storage") and last in STORAGES:
            return DTYPES[STORAGES[last]]
        if module == "torch" and last in DTYPES:
            return DTYPES[last]
        if name in KNOWN:
            return Other(name)
        if len(name) > LONGEST or not GRANTED.fullmatch(name):
            raise Refused(f"a pickle that asks for {name[:80]!r}: refused, not run")
        self.unknown = self.unknown or f"a pickle that asks for {name[:80]!r}"
        return Other(name)

    def _called(self, function: Any, arguments: Any) -> Any:
        """The value that a call would return."""
        if type(function) is not Other or type(arguments) is not tuple:
            raise ValueError("a call of something that is not a function")
        name = function.name
        if name == "collections.OrderedDict" and len(arguments) <= 1:
            return self._ordered(arguments[0] if arguments else [])
        if name in PARAMETERS and len(arguments) == PARAMETERS[name] and type(arguments[0]) in (Tensor, Other):
            return arguments[0]
        if name in REBUILT and 0 <= len(arguments) - REBUILT[name] <= 1:
            if len(arguments) > REBUILT[name] and arguments[-1]:  # PyTorch defers some negations and conjugations
                self.unknown = self.unknown or "a tensor with a pending negation or conjugation"
            storage, offset, sizes, strides = arguments[:4]
            return self._tensor(storage, offset, sizes, strides, arguments[6] if name.endswith("v3") else None)
        if name == TYPED and len(arguments) == 4 and type(arguments[1]) is Other and arguments[1].name in TYPES:
            return self._called(arguments[0], arguments[2])
        if name in KNOWN and name not in PASSED:
            raise ValueError(f"the arguments of {name}")
        self._leave(arguments)
        return Other(name)

    def _ordered(self, pairs: Any) -> dict[Any, Any]:
        """A dictionary from a list of pairs, which is how Python 2 pickled ordered ones."""
        self._pass(pairs)
        made: list[Any] = [{}]
        self._gathered("SETITEMS", made, [part for key, value in pairs for part in (key, value)])
        return made[0]

    def _tensor(self, storage: Any, offset: Any, sizes: Any, strides: Any, dtype: Any) -> Any:
        """A tensor as a view of a storage, after a check that it stays within it."""
        if type(storage) is Other or type(dtype) is Other:
            return Other("tensor")
        dtype = dtype or storage.dtype
        numbers = (offset, *sizes, *strides)
        if len(sizes) != len(strides) or len(sizes) > 64 or any(type(n) is not int or not 0 <= n < 2**63 for n in numbers):
            raise ValueError("sizes and strides that no tensor has")
        shape, count = tuple(sizes), math.prod(sizes)
        reach = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) + 1
        if count == 0:
            return Tensor(dtype.name, shape, np.empty(shape, dtype))
        if reach * dtype.itemsize > len(storage.data):
            raise ValueError(f"a tensor of {reach} numbers in a storage of {len(storage.data)} bytes")
        if count > self.bound:  # the view repeats its storage; a file with these numbers would have at least a byte for each
            return Tensor(dtype.name, shape, None)
        steps = [stride * dtype.itemsize if size > 1 else 0 for size, stride in zip(sizes, strides, strict=True)]
        return Tensor(dtype.name, shape, np.ndarray(shape, dtype, storage.data, offset * dtype.itemsize, steps))

    def _leave(self, given: Any) -> None:
        """Count the entries of a call's arguments. PyTorch copies them: one list used repeatedly could take any memory."""
        for part in given if type(given) is tuple else (given,):
            if type(part) is list:
                for item in part:
                    self._hashed(item)  # as a set's
            self._pass(part)

    def _hashed(self, key: Any) -> None:
        """Refuse a key that is a tuple of tuples, because hashing a deep one crashes Python."""
        if type(key) is tuple:
            if any(type(part) is tuple for part in key):
                raise Refused("a pickle with a tuple of tuples for a key: refused")
            self._pass(key)

    def _pass(self, part: Any) -> None:
        self.passed += len(part) if type(part) in (list, tuple, dict, str, bytes) else 0
        if self.passed > 4 * self.bound + OPERATIONS:
            raise Refused("a pickle that uses the same values again and again: refused")
