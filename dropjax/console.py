"""What the command lines share: arguments, one-line errors, and progress for people and for logs."""

import argparse
import atexit
import gc
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from dropjax.core.errors import InputError
from dropjax.core.protocols import Progress
from dropjax.core.solution import Stage

SOLVED, NOT_SOLVED, BAD_INPUT = range(3)
"""Exit statuses."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with status 2."""
        fail(f"{message} (see --help)")


def fail(message: str) -> NoReturn:
    """Ends the process with status 2 and one line on standard error."""
    print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(BAD_INPUT)


def run_command(main: Callable[[], int]) -> NoReturn:
    """Runs a command line: bad input becomes one line, and libraries keep their warnings to themselves."""
    # What was imported stays. Going through it again and again, and once more at the end, would take a tenth of a solve.
    gc.freeze()
    atexit.register(gc.freeze)
    warnings.simplefilter("ignore")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be text
    try:
        sys.exit(main())
    except InputError as error:
        fail(str(error))
    except BrokenPipeError:
        # Whoever read the output has seen enough; what is left in its buffer must not fail again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(NOT_SOLVED)
    except KeyboardInterrupt:
        print("error: interrupted before there was anything to write", file=sys.stderr)
        sys.exit(130)


@contextmanager
def interruptions() -> Iterator[Callable[[], bool]]:
    """A question whether SIGINT or SIGTERM has come; a second SIGINT ends the process at once."""
    came = threading.Event()

    def note(number: int, _frame: object) -> None:
        if came.is_set():
            raise KeyboardInterrupt
        came.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stage_line(stage: Stage) -> str:
    """One stage in one line."""
    parts = [f"{stage.name:<14}", f"{stage.seconds:7.2f} s"]
    if stage.mse is not None:
        parts.append(f"MSE {stage.mse:.3g} on {stage.rows:,} rows")
    if stage.evaluations:
        parts.append(f"{stage.evaluations:,} evaluation{'s' if stage.evaluations > 1 else ''}")
    if stage.swaps:
        parts.append(f"{stage.swaps:,} move{'s' if stage.swaps > 1 else ''}")
    return "  ".join(parts)


class Lines(Progress):
    """A line for each stage when it has ended, for logs."""

    def ends(self, stage: Stage) -> None:
        """Prints the stage."""
        print(stage_line(stage), flush=True)


class Terminal(Lines):
    """The same, and a spinner with the stage's name while it runs."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console()
        self._status = None

    def begins(self, stage: str) -> None:
        """Starts the spinner."""
        self._status = self._console.status(stage)
        self._status.start()

    def ends(self, stage: Stage) -> None:
        """Replaces the spinner by the stage's line."""
        if self._status is not None:
            self._status.stop()
        super().ends(stage)


def progress(quiet: bool = False) -> Progress:
    """What suits the standard output."""
    if quiet:
        return Progress()
    return Terminal() if sys.stdout.isatty() else Lines()
