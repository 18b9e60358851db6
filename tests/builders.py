"""Small puzzles with a known answer, for every test."""

import numpy as np

from dropjax.core.puzzle import Puzzle
from dropjax.core.solution import Outcome, Pairing, Solution, Stage
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


def written_solution(puzzle: Puzzle, permutation: tuple[int, ...], **changes) -> Solution:
    """A solution as a solve would return it, without one: the ratio pairs all halves as the permutation does."""
    arrangement = puzzle.arrangement(permutation)
    partner = arrangement[np.argsort(arrangement[:, 0]), 1]
    score = np.random.default_rng(0).uniform(0, 1, (puzzle.depth, puzzle.depth)).astype(np.float32)
    score[np.arange(puzzle.depth), partner] += 2
    stages = [
        Stage("pairing", 0.1),
        Stage("bradley-terry", 0.2, 1e-3, len(puzzle.x)),
        Stage("verify", 0.1, 1e-15, len(puzzle.x)),
    ]
    return Solution(
        **{
            "permutation": permutation,
            "stack": puzzle.stack(),
            "outcome": Outcome.EXACT,
            "mse": 1e-15,
            "max_abs_error": 1e-7,
            "noise_floor": 1e-7,
            "rows": len(puzzle.x),
            "method": "paper",
            "seed_order": "delta_norm",
            "random_seed": 0,
            "stop_reason": "solved",
            "device": "cpu",
            "precision": "float32",
            "pairing": Pairing("ddr", score, partner, True),
            "stages": stages,
            "seconds": {"solve": 1.0},
            **changes,
        }
    )


def same(a: Puzzle, b: Puzzle) -> bool:
    """Whether two puzzles are the same bit for bit."""
    names = ("in_numbers", "out_numbers", "w_in", "b_in", "w_out", "b_out", "w_last", "b_last", "x", "pred", "true")
    pairs = ((getattr(a, name), getattr(b, name)) for name in names)
    return a.last_number == b.last_number and all(p is q is None or p.tobytes() == q.tobytes() for p, q in pairs)
