"""What the ladder's rungs have in common: their shape, the loop that runs them, and the ground that they stand on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int

from dropjax.core.protocols import ALONE, Context
from dropjax.core.solution import Pairing
from dropjax.core.stack import Stack
from dropjax.moves.exact import score_arrangements
from dropjax.ordering.places import is_deep, rows_needed
from dropjax.pairing.certainty import doubtful, log_odds, regrets
from dropjax.runtime import mesh
from dropjax.search.problem import Table
from dropjax.search.yardstick import attainable_mse

FEW_ROWS, SOME_ROWS = 256, 512
"""Rows on which an order forms, and on which it is finished: one that fits the fewer need not fit the table."""
JUDGED_ROWS = 4000
"""Rows that flips are fitted to, and that what is proposed is judged on, or twice the number of flips, if that is more."""


class Climbed(NamedTuple):
    """How far the search got, and what a rung spent on it."""

    arrangement: Int[np.ndarray, "L 2"]
    mse: float
    """MSE over the ground's `many` rows; ∞ where the outputs overflow."""
    evaluations: int = 0
    """Candidates scored exactly since the rung began."""
    moves: int = 0
    """Moves accepted since the rung began."""

    def afresh(self) -> "Climbed":
        """This arrangement as a rung's start: nothing is spent yet."""
        return self._replace(evaluations=0, moves=0)

    def or_better(self, other: "Climbed") -> "Climbed":
        """The one of the lower MSE, with what was spent on both."""
        better = other if other.mse < self.mse else self
        return better._replace(evaluations=self.evaluations + other.evaluations, moves=self.moves + other.moves)


Rows = tuple[Float[Array, "N d"], Float[Array, "N o"]]


@dataclass(frozen=True)
class Ground:
    """What all rungs of one attempt look at: the stack, the table's first rows, and the pairing's doubts."""

    stack: Stack
    fewest: Rows
    few: Rows
    many: Rows
    for_places: Rows
    table: Table
    score: Float[np.ndarray, "L L"]
    """The pairing's score of input half i with output half j."""
    doubtful: Int[np.ndarray, " L"]
    """Input halves, the most doubtful first."""
    certain: Int[np.ndarray, " L"]
    """Each input half's partner where the pairing is clear of chance, and −1 where it is not."""
    belief: Float[np.ndarray, "L L"]
    """What the weights say of each pair, in nats."""
    exact: float
    """MSE from which nothing is left to find."""
    variance: float
    """Mean over the outputs of pred's variance."""
    seed: int
    """All randomness of the rungs comes from it."""
    context: Context

    @classmethod
    def of(
        cls,
        stack: Stack,
        table: Table,
        pairing: Pairing,
        seed: int,
        context: Context = ALONE,
        pred_noise: float | None = None,
    ) -> "Ground":
        """The ground of a stack on the devices, and of a table on the host."""
        depth, outputs = stack.depth, stack.w_last.shape[0]
        places = rows_needed(depth, outputs)
        many = max(JUDGED_ROWS, places if is_deep(depth) else depth * (depth - 1))
        certain = pairing.partner.copy()
        certain[doubtful(pairing)] = -1
        return cls(
            stack,
            *(mesh.put_rows((table.x[:rows], table.pred[:rows])) for rows in (FEW_ROWS, SOME_ROWS, many, places)),
            table=table,
            score=pairing.score,
            doubtful=np.argsort(regrets(pairing.score, pairing.partner), kind="stable"),
            certain=certain,
            belief=log_odds(pairing),
            exact=attainable_mse(table.pred, pred_noise),
            variance=float(np.var(table.pred, axis=0).mean()),
            seed=seed,
            context=context,
        )

    def judged(self, arrangement: Int[np.ndarray, "L 2"]) -> Climbed:
        """The arrangement with its MSE over many rows: one evaluation."""
        mse = score_arrangements(self.stack, arrangement[None], *self.many, memory=self.context.memory)
        self.context.tell(mse=float(mse[0]))
        return Climbed(arrangement, float(mse[0]) if np.isfinite(mse[0]) else np.inf, evaluations=1)

    def best_of(self, arrangements: list[Int[np.ndarray, "L 2"]], default: Climbed) -> Climbed:
        """The best of the arrangements, or `default` where there is none; all of them are counted."""
        judged = [self.judged(arrangement) for arrangement in arrangements]
        best = min(judged, key=lambda of: of.mse, default=default.afresh())
        return best._replace(evaluations=len(judged))

    def unfinished(self, at: Climbed) -> bool:
        """Whether something is left to find, and the outputs are finite, so that it can be found."""
        return self.exact < at.mse < np.inf


State = TypeVar("State")


@runtime_checkable
class Rung(Protocol[State]):
    """One way of finding a better arrangement, a look at a time.

    A state has a field `last` that holds what `look` gave last; at the start, something of the same structure and shapes.
    """

    def start(self, best: Climbed) -> State:
        """The state before the first look."""
        ...

    def ended(self, at: State) -> bool:
        """Whether there is nothing left to look at."""
        ...

    def look(self, at: State) -> Any:
        """The next result, which may take long; a pytree, which the journal keeps."""
        ...

    def step(self, at: State, found: Any) -> State:
        """The state after that result: quick bookkeeping."""
        ...

    def best(self, at: State) -> Climbed:
        """The best arrangement so far, and what was spent."""
        ...


def climb(rung: Rung, start: Climbed, context: Context) -> Climbed:
    """The best that the rung finds from `start` until it has ended or the search has to stop."""
    at = rung.start(start)
    # Every process asks at every step: none may leave the loop alone.
    while not (context.agreed_stop() or rung.ended(at)):
        at = rung.step(at, context.keep(partial(rung.look, at), at.last))
    return rung.best(at)


RungMaker = Callable[[Ground], Rung]
