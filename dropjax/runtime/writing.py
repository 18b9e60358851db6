"""The one writer of results.

A regular file appears whole or not at all. A device or a pipe is written in place and not replaced. The path `-`, or any
other name of it, is standard output. Links are followed.
"""

import errno
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from dropjax.core.errors import InputError, NotWritten

Content = str | bytes | Callable[[Path], object]
"""The content to write: text, bytes, or a function that writes it to a given path."""

STANDARD_OUTPUT = "-"

LINKS = 40
"""Largest number of links that are followed one after another; a longer chain counts as broken."""


def atomic_write(path: str | Path, content: Content) -> None:
    """Writes the content to `path`. Raises `NotWritten` if that fails.

    Nothing is then left of a regular file: neither the temporary file nor a folder made for it.
    """
    write_all({Path(path): content})


class Results:
    """Writes several results. A failure is recorded in `lost`, and the next result is tried."""

    def __init__(self) -> None:
        self.lost: dict[Path, NotWritten] = {}

    def write(self, path: str | Path, content: Content) -> None:
        """Writes like `atomic_write`; a file that is written after all is no longer in `lost`."""
        self.attempt(path, lambda: atomic_write(path, content))

    def attempt(self, path: str | Path, write: Callable[[], object]) -> None:
        """Calls a function that writes to `path`."""
        self.lost.pop(Path(path), None)
        try:
            write()
        except NotWritten as error:
            self.lost[Path(path)] = error


def is_standard_output(path: str | Path | None) -> bool:
    """Whether what is written to `path` goes where `print` writes."""
    return path is not None and _descriptor(Path(path)) == 1


def ensure_writable(path: str | Path, folder: bool = False) -> None:
    """Raise `InputError` now if a file (or a folder) at `path` could not be written later; leaves nothing behind."""
    path = Path(path)
    with _naming(path, InputError):
        if not folder and _is_written_in_place(path):
            if _descriptor(path) is None and not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        target = _target(path)
        if _descriptor(path) is not None or (target.exists() and target.is_dir() != folder):
            raise InputError(f"{path}: expected {'a folder' if folder else 'a file'} to write, got the other kind")
        parents = (target, *target.parents) if folder else target.parents
        with tempfile.TemporaryFile(dir=next(p for p in parents if p.exists())):
            pass


def write_all(contents: Mapping[Path, Content]) -> None:
    """`atomic_write` for several files or folders: none appears before all are on the disk."""
    in_place = {path: content for path, content in contents.items() if _is_written_in_place(path)}
    for path, content in in_place.items():
        with _naming(path, NotWritten):
            _write_in_place(path, content)
    whole = [path for path in contents if path not in in_place]
    temporaries: dict[Path, tuple[Path, Path]] = {}
    with _parents(whole) as targets:
        try:
            for path, target in targets.items():
                with _naming(path, NotWritten):
                    temporaries[path] = temporary, _ = target.with_name(f".{secrets.token_hex(8)}.tmp"), target
                    _write(temporary, contents[path])
                    for written in (temporary, *temporary.rglob("*")):
                        _sync(written)
            for path, (temporary, target) in temporaries.items():
                with _naming(path, NotWritten):
                    _move(temporary, target)
        except BaseException:
            for temporary, _ in temporaries.values():
                shutil.rmtree(temporary, ignore_errors=True)
                with suppress(OSError):
                    temporary.unlink()
            raise


def _descriptor(path: Path) -> int | None:
    """The number of the open file that a path is another name of, if it is one."""
    if str(path) == STANDARD_OUTPUT:
        return 1
    for _ in range(LINKS):
        path = Path(os.path.abspath(path))  # noqa: PTH100  # without following the links, which are looked at one by one
        if path.parent == Path("/dev") and path.name in ("stdout", "stderr"):
            return 1 if path.name == "stdout" else 2
        if re.fullmatch(rf"/dev/fd|/proc/(self|{os.getpid()})/fd", str(path.parent)) and path.name.isdecimal():
            return int(path.name)
        if not path.is_symlink():
            break
        path = path.parent / path.readlink()
    return None


def _is_written_in_place(path: Path) -> bool:
    """Whether it leads to something that must not be replaced, or cannot be: the folder may be somebody else's."""
    if _descriptor(path) is not None:
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISDIR(mode) and (not stat.S_ISREG(mode) or not os.access(_target(path).parent, os.W_OK))


def _target(path: Path) -> Path:
    """Where the links lead; what they lead to need not be there."""
    with suppress(FileNotFoundError):
        path.stat()  # OSError for links that lead to one another
    return Path(os.path.realpath(path))


def _bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


def _write(path: Path, content: Content) -> None:
    if isinstance(content, str | bytes):
        path.write_bytes(_bytes(content))
    else:
        content(path)


def _write_in_place(path: Path, content: Content) -> None:
    if not isinstance(content, str | bytes):
        with tempfile.TemporaryDirectory() as folder:
            aside = Path(folder) / path.name
            content(aside)
            content = aside.read_bytes()
    data = _bytes(content)
    number = _descriptor(path)
    if number == 1:
        if sys.stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        sys.stdout.flush()
        if (buffer := getattr(sys.stdout, "buffer", None)) is not None:
            buffer.write(data)
        else:  # a notebook's
            sys.stdout.write(data.decode())
        sys.stdout.flush()
        return
    with path.open("wb") if number is None else open(number, "wb", closefd=False) as file:
        file.write(data)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _move(temporary: Path, target: Path) -> None:
    try:
        temporary.replace(target)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        shutil.copyfile(temporary, target)  # a file that is mounted by itself, as into a container
        temporary.unlink()


@contextmanager
def _parents(paths: Sequence[Path]) -> Iterator[dict[Path, Path]]:
    """Where each path leads, its folder made where it was missing; on failure these are removed again."""
    missing: list[Path] = []
    try:
        targets = {}
        for path in paths:
            with _naming(path, NotWritten):
                targets[path] = target = _target(path)
                missing += [folder for folder in target.parents if not folder.exists()]
                target.parent.mkdir(parents=True, exist_ok=True)
        yield targets
    except BaseException:
        for folder in sorted(missing, reverse=True):
            with suppress(OSError):
                folder.rmdir()
        raise


@contextmanager
def _naming(path: Path, kind: type[InputError]) -> Iterator[None]:
    """Turn an error while writing into one that names the path."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        got = getattr(error, "strerror", None) or error
        raise kind(f"{path}: expected a place that can be written, got {got}") from None
