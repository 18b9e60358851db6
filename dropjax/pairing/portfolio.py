"""Pairing the output halves with the input halves, from the weights alone (paper, Section 3).

`pair` alone is the paper's ratio. Where that does not tell the pairs apart, `portfolio` looks at the halves in several
ways (`SIGNALS`) and trusts the one whose matching stands out most from the matchings of the same halves with their hidden
units shuffled: shuffling takes away what pairs have in common and leaves everything else as it is.

Below, A is an input half's W_in [h, d] and B an output half's W_outᵀ [h, d]: row k of both is hidden unit k.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Array, Float

from dropjax.core.options import MEMORY
from dropjax.core.solution import Pairing
from dropjax.pairing.certainty import Judged, advantage, certainty, wrong_spread
from dropjax.pairing.checks import checked
from dropjax.pairing.coherence import coherence, fits
from dropjax.pairing.evidence import SHUFFLES, Arrays, Evidence, Halves, observe, template_scores
from dropjax.pairing.ratio import diagonal_dominance, match
from dropjax.pairing.signals import CHOICES, COHERENCE, DISCRIMINANT, LEARNED, SIGNALS, TEMPLATE, WRONG_PAIRS, discriminant
from dropjax.runtime.settings import own_settings

SIGNAL_ERROR = 0.001
"""Probability, over all signals together, that unrelated halves are said to have a signal, if the mean scores of shuffled
halves were normal. With two to four halves they are not quite normal, and about 1 in 100 unrelated sets are said to have
one."""


PREFERRED = 0.9
"""The discriminant is trusted if its separation is at least this share of the best one, because it rests on all signals."""


@own_settings()
def pair(
    w_in: Float[Array | np.ndarray, "L h d"],
    w_out: Float[Array | np.ndarray, "L d h"],
    memory: int = MEMORY,
    signal: str = "ddr",
) -> Pairing:
    """Pair input halves with output halves; `partner[i]` of the result is the output half of input half i.

    `signal` is "ddr", the paper's ratio (Section 3.1); another name in `SIGNALS` or `LEARNED`; or "auto", the one that
    separates best. All but "ddr" give a `Judged` pairing. Raises ValueError for any other name, and for halves that differ
    in number, have other shapes, are masked or are not finite.
    """
    w_in, w_out = checked(w_in, w_out)
    if signal == "ddr":
        return match("ddr", diagonal_dominance(w_in, w_out, memory)[0])
    return portfolio(Arrays(np.asarray(w_in), np.asarray(w_out)), None if signal == "auto" else (signal,), memory=memory)


class _Candidate(NamedTuple):
    """The matching of one signal, and its matchings of the shuffled halves."""

    pairing: Pairing
    sure: Float[np.ndarray, " L"]
    clear: float
    strength: float
    separation: float


def _candidate(name: str, score: Float[np.ndarray, "L L"], *null: Float[np.ndarray, "L L"], tries: int = 1) -> _Candidate:
    pairing, unrelated = match(name, score), [match(name, shuffled) for shuffled in null]
    floor = float(np.mean([wrong_spread(other.score, other.partner)[0] for other in unrelated]))
    sure, clear = certainty(pairing, floor, tries)
    # The spread of few wrong pairs can be small by chance: none counts for less than the shuffled halves' mean.
    chance = np.array([advantage(other, floor) for other in unrelated])
    deviation = chance.std(ddof=1) * np.sqrt(1 + 1 / len(chance))
    strength = (advantage(pairing, floor) - chance.mean()) / deviation if deviation > 0 else 0.0
    usual = np.mean([certainty(other, floor)[0].mean() for other in unrelated])
    separation = sure.mean() / usual if np.isfinite(sure).all() and 0 < usual < np.inf else 1.0
    return _Candidate(pairing, sure, clear, float(strength), float(separation))


class Extra(NamedTuple):
    """Additional signals for one kind of halves."""

    names: tuple[str, ...]
    scores: Callable[[int, int, int], dict[str, list[Float[np.ndarray, "L L"]]]]
    """A function of a number of shuffles, a seed, and bytes of memory. It returns every signal's scores of the halves and
    of each shuffled copy."""


def portfolio(
    halves: Halves,
    signals: Sequence[str] | None = None,
    *,
    shuffles: int = SHUFFLES,
    seed: int = 0,
    memory: int = MEMORY,
    extra: Extra | None = None,
    tries: int = 1,
) -> Judged:
    """Pair the halves by each of `signals` (default: all, and those learned from them) and keep the one that separates best.

    A signal's separation is the mean regret of its matching, in units of its own wrong pairs' spread, over the same of its
    matchings of shuffled halves. The answer plays no part. `extra` gives signals beside the usual ones, and `tries` is how
    many readings of the halves the best one is taken of: every probability of an error is divided by it. Raises ValueError
    for an unknown signal or fewer than 3 shuffles.
    """
    choices = CHOICES[1:] + (extra.names if extra else ())
    names = choices if signals is None else tuple(signals)
    if unknown := [name for name in names if name not in choices]:
        raise ValueError(f"signal: expected one of {', '.join(choices)}, got {unknown[0]!r}")
    if shuffles < 3:
        raise ValueError(f"shuffles: expected at least 3, got {shuffles}")
    wanted = [name for name in SIGNALS if name in names or set(LEARNED) & set(names)]
    every = list(observe(halves, shuffles, seed, memory))  # the halves themselves, and then their shuffled copies
    scores = {name: [np.asarray(score) for e in every if (score := SIGNALS[name](e)) is not None] for name in wanted}
    if extra and (set(extra.names) | set(LEARNED)) & set(names):
        scores |= extra.scores(shuffles, seed, memory)
    candidates = {name: _candidate(name, *of_name, tries=tries) for name, of_name in scores.items() if of_name}
    coherent = COHERENCE in names and every[0].kept_moved is not None and fits(halves.shape[0], halves.shape[2], memory)
    if not candidates or (names == (COHERENCE,) and not coherent):
        raise ValueError(f"signal: expected one that products of d = {halves.shape[2]} allow, got {', '.join(names)}")
    base = max(candidates.values(), key=lambda candidate: candidate.separation)
    if coherent and (names == (COHERENCE,) or (base.sure < base.clear).any()):
        scores[COHERENCE] = [coherence(*moved) for e in every if (moved := e.moved) is not None]
        candidates[COHERENCE] = _candidate(COHERENCE, *scores[COHERENCE], tries=tries)
        base = max(base, candidates[COHERENCE], key=lambda candidate: candidate.separation)
    matchings = [match(base.pairing.signal, score) for score in scores[base.pairing.signal]]
    if TEMPLATE in names:
        candidates[TEMPLATE] = _candidate(TEMPLATE, *map(_template, every, matchings), tries=tries)
    # positive_trace is negative_trace again
    together = [of_name for name, of_name in scores.items() if of_name and name != "positive_trace"]
    count = halves.shape[0]
    if DISCRIMINANT in names and count * (count - 1) >= WRONG_PAIRS * len(together):
        learned = [discriminant(of_one, found.partner) for *of_one, found in zip(*together, matchings, strict=True)]
        candidates[DISCRIMINANT] = _candidate(DISCRIMINANT, *learned, tries=tries)
    candidates = {name: candidate for name, candidate in candidates.items() if name in names} or {base.pairing.signal: base}
    best = max(candidates.values(), key=lambda candidate: candidate.separation)
    if DISCRIMINANT in candidates and candidates[DISCRIMINANT].separation >= PREFERRED * best.separation:
        best = candidates[DISCRIMINANT]
    return _judged(best, candidates, shuffles, tries)


def _judged(best: _Candidate, candidates: Mapping[str, _Candidate], shuffles: int, tries: int) -> Judged:
    """The best of the candidates with the evidence for it."""
    needed = float(-scipy.special.stdtrit(shuffles - 1, SIGNAL_ERROR / (len(candidates) * tries)))
    voters = {name: c.pairing.partner for name, c in candidates.items() if c.strength > needed}
    return Judged(
        **vars(best.pairing),
        certainty=best.sure,
        clear=best.clear,
        strength=best.strength,
        needed=needed,
        separations={name: c.separation for name, c in candidates.items()},
        votes=np.sum([partner == best.pairing.partner for partner in voters.values()], axis=0, dtype=int)
        * np.ones(len(best.sure), int),
        voters=tuple(voters),
    )


def best_of(scores: Mapping[str, Sequence[Float[np.ndarray, "L L"]]], tries: int = 1) -> Judged:
    """The matching of the signal that separates best; of each signal the scores as they are, and then of shuffled copies."""
    candidates = {name: _candidate(name, *tables, tries=tries) for name, tables in scores.items()}
    best = max(candidates.values(), key=lambda candidate: candidate.separation)
    return _judged(best, candidates, len(next(iter(scores.values()))) - 1, tries)


def _template(seen: Evidence, pairing: Pairing) -> Float[np.ndarray, "L L"]:
    """The template of a matching's surer half."""
    sure = certainty(pairing)[0]
    weight = (sure >= np.median(sure)).astype(np.float32)
    return np.asarray(template_scores(*seen.halves, jnp.asarray(pairing.partner), jnp.asarray(weight)))
