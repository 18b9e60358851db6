"""The loop of every search that is one compiled program: it runs some rounds at a time, until it has ended or has to
stop."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from dropjax.core.protocols import Context

S = TypeVar("S")


def in_parts(start: S, part: Callable[[S], S], ended: Callable[[S], object], context: Context) -> S:
    """Runs one `part` after another until the state, a NamedTuple of arrays, has `ended` or the search has to stop.

    All processes ask whether to stop before each part; every part is made by `context.keep`.
    """
    at = start
    while not (context.agreed_stop() or ended(at)):
        at = context.keep(partial(part, at), at)
    return at
