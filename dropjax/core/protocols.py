"""What a search is handed: who hears of its stages, who keeps what it found, and when it has to stop."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeVar, runtime_checkable

from dropjax.core.options import MEMORY
from dropjax.core.solution import Stage

T = TypeVar("T")


class StopReason(StrEnum):
    """Why a search ended."""

    SOLVED = "solved"
    INTERRUPTED = "interrupted"
    TIME_LIMIT = "time limit"
    STALLED = "no move lowers the MSE"
    NOTHING_TO_FIND = "no order reproduces pred"
    UNTOLD = "other answers fit as well"


@runtime_checkable
class Keep(Protocol):
    """What a search makes its calls with."""

    def __call__(self, function: Callable[[], T], like: T) -> T:
        """What `function()` gives, now or when it was called before; `like` has the same structure and shapes."""
        ...


def keep_nothing(function: Callable[[], T], like: T) -> T:
    """Makes the call, each time."""
    return function()


def go_on() -> StopReason | None:
    """Never stops."""
    return None


@dataclass(frozen=True)
class Context:
    """What every method of a search is handed; the default is a search that nobody stops and nobody keeps."""

    memory: int = MEMORY
    """Bytes that a kernel's intermediate arrays may take together."""
    agreed_stop: Callable[[], StopReason | None] = go_on
    """Why the search has to stop now, if it has to. All processes get the first one's answer, so that all take the same way:
    each has to ask at the same places."""
    keep: Keep = keep_nothing


ALONE = Context()
"""The context of a method that is called by itself."""


class Progress:
    """Hears of every stage; this one does nothing with it."""

    def begins(self, stage: str) -> None:
        """A stage begins."""

    def ends(self, stage: Stage) -> None:
        """A stage has ended."""
