"""Several processes that solve one puzzle together: how they join, and how all end when one has died."""

import ctypes
import os
import signal
import sys
from functools import partial

import jax

HEARTBEAT = 30
"""Seconds without a sign of life after which a process counts as dead."""

ENDING = 60
"""Seconds that a process waits for the others at its end."""

LINE = b"error: another process has ended, and so this one does; with --checkpoint, --resume goes on from there\n"

_on_abort = None


def join(coordinator: str, count: int | None, number: int | None, status: int) -> None:
    """Joins the other processes; `coordinator` is HOST:PORT of the first, or "auto" for what the cluster tells JAX.

    From then on, if another process dies, this one ends with `status` and one line on standard error. Raises ValueError or
    RuntimeError if the processes cannot be joined.
    """
    joining = partial(jax.distributed.initialize, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=ENDING)
    if coordinator == "auto":
        joining()
    else:
        joining(coordinator, count, number)
    _end_in_one_line(status)


def leave(status: int) -> None:
    """Ends the process at once: an orderly end would wait for the others, which may be waiting for this one."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(status)


def _end_in_one_line(status: int) -> None:
    """JAX ends a process whose companion has died by aborting it, with a page of C++ on standard error.

    No Python function can be given to JAX to be called instead, but one can be to the system. What is written past Python,
    also on standard output, goes nowhere from here on.
    """
    global _on_abort
    if sys.platform == "win32":
        return
    spoken = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    sys.stderr = os.fdopen(spoken, "w", errors="backslashreplace")

    def on_abort(_number: int) -> None:
        os.write(spoken, LINE)
        os._exit(status)

    _on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(on_abort)  # kept here, as C does not keep it
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)
