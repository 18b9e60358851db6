"""PyTorch piece files as arrays, and back. Only this module imports torch, and only for what `pth` leaves to it."""

import mmap
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from dropjax.core.errors import InputError
from dropjax.io import pth
from dropjax.io.pth import Tensor

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which checkpoints store the state dict."""
OLDER = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The number, pickled, that begins every file from torch.save before PyTorch 1.6 (torch/serialization.py)."""


def _torch(purpose: str) -> ModuleType:
    try:
        import torch
    except ImportError:
        raise InputError(f"{purpose}, got none: pip install 'dropjax[convert]'") from None
    return torch


def load_pth(path: str | Path) -> Any:
    """Whatever `torch.save` wrote to the file, its tensors as `Tensor`s; those of an archive are memory-mapped.

    No code in the file is ever run. `pth` reads archives. PyTorch, with `weights_only=True`, reads what `pth` does not know
    and the format before PyTorch 1.6. Raises `InputError`, also if PyTorch is needed and not installed.
    """
    path = Path(path)
    try:
        if not path.is_file() and path.exists():  # opening a pipe would wait forever
            raise InputError(f"{path}: expected a PyTorch state dict, got no ordinary file")
        with path.open("rb") as file:
            head = file.read(512)
        if what := not_data(head) or _other_file(head):
            raise InputError(f"{path}: expected a PyTorch state dict, got {what}")
        if head.startswith(b"PK\x03\x04"):
            return pth.read(path)
        _check_older(path)
        unknown, archive = "the format before PyTorch 1.6", False
    except pth.NotKnown as error:
        unknown, archive = str(error), True
    except OSError as error:
        raise InputError(f"{path}: expected a file that can be read, got {error.strerror or error}") from None
    return _by_pytorch(path, unknown, archive)


def _by_pytorch(path: Path, unknown: str, archive: bool) -> Any:
    """PyTorch's reading of a file that has passed the checks of `pth` but has something `unknown` in it."""
    torch = _torch(f"{path}: expected PyTorch to read {unknown}")
    try:
        with warnings.catch_warnings():  # about types of tensors that are refused elsewhere
            warnings.simplefilter("ignore")
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
            return _adopted(torch, data, path.stat().st_size)
    except Exception as error:  # torch raises whatever its parsers do
        raise InputError(f"{path}: expected a PyTorch state dict, got {_trouble(error)}") from None


def _adopted(torch: ModuleType, data: Any, bound: int) -> Any:
    """The value that PyTorch read, with a `Tensor` for each of its tensors."""
    whole = {"": data}
    found, seen = [whole], set()
    while found:
        mapping = found.pop()
        for key, value in mapping.items():
            if isinstance(value, torch.Tensor):
                mapping[key] = _tensor(torch, value, bound)
            elif isinstance(value, dict) and id(value) not in seen:
                seen.add(id(value))
                found.append(value)
    return whole[""]


def _tensor(torch: ModuleType, tensor: Any, bound: int) -> Tensor:
    """PyTorch's tensor as a `Tensor`, without its numbers if there are more than `bound`."""
    dtype, layout = (str(value).removeprefix("torch.") for value in (tensor.dtype, tensor.layout))
    device = "" if tensor.device.type == "cpu" else f" on {tensor.device.type}"
    if tensor.is_nested:
        return Tensor(dtype, (), None, "a nested one")
    found = Tensor(dtype, tuple(tensor.shape), None, layout + device)
    if dtype not in pth.DTYPES or found.form != "strided" or tensor.numel() > bound:
        return found
    values = tensor.detach().resolve_conj().resolve_neg()
    if dtype in pth.NARROW:  # PyTorch does not convert these to NumPy
        values = values.view(torch.uint8 if values.element_size() == 1 else torch.int16)
    return replace(found, values=values.numpy().view(pth.DTYPES[dtype]))


def unwrapped(data: Any) -> Any:
    """The state dict in a checkpoint that stores it under one of `WRAPPERS`."""
    for _ in WRAPPERS:
        inner = [k for k in WRAPPERS if isinstance(data, Mapping) and isinstance(data.get(k), Mapping)]
        data = data[inner[0]] if inner else data
    return data


def read_pth(path: str | Path) -> tuple[Float32[np.ndarray, "..."], Float32[np.ndarray, "..."] | None, str | None]:
    """The weight, the bias (or None) and a note about casts (or None) of the state dict of one layer, whatever the shapes.

    No code in the file is ever run. Raises `InputError`.
    """
    path = Path(path)
    weight, bias = _layer(path, load_pth(path))
    weights = _array(f"{path}: weight", weight, path)
    biases = None if bias is None else _array(f"{path}: bias", bias, path)
    dtypes = sorted({tensor.dtype for tensor in (weight, bias) if tensor is not None} - {"float32"})
    return weights, biases, f"cast from {' and '.join(dtypes)} to float32" if dtypes else None


def write_pth(path: str | Path, weight: Float32[np.ndarray, "out in"], bias: Float32[np.ndarray, " out"] | None) -> None:
    """The bytes that `torch.save` writes for the state dict of a linear layer. Raises `InputError` if PyTorch is missing."""
    torch = _torch(f"{path}: expected PyTorch to write .pth files")
    state = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    torch.save({name: torch.from_numpy(np.array(a, np.float32, order="C")) for name, a in state.items()}, path)


def not_data(head: bytes) -> str | None:
    """What a file turns out to be instead of data, by its first bytes; None if it may be data."""
    if not head:
        return "an empty file"
    if head.startswith(b"version https://git-lfs"):
        return "a Git-LFS pointer: fetch the file itself with `git lfs pull`"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "an HTML page, probably a download's error message"
    if head.startswith(b"\x93NUMPY"):
        return "a NumPy array (.npy)"
    return "an HDF5 file" if head.startswith(b"\x89HDF\r\n") else None


def _other_file(head: bytes) -> str | None:
    """What a file named .pth turns out to be, by its first bytes; None if torch.save may have written it."""
    if head.startswith(b"PK\x03\x04") or (head.startswith(b"\x80") and OLDER in head[:32]):
        return None
    if head[8:10] in (b'{"', b"{}"):
        return "a safetensors file: name it .safetensors"
    return "a pickle that torch.save did not write" if head.startswith(b"\x80") else f"a file that begins with {head[:12]!r}"


def _check_older(path: Path) -> None:
    """Refuse a file of the format before PyTorch 1.6 (five pickles and then the numbers) whose pickles ask for too much."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for _ in range(5):
            try:
                pth.Pickle(data, lambda _: pth.Other("storage"), len(data)).run()
            except pth.Refused as error:
                raise InputError(f"{path}: expected a PyTorch state dict, got {error}") from None


def _trouble(error: Exception) -> str:
    """PyTorch's long error message in a few words."""
    text = re.sub(r"\x1b\[\d*m", "", str(error))
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return f"a pickle that asks for {found[1][:80]!r}: refused, not run"
    if isinstance(error, EOFError):
        return "a file cut short"
    first = re.split(r"(?<=\w)[.\n]\s", text)[-1 if text.startswith("Weights only") else 0].strip()
    return f"a damaged file ({first[:80] or type(error).__name__})"


def _layer(path: Path, data: Any) -> tuple[Tensor, Tensor | None]:
    """The only weight and its bias, whatever their prefix and the keys around them."""
    data = unwrapped(data)
    if not isinstance(data, Mapping):
        raise InputError(f"{path}: expected a state dict with weight and bias, got {_kind(data)}")
    tensors = {name: value for name, value in data.items() if isinstance(name, str) and isinstance(value, Tensor)}
    weights, biases = ([name for name in tensors if name.rpartition(".")[2] == kind] for kind in ("weight", "bias"))
    if len(weights) != 1:
        got = ", ".join(repr(key)[:40] for key in list(data)[:4]) + (", …" if len(data) > 4 else "")
        raise InputError(f"{path}: expected one weight tensor, got {len(weights) or 'none'} (keys: {got or 'none'})")
    prefix = weights[0].removesuffix("weight")
    if biases not in ([], [prefix + "bias"]):
        other = next(name for name in biases if name != prefix + "bias")
        raise InputError(f"{path}: expected one bias, {(prefix + 'bias')[-40:]!r}, got {other[-40:]!r}")
    return tensors[weights[0]], tensors.get(prefix + "bias")


def _array(field: str, tensor: Tensor, path: Path) -> NDArray[np.float32]:
    """The tensor as float32, copied into its own memory."""
    if not tensor.is_floating:
        raise InputError(f"{field}: expected floating-point numbers, got {tensor.dtype}")
    if tensor.form != "strided":
        raise InputError(f"{field}: expected an ordinary dense tensor, got {tensor.form}")
    if tensor.values is None:
        size = path.stat().st_size
        raise InputError(f"{field}: expected at most {size} numbers, the file's bytes, got {list(tensor.shape)}")
    with np.errstate(over="ignore"):
        return np.array(tensor.values, np.float32, order="C")


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
