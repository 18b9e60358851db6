"""Blocks and input halves that do the same, whatever makes them: the order of hidden units, their scale where the activation
is homogeneous, their sign where it is odd, or units that do nothing.

What blocks do is compared on some states, and every exchange that seems to change nothing is then evaluated on all rows.
Looked at: two blocks that are the same function, wherever they stand, and two input halves that do the same before each
other's output halves. Not looked at: exchanges of three or more, and blocks far apart that differ but make up for it.
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
"""States before the first block, and as many behind the last, on which blocks are compared."""

SAME = 1e-4
"""Fraction of what blocks do, on average, up to which two seem to do the same."""

MOST = 256
"""Exchanges that are evaluated, at most: of idle blocks, every one would be."""


def twin_pieces(puzzle: Puzzle, answer: Answer, memory: int = MEMORY) -> list[list[int]]:
    """The pieces that each exchange exchanges which changes no output: two blocks' four, or two input halves."""
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

    Each block's effect is looked at in one random direction.
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
    """The arrangement with two blocks exchanged, or their input halves alone."""
    exchanged, columns = arrangement.copy(), slice(0, 2 if both else 1)
    exchanged[[i, j], columns] = arrangement[[j, i], columns]
    return exchanged
