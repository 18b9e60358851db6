"""Tools of the benchmarks: medians of compiled calls, the machine's limit, executors, tables, and the JSON."""

import json
import os
import platform
import re
import statistics
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import pandas as pd
from jax import lax

from dropjax.runtime import device
from dropjax.runtime.writing import atomic_write

R = TypeVar("R")

SQUARES = (1024, 2048, 4096)
"""Sizes of the square float32 products whose best rate is the machine's limit."""


def median_seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    """Median wall time of a compiled call; the first call, which compiles, is not counted."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def matmul_flop_per_s(repeats: int = 5) -> float:
    """The best rate of square float32 products at highest precision."""
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, precision=lax.Precision.HIGHEST))
    rates = []
    for n in SQUARES:
        a, b = (jax.random.normal(jax.random.key(k), (n, n)) for k in range(2))
        rates.append(2 * n**3 / median_seconds(lambda a=a, b=b: multiply(a, b), repeats))
    return max(rates)


def machine() -> dict[str, Any]:
    """The processor as the system names it, and its cores."""
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {"processor": names[0] if names else platform.machine(), "cores": os.cpu_count(), "device": device.describe()}


def _cpuinfo() -> Sequence[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def versions() -> dict[str, str]:
    """The versions that the times depend on."""
    return {name: version(name) for name in ("dropjax", "jax", "jaxlib", "numpy", "scipy")}


def write_report(path: Path | None, rows: Sequence[Any] | pd.DataFrame, **more: Any) -> None:
    """Write the JSON of a benchmark: machine, versions, `more` and the rows. Without a path, nothing is written."""
    if path is not None:
        if isinstance(rows, pd.DataFrame):
            rows = json.loads(rows.to_json(orient="records", double_precision=15) or "[]")
        report = {"machine": machine(), "versions": versions(), **more, "rows": rows}
        atomic_write(path, lambda temporary: temporary.write_text(json.dumps(report, indent=1)))


def table(frame: pd.DataFrame, columns: Mapping[str, str], head: bool = True) -> str:
    """The named columns of a DataFrame as lines of text, each in its format with a width, such as "<24" or ">9.2f".

    Missing values are dashes. Widths do not depend on the values, so a long run can print a head and its first row, and then
    each row without a `head`.
    """
    cells = {}
    for name, form in columns.items():
        width = "".join(re.findall(r"^[<>]\d+", form))
        texts = [format("—", width) if pd.isna(value) else format(value, form) for value in frame[name]]
        cells[format(name, width)] = texts
    return pd.DataFrame(cells).to_string(index=False, header=head)


def add_executor(parser: ArgumentParser) -> None:
    """Add the option --executor to a study whose stacks may be spread over processes or machines; see `executor`."""
    what = "a function that makes a concurrent.futures executor, such as dropjax:process_pool (default: here, one by one)"
    parser.add_argument("--executor", metavar="MODULE:NAME", help=what)


def executor(parser: ArgumentParser, named: str | None) -> AbstractContextManager[Executor | None]:
    """The executor that a function of this name makes, or none for None. A name that does not work is the parser's error."""
    if named is None:
        return nullcontext()
    module, _, name = named.partition(":")
    try:
        return getattr(import_module(module), name)()
    except (ImportError, AttributeError, ValueError) as error:
        parser.error(f"--executor: expected MODULE:NAME of a function, got {named!r}: {error}")


def done(tasks: Sequence[Callable[[], R]], executor: Executor | None) -> Iterator[R]:
    """The results of the tasks: run here one by one, or in an executor and then in the order in which they end.

    Raises what a task or the executor raises.
    """
    if executor is None:
        yield from (task() for task in tasks)
    else:
        for future in as_completed([executor.submit(task) for task in tasks]):
            yield future.result()
