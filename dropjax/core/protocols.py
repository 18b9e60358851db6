"""The interfaces between a search and its caller: reports of its stages, storage of its results, and requests to stop."""

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
    """The lowest MSE so far as a share of pred's variance, over the rows that were looked at; None if none is known."""
    deadline: float | None = None
    """When the time limit is up, by `time.perf_counter`; None if there is none."""
    words: str = ""
    """What else there is to say, such as the attempt and the rung."""
    done: int = 0
    """Parts of the stage that are done."""
    of: int = 0
    """All parts of the stage; 0 where nobody knows how many there are."""


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


def tell_nobody(*, mse: float | None = None, done: int | None = None, of: int | None = None) -> None:
    """Nobody follows the search."""


@dataclass(frozen=True)
class Context:
    """The surroundings that each method of a search receives. By default nothing stops the search and nothing is kept."""

    memory: int = MEMORY
    """Bytes that a kernel's intermediate arrays may take together."""
    agreed_stop: Callable[[], StopReason | None] = go_on
    """Returns the reason to stop now, or None. All processes get the answer of the first, so that all take the same way;
    each has to ask at the same places."""
    keep: Keep = keep_nothing
    tell: Callable[..., None] = tell_nobody
    """Takes what is new in the middle of a stage, as `tell_nobody` does: an MSE, and how many parts are done of how many."""


ALONE = Context()
"""The context of a method that is called outside a search."""


class Progress:
    """Receives a report of every stage. This base class ignores them; subclasses override its methods."""

    def begins(self, stage: str) -> None:
        """Called when a stage begins."""

    def goes_on(self, status: Status) -> None:
        """Something is new of the stage under way. This may come often: what it does has to be quick."""

    def ends(self, stage: Stage) -> None:
        """Called when a stage has ended."""
