"""The machine's resources: devices, the memory bound, and the cache of compiled programs."""

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, Token, copy_context
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import jax

from dropjax.core.errors import InputError
from dropjax.runtime import mesh, settings

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

A = TypeVar("A")
B = TypeVar("B")

PRECISION = "float32, highest"
"""Precision of every matrix product that decides anything."""


def cache_folder() -> Path | None:
    """The folder of compiled programs: $DROPJAX_CACHE_DIR, or one in the user's cache; None for a user without a home."""
    if own := os.environ.get("DROPJAX_CACHE_DIR"):
        return Path(own)
    if base := os.environ.get({"win32": "LOCALAPPDATA", "darwin": ""}.get(sys.platform, "XDG_CACHE_HOME")):
        return Path(base) / "dropjax"
    try:
        home = Path.home()
    except RuntimeError:  # neither $HOME nor the system's list of users gives a home
        return None
    return home / {"win32": "AppData/Local", "darwin": "Library/Caches"}.get(sys.platform, ".cache") / "dropjax"


def configure(platform: str | None = None, cache: bool = True, alone: bool = True) -> None:
    """Settings of a whole process, for the command lines; a program that imports dropjax keeps its own.

    Raises `InputError` as `ensure_usable`, unless the process is not `alone`: others have to be joined before JAX begins.
    """
    for name, value in settings.others().items():
        jax.config.update(f"jax_{name}", value)
    if platform is not None:
        jax.config.update("jax_platforms", _vendor() if platform == "gpu" else platform)
    folder = cache_folder() if cache else None
    jax.config.update("jax_compilation_cache_dir", None if folder is None else str(folder))
    if folder is not None:
        # Most kernels here are small, so none is too small or too quick to keep.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if alone:
        ensure_usable()


def _vendor() -> str:
    """JAX's name for this machine's GPUs, by the installed plugin: "gpu" would ask JAX for every vendor's."""
    return "rocm" if any("rocm" in plugin.name for plugin in entry_points(group="jax_plugins")) else "cuda"


def ensure_usable() -> None:
    """Raises `InputError` if JAX cannot use the platform that was chosen."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where a vendor's plugin is not installed
        platforms, why = jax.config.values["jax_platforms"], str(error) or "no plugin for it"
        where = "JAX_PLATFORMS" if platforms == os.environ.get("JAX_PLATFORMS") else "--platform"
        raise InputError(f"{where}: expected one that JAX can use here, got {platforms}: {why}") from None


def describe() -> str:
    """The default device in words."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return f"{device.device_kind} (cpu, {os.cpu_count()} threads)"
    count = len(jax.devices())
    return f"{device.device_kind} ({device.platform}, {count} device{'s' if count > 1 else ''})"


def scored_together(most: int) -> int:
    """How many candidates one batched product should take, at most `most`.

    A CPU runs one candidate's rows faster than a batch of products; an accelerator needs the batch to be busy, and so do
    several devices that candidates are spread over.
    """
    spread_over = mesh.size(mesh.ORDERS)
    return max(1, spread_over) if jax.default_backend() == "cpu" else -(-most // spread_over) * spread_over


CORE_ROWS = 640
"""Rows of a product that one core runs by itself, out of its own cache: sharing a product between cores costs them time."""


_SHARE: ContextVar[int | None] = ContextVar("cores for this solve", default=None)


def leave_cores(cores: int) -> Token[int | None]:
    """From now on `workers` returns at most this number in this thread, because other solves use the other cores."""
    return _SHARE.set(cores)


@contextmanager
def share_of_cores(cores: int) -> Iterator[None]:
    """`leave_cores` within this context."""
    token = leave_cores(cores)
    try:
        yield
    finally:
        _SHARE.reset(token)


def workers() -> int:
    """How many candidates, or puzzles, should be run at the same time: one for each core of a CPU, or for each core that is
    left to this solve.

    Programs that are spread over devices wait for one another, and so must not run at the same time.
    """
    cores = (os.cpu_count() or 1) if jax.default_backend() == "cpu" and not mesh.is_set() else 1
    return min(cores, _SHARE.get() or cores)


def side_by_side(call: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """Applies `call` to each item in `workers` threads and waits for the arrays of each result."""
    if workers() == 1:
        return [call(item) for item in items]

    def computed(item: A) -> B:
        with settings.own_settings():  # each thread has settings of its own
            return jax.block_until_ready(call(item))

    with ThreadPoolExecutor(workers()) as pool:
        under_way = [pool.submit(copy_context().run, computed, item) for item in items]
        return [future.result() for future in under_way]


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Within this context NumPy's and SciPy's linear algebra stays on one thread: others would go on spinning for a tenth
    of a second, and keep XLA's from working. It is for systems that are too small to gain by threads."""
    with _BLAS, _blas().limit(limits=1, user_api="blas"):
        yield


_BLAS = threading.Lock()
"""The number of threads is the process's: whoever changes it has to be alone."""


@cache
def _blas() -> "ThreadpoolController":
    from threadpoolctl import ThreadpoolController  # which not every solve needs

    return ThreadpoolController()
