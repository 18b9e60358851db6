"""The loop that every search by one compiled program has: some rounds at a time, until it has ended or has to stop."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from dropjax.core.protocols import Keep, keep_nothing

S = TypeVar("S")


def in_parts(
    start: S,
    part: Callable[[S], S],
    ended: Callable[[S], object],
    stop: Callable[[], object] = lambda: None,
    keep: Keep = keep_nothing,
) -> S:
    """The state, a NamedTuple of arrays, after one `part` and another, until `ended` or `stop()`.

    Both are asked before each part, `stop()` only where the search has not ended; every part is made by `keep`.
    """
    at = start
    while not (ended(at) or stop()):
        at = keep(partial(part, at), at)
    return at
