"""The interfaces between a search and its caller: reports of its stages, storage of its results, and requests to stop."""

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
    """A function through which a search makes its calls, so that their results can be kept."""

    def __call__(self, function: Callable[[], T], like: T) -> T:
        """Returns the result of `function()`, or the result kept from an earlier call; `like` has the same structure and
        shapes."""
        ...


def keep_nothing(function: Callable[[], T], like: T) -> T:
    """Calls the function each time and keeps nothing."""
    return function()


def go_on() -> StopReason | None:
    """Always answers that the search may go on."""
    return None


@dataclass(frozen=True)
class Context:
    """The surroundings that each method of a search receives. By default nothing stops the search and nothing is kept."""

    memory: int = MEMORY
    """Bytes that a kernel's intermediate arrays may take together."""
    agreed_stop: Callable[[], StopReason | None] = go_on
    """Returns the reason to stop now, or None. All processes get the answer of the first, so that all take the same way;
    each has to ask at the same places."""
    keep: Keep = keep_nothing


ALONE = Context()
"""The context of a method that is called outside a search."""


class Progress:
    """Receives a report of every stage. This base class ignores them; subclasses override its methods."""

    def begins(self, stage: str) -> None:
        """Called when a stage begins."""

    def ends(self, stage: Stage) -> None:
        """Called when a stage has ended."""
