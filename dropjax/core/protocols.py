"""What a search is handed: who hears of its stages, who keeps what it found, and when it has to stop."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

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


class Status(NamedTuple):
    """How far a search is in the middle of a stage."""

    share: float | None = None
    """The lowest MSE so far as a share of pred's variance, over the rows that were looked at; None where none is known."""
    deadline: float | None = None
    """When the time limit is up, by `time.perf_counter`; None where there is none."""
    words: str = ""
    """What else there is to say, such as the attempt and the rung."""
    done: int = 0
    """Parts of the stage that are done."""
    of: int = 0
    """All parts of the stage; 0 where nobody knows how many there are."""


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


def tell_nobody(*, mse: float | None = None, done: int | None = None, of: int | None = None) -> None:
    """Nobody follows the search."""


@dataclass(frozen=True)
class Context:
    """What every method of a search is handed; the default is a search that nobody stops and nobody keeps."""

    memory: int = MEMORY
    """Bytes that a kernel's intermediate arrays may take together."""
    agreed_stop: Callable[[], StopReason | None] = go_on
    """Why the search has to stop now, if it has to. All processes get the first one's answer, so that all take the same way:
    each has to ask at the same places."""
    keep: Keep = keep_nothing
    tell: Callable[..., None] = tell_nobody
    """Takes what is new in the middle of a stage, as `tell_nobody` does: an MSE, and how many parts are done of how many."""


ALONE = Context()
"""The context of a method that is called by itself."""


class Progress:
    """Hears of every stage; this one does nothing with it."""

    def begins(self, stage: str) -> None:
        """A stage begins."""

    def goes_on(self, status: Status) -> None:
        """Something is new of the stage under way. This may come often: what it does has to be quick."""

    def ends(self, stage: Stage) -> None:
        """A stage has ended."""
