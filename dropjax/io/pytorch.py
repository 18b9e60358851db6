"""PyTorch piece files to arrays and back. The only module that imports torch, and only when called."""

import io
import mmap
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from dropjax.core.errors import InputError

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which checkpoints keep the state dict."""
STARTS = (b"PK\x03\x04", b"\x80")
"""torch.save's archives, and its older bare pickles."""


LONGEST = 200
"""Characters of a name that a pickle may ask for."""


def _torch() -> ModuleType:
    try:
        import torch
    except ImportError:
        raise InputError(".pth files: expected PyTorch to read them, got none: pip install 'dropjax[convert]'") from None
    return torch


def load_pth(path: str | Path, mapped: bool = False) -> Any:
    """Whatever `torch.save` wrote to the file, its tensors on the CPU (with `mapped`, an archive's are not read yet).

    Nothing in the file is ever run: it is unpickled with `weights_only=True` and no other way. Raises `InputError`.
    """
    path, torch = Path(path), _torch()
    try:
        if not path.is_file() and path.exists():  # opening a pipe would wait for ever
            raise InputError(f"{path}: expected a PyTorch state dict, got no ordinary file")
        with path.open("rb") as file:
            head = file.read(512)
        archive = head.startswith(b"PK")
        what = not_data(head) or (None if head.startswith(STARTS) else f"a file that begins with {head[:12]!r}")
        if what := what or (_bad_archive(path) if archive else _bad_file(path)):
            raise InputError(f"{path}: expected a PyTorch state dict, got {what}")
        with warnings.catch_warnings():  # of tensor types that are refused elsewhere
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and archive)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: expected a file that can be read, got {error.strerror or error}") from None
    except Exception as error:  # torch raises whatever its parsers do
        raise InputError(f"{path}: expected a PyTorch state dict, got {_trouble(error)}") from None


def unwrapped(data: Any) -> Any:
    """The state dict in a checkpoint that keeps it under one of `WRAPPERS`."""
    for _ in WRAPPERS:
        inner = [k for k in WRAPPERS if isinstance(data, Mapping) and isinstance(data.get(k), Mapping)]
        data = data[inner[0]] if inner else data
    return data


def read_pth(path: str | Path) -> tuple[Float32[np.ndarray, "..."], Float32[np.ndarray, "..."] | None, str | None]:
    """The weight, the bias or None, whatever their shapes, and a note on what was cast or None, of one layer's state dict.

    Nothing in the file is ever run: it is unpickled with `weights_only=True` and no other way. Raises `InputError`.
    """
    path = Path(path)
    data, size = load_pth(path), path.stat().st_size
    weight, bias = _layer(path, data)
    arrays = {}
    for name, tensor in (("weight", weight), ("bias", bias)):
        try:
            arrays[name] = None if tensor is None else _array(f"{path}: {name}", tensor, size)
        except (RuntimeError, NotImplementedError) as error:
            raise InputError(f"{path}: {name}: expected an ordinary tensor, got {_trouble(error)}") from None
    dtypes = sorted({_dtype(tensor) for tensor in (weight, bias) if tensor is not None} - {"float32"})
    return arrays["weight"], arrays["bias"], f"cast from {' and '.join(dtypes)} to float32" if dtypes else None


def write_pth(path: str | Path, weight: Float32[np.ndarray, "out in"], bias: Float32[np.ndarray, " out"] | None) -> None:
    """A linear layer's state dict, as `torch.save` writes it. Raises `InputError` where PyTorch is missing."""
    torch = _torch()
    state = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    torch.save({name: torch.from_numpy(np.array(a, np.float32, order="C")) for name, a in state.items()}, path)


def not_data(head: bytes) -> str | None:
    """What people find in place of a file, by its first bytes; None where it may be the file itself."""
    if not head:
        return "an empty file"
    if head.startswith(b"version https://git-lfs"):
        return "a Git-LFS pointer: fetch the file itself with `git lfs pull`"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "an HTML page, probably a download's error message"
    return None


def _bad_archive(path: Path) -> str | None:
    """Whether it is cut, damaged, or compressed: torch.save stores records as they are; others could unpack to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                return "a compressed archive"
            if sum(record.file_size for record in records) > path.stat().st_size:  # one record's bytes under many names
                return "a damaged file (records that overlap)"
            if damaged := archive.testzip():
                return f"a damaged file (checksum of {damaged[:40]!r})"
            pickles = [archive.read(record) for record in records if record.filename.endswith(".pkl")]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError, OverflowError, struct.error):
        return "a file cut short or damaged"
    return next(filter(None, map(_bad_pickle, map(io.BytesIO, pickles))), None)


def _bad_file(path: Path) -> str | None:
    """The same of an older file, which is five pickles and then the numbers."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for _ in range(5):
            if data.tell() < len(data) and (bad := _bad_pickle(data)):
                return bad
    return None


def _bad_pickle(file: Any) -> str | None:
    """What is wrong with the pickle at hand, or what it asks for that PyTorch grants and no state dict needs.

    That is a bytearray of any size, filled; or a name so long that what PyTorch says of it takes the square of its length.
    """
    try:
        for operation, name, _ in pickletools.genops(file):
            if operation.name == "GLOBAL" and (str(name).endswith("bytearray") or len(str(name)) > LONGEST):
                return f"a pickle that asks for {str(name)[:40]!r}: refused, not run"
    except Exception as error:  # whatever its operations' readers raise
        return f"a damaged file ({str(error)[:80]})"
    return None


def _trouble(error: Exception) -> str:
    """torch's pages of advice, in a few words."""
    text = re.sub(r"\x1b\[\d*m", "", str(error))
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return f"a pickle that asks for {found[1][:80]}: refused, not run"
    if isinstance(error, EOFError):
        return "a file cut short"
    if "TorchScript" in text:
        return "a TorchScript archive"
    first = re.split(r"(?<=\w)[.\n]\s", text)[-1 if text.startswith("Weights only") else 0].strip()
    return f"a damaged file ({first[:80] or type(error).__name__})"


def _layer(path: Path, data: Any) -> tuple[Any, Any]:
    """The one weight and its bias, under whatever prefix, in whatever wrapping."""
    torch, data = _torch(), unwrapped(data)
    if not isinstance(data, Mapping):
        raise InputError(f"{path}: expected a state dict with weight and bias, got {_kind(data)}")
    tensors = {name: value for name, value in data.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}
    weights, biases = ([name for name in tensors if name.rpartition(".")[2] == kind] for kind in ("weight", "bias"))
    if len(weights) != 1:
        got = ", ".join(repr(key)[:40] for key in list(data)[:4]) + (", …" if len(data) > 4 else "")
        raise InputError(f"{path}: expected one weight tensor, got {len(weights) or 'none'} (keys: {got or 'none'})")
    prefix = weights[0].removesuffix("weight")
    if biases not in ([], [prefix + "bias"]):
        other = next(name for name in biases if name != prefix + "bias")
        raise InputError(f"{path}: expected one bias, {(prefix + 'bias')[-40:]!r}, got {other[-40:]!r}")
    return tensors[weights[0]], tensors.get(prefix + "bias")


def _array(field: str, tensor: Any, file_size: int) -> NDArray[np.float32]:
    """The tensor as float32, in memory of its own."""
    torch = _torch()
    if tensor.is_quantized or not tensor.is_floating_point():
        raise InputError(f"{field}: expected floating-point numbers, got {_dtype(tensor)}")
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.device.type != "cpu":
        where = "" if tensor.device.type == "cpu" else f" on {tensor.device.type}"
        raise InputError(
            f"{field}: expected an ordinary dense tensor, got {str(tensor.layout).removeprefix('torch.')}{where}"
        )
    if tensor.numel() > file_size:  # a view that repeats its storage: a byte for each number is the least there can be
        raise InputError(f"{field}: expected at most {file_size} numbers, as the file has bytes, got {list(tensor.shape)}")
    return np.array(tensor.detach().to(torch.float32).resolve_neg().numpy(), order="C")


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
