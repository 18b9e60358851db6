"""One solve under way: its clock, its records, and the receiver of its reports."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int

from dropjax.core.options import Options
from dropjax.core.protocols import Context, Progress, Status, StopReason
from dropjax.core.solution import Pairing, Stage
from dropjax.runtime import mesh
from dropjax.runtime.journal import Journal
from dropjax.search import verify
from dropjax.search.answer import Answer
from dropjax.search.problem import Problem
from dropjax.search.yardstick import Yardstick

T = TypeVar("T")


class Candidate(NamedTuple):
    """An arrangement that was run over all rows."""

    arrangement: Int[np.ndarray, "L 2"]
    mse: float


@dataclass
class Run:
    """One solve under way: its clock, its records, and the receiver of its reports."""

    problem: Problem
    options: Options
    yardstick: Yardstick
    progress: Progress = field(default_factory=Progress)
    interrupted: Callable[[], bool] = lambda: False
    journal: Journal | None = None
    started: float = field(default_factory=time.perf_counter)
    in_numbers: Int[np.ndarray, " L"] | None = None
    """Piece numbers of the input halves; without them, stages tell no orders."""
    label: str = ""
    """A suffix of the names of the stages, which distinguishes them from those of other runs."""
    status: Status = field(default_factory=Status)
    stages: list[Stage] = field(default_factory=list)
    log: list[Candidate] = field(default_factory=list)
    """Every arrangement that was run over all rows, in that order."""
    passes: dict[bytes, verify.Pass] = field(default_factory=dict)
    noises: dict[bytes, float] = field(default_factory=dict)

    @property
    def pred_noise(self) -> float | None:
        """RMS of pred's own noise; None if it has none."""
        return self.yardstick.pred_noise

    def with_activation(self, name: str) -> "Run":
        """A run for the stack with another activation; it shares this one's list of stages."""
        problem = self.problem._replace(stack=replace(self.problem.stack, activation=name))
        return replace(self, problem=problem, label=f", {name}", log=[], passes={}, noises={})

    @property
    def context(self) -> Context:
        """The context that the methods of the search receive."""
        return Context(self.options.memory, self.agreed_stop, self.keep, self.tell)

    def agreed_stop(self) -> StopReason | None:
        """The reason to stop now, or None, as the first process sees it: see `Context`."""
        limit = self.options.time_limit
        late = limit is not None and time.perf_counter() - self.started > limit
        reasons = (None, StopReason.INTERRUPTED, StopReason.TIME_LIMIT)
        return reasons[mesh.agreed(1 if self.interrupted() else 2 if late else 0)]

    def keep(self, function: Callable[[], T], like: T) -> T:
        """Returns the result of `function()`, from the journal if there is one that holds it."""
        return function() if self.journal is None else self.journal.call(function, like, self.agreed_stop)

    def tell(
        self, *, mse: float | None = None, words: str | None = None, done: int | None = None, of: int | None = None
    ) -> None:
        """Passes on what is new in the middle of a stage; of MSEs the lowest counts."""
        status, variance = self.status, self.yardstick.variance
        if mse is not None and np.isfinite(mse) and variance > 0:
            share = mse / variance
            status = status._replace(share=share if status.share is None else min(share, status.share))
        news = {"words": words, "done": done, "of": of}
        self.status = status._replace(**{name: value for name, value in news.items() if value is not None})
        self.progress.goes_on(self.status)

    @contextmanager
    def stage(self, name: str) -> Iterator[dict]:
        """Times a stage; the entries that it puts into the yielded record are kept: mse, rows, evaluations, swaps, and as
        order an arrangement."""
        name += self.label
        self.progress.begins(name)
        limit = self.options.time_limit
        self.status = self.status._replace(deadline=None if limit is None else self.started + limit)
        self.tell(words="", done=0, of=0)
        start = time.perf_counter()
        record: dict = {}
        yield record
        seconds, arrangement = time.perf_counter() - start, record.pop("order", None)
        if arrangement is not None and self.in_numbers is not None:
            record["order"] = tuple(self.in_numbers[arrangement[:, 0]].tolist())
        self.stages.append(Stage(name=name, seconds=seconds, **record))
        self.tell(mse=self.stages[-1].mse)
        self.progress.ends(self.stages[-1])

    def full_pass(self, arrangement: Int[np.ndarray, "L 2"]) -> verify.Pass:
        """Runs the arrangement over all rows; results are cached."""
        key = np.asarray(arrangement, np.int32).tobytes()
        if key not in self.passes:
            stack, x, pred, _ = self.problem
            self.passes[key] = verify.full_pass(stack, arrangement, x, pred, self.options.memory)
            self.log.append(Candidate(np.asarray(arrangement, np.int32), self.passes[key].mse))
            self.tell(mse=self.passes[key].mse)
        return self.passes[key]

    def float32_noise(self, arrangement: Int[np.ndarray, "L 2"]) -> float:
        """float32's noise in the arrangement's outputs; results are cached."""
        key = np.asarray(arrangement, np.int32).tobytes()
        if key not in self.noises:
            stack, _, _, table = self.problem
            outputs = mesh.fetch(self.full_pass(arrangement).outputs)
            self.noises[key] = verify.float32_noise(stack, arrangement, table.x, outputs)
        return self.noises[key]

    def solved(self, arrangement: Int[np.ndarray, "L 2"]) -> bool:
        """Whether the arrangement reproduces pred on all rows as well as pred allows."""
        if self.yardstick.pred_noise is None:
            return self.yardstick.is_exact(self.full_pass(arrangement).by_output)
        return self.answer(arrangement).outcome.solved

    def answer(self, arrangement: Int[np.ndarray, "L 2"]) -> Answer:
        """The arrangement as an answer, beside the yardstick."""
        passed, noise = self.full_pass(arrangement), self.float32_noise(arrangement)
        return Answer(self.problem, self.yardstick, arrangement, passed, noise)

    def on_all_rows(self, arrangement: Int[np.ndarray, "L 2"]) -> dict:
        """The arrangement and its MSE over all rows, as entries of a stage's record."""
        return {"mse": self.full_pass(arrangement).mse, "rows": len(self.problem.x), "order": arrangement}


class Searched(NamedTuple):
    """A search's result, before it is verified."""

    arrangement: Int[np.ndarray, "L 2"]
    seed_order: str
    stop_reason: StopReason
    pairing: Pairing
    reason: str | None = None
    """Why nothing can be found, with the evidence."""
    notes: tuple[str, ...] = ()
    """Remarks for the solution."""
