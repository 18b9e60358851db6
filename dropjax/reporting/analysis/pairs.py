"""Products W_out·W_in of matching and of other halves, compared with theory (paper, Appendix B.3)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float


class RightPairs(NamedTuple):
    """The parts of W_out·W_in = −ε·I + E of each block (paper, Eqs. 16 to 18)."""

    epsilon: Float[np.ndarray, " L"]
    """|tr| / d."""
    rest_norm: Float[np.ndarray, " L"]
    """‖E‖_F."""
    predicted: Float[np.ndarray, " L"]
    """√d / √(1 + ‖E‖² / (ε²·d)), which is d(i, i) again; at most √d."""


def right_pairs(product: Float[np.ndarray, "L d d"]) -> RightPairs:
    """Each product as a multiple of the identity and the rest (Eqs. 16 to 18); E is taken with the trace's own sign."""
    product = np.asarray(product, np.float64)
    d = product.shape[-1]
    mean = np.trace(product, axis1=1, axis2=2) / d
    rest = np.linalg.norm(product - mean[:, None, None] * np.eye(d), axis=(1, 2))
    ratio = np.divide(rest**2, mean**2 * d, out=np.full(len(mean), np.inf), where=mean != 0)
    return RightPairs(np.abs(mean), rest, np.sqrt(d / (1 + ratio)))


def entry_variance(w_in: Float[np.ndarray, "L h d"], w_out: Float[np.ndarray, "L d h"]) -> Float[np.ndarray, "L L"]:
    """h·σ_out²·σ_in² of input half i (row) and output half j (column): the variance of each entry of W_out^(j)·W_in^(i),
    were both halves' entries independent, of mean zero and of the mean squares measured (paper, Eq. 19)."""
    of_in, of_out = (np.mean(np.square(w, dtype=np.float64), axis=(1, 2)) for w in (w_in, w_out))
    return w_in.shape[1] * of_in[:, None] * of_out


class WrongPairs(NamedTuple):
    """Products of halves that do not match, compared with independent entries of mean zero (paper, Eqs. 19 to 21)."""

    standardised: Float[np.ndarray, " K"]
    """Each trace over its predicted standard deviation σ_out·σ_in·√(d·h): of mean 0 and deviation 1 by Eq. 20."""
    trace_deviation: float
    """Measured standard deviation of the traces."""
    predicted_deviation: float
    """Root mean square of the predicted standard deviations."""
    ratio: float
    """√(E[tr²] / E[‖M‖²]): 1/√d by Eq. 21."""
    predicted_ratio: float
    """1/√d."""


def wrong_pairs(
    w_in: Float[np.ndarray, "L h d"],
    w_out: Float[np.ndarray, "L d h"],
    right: Bool[np.ndarray, "L L"],
    score: Float[np.ndarray, "L L"],
    trace: Float[np.ndarray, "L L"],
) -> WrongPairs:
    """The pairs that `right` does not mark, against Eqs. 20 and 21; `score` and `trace` are `ratio.diagonal_dominance`'s."""
    width = w_in.shape[2]
    predicted = np.sqrt(width * entry_variance(w_in, w_out))[~right]
    traces, scores = (np.asarray(a, np.float64)[~right] for a in (trace, score))
    norms = np.divide(np.abs(traces), scores, out=np.zeros_like(traces), where=scores > 0)
    return WrongPairs(
        standardised=traces / predicted,
        trace_deviation=_root_mean_square(traces),
        predicted_deviation=_root_mean_square(predicted),
        ratio=_root_mean_square(traces) / max(_root_mean_square(norms), np.finfo(float).tiny),
        predicted_ratio=width**-0.5,
    )


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else float("nan")
