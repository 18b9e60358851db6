"""The last word on an answer: every row of the table, float32's noise, and the answers it cannot be told from."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dropjax.core.options import MEMORY
from dropjax.core.puzzle import Puzzle
from dropjax.core.stack import Stack, advance, pick, read_out, replay
from dropjax.moves.arrangements import PAIR_SWAP, adjacent_swaps, moved, nothing, pairs_of_positions
from dropjax.moves.exact import score_moves
from dropjax.moves.first_order import adjacent_changes, bytes_per_row, linearise, pair_swap_changes
from dropjax.runtime import mesh
from dropjax.runtime.device import CORE_ROWS, side_by_side, workers
from dropjax.runtime.programs import QUICK, program
from dropjax.runtime.rows import in_chunks, map_over_rows, sum_over_rows

PASS_ROWS = 1 << 14
"""Rows that go through the stack together when the table is not divided: enough to keep a device busy."""

SCREENED_ROWS = 48
"""Rows on which ties are looked for and float32's noise is measured; ties found there are checked on all rows."""
ALIKE = 4
"""Outputs count as the same if their RMS difference is at most this many times float32's noise (two runs differ by √2 times
it)."""
NEAR, NEARER = 100, 20
"""Moves are looked at further if they change the outputs by at most this many times the noise: to first order, and where
more than `PADDED` moves are left, exactly on the screening rows. A move that changes more than twice the answer's RMS error
cannot lower it."""
PADDED = 64
"""Moves are evaluated in multiples of this number, so that few lengths are ever compiled."""


class Pass(NamedTuple):
    """One arrangement's outputs over the whole table, and how far they are from pred."""

    outputs: Float[Array, "N o"]
    by_output: Float[np.ndarray, " o"]
    """MSE of each output."""
    largest: Float[np.ndarray, " o"]
    """Largest absolute error of each output."""

    @property
    def mse(self) -> float:
        """MSE over all outputs; infinite if it is NaN."""
        mse = float(np.mean(self.by_output))
        return mse if np.isfinite(mse) else np.inf

    @property
    def max_abs_error(self) -> float:
        """Largest absolute error over all outputs."""
        return float(np.max(self.largest))


def full_pass(
    stack: Stack,
    arrangement: Int[np.ndarray, "L 2"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    memory: int = MEMORY,
) -> Pass:
    """Runs the arrangement over all rows, which the cores of a CPU share."""
    parts = pass_parts(len(x))
    of_part = partial(pass_part, stack, arrangement, x, pred, parts=parts, memory=memory)
    outputs, squares, largest = zip(*side_by_side(of_part, np.arange(parts, dtype=np.int32)), strict=True)
    whole = outputs[0] if parts == 1 else jax.device_put(np.concatenate(outputs)[: len(x)])
    return Pass(whole, np.asarray(np.sum(squares, axis=0, dtype=np.float64)) / len(x), np.max(largest, axis=0))


def pass_parts(rows: int) -> int:
    """Parts in which `full_pass` takes a table: as many as a CPU has cores, but none of too few rows to be worth it."""
    return max(1, min(workers(), rows // CORE_ROWS))


@program(static_argnames=("parts", "memory"), shared=True)
def pass_part(
    stack: Stack,
    arrangement: Int[Array, "L 2"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    part: Int[Array, ""],
    parts: int = 1,
    memory: int = MEMORY,
) -> tuple[Float[Array, "M o"], Float[Array, " o"], Float[Array, " o"]]:
    """The outputs of one of several equal parts of the rows, with each output's sum of squared errors and largest absolute
    error. Rows of zeros fill up the last part."""
    hidden, width = stack.w_in.shape[1:]
    bytes_per_row = 8 * (width + hidden)
    rows = -(-len(x) // parts)
    x, pred, weight = (pick(in_chunks(a, rows), part) for a in (x, pred, jnp.ones((len(x), 1))))
    run = lambda x: read_out(stack, advance(stack, arrangement, 0, stack.depth, x))  # noqa: E731
    held = min(memory, (PASS_ROWS if parts == 1 else CORE_ROWS) * bytes_per_row)
    outputs = map_over_rows(run, (x,), bytes_per_row, held)
    error = weight * (outputs - pred)
    return outputs, *mesh.whole((jnp.sum(error**2, axis=0), jnp.max(jnp.abs(error), axis=0)))


class Noise(NamedTuple):
    """RMS errors that do not depend on the order."""

    float32: float
    """RMS difference between the stack's outputs in float32 and in float64."""
    pred: float | None
    """RMS of pred's own rounding or of its declared noise; None if it has neither."""

    @property
    def floor(self) -> float:
        """RMS of both together."""
        return float(np.hypot(self.float32, self.pred or 0.0))


def float32_noise(
    stack: Stack,
    arrangement: Int[np.ndarray, "L 2"],
    x: Float[np.ndarray, "N d"],
    outputs: Float[np.ndarray, "N o"] | Float[Array, "N o"],
) -> float:
    """RMS difference of the outputs from a float64 replay, on few rows (D16 in docs/method.md)."""
    again = replay(arranged_on_host(stack, arrangement), x[:SCREENED_ROWS])
    return float(np.sqrt(np.mean((again - outputs[:SCREENED_ROWS]) ** 2)))


def arranged_on_host(stack: Stack, arrangement: Int[np.ndarray, "L 2"]) -> Stack:
    """The stack in that arrangement, as NumPy arrays."""
    return jax.tree.map(np.asarray, stack).arranged(np.asarray(arrangement))


@program(static_argnames=("memory",), options=QUICK, shared=True)
def first_order_changes(
    stack: Stack, arrangement: Int[Array, "L 2"], x: Float[Array, "N d"], memory: int = MEMORY
) -> Float[Array, " K"]:
    """RMS change of the outputs, to first order, by the moves that `near_moves` considers."""
    (depth, hidden, _), outputs = stack.w_in.shape, len(stack.b_last)

    def of_chunk(x: Array, weight: Array) -> Float[Array, " K"]:
        at = linearise(stack, arrangement, x)
        i, j = np.triu_indices(depth, 1)
        changes = jnp.concatenate(
            [adjacent_changes(stack, arrangement, at), pair_swap_changes(stack, arrangement, at)[i, j]]
        )
        return jnp.sum(weight[:, None] * changes**2, axis=(1, 2))

    held = bytes_per_row(stack, values=depth * (4 * depth + hidden))
    return jnp.sqrt(sum_over_rows(of_chunk, (x, jnp.ones(len(x))), held, memory) / (len(x) * outputs))


class Near(NamedTuple):
    """Moves from an answer that come near float32's noise."""

    ties: Int[np.ndarray, "K 3"]
    """Moves that change no output by more than the noise, so that no table can tell them from the answer."""
    better: Int[np.ndarray, "L 2"] | None
    """The arrangement after the best of the moves that lower the MSE by more than the noise; None if none does."""

    @classmethod
    def none(cls) -> "Near":
        """The result without any such moves."""
        return cls(np.zeros((0, 3), np.int32), None)


class _Stopped(Exception):
    """The long computation was stopped before its end."""


def near_moves(
    stack: Stack,
    arrangement: Int[np.ndarray, "L 2"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    host_x: Float[np.ndarray, "N d"],
    passed: Pass,
    noise: float,
    screen: bool = True,
    memory: int = MEMORY,
    stopped: Callable[[], bool] = lambda: False,
) -> Near:
    """Swaps of neighbours and pair swaps that the answer can hardly be told from, evaluated on all rows.

    With `screen`, only moves whose change on few rows comes near the noise are evaluated. Without it the evaluation takes
    long; once `stopped` returns true, it goes on as with `screen`.
    """
    depth = stack.depth
    moves = np.concatenate([adjacent_swaps(depth), pairs_of_positions(depth, PAIR_SWAP)])

    def rms(moves: Int[np.ndarray, "K 3"], x: Float[Array, "N d"], target: Float[Array, "N o"]) -> Float[np.ndarray, " K"]:
        padded = np.concatenate([moves, nothing(depth, -len(moves) % PADDED)])
        return np.sqrt(score_moves(stack, arrangement, padded, x, target, memory=memory)[: len(moves)].astype(np.float64))

    def looked_at(moves: Int[np.ndarray, "K 3"], rms: Callable[..., Float[np.ndarray, " K"]]) -> Near:
        if len(moves) == 0:
            return Near.none()
        tied = rms(moves, x, passed.outputs) <= ALIKE * noise
        mse = np.where(tied, np.inf, rms(moves, x, pred) ** 2)
        best = int(np.argmin(mse))
        fall = passed.mse - mse[best]
        return Near(moves[tied], np.asarray(moved(mesh.put(arrangement), moves[best])) if fall > noise**2 else None)

    def in_parts(moves: Int[np.ndarray, "K 3"], *rows: Float[Array, "N _"]) -> Float[np.ndarray, " K"]:
        found = []
        for start in range(0, len(moves), PADDED):
            if mesh.agreed(int(stopped())):
                raise _Stopped
            found.append(rms(moves[start : start + PADDED], *rows))
        return np.concatenate(found)

    if not screen:
        with suppress(_Stopped):
            return looked_at(moves, in_parts)
    few = host_x[:SCREENED_ROWS]
    moves = moves[np.asarray(first_order_changes(stack, arrangement, few, memory)) <= NEAR * noise]
    if len(moves) > PADDED:
        changes = rms(moves, *mesh.put((few, mesh.fetch(passed.outputs)[:SCREENED_ROWS])))
        moves = moves[changes <= max(NEARER * noise, 2 * np.sqrt(passed.mse))]
    return looked_at(moves, rms)


def tied_pieces(puzzle: Puzzle, arrangement: Int[np.ndarray, "L 2"], ties: Int[np.ndarray, "K 3"]) -> list[list[int]]:
    """The pieces that each tie exchanges: the four of two blocks, or two output halves."""
    groups = []
    for kind, i, j in ties:
        outs = [int(puzzle.out_numbers[arrangement[k, 1]]) for k in (i, j)]
        ins = [int(puzzle.in_numbers[arrangement[k, 0]]) for k in (i, j)]
        groups.append(outs if kind == PAIR_SWAP else [ins[0], outs[0], ins[1], outs[1]])
    return groups


def duplicate_pieces(puzzle: Puzzle) -> list[list[int]]:
    """Groups of halves of one kind that are equal bit for bit."""
    groups: dict[tuple[str, bytes, bytes], list[int]] = {}
    for kind, numbers, weights, biases in (
        ("in", puzzle.in_numbers, puzzle.w_in, puzzle.b_in),
        ("out", puzzle.out_numbers, puzzle.w_out, puzzle.b_out),
    ):
        for number, weight, bias in zip(numbers, weights, biases, strict=True):
            groups.setdefault((kind, weight.tobytes(), bias.tobytes()), []).append(int(number))
    return [group for group in groups.values() if len(group) > 1]


def float64_errors(
    stack: Stack, x: Float[np.ndarray, "N d"], pred: Float[np.ndarray, "N o"], stopped: Callable[[], bool] = lambda: False
) -> Mapping[str, float] | None:
    """MSE and largest absolute error of the float64 replay of a stack over all rows; None if `stopped` ended it."""
    squares = largest = 0.0
    for start in range(0, len(x), PASS_ROWS):
        if mesh.agreed(int(stopped())):
            return None
        error = np.abs(replay(stack, x[start : start + PASS_ROWS]) - pred[start : start + PASS_ROWS])
        squares, largest = squares + float(np.sum(error**2)), max(largest, float(np.max(error)))
    return {"mse": squares / pred.size, "max_abs_error": largest}


def tie_groups(
    puzzle: Puzzle, arrangement: Int[np.ndarray, "L 2"], moves: Int[np.ndarray, "K 3"], twins: Sequence[Sequence[int]] = ()
) -> Sequence[Sequence[int]]:
    """All groups of interchangeable pieces, each once: what the moves exchange, twins, and pieces that are equal."""
    duplicates = duplicate_pieces(puzzle)
    groups = [*tied_pieces(puzzle, arrangement, moves), *twins, *duplicates]
    groups = dict.fromkeys(tuple(sorted(group)) if len(group) == 2 else tuple(group) for group in groups)
    equal = {pair for group in duplicates for pair in itertools.combinations(sorted(group), 2)}
    by_halves = lambda of: len(of) == 4 and {tuple(sorted(of[k::2])) for k in (0, 1)} <= equal  # noqa: E731
    return tuple(group for group in groups if not by_halves(group))
