"""The journal of a search: the results of its calls in a file, from which an ended search can go on.

A search is a tree of calls, each of which gives the same result whenever it is made. The journal holds the results of the
calls that have ended, level by level along the call under way. A search that starts again with the journal makes only the
other calls. The files hold arrays and text, nothing that is ever run.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dropjax.core.errors import InputError, NotWritten
from dropjax.runtime import mesh
from dropjax.runtime.writing import atomic_write

T = TypeVar("T")


FORMAT = "dropjax checkpoint 1"


Levels = list[list[list[np.ndarray]]]
"""The leaves of the results of each level's calls: first the search's own calls, then those within its call under way, …"""


class Journal:
    """A search's results in a file, which is written whole, at most once in `every` seconds and when the search ends."""

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, str],
        resume: bool = False,
        every: float = 1.0,
        lost: Callable[[NotWritten], object] = lambda error: None,
    ) -> None:
        """Opens a journal at `path`; `identity` holds everything the results depend on, by name and as text.

        With `resume` the search goes on with the results in the file; raises `InputError` if they belong to another search.
        If the file cannot be written, for example on a full disk, the search goes on and `lost` is called once.
        """
        if path.exists() and not resume:
            raise InputError(f"{path}: expected no file, or --resume to go on with it, got one that is there")
        self.path, self.identity, self.every = path, dict(identity), every
        self.levels: Levels = read_checkpoint(path, identity) if resume else [[]]
        self._places = [0]
        self._ended = False
        self._written = time.monotonic()
        self._lost, self._told = lost, False
        self.error: NotWritten | None = None
        """The error because of which the file is not up to date; None if it is."""

    def call(self, function: Callable[[], T], like: T, stopped: Callable[[], object]) -> T:
        """Returns the result of `function()`, from the journal if it was called before.

        Calls may be made within `function`; they are kept until it ends. `like` has the result's structure and shapes. Once
        `stopped()` returns true, for example when time is up, the call under way was cut short: neither its result nor any
        later one is kept.
        """
        if self._ended:
            return function()
        level, place = len(self._places) - 1, self._places[-1]
        if place < len(self.levels[level]):
            result = self._restored(self.levels[level][place], like)
        else:
            self._places.append(0)
            if len(self.levels) == level + 1:
                self.levels.append([])
            result = function()
            self._places.pop()
            self._ended = self._ended or bool(stopped())
            if self._ended:
                return result
            del self.levels[level + 1 :]
            self.levels[level].append([np.array(leaf, order="C") for leaf in jax.tree.leaves(result)])
            if time.monotonic() - self._written >= self.every:
                self.write()
        self._places[-1] += 1
        return result

    def write(self) -> None:
        """Brings the file up to date; only the first process writes. If writing fails, the previous file stays."""
        self.error = None
        if mesh.is_first():
            try:
                atomic_write(self.path, lambda path: write_checkpoint(path, self.levels, self.identity))
            except NotWritten as error:
                self.error = error
                if not self._told:
                    self._lost(error)
                self._told = True
        self._written = time.monotonic()

    def _restored(self, leaves: list[np.ndarray], like: T) -> T:
        expected, structure = jax.tree.flatten(like)
        if [leaf.shape for leaf in leaves] != [np.shape(leaf) for leaf in expected]:
            raise InputError(f"{self.path}: expected results of this search's shapes, got others")
        plain = (type(as_) in (int, float) for as_ in expected)
        return jax.tree.unflatten(structure, [leaf.item() if p else leaf for leaf, p in zip(leaves, plain, strict=True)])


def write_checkpoint(path: Path, levels: Levels, identity: Mapping[str, str]) -> None:
    """One tensor for each leaf, named level/call/leaf; `digest` stands for them all."""
    counts = [[len(leaves) for leaves in level] for level in levels]
    named = _named(levels)
    meta = {"format": FORMAT, "identity": json.dumps(dict(identity)), "counts": json.dumps(counts), "digest": digest(levels)}
    save_file(named, path, metadata=meta)


def read_checkpoint(path: Path, identity: Mapping[str, str]) -> Levels:
    """Reads what `write_checkpoint` wrote. Raises `InputError` if the file is damaged, of another kind or of another
    search."""
    sound, theirs, levels = False, {}, []
    try:
        with safe_open(path, "numpy") as file:
            meta = file.metadata() or {}
            theirs, counts = json.loads(meta["identity"]), json.loads(meta["counts"])
            levels = [
                [[file.get_tensor(f"{level}/{call}/{leaf}") for leaf in range(count)] for call, count in enumerate(calls)]
                for level, calls in enumerate(counts)
            ]
            sound = meta["format"] == FORMAT and meta["digest"] == digest(levels) and len(levels) > 0
            theirs = {name: str(theirs.get(name)) for name in identity}
    except FileNotFoundError:
        raise InputError(f"{path}: expected a checkpoint to go on with, got nothing there") from None
    except (SafetensorError, OSError, LookupError, AttributeError, TypeError, ValueError, RecursionError):
        pass
    if not sound:
        raise InputError(f"{path}: expected a checkpoint to go on with, got another file or a damaged one")
    for name, expected in identity.items():
        if theirs[name] != expected:
            raise InputError(f"{path}: {name}: expected {expected[:80]}, got {theirs[name][:80]}")
    return levels


def digest(levels: Levels) -> str:
    """SHA-256 over every result and its place."""
    found = hashlib.sha256()
    for name, leaf in _named(levels).items():
        found.update(f"{name} {leaf.dtype} {leaf.shape} ".encode() + leaf.tobytes())
    return found.hexdigest()


def _named(levels: Levels) -> dict[str, np.ndarray]:
    return {
        f"{level}/{call}/{leaf}": array
        for level, calls in enumerate(levels)
        for call, leaves in enumerate(calls)
        for leaf, array in enumerate(leaves)
    }
