"""A clock of the time in which JAX traced, compiled or fetched programs, for the solve that caused it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import jax
import jax.monitoring


class CompileClock:
    """Counts the seconds in which JAX traced, compiled or fetched programs in the context that entered it.

    Threads that run in a copy of that context are counted as well.
    """

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    def __enter__(self) -> "CompileClock":
        _listen()
        self._token = _RUNNING.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _RUNNING.reset(self._token)

    def note(self, seconds: float) -> None:
        """Counts the last so many seconds."""
        now = time.perf_counter()
        self._spans.append((now - seconds, now))

    def seconds(self, after: float, before: float) -> float:
        """Seconds counted between the two times; events may contain one another, and overlapping ones are counted once."""
        total = 0.0
        for start, end in sorted(self._spans):
            total += max(0.0, min(end, before) - max(start, after))
            after = max(after, end)
        return total


_RUNNING: ContextVar[CompileClock | None] = ContextVar("compile clock", default=None)


@contextmanager
def counted() -> Iterator[None]:
    """Counts the time within it as well, for a program that JAX did not fetch itself."""
    start = time.perf_counter()
    yield
    if (clock := _RUNNING.get()) is not None:
        clock.note(time.perf_counter() - start)


@cache
def _listen() -> None:
    """Registers the one listener that passes each of JAX's events to the clock of its context."""
    jax.monitoring.register_event_duration_secs_listener(_note)


def _note(event: str, duration_secs: float, **_: str | int) -> None:
    clock = _RUNNING.get()
    if clock is not None and event.startswith("/jax/core/compile/"):
        clock.note(duration_secs)
