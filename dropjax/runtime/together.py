"""Solves in threads whose calls of one program are run as one call of a batch.

An accelerator is hardly busy with one small puzzle, and most of a solve's time is then spent starting its kernels. Here
every solve stays as it is, in a thread of its own. A call of a program waits until every solve waits for one; then the
program that most of them wait for is run for all these at once. Those that wait for another are caught up with.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

R = TypeVar("R")


class _Call(NamedTuple):
    """A call that waits."""

    run: Callable[..., Any]
    """The program of a whole batch: the leaves of every call, one call's after another's, give a list of results."""
    leaves: Sequence[Any]
    result: Future


class Together:
    """At most `size` solves that go side by side."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._members, self._waiting = 0, []
        self._lock = threading.Lock()

    @contextmanager
    def member(self) -> Iterator[None]:
        """Within it this thread is one of those whose calls are run together, and for whose calls the others wait."""
        with self._lock:
            self._members += 1
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)
            with self._lock:
                self._members -= 1
                ready = self._taken()
            self._run(ready)

    def call(self, run: Callable[..., Any], leaves: Sequence[Any]) -> Any:
        """The result of one call, when all members wait."""
        mine = _Call(run, leaves, Future())
        with self._lock:
            self._waiting.append(mine)
            ready = self._taken()
        self._run(ready)
        return mine.result.result()

    def _taken(self) -> list[_Call]:
        """The calls of the program that most members wait for, if all of them wait; else none."""
        if not self._waiting or len(self._waiting) < self._members:
            return []
        ((most, _),) = Counter(call.run for call in self._waiting).most_common(1)
        taken = [call for call in self._waiting if call.run is most]
        self._waiting = [call for call in self._waiting if call.run is not most]
        return taken

    def _run(self, calls: Sequence[_Call]) -> None:
        """Runs calls of one program together; the first also takes the place of those that are missing, so that there is one
        program for every number of them."""
        if not calls:
            return
        filled = [*calls, *[calls[0]] * (self.size - len(calls))]
        try:
            results = calls[0].run(*(leaf for call in filled for leaf in call.leaves))
        except BaseException as error:
            for call in calls:
                call.result.set_exception(error)
        else:
            for call, result in zip(calls, results, strict=False):
                call.result.set_result(result)


_CURRENT: ContextVar[Together | None] = ContextVar("solves that go side by side", default=None)


def current() -> Together | None:
    """What this thread is a member of."""
    return _CURRENT.get()


def batched(of_leaves: Callable[..., R], size: int) -> Callable[..., list[R]]:
    """The function for as many calls, whose leaves come one call's after another's."""

    def of_all(*leaves: Array) -> list[R]:
        count = len(leaves) // size
        stacked = [jnp.stack(leaves[k::count]) for k in range(count)]
        results = jax.vmap(of_leaves)(*stacked)
        return [jax.tree.map(lambda a: a[k], results) for k in range(size)]  # noqa: B023

    return of_all
