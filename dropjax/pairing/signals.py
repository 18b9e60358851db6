"""The pairing signals: one score for every input half with every output half, from the same evidence."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import scipy
from jaxtyping import Float, Int

from dropjax.pairing.certainty import without_effects
from dropjax.pairing.evidence import Evidence

RIDGE, REFITS = 0.05, 8
"""Ridge of the discriminant."""


WRONG_PAIRS = 10
"""Wrong pairs per signal that a discriminant is learned from: with 10 signals, it takes 11 halves."""


def _ratio(value: Float[np.ndarray, "L L"], scale: Float[np.ndarray, "L L"]) -> Float[np.ndarray, "L L"]:
    return value / np.where(scale > 0, scale, 1)


def ddr(seen: Evidence) -> Float[np.ndarray, "L L"]:
    """|tr M| / ‖M‖_F, the paper's Eq. 4. The order and scale of hidden units and the scale of halves do not change it."""
    return np.abs(negative_trace(seen))


def negative_trace(seen: Evidence) -> Float[np.ndarray, "L L"]:
    """−tr M / ‖M‖_F: equals `ddr` if the trace is negative, as in the paper's Proposition 1. It has the same invariances."""
    return -_ratio(seen.trace, seen.norm)


def positive_trace(seen: Evidence) -> Float[np.ndarray, "L L"]:
    """tr M / ‖M‖_F, for strong weight decay, which turns the sign. It has the same invariances as `ddr`."""
    return _ratio(seen.trace, seen.norm)


def cosines(seen: Evidence) -> Float[np.ndarray, "L L"]:
    """Minus the mean cosine of hidden units' in- and out-vectors. Neither the units' order nor any scale changes it."""
    return -seen.cosines


def squared_cosines(seen: Evidence) -> Float[np.ndarray, "L L"]:
    """Mean squared cosine of hidden units' in- and out-vectors. Neither the units' order nor any scale or sign changes
    it."""
    return seen.squared_cosines


def cubed_cosines(seen: Evidence) -> Float[np.ndarray, "L L"]:
    """Minus the cosine of the halves with their hidden units' vectors at unit length and every entry cubed.

    It is a sum over entries like the trace, but the largest entries dominate: when training has hardly begun to tie the
    halves together, their few large weights already agree. It has the invariances of the mean cosine.
    """
    return -_ratio(seen.cubes, np.outer(*seen.cube_norms))


def norms(seen: Evidence) -> Float[np.ndarray, "L L"]:
    """Correlation, over hidden units, of ‖W_in row‖ with ‖W_out column‖: weight decay and Adam make them alike.

    The order of hidden units and the scale of halves do not change it; the scale of a hidden unit (row × c, column ÷ c)
    does."""
    return _correlation(seen.in_norms, seen.out_norms)


def norm_ranks(seen: Evidence) -> Float[np.ndarray, "L L"]:
    """The rank correlation (Spearman) of the hidden units' norms, with the invariances of `norms`."""
    ranks = partial(scipy.stats.rankdata, axis=1)
    return _correlation(ranks(seen.in_norms), ranks(seen.out_norms))


def peaks(seen: Evidence) -> Float[np.ndarray, "L L"]:
    """The correlation of the hidden units' largest weights, with the invariances of `norms`."""
    return _correlation(seen.in_peaks, seen.out_peaks)


def gram(seen: Evidence) -> Float[np.ndarray, "L L"] | None:
    """Cosine of the hidden units' Gram matrices A·Aᵀ and B·Bᵀ, from −½‖G_A/‖G_A‖ − G_B/‖G_B‖‖² + 1 = ‖M‖²/(‖G_A‖‖G_B‖).

    The order of hidden units, rotations of the features and the scale of halves do not change it; the scale of a hidden unit
    does.
    """
    return None if seen.gram_norms is None else _ratio(seen.norm**2, np.outer(*seen.gram_norms))


def symmetry(seen: Evidence) -> Float[np.ndarray, "L L"] | None:
    """tr(M²) / ‖M‖_F² = 1 − ½‖M − Mᵀ‖_F²/‖M‖_F²: how symmetric M is. It has the invariances of `ddr`."""
    return None if seen.square is None else _ratio(seen.square, seen.norm**2)


def movement(seen: Evidence) -> Float[np.ndarray, "L L"] | None:
    """−Σ ⟨movement of a_k, b_k⟩ + ⟨a_k, movement of b_k⟩, with every weight's `movements` since it was drawn.

    It is to first order how much likelier the halves are if training moved each against the other (D22 in docs/method.md).
    Only the order of hidden units does not change it: weights are compared with those of all halves.
    """
    if (moved := seen.moved) is None:
        return None
    ours, theirs = (half.reshape(len(half), -1) for half in moved)
    return -ours @ theirs.T


def _correlation(a: Float[np.ndarray, "L h"], b: Float[np.ndarray, "L h"]) -> Float[np.ndarray, "L L"]:
    a, b = (half - half.mean(axis=1, keepdims=True) for half in (a, b))
    return _ratio(a @ b.T, np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)))


SIGNALS: dict[str, Callable[[Evidence], Float[np.ndarray, "L L"] | None]] = {
    signal.__name__: signal
    for signal in (
        ddr,
        negative_trace,
        positive_trace,
        cosines,
        squared_cosines,
        cubed_cosines,
        norms,
        norm_ranks,
        peaks,
        gram,
        symmetry,
        movement,
    )
}
"""Scores of every input half with every output half, larger for a likelier pair; None where d is too wide for it."""


TEMPLATE = "template"
"""The signal learned from the surer half of another signal's pairs: `template_scores`. It has the invariances of `ddr`, as
long as it learns from the same pairs."""


DISCRIMINANT = "discriminant"
"""All signals weighed as another signal's pairs suggest: `discriminant`. It is invariant only where all of them are."""


COHERENCE = "coherence"
"""The signal learned from pairs that agree with one another best: `coherence`. It has the invariances of `movement`."""


LEARNED = (TEMPLATE, COHERENCE, DISCRIMINANT)


CHOICES = ("auto", *SIGNALS, *LEARNED)
"""The names that `pair` takes for `signal`."""


def discriminant(
    scores: Sequence[Float[np.ndarray, "L L"]] | Float[np.ndarray, "K L L"], partner: Int[np.ndarray, " L"]
) -> Float[np.ndarray, "L L"]:
    """The weighted sum of several signals' scores that best tells the chosen pairs from the others. It is learned again from
    its own matching until that does not change.

    Fisher's linear discriminant: Σ⁻¹·μ with the chosen pairs' mean μ and the others' covariance Σ, each signal less its
    rows' and columns' effects and in its wrong pairs' spread; `RIDGE` is added to Σ's diagonal, since some signals are
    nearly the same.
    """
    combined = np.zeros_like(scores[0], np.float64)
    off = ~np.eye(len(partner), dtype=bool)
    for _ in range(REFITS):
        tables = [without_effects(score, partner)[0] for score in scores]
        seen = np.stack([table / max(table[off].std(), 1e-30) for table in tables], axis=-1)
        covariance = np.cov(seen[off].T).reshape(len(scores), len(scores))
        weight = np.linalg.solve(covariance + RIDGE * np.eye(len(scores)), np.einsum("kks->ks", seen).mean(axis=0))
        combined[:, partner] = seen @ weight
        _, again = scipy.optimize.linear_sum_assignment(combined, maximize=True)
        if np.array_equal(again, partner):
            break
        partner = again
    return combined
