"""Files that appear whole or not at all."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from dropjax.core.errors import InputError


def atomic_write(path: str | Path, writer: Callable[[Path], object]) -> None:
    """What `writer` writes to the path that it is given appears at `path` whole, or not at all.

    On any failure nothing is left: neither the temporary file nor a folder made for it. Raises `InputError` where the path
    cannot be written.
    """
    write_all({Path(path): writer})


def ensure_writable(path: str | Path, folder: bool = False) -> None:
    """Raise `InputError` now if a file (or a folder) at `path` could not be written later; leaves nothing behind."""
    path = Path(path)
    with writing(path):
        if path.exists() and path.is_dir() != folder:
            raise InputError(f"{path}: expected {'a folder' if folder else 'a file'} to write, got the other kind")
        parents = (path, *path.parents) if folder else path.parents
        with tempfile.TemporaryFile(dir=next(p for p in parents if p.exists())):
            pass


def write_all(writers: Mapping[Path, Callable[[Path], object]]) -> None:
    """`atomic_write` for several files or folders: none appears before all are on the disk."""
    temporaries = {path: path.with_name(f".{secrets.token_hex(8)}.tmp") for path in writers}
    some = next(iter(writers))
    with writing(some), _parents(writers):
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
def writing(path: Path) -> Iterator[None]:
    """Turn an error while writing into an `InputError` that names the path."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        got = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: expected a place that can be written, got {got}") from None
