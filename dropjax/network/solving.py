"""`order` and `check_order`: any residual network's parts put back where they belong."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import count
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree, Shaped

from dropjax.core.errors import InputError
from dropjax.core.options import MEMORY
from dropjax.core.solution import Outcome
from dropjax.network import moves, protocol
from dropjax.network.protocol import Block, Network, State
from dropjax.network.result import Check, Minimum, Move, Ordering, Progress, Stage
from dropjax.network.scorer import Scorer
from dropjax.network.search import Descent, Search
from dropjax.network.seeds import SEEDED_FROM, best_seed
from dropjax.network.verdict import RIVALS, Judge, undecided
from dropjax.runtime import mesh
from dropjax.runtime.device import describe
from dropjax.runtime.journal import Journal

ENOUGH = 8192
"""A search begins with as many rows as have this many outputs together: few rows of many outputs, or many rows of one."""
ROWS = 512
"""Largest number of rows that a search begins with."""
DEEP, DEEP_ROWS = 12, 8
"""With at least so many blocks, a search begins with at least so many rows."""

ATTEMPTS = 9
"""Descents after which a search without a time limit ends."""

STOPS = (None, "interrupted", "time limit")
"""The reasons for which a search has to stop."""
STALLED = "no move that was tried lowers the loss"
"""The reasons for which a search ends by itself."""

T = TypeVar("T")


def order(
    block: Block,
    parts: Sequence[PyTree[Shaped[Array, "L ..."]]],
    x: State,
    target: PyTree[Shaped[Array, "N ..."]] | None = None,
    *,
    read_out: Callable[[State], PyTree] | None = None,
    loss: Callable[..., Array] | None = None,
    start: Int[np.ndarray, "L P"] | None = None,
    time_limit: float | None = None,
    target_noise: float | None = None,
    random_seed: int = 0,
    memory: int = MEMORY,
    progress: Progress | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    journal: Journal | None = None,
) -> Ordering:
    """Finds which part of each kind stands at which position of a residual network.

    `block(parts, state)` runs one block of P parts, one of each kind, and returns a state like the one given; or `block` is
    P functions `(part, state)` that are run in turn, which deep networks are ordered faster with. `parts` holds each kind as
    a pytree of arrays with a leading axis of L blocks, in any order. `x` is the state before the first block: an array
    [N, …] or a pytree of such. `target` is what `read_out(state)`, the state itself by default, gave behind the last block
    of the network in its right order.

    `loss(outputs, target)` gives each row's loss [N]; the mean squared error by default. Where it is given, `target` may be
    anything with N rows, and is compared with the outputs only where it has their shapes. Without a target, `loss` is a
    function of the outputs alone. What a `jax.tree_util.Partial` among these functions has bound is data: another call may
    bind other arrays of the same shapes, and nothing is compiled anew.

    `start` is the arrangement that the search starts from, by default the parts as they stand. With `time_limit`, in
    seconds, the search goes on until that time is over; otherwise it ends after `ATTEMPTS` descents. `target_noise` is the
    standard deviation of the noise in the target, if it has any: an RMS error within twice that is the outcome
    `noise_floor`. Arrays of states take up to half of `memory`, in bytes. `interrupted` is called between batches. Results
    that a `journal` holds are not computed again; `identity` returns what they depend on.

    Raises `InputError` if these do not fit together.
    """
    network = protocol.make(block, parts, read_out, loss, alone=target is None and loss is not None)
    if target is None and loss is None:
        raise InputError("target: expected the recorded outputs, or a loss of the outputs alone, got neither")
    protocol.check(network, x, target, own_loss=loss is not None)
    rows = len(jax.tree.leaves(x)[0])
    whole = target is None  # a loss of the outputs alone may hold something of each row it is for
    chunk = rows if whole else rows_to_begin_with(network, x, loss is not None)
    scorer = Scorer.of(network, x, target, chunk, memory)
    judge = Judge(scorer, _comparable(network, x, target), loss is None, target_noise or 0.0)
    run = Run(scorer, judge, time_limit, random_seed, progress or Progress(), interrupted, journal)
    return run.ordering(_start(start, network))


def check_order(
    block: Block,
    parts: Sequence[PyTree[Shaped[Array, "L ..."]]],
    x: State,
    target: PyTree[Shaped[Array, "N ..."]] | None = None,
    **options: Any,
) -> Check:
    """Says whether a network's parts stand in the right order, and if not, which positions are wrong and what mends it.

    The arguments are those of `order`, but for `start`.
    """
    if "start" in options:
        raise InputError("start: expected none, for the parts are checked as they stand, got one")
    found = order(block, parts, x, target, **options)
    depth, kinds = found.arrangement.shape
    wrong = np.flatnonzero((found.arrangement != np.arange(depth)[:, None]).any(axis=1))
    mending = tuple(Move.of(move, kinds) for move in moves.mending(found.arrangement))
    return Check(found, tuple(map(int, wrong)), mending)


def rows_to_begin_with(network: Network, x: State, own_loss: bool) -> int:
    """Number of rows that a search uses first: those with enough outputs to tell arrangements apart."""
    rows = len(jax.tree.leaves(x)[0])
    outputs = sum(a.size for a in jax.tree.leaves(jax.eval_shape(network.read_out, x))) // rows
    enough = ROWS if own_loss else -(-ENOUGH // max(outputs, 1))
    return min(rows, ROWS, max(enough, DEEP_ROWS if network.depth >= DEEP else 1))


def _comparable(network: Network, x: State, target: PyTree | None) -> PyTree[Shaped[np.ndarray, "N ..."]] | None:
    """The target on the host, where it has the outputs' structure, shapes and kind of numbers."""
    outputs = jax.eval_shape(network.read_out, x)
    if target is None or jax.tree.structure(outputs) != jax.tree.structure(target):
        return None
    host = jax.tree.map(np.asarray, target)
    pairs = zip(jax.tree.leaves(outputs), jax.tree.leaves(host), strict=True)
    alike = all(a.shape == b.shape and jnp.issubdtype(b.dtype, jnp.number) for a, b in pairs)
    return host if alike else None


def _start(start: Int[np.ndarray, "L P"] | None, network: Network) -> Int[np.ndarray, "L P"]:
    """The given arrangement, or the parts as they stand."""
    shape = (network.depth, network.kinds)
    if start is None:
        return np.tile(np.arange(network.depth, dtype=np.int32)[:, None], (1, network.kinds))
    found = np.asarray(start)
    if found.shape != shape or not np.array_equal(np.sort(found, axis=0), np.sort(_start(None, network), axis=0)):
        raise InputError(f"start: expected an array {list(shape)} with each of 0 … {shape[0] - 1} once in every column")
    return found.astype(np.int32)


@dataclass
class Run:
    """One search under way: its clock, its records, and the receiver of its reports."""

    scorer: Scorer
    judge: Judge
    time_limit: float | None
    random_seed: int
    progress: Progress
    interrupted: Callable[[], bool]
    journal: Journal | None
    started: float = field(default_factory=time.perf_counter)
    stages: list[Stage] = field(default_factory=list)
    best: tuple[Int[np.ndarray, "L P"], float] | None = None
    """The arrangement of the lowest loss over all rows, and that loss."""
    minimum: Minimum = Minimum.STOPPED

    def stop(self) -> str | None:
        """Why the search has to stop now, if it has to."""
        late = self.time_limit is not None and time.perf_counter() - self.started > self.time_limit
        return STOPS[mesh.agreed(1 if self.interrupted() else 2 if late else 0)]

    def keep(self, function: Callable[[], T], like: T) -> T:
        """What `function()` gives, from the journal where there is one that has it."""
        return function() if self.journal is None else self.journal.call(function, like, self.stop)

    @contextmanager
    def stage(self, name: str, rows: int) -> Iterator[dict]:
        """Times a stage; what it puts into the yielded record (loss, moves) is kept."""
        self.progress.begins(name)
        begun, before = time.perf_counter(), self.scorer.cost.evaluations
        record: dict = {}
        yield record
        evaluations = self.scorer.cost.evaluations - before
        self.stages.append(Stage(name, time.perf_counter() - begun, record.pop("loss"), rows, evaluations, **record))
        self.progress.ends(self.stages[-1])

    def found(self, arrangement: Int[np.ndarray, "L P"]) -> bool:
        """Records an arrangement; returns whether it is the best so far."""
        (loss,) = self.scorer.losses(arrangement[None])
        better = self.best is None or bool(loss < self.best[1])
        if better:
            self.best = (arrangement, float(loss))
        return better

    def ordering(self, start: Int[np.ndarray, "L P"]) -> Ordering:
        """Runs the whole search and judges what it found."""
        self.found(start)
        assert self.best is not None
        start_loss = self.best[1]
        solved = self.judge.solved(start)
        if not solved:
            search = Search(self.scorer, self.judge.solved, self.stop, self.keep, self.random_seed)
            self._search(search, start)
            solved = self.judge.solved(self.best[0])
        if self.journal is not None:
            self.journal.write()
        return self._judged(solved, start_loss)

    def _search(self, search: Search, start: Int[np.ndarray, "L P"]) -> None:
        """Tries every arrangement if there are few; otherwise makes descents from several starts until solved or out of
        time."""
        everything = search.all_arrangements()
        if everything is not None:
            with self.stage("every arrangement", self.scorer.rows) as record:
                losses = self.scorer.losses(everything)
                self.best = (everything[losses.argmin()], float(losses.min()))
                self.minimum, record["loss"] = Minimum.GLOBAL, self.best[1]
            return
        scorer = self.scorer
        rows = scorer.rows if self.judge.target is None else scorer.chunk  # only a minimum over all rows counts as one
        if self.scorer.network.depth >= SEEDED_FROM and not self.stop():
            with self.stage("seed order", rows) as record:
                like = (start, 0.0)
                start, record["loss"] = self.keep(partial(best_seed, scorer, start, rows), like)
        last: Descent | None = None
        for attempt in count():
            if self.stop() or (attempt == ATTEMPTS and self.time_limit is None):
                break
            name, begin = self._beginning(search, attempt, start, last, rows)
            with self.stage(name, rows) as record:
                at = search.descend(begin, rows, attempt)
                record |= {"loss": at.loss, "moves": at.made}
            if self.found(at.arrangement):
                last = at
                reached = rows == scorer.rows and at.tried.all() and not self.stop()
                self.minimum = Minimum.LOCAL if reached else Minimum.STOPPED
                if self.judge.solved(at.arrangement):
                    break
            if attempt % 3 == 2:
                rows = min(scorer.rows, 2 * rows)

    def _beginning(
        self, search: Search, attempt: int, start: Int[np.ndarray, "L P"], last: Descent | None, rows: int
    ) -> tuple[str, Int[np.ndarray, "L P"]]:
        """The name of an attempt and the arrangement where it begins."""
        assert self.best is not None
        if attempt == 0 or last is None:
            return "descent", start
        if attempt % 4 == 3:
            return "random start", search.shuffled(attempt)
        if attempt % 4 == 0:
            return "annealing", search.annealed(last, rows, attempt)
        return "kick", search.kicked(self.best[0], 2 + attempt // 2, attempt)

    def _judged(self, solved: bool, start_loss: float) -> Ordering:
        """Everything that is reported of the best arrangement."""
        assert self.best is not None
        kinds, judge, (arrangement, loss) = self.scorer.network.kinds, self.judge, self.best
        ties = rivals = np.zeros((0, 4), np.int32)
        why = self.stop()
        if solved:
            with self.stage("verify", self.scorer.rows) as record:
                arrangement, ties = judge.settled(arrangement)
                (loss,) = self.scorer.losses(arrangement[None])
                record["loss"] = float(loss)
        elif judge.target is None and not why:
            with self.stage("verify", self.scorer.rows) as record:
                rivals, record["loss"] = self._rivals(arrangement), loss
        if solved and not judge.exact(arrangement):
            outcome = Outcome.NOISE_FLOOR
        elif solved:
            outcome = Outcome.EXACT_UP_TO_TIES if len(ties) else Outcome.EXACT
        else:
            outcome = self.minimum if judge.target is None else Outcome.NOT_SOLVED
        comparable = judge.target is not None
        return Ordering(
            arrangement=arrangement,
            loss=float(loss),
            start_loss=start_loss,
            outcome=outcome,
            rows=self.scorer.rows,
            error=judge.error(arrangement) if comparable else None,
            tolerance=judge.tolerance(arrangement) if comparable else None,
            ties=tuple(Move.of(move, kinds) for move in ties),
            undecided=tuple(Move.of(move, kinds) for move in rivals),
            stages=tuple(self.stages),
            evaluations=self.scorer.cost.evaluations,
            passes=self.scorer.cost.blocks / self.scorer.network.depth,
            seconds=time.perf_counter() - self.started,
            stop_reason="solved" if solved else why or STALLED,
            random_seed=self.random_seed,
        )

    def _rivals(self, arrangement: Int[np.ndarray, "L P"]) -> moves.Moves:
        """Moves that, as far as the rows tell, may make the arrangement no worse."""
        listed = moves.every_move(len(arrangement), moves.kind_sets(arrangement.shape[1])[0])
        losses = self.scorer.losses(moves.moved(arrangement, listed))
        return undecided(self.scorer, arrangement, listed[np.argsort(losses, kind="stable")[:RIVALS]])


def identity(parts: Sequence[PyTree], x: State, target: PyTree | None, **others: object) -> dict[str, str]:
    """Everything that a search's results depend on, by which its journal is recognised: these arrays and the named
    values."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path((tuple(parts), x, target)):
        array = np.asarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape} ".encode() + array.tobytes())
    versions = {name: version(name) for name in ("dropjax", "jax", "jaxlib")}
    return {
        "arrays": found.hexdigest(),
        "device": describe(),
        **{name: str(value) for name, value in others.items()},
        **versions,
    }
