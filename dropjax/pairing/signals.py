"""The pairing signals: one score for every input half with every output half, from the same evidence."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import scipy
from jaxtyping import Float, Int

from dropjax.pairing.certainty import without_effects
from dropjax.pairing.evidence import Evidence

RIDGE, REFITS = 0.05, 8
"""Of the discriminant."""


WRONG_PAIRS = 10
"""Wrong pairs per signal that a discriminant is learned from: with 10 signals, it takes 11 halves."""


def _ratio(value: Float[np.ndarray, "L L"], scale: Float[np.ndarray, "L L"]) -> Float[np.ndarray, "L L"]:
    return value / np.where(scale > 0, scale, 1)


def ddr(seen: Evidence) -> Float[np.ndarray, "L L"]:
    """|tr M| / ‖M‖_F, the paper's Eq. 4. Blind to the order and scale of hidden units and to the scale of halves."""
    return np.abs(negative_trace(seen))


def negative_trace(seen: Evidence) -> Float[np.ndarray, "L L"]:
    """−tr M / ‖M‖_F: the same where the sign is as the paper's Proposition 1 has it. Blind to the same."""
    return -_ratio(seen.trace, seen.norm)


def positive_trace(seen: Evidence) -> Float[np.ndarray, "L L"]:
    """tr M / ‖M‖_F: strong weight decay turns the sign. Blind to the same."""
    return _ratio(seen.trace, seen.norm)


def cosines(seen: Evidence) -> Float[np.ndarray, "L L"]:
    """Minus the mean cosine of hidden units' in- and out-vectors. Blind to the order of hidden units and to every scale."""
    return -seen.cosines


def squared_cosines(seen: Evidence) -> Float[np.ndarray, "L L"]:
    """Mean squared cosine of hidden units' in- and out-vectors. Blind to the same, and to signs."""
    return seen.squared_cosines


def cubed_cosines(seen: Evidence) -> Float[np.ndarray, "L L"]:
    """Minus the cosine of the halves with their hidden units' vectors at unit length and every entry cubed.

    A sum over entries as the trace is, but led by the largest: where training has hardly begun to tie the halves
    together, their few large weights already agree. Blind to what the mean cosine is blind to.
    """
    return -_ratio(seen.cubes, np.outer(*seen.cube_norms))


def norms(seen: Evidence) -> Float[np.ndarray, "L L"]:
    """Correlation, over hidden units, of ‖W_in row‖ with ‖W_out column‖: weight decay and Adam make them alike.

    Blind to the order of hidden units and the scale of halves, NOT to the scale of a hidden unit (row × c, column ÷ c).
    """
    return _correlation(seen.in_norms, seen.out_norms)


def norm_ranks(seen: Evidence) -> Float[np.ndarray, "L L"]:
    """The rank correlation (Spearman) of the hidden units' norms; it sees what `norms` sees."""
    ranks = partial(scipy.stats.rankdata, axis=1)
    return _correlation(ranks(seen.in_norms), ranks(seen.out_norms))


def peaks(seen: Evidence) -> Float[np.ndarray, "L L"]:
    """The correlation of the hidden units' largest weights; it sees what `norms` sees."""
    return _correlation(seen.in_peaks, seen.out_peaks)


def gram(seen: Evidence) -> Float[np.ndarray, "L L"] | None:
    """Cosine of the hidden units' Gram matrices A·Aᵀ and B·Bᵀ, from −½‖G_A/‖G_A‖ − G_B/‖G_B‖‖² + 1 = ‖M‖²/(‖G_A‖‖G_B‖).

    Blind to the order of hidden units, rotations of the features and the scale of halves, NOT to the scale of a hidden unit.
    """
    return None if seen.gram_norms is None else _ratio(seen.norm**2, np.outer(*seen.gram_norms))


def symmetry(seen: Evidence) -> Float[np.ndarray, "L L"] | None:
    """tr(M²) / ‖M‖_F² = 1 − ½‖M − Mᵀ‖_F²/‖M‖_F²: how little M is asymmetric. Blind to what ddr is blind to."""
    return None if seen.square is None else _ratio(seen.square, seen.norm**2)


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
    )
}
"""Scores of every input half with every output half, larger for a likelier pair; None where d is too wide for it."""


TEMPLATE = "template"
"""The signal learned from the surer half of another one's pairs: `template_scores`. Blind to what ddr is blind to, as long
as it learns from the same pairs."""


DISCRIMINANT = "discriminant"
"""All signals weighed as another one's pairs suggest: `discriminant`. Blind to nothing that one of them sees."""


LEARNED = (TEMPLATE, DISCRIMINANT)


CHOICES = ("auto", *SIGNALS, *LEARNED)
"""What `pair` can be told to look at."""


def discriminant(
    scores: Sequence[Float[np.ndarray, "L L"]] | Float[np.ndarray, "K L L"], partner: Int[np.ndarray, " L"]
) -> Float[np.ndarray, "L L"]:
    """The weighted sum of several signals' scores that tells the chosen pairs best from the others, and, learned again from
    its own matching until that stays, tells them best from then on.

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
