"""What a search is handed by whoever started it: who is told what goes on, and who keeps what it found."""

from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

from dropjax.core.solution import Stage

T = TypeVar("T")


@runtime_checkable
class Keep(Protocol):
    """What a search makes its calls with."""

    def __call__(self, function: Callable[[], T], like: T) -> T:
        """What `function()` gives, now or when it was called before; `like` has the same structure and shapes."""
        ...


def keep_nothing(function: Callable[[], T], like: T) -> T:
    """Makes the call, each time."""
    return function()


class Progress:
    """Told what goes on; this one keeps it to itself."""

    def begins(self, stage: str) -> None:
        """A stage begins."""

    def ends(self, stage: Stage) -> None:
        """A stage has ended."""
