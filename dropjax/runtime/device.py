"""What the machine offers: devices, the memory bound, and the cache of compiled programs."""

import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import entry_points
from pathlib import Path
from typing import TypeVar

import jax

from dropjax.core.errors import InputError
from dropjax.runtime import mesh

A = TypeVar("A")
B = TypeVar("B")

PRECISION = "float32, highest"
"""What every matrix product that decides anything runs at."""


def cache_folder() -> Path:
    """Where compiled programs are kept: $DROPJAX_CACHE_DIR, or a folder of the user's own cache."""
    if own := os.environ.get("DROPJAX_CACHE_DIR"):
        return Path(own)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "dropjax"


def configure(platform: str | None = None, cache: bool = True) -> None:
    """Settings of a whole process, for the command lines; a program that imports dropjax keeps its own."""
    if platform is not None:
        jax.config.update("jax_platforms", _vendor() if platform == "gpu" else platform)
    if cache:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
        # Small kernels are most of what is compiled here, so none is too small or too quick to keep.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _vendor() -> str:
    """JAX's name for this machine's GPUs, by the installed plugin: "gpu" would ask JAX for every vendor's."""
    return "rocm" if any("rocm" in plugin.name for plugin in entry_points(group="jax_plugins")) else "cuda"


def ensure_usable() -> None:
    """Raises InputError where JAX cannot use the platform it was told to; after any joining of other processes."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where a vendor's plugin is not installed
        platforms, why = jax.config.values["jax_platforms"], str(error) or "no plugin for it"
        raise InputError(f"--platform: expected one that JAX can use here, got {platforms}: {why}") from None


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


def workers() -> int:
    """How many candidates, or puzzles, should be run at the same time: as many as a CPU has cores.

    Programs that are spread over devices wait for one another, and so must not run at the same time.
    """
    return (os.cpu_count() or 1) if jax.default_backend() == "cpu" and not mesh.is_set() else 1


def side_by_side(call: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """`call` of each item, its arrays computed, in threads: `workers` of them at the same time."""
    if workers() == 1:
        return [call(item) for item in items]
    with ThreadPoolExecutor(workers()) as pool:
        return list(pool.map(lambda item: jax.block_until_ready(call(item)), items))
