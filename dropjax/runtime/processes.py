"""Processes that solve puzzles side by side, each on a core of its own."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from typing import Any

import jax

from dropjax.runtime.device import leave_cores

KEPT = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)
"""The settings by which a process keeps compiled programs."""


def process_pool(processes: int | None = None) -> ProcessPoolExecutor:
    """An executor for `solve_many`: one process for each core that this one may use, or as many as are asked for.

    Threads of one process take turns at all that is done in Python; processes do not. They solve on the CPU, on one core
    each (where the system binds processes to cores, as Linux does), and keep compiled programs where this process does. They
    are started anew and import the main module: a script needs `if __name__ == "__main__":` around what it runs. Raises
    ValueError unless `processes` is from 1 to the number of cores.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    count = len(cores) if processes is None else processes
    if not 1 <= count <= len(cores):
        raise ValueError(f"processes: expected 1 to {len(cores)}, got {processes}")
    context = get_context("spawn")  # JAX has threads: no fork
    free = context.SimpleQueue()
    for core in cores[:count]:
        free.put(core)
    kept = {name: jax.config.values[name] for name in KEPT}
    return ProcessPoolExecutor(count, context, _begin, (free, kept))


def _begin(free: SimpleQueue, kept: dict[str, Any]) -> None:
    """Take one of the free cores, before JAX counts them."""
    core = free.get()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    leave_cores(1)
    for name, value in {**kept, "jax_platforms": "cpu"}.items():
        jax.config.update(name, value)
