"""Small puzzles with a known answer, for every test."""

import numpy as np

from dropjax.core.puzzle import Puzzle
from dropjax.core.stack import Stack, replay


def random_puzzle(
    rng: np.random.Generator,
    L: int = 4,
    d: int = 5,
    h: int = 7,
    o: int = 1,
    rows: int = 50,
    activation: str = "relu",
    coupling: float = 1.0,
    numbers: list[int] | None = None,
) -> tuple[Puzzle, tuple[int, ...]]:
    """A stack dropped on the floor, and the permutation that puts it back.

    Each W_out is `coupling` parts of its own −W_inᵀ to one part noise, so that pairs show in the weights as in a trained
    stack (0: they do not show), and residuals grow threefold from the first block to the last, so that depth shows as well.
    pred is the stack in float64, rounded to float32. The numbering is shuffled; `numbers` replaces 0..2L.
    """
    size = np.geomspace(0.1, 0.3, L)[:, None, None]
    w_in = rng.normal(size=(L, h, d)) / np.sqrt(d)
    w_out = size * (rng.normal(size=(L, d, h)) - coupling * np.sqrt(d) * w_in.swapaxes(1, 2)) / np.sqrt(h)
    drawn = [
        w_in,
        rng.normal(size=(L, h)) / 4,
        w_out,
        rng.normal(size=(L, d)) / 20,
        rng.normal(size=(o, d)),
        rng.normal(size=o),
    ]
    w_in, b_in, w_out, b_out, w_last, b_last = (a.astype(np.float32) for a in drawn)
    x = rng.normal(size=(rows, d)).astype(np.float32)
    pred = replay(Stack(w_in, b_in, w_out, b_out, w_last, b_last, activation), x).astype(np.float32)  # pyright: ignore[reportArgumentType]
    true = (pred + rng.normal(size=pred.shape) / 10).astype(np.float32)

    permutation = tuple(map(int, rng.permutation(2 * L + 1 if numbers is None else numbers)))
    halves = [half for k in range(L) for half in ((w_in[k], b_in[k]), (w_out[k], b_out[k]))]
    pieces = dict(zip(permutation, [*halves, (w_last, b_last)], strict=True))
    roles = dict(zip(permutation, ["in", "out"] * L + ["last"], strict=True)) if h in (d, o) else None
    return Puzzle.from_arrays(pieces, x, pred, true, roles), permutation


def same(a: Puzzle, b: Puzzle) -> bool:
    """Whether two puzzles are the same bit for bit."""
    names = ("in_numbers", "out_numbers", "w_in", "b_in", "w_out", "b_out", "w_last", "b_last", "x", "pred", "true")
    pairs = ((getattr(a, name), getattr(b, name)) for name in names)
    return a.last_number == b.last_number and all(p is q is None or p.tobytes() == q.tobytes() for p, q in pairs)
