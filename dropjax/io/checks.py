"""Helpers for reading files: an error of the system becomes one line that names the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dropjax.core.errors import InputError


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the path before messages of the puzzle's checks that do not name it yet."""
    try:
        yield
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(str(path)) else f"{path}: {message}") from None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an error of the file system into an `InputError` that names the path."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{error.filename or path}: expected a file that can be read, got {error.strerror or error}"
        ) from None
