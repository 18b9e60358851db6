"""PyTorch piece files to arrays and back. The only module that imports torch, and only when called."""

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from dropjax.puzzle import InputError

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which checkpoints keep the state dict."""
STARTS = (b"PK\x03\x04", b"\x80")
"""torch.save's archives, and its older bare pickles."""


def _torch() -> ModuleType:
    try:
        import torch
    except ImportError:
        raise InputError(".pth files: expected PyTorch to read them, got none: pip install 'dropjax[convert]'") from None
    return torch


def read_pth(
    path: str | Path,
) -> tuple[Float32[np.ndarray, "out in"], Float32[np.ndarray, " out"] | None, str | None]:
    """The weight, the bias or None, and a note on what was cast or None, of one linear layer's state dict.

    Nothing in the file is ever run: it is unpickled with `weights_only=True` and no other way. Raises `InputError`.
    """
    path, torch = Path(path), _torch()
    try:
        if not path.is_file() and path.exists():  # opening a pipe would wait for ever
            raise InputError(f"{path}: expected a PyTorch state dict, got no ordinary file")
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
        what = _not_torch(head) or (_bad_archive(path) if head.startswith(b"PK") else None)
        if what:
            raise InputError(f"{path}: expected a PyTorch state dict, got {what}")
        with warnings.catch_warnings():  # of tensor types that are refused below
            warnings.simplefilter("ignore")
            data = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: expected a file that can be read, got {error.strerror or error}") from None
    except Exception as error:  # torch raises whatever its parsers do
        raise InputError(f"{path}: expected a PyTorch state dict, got {_trouble(error)}") from None

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
    """A linear layer's state dict, as `torch.save` writes it."""
    torch = _torch()
    state = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    torch.save({name: torch.from_numpy(np.array(a, np.float32, order="C")) for name, a in state.items()}, path)


def _not_torch(head: bytes) -> str | None:
    """What people find in place of a piece, by its first bytes."""
    if not head:
        return "an empty file"
    if head.startswith(b"version https://git-lfs"):
        return "a Git-LFS pointer: fetch the file itself with `git lfs pull`"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "an HTML page, probably a download's error message"
    return None if head.startswith(STARTS) else f"a file that begins with {head[:12]!r}"


def _bad_archive(path: Path) -> str | None:
    """Whether it is cut, damaged, or compressed: torch.save stores records as they are; others could unpack to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                return "a compressed archive"
            damaged = archive.testzip()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError):
        return "a file cut short or damaged"
    return f"a damaged file (checksum of {damaged[:40]!r})" if damaged else None


def _trouble(error: Exception) -> str:
    """torch's pages of advice, in a few words."""
    text = re.sub(r"\x1b\[\d*m", "", str(error))
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return f"a pickle that asks for {found[1]}: refused, not run"
    if isinstance(error, EOFError):
        return "a file cut short"
    if "TorchScript" in text:
        return "a TorchScript archive"
    first = re.split(r"(?<=\w)[.\n]\s", text)[-1 if text.startswith("Weights only") else 0].strip()
    return f"a damaged file ({first[:80] or type(error).__name__})"


def _layer(path: Path, data: Any) -> tuple[Any, Any]:
    """The one weight and its bias, under whatever prefix, in whatever wrapping."""
    torch = _torch()
    for _ in WRAPPERS:
        inner = [k for k in WRAPPERS if isinstance(data, Mapping) and isinstance(data.get(k), Mapping)]
        data = data[inner[0]] if inner else data
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
