"""Parts shared by the command lines: arguments, exit statuses, one-line errors, signals, and progress."""

import argparse
import atexit
import errno
import gc
import io
import os
import select
import shutil
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from dropjax.core.errors import InputError, NotWritten
from dropjax.core.protocols import Progress, Status
from dropjax.core.solution import Stage
from dropjax.runtime.writing import Results

SOLVED, NOT_SOLVED, BAD_INPUT, NOT_WRITTEN = range(4)
"""Exit statuses. With `NOT_WRITTEN` the puzzle may be solved or not; the result is printed if possible."""

FAULT = 70
"""Exit status of an unexpected error: EX_SOFTWARE of sysexits.h."""

INTERRUPTED = 130
"""Exit status after a second SIGINT, or one before there was anything to write: 128 + 2, the shells' convention."""

STATUSES = (
    "exit status: {done}; 2 bad input; 3 a result, or what is printed, could not be written (what was found is written and "
    "printed wherever it can be); 70 an unforeseen error (DROPJAX_DEBUG=1 shows where); 130 interrupted before there was "
    "anything to write"
)


class Parser(argparse.ArgumentParser):
    """A parser that reports a bad argument in one line and explains the exit statuses in its help."""

    def __init__(self, *args: Any, done: str = "0 done", **kwargs: Any) -> None:
        """`done` explains exit status 0, and 1 if the command can end with it."""
        super().__init__(*args, **{"epilog": STATUSES.format(done=done), **kwargs})

    def error(self, message: str) -> NoReturn:
        """Ends the process with status 2."""
        fail(f"{message} (see --help)")


def complain(message: str) -> None:
    """Prints one line on standard error, if there is one."""
    if sys.stderr is not None:
        with suppress(OSError):
            print("error:", " ".join(message.split()), file=sys.stderr, flush=True)


def fail(message: str) -> NoReturn:
    """Ends the process with status 2 and one line on standard error."""
    complain(message)
    sys.exit(BAD_INPUT)


def with_results(status: int, results: Results) -> int:
    """The exit status of a command with these results; one line tells which could not be written."""
    if not results.lost:
        return status
    first, *others = map(str, results.lost.values())
    complain(first + (f" (and {len(others)} more that could not be written)" if others else ""))
    return NOT_WRITTEN if status in (SOLVED, NOT_SOLVED) else status


def run_command(main: Callable[[], int]) -> NoReturn:
    """Runs a command line: whatever ends it is an exit status and at most one line on standard error, and libraries keep
    their warnings to themselves."""
    # What was imported stays. Going through it again and again, and once more at the end, would take a tenth of a solve.
    gc.freeze()
    atexit.register(gc.freeze)
    warnings.simplefilter("ignore")
    with lasting_output() as lost:
        status = status_of(main)
        if (error := lost()) is not None and status in (SOLVED, NOT_SOLVED):
            status = NOT_WRITTEN
            if not isinstance(error, BrokenPipeError):  # a reader that left has seen enough
                complain(f"standard output: expected a place that can be written, got {error.strerror}")
    sys.exit(status)


def status_of(main: Callable[[], int], fault: str = "an unforeseen error") -> Any:
    """The exit status that `main` returns or ends with; `fault` is that of an unexpected error."""
    try:
        return main()
    except SystemExit as end:
        return end.code
    except (Exception, KeyboardInterrupt) as error:
        return told(error, fault)


def told(error: BaseException, fault: str = "an unforeseen error") -> int:
    """The exit status for an error, after one line about it, and its traceback if $DROPJAX_DEBUG is set."""
    if isinstance(error, InputError):
        complain(str(error))
        return NOT_WRITTEN if isinstance(error, NotWritten) else BAD_INPUT
    if isinstance(error, KeyboardInterrupt):
        complain("interrupted before there was anything to write")
        return INTERRUPTED
    if os.environ.get("DROPJAX_DEBUG"):
        traceback.print_exception(error)
    what = " ".join(f"{type(error).__name__}: {error}".split())
    complain(f"{fault}: {what[:300]}{'…' if len(what) > 300 else ''} (DROPJAX_DEBUG=1 shows where)")
    return FAULT


def goes_on(error: NotWritten) -> None:
    """Reports that something could not be written and that the work goes on."""
    complain(f"{error}; the search goes on")


class Lasting(io.FileIO):
    """Standard output that survives a closed pipe: what is lost is noted, and writers get no error."""

    lost: OSError | None = None

    def write(self, data: Any) -> int:
        """The length of the data, whether or not it was written."""
        try:
            while self.lost is None:
                if (written := super().write(data)) is not None:
                    return written
                select.select([], [self], [])  # it does not block, as somebody else made it
        except OSError as error:
            self.lost = error
        return memoryview(data).nbytes


@contextmanager
def lasting_output() -> Iterator[Callable[[], OSError | None]]:
    """Within it nothing fails by being printed; yields a question what was in the way of it, if anything was."""
    before, raw = sys.stdout, None
    if before is None:
        while os.open(os.devnull, os.O_RDWR) <= 2:  # so that no file is opened in the place of a closed stream
            pass
        raw = Lasting(os.devnull, "w")
        raw.lost = OSError(errno.EBADF, os.strerror(errno.EBADF))
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw))
    elif before is sys.__stdout__:
        before.flush()
        raw = Lasting(os.dup(before.fileno()), "w")
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), before.encoding, line_buffering=bool(before.line_buffering))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be text

    def lost() -> OSError | None:
        sys.stdout.flush()
        return raw and raw.lost

    try:
        yield lost
    finally:
        sys.stdout.flush()
        sys.stdout = before


@contextmanager
def interruptions(at_once: bool = False) -> Iterator[Callable[[], bool]]:
    """A question whether SIGINT, SIGTERM or SIGHUP has come, once or more often.

    A second SIGINT is a KeyboardInterrupt, and a third ends the process. With `at_once`, the first of any is one.
    """
    came, pressed = threading.Event(), 0

    def note(number: int, _frame: object) -> None:
        nonlocal pressed
        pressed += number == signal.SIGINT
        if pressed > 2:
            os._exit(INTERRUPTED)
        if pressed > 1 or (at_once and not came.is_set()):
            came.set()
            raise KeyboardInterrupt
        came.set()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield came.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stage_line(stage: Stage) -> str:
    """One line about a stage that has ended."""
    parts = [f"{stage.name:<14}", f"{stage.seconds:7.2f} s"]
    if stage.mse is not None:
        parts.append(f"MSE {stage.mse:.3g} on {stage.rows:,} rows")
    if stage.evaluations:
        parts.append(f"{stage.evaluations:,} evaluation{'s' if stage.evaluations > 1 else ''}")
    if stage.swaps:
        parts.append(f"{stage.swaps:,} move{'s' if stage.swaps > 1 else ''}")
    return "  ".join(parts)


def status_line(stage: str, seconds: float, status: Status, bar: bool) -> str:
    """One line about a running stage, the most important first; with `bar`, its parts are drawn if their number is known."""
    parts = [f"{stage:<14}", f"{seconds:7.1f} s"]
    if status.deadline is not None:
        parts.append(f"{max(0.0, status.deadline - time.perf_counter()):,.0f} s left")
    if status.of:
        full = min(BAR * status.done // status.of, BAR)
        drawn = f"[{'#' * full}{'-' * (BAR - full)}] " if bar else ""
        parts.append(f"{drawn}{status.done:,} of {status.of:,}")
    if status.share is not None:
        parts.append(f"best MSE {status.share:.2g} of pred's variance")
    if status.words:
        parts.append(status.words)
    return "  ".join(parts)


BAR = 10
"""The width of a bar in characters."""
TICK = 0.2
"""Seconds between two checks whether there is something to show."""


class Silent(Progress):
    """Progress that shows nothing."""

    def says(self, text: str) -> None:
        """Prints nothing; subclasses print this line from the command."""

    def close(self) -> None:
        """Ends the display, if there is one."""


class Lines(Silent):
    """Progress for logs: a line when a stage ends and, while a long one runs, at least every ten seconds."""

    every = 9.0
    """Seconds between two lines about a running stage. Even if a check is late, they are no more than ten apart."""

    def __init__(self) -> None:
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._stage, self._status, self._begun, self._shown = "", Status(), 0.0, 0.0
        self._thread: threading.Thread | None = None

    def begins(self, stage: str) -> None:
        """Starts to show the stage, for as long as it runs."""
        with self._lock:
            self._stage, self._status = stage, self._status._replace(words="", done=0, of=0)
            self._begun = self._shown = time.perf_counter()
        if self._thread is None:
            self._thread = threading.Thread(target=self._look_again, daemon=True)
            self._thread.start()

    def goes_on(self, status: Status) -> None:
        """Keeps the status that is shown next."""
        self._status = status

    def ends(self, stage: Stage) -> None:
        """Prints the line about the stage that has ended."""
        self._stage = ""
        self.says(stage_line(stage))

    def says(self, text: str) -> None:
        """Prints a line from the command itself."""
        with self._lock:
            self._clear()
            print(text, flush=True)
            self._shown = time.perf_counter()

    def close(self) -> None:
        """Ends the display."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        self._clear()

    def _look_again(self) -> None:
        while not self._closed.wait(TICK):
            with self._lock:
                if self._stage and time.perf_counter() - self._shown >= self.every:
                    self._show()

    def _show(self) -> None:
        self._shown = time.perf_counter()
        print(status_line(self._stage, self._shown - self._begun, self._status, bar=False), flush=True)

    def _clear(self) -> None:
        """Removes the line about the running stage; a log keeps it."""


class Terminal(Lines):
    """Progress for terminals: a line when a stage ends and, while one runs, a line about it that is updated in place."""

    every = 0.0

    def begins(self, stage: str) -> None:
        """Shows the line about the running stage."""
        super().begins(stage)
        with self._lock:
            self._show()

    def _show(self) -> None:
        width = shutil.get_terminal_size().columns - 1
        seconds = time.perf_counter() - self._begun
        line = status_line(self._stage, seconds, self._status, bar=True)
        if len(line) > width:
            line = status_line(self._stage, seconds, self._status, bar=False)
        while len(line) > width and "  " in line:  # the last parts matter least
            line = line.rpartition("  ")[0].rstrip()
        # The cursor goes back to the line's beginning, so that whatever else is printed takes its place.
        print(f"{line[:width]}\x1b[K", end="\r", flush=True)

    def _clear(self) -> None:
        print("\x1b[K", end="", flush=True)


@contextmanager
def progress(quiet: bool = False) -> Iterator[Silent]:
    """The progress that suits standard output."""
    shown = Silent() if quiet else Terminal() if is_terminal() else Lines()
    try:
        yield shown
    finally:
        shown.close()


def is_terminal() -> bool:
    """Whether standard output is a terminal on which a line can be overwritten."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
