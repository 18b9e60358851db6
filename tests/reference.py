"""What the kernels must compute, in plain NumPy and float64, one row of the definition at a time."""

import numpy as np
from hypothesis import strategies as st

from dropjax.core.stack import Stack

SHAPES = [(2, 3, 5, 1), (5, 6, 4, 2), (7, 4, 9, 1)]
"""(L, d, h, o) that the property tests draw from; each is compiled once."""

seeds = st.integers(0, 2**32 - 1)
shapes = st.sampled_from(SHAPES)


def random_stack(rng, L, d, h, o, activation="relu", size=0.3) -> Stack:
    drawn = [
        rng.normal(size=(L, h, d)) / np.sqrt(d),
        rng.normal(size=(L, h)) / 4,
        size * rng.normal(size=(L, d, h)) / np.sqrt(h),
        size * rng.normal(size=(L, d)) / 4,
        rng.normal(size=(o, d)),
        rng.normal(size=o),
    ]
    return Stack(*(a.astype(np.float32) for a in drawn), activation=activation)  # type: ignore[reportArgumentType]


def random_arrangement(rng, L) -> np.ndarray:
    return np.stack([rng.permutation(L), rng.permutation(L)], axis=1).astype(np.int32)


def residual(stack, halves, x) -> np.ndarray:
    i, j = halves
    w_in, b_in, w_out, b_out = (
        np.asarray(a, np.float64) for a in (stack.w_in[i], stack.b_in[i], stack.w_out[j], stack.b_out[j])
    )
    z = x @ w_in.T + b_in
    hidden = {"relu": np.maximum(z, 0), "tanh": np.tanh(z)}[stack.activation]
    return hidden @ w_out.T + b_out


def states(stack, arrangement, x) -> list[np.ndarray]:
    out = [np.asarray(x, np.float64)]
    for halves in np.asarray(arrangement):
        out.append(out[-1] + residual(stack, halves, out[-1]))
    return out


def outputs(stack, arrangement, x) -> np.ndarray:
    last = states(stack, arrangement, x)[-1]
    return last @ np.asarray(stack.w_last, np.float64).T + np.asarray(stack.b_last, np.float64)


def mse(stack, arrangement, x, pred) -> float:
    return float(np.mean((outputs(stack, arrangement, x) - pred) ** 2))


def after(arrangement, move) -> np.ndarray:
    """The arrangement after a move, by list surgery."""
    kind, i, j = map(int, move)
    rows = [list(row) for row in np.asarray(arrangement)]
    if kind == 0:
        rows[i], rows[j] = rows[j], rows[i]
    elif kind == 1:
        rows.insert(j, rows.pop(i))
    else:
        rows[i][1], rows[j][1] = rows[j][1], rows[i][1]
    return np.array(rows)
