"""Twins: blocks or input halves that compute the same function although their weights differ. They may differ in the order
of hidden units, in their scale (if the activation is homogeneous), in their sign (if it is odd), or in units that do
nothing.

The blocks' effects are compared on some states, and every exchange that seems to change nothing is then evaluated on all
rows. This finds two blocks that are the same function wherever they stand, and two input halves that do the same before each
other's output halves. It does not find exchanges of three or more, nor blocks far apart whose differences cancel.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Int

from dropjax.core.options import MEMORY
from dropjax.core.puzzle import Puzzle
from dropjax.core.stack import ACTIVATIONS, Stack, replay
from dropjax.moves.exact import score_arrangements
from dropjax.search.answer import Answer
from dropjax.search.verify import arranged_on_host

POINTS = 8
"""Blocks are compared on this many states before the first block and as many behind the last."""

SAME = 1e-4
"""Two blocks seem the same if their effects differ by at most this fraction of the blocks' average effect."""

MOST = 256
"""At most this many exchanges are evaluated: among idle blocks, all of them seem to change nothing."""


def twin_pieces(puzzle: Puzzle, answer: Answer, memory: int = MEMORY) -> list[list[int]]:
    """For each exchange that changes no output, its pieces: the four of two blocks, or two input halves."""
    blocks, halves = alike(arranged_on_host(answer.problem.stack, answer.arrangement), answer.problem.table.x)
    exchanges = [(int(i), int(j), both) for both, found in ((True, blocks), (False, halves)) for i, j in np.argwhere(found)][
        :MOST
    ]
    if not exchanges:
        return []
    stack, x, _, _ = answer.problem
    orders = np.array([_exchanged(answer.arrangement, *exchange) for exchange in exchanges])
    change = np.asarray(score_arrangements(stack, orders, x, answer.passed.outputs, memory=memory), np.float64)
    ins, outs = (numbers[answer.arrangement[:, k]] for k, numbers in enumerate((puzzle.in_numbers, puzzle.out_numbers)))
    tied = [exchange for exchange, same in zip(exchanges, answer.alike(change), strict=True) if same]
    return [[int(n) for n in ((ins[i], outs[i], ins[j], outs[j]) if both else (ins[i], ins[j]))] for i, j, both in tied]


def alike(stack: Stack, x: Float[np.ndarray, "N d"]) -> tuple[Bool[np.ndarray, "L L"], Bool[np.ndarray, "L L"]]:
    """For positions i < j of a stack in order, whether the blocks seem to do the same, and whether the input halves do.

    Each block's effect is measured in one random direction.
    """
    width = stack.w_in.shape[2]
    to_the_end = replace(stack, w_last=np.eye(width), b_last=np.zeros(width))
    points = np.concatenate([x[:POINTS], replay(to_the_end, x[:POINTS])]).astype(np.float32)
    direction = np.random.default_rng(0).normal(size=width).astype(np.float32)
    active = ACTIVATIONS[stack.activation].twin(points @ np.swapaxes(stack.w_in, 1, 2) + np.asarray(stack.b_in)[:, None])
    effect = active @ (direction @ np.asarray(stack.w_out)).T + np.asarray(stack.b_out) @ direction  # [in, point, out]
    own = np.einsum("ipi->pi", effect)
    limit = SAME * np.sqrt(np.mean(own**2))
    blocks = np.all(np.abs(own[:, :, None] - own[:, None, :]) <= limit, axis=0)
    before_other = np.all(np.abs(effect - own) <= limit, axis=1)  # input half i before output half j, as j's own
    return np.triu(blocks, 1), np.triu(before_other & before_other.T & ~blocks, 1)


def _exchanged(arrangement: Int[np.ndarray, "L 2"], i: int, j: int, both: bool) -> Int[np.ndarray, "L 2"]:
    """The arrangement after the exchange of two blocks, or of their input halves alone."""
    exchanged, columns = arrangement.copy(), slice(0, 2 if both else 1)
    exchanged[[i, j], columns] = arrangement[[j, i], columns]
    return exchanged
