"""Pairing of three factors: the convolutions 1×1, k×k, 1×1 of a residual bottleneck. None is known to match another.

M = W_last·K·W_first [d, d] meets itself on the residual stream as W_out·W_in does. All three are unknown, so that there are
L³ products: first i, middle j, last k. Their scores are assigned one side at a time, each the best for the others, until
nothing changes. The shuffled copies that the answer is compared with go through the same search.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Float, Int

from dropjax.pairing.certainty import Judged
from dropjax.pairing.evidence import SHUFFLES
from dropjax.pairing.portfolio import SIGNAL_ERROR, _Candidate, _candidate

HIGHEST = 1 - 1e-6
"""Correlations are limited to this before their artanh is taken."""
ROUNDS = 30
"""The most assignments of each side; about ten are enough."""
SIDES = 3
"""Matchings that a chain is judged by: of its first, of its middle and of its last convolution, the others held."""

Cube = Float[np.ndarray, "L L L"]


@dataclass(frozen=True)
class Factors:
    """Convolutions of L blocks; taps are the positions of the middle kernel."""

    first: Float[np.ndarray, "L h d"]
    middle: Float[np.ndarray, "L t h h"]
    last: Float[np.ndarray, "L d h"]
    gains: Float[np.ndarray, "2 L h"] | None = None
    """Gains of the normalisations after the first and the middle convolutions, which stay with them."""

    def reordered(self, *orders: Int[np.ndarray, " L"]) -> "Factors":
        """The first, middle and last convolutions each in another order."""
        gains = None if self.gains is None else np.stack([g[order] for g, order in zip(self.gains, orders, strict=False)])
        first, middle, last = (part[order] for part, order in zip((self.first, self.middle, self.last), orders, strict=True))
        return Factors(first, middle, last, gains)

    def shuffled(self, rng: np.random.Generator) -> "Factors":
        """The inner channels of the middle convolutions in another order on either side, the same for all."""
        inner = self.first.shape[1]
        outputs, inputs = rng.permutation(inner), rng.permutation(inner)
        gains = None if self.gains is None else np.stack([self.gains[0], self.gains[1][:, outputs]])
        return Factors(self.first, self.middle[:, :, outputs][:, :, :, inputs], self.last, gains)


def cubes(factors: Factors) -> dict[str, Cube]:
    """The scores of every first (axis 0) with every middle (1) and last (2) convolution, by signal.

    `ratio`, `negative_ratio`, `positive_ratio`: tr(M)/‖M‖_F, K summed over taps. `taps`: the same of each tap's M, squared
    and summed, so that taps of either sign count. `channel_norms`: correlations (Fisher's z), over either set of inner
    channels, of the norms of what leads to a channel and what leads away from it. `gains`, where there are some: the same
    with the size of the gain behind what leads to a channel, which training makes like the norm of what leads away from it.
    """
    first, middle, last = (np.asarray(a, np.float64) for a in (factors.first, factors.middle, factors.last))
    depth, taps = middle.shape[:2]
    small = np.einsum("ihd,kdg->ikhg", first, last, optimize=True).reshape(depth * depth, -1)  # W_first·W_last
    our_gram, their_gram = np.einsum("ihd,igd->ihg", first, first), np.einsum("kdh,kdg->khg", last, last)

    def traces(kernels: Float[np.ndarray, "L h h"]) -> Cube:
        flat = kernels.transpose(0, 2, 1).reshape(depth, -1)
        return (small @ flat.T).reshape(depth, depth, depth).transpose(0, 2, 1)

    def squares(kernels: Float[np.ndarray, "L h h"]) -> Cube:
        spread = np.einsum("jab,ibc,jdc->ijad", kernels, our_gram, kernels, optimize=True)
        product = spread.reshape(depth * depth, -1) @ their_gram.reshape(depth, -1).T
        return np.maximum(product, 0).reshape(depth, depth, depth)

    whole = middle.sum(axis=1)
    square = squares(whole)
    ratio = traces(whole) / np.sqrt(np.where(square > 0, square, 1))
    by_tap, norm = np.zeros_like(ratio), np.zeros_like(ratio)
    for tap in range(taps):
        by_tap += traces(middle[:, tap]) ** 2
        norm += squares(middle[:, tap])
    into, out_of = np.linalg.norm(first, axis=2), np.linalg.norm(middle, axis=(1, 2))
    behind, away = np.linalg.norm(middle, axis=(1, 3)), np.linalg.norm(last, axis=1)
    found = {
        "ratio": np.abs(ratio),
        "negative_ratio": -ratio,
        "positive_ratio": ratio,
        "taps": np.sqrt(by_tap / np.where(norm > 0, norm, 1)),
        "channel_norms": _fisher(into, out_of)[:, :, None] + _fisher(behind, away)[None],
    }
    if factors.gains is not None:
        sizes = np.abs(factors.gains).astype(np.float64)
        found["gains"] = _fisher(sizes[0], out_of)[:, :, None] + _fisher(sizes[1], away)[None]
    return found


def _fisher(a: Float[np.ndarray, "L h"], b: Float[np.ndarray, "L h"]) -> Float[np.ndarray, "L L"]:
    """Fisher's z, artanh r, of every correlation r: its spread does not depend on r, and large ones count for more."""
    a, b = (half - half.mean(axis=1, keepdims=True) for half in (a, b))
    scale = np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    return np.arctanh(np.clip(a @ b.T / np.where(scale > 0, scale, 1), -HIGHEST, HIGHEST))


TOGETHER = "together"
SUMMED = ("taps", "channel_norms", "gains")
"""The signals that `together` is the sum of, each in its own spread: neither depends on a sign."""
NAMES = ("ratio", "negative_ratio", "positive_ratio", *SUMMED, TOGETHER)


def all_cubes(readings: Sequence[Factors]) -> dict[tuple[str, int], Cube]:
    """The scores of every signal on every reading, and of `together`, which sums over readings too (its reading is 0)."""
    found = {(name, k): cube for k, factors in enumerate(readings) for name, cube in cubes(factors).items()}
    spread = [(cube - cube.mean()) / max(float(cube.std()), 1e-30) for (name, _), cube in found.items() if name in SUMMED]
    return found | {(TOGETHER, 0): np.sum(spread, axis=0)}


def assign(cube: Cube) -> tuple[Int[np.ndarray, " L"], Int[np.ndarray, " L"]]:
    """The middle and the last convolution of every first one, of the largest total score that is found.

    One side is assigned at a time (Hungarian algorithm), the others held, from three beginnings: the best over all last
    convolutions, the best over all middle ones, and both of these.
    """
    depth = len(cube)
    every = np.arange(depth)

    def best(table: Float[np.ndarray, "L L"]) -> Int[np.ndarray, " L"]:
        return scipy.optimize.linear_sum_assignment(table, maximize=True)[1]

    starts = [
        (best(cube.max(axis=2)), None),
        (None, best(cube.max(axis=1))),
        (best(cube.max(axis=2)), best(cube.max(axis=1))),
    ]
    found = []
    for middle, last in starts:
        before = None
        for _ in range(ROUNDS):
            if middle is not None:
                last = best(cube[every, middle])
            assert last is not None
            middle = best(cube[every, :, last])
            chains = best(cube[:, middle, last])
            middle, last = middle[chains], last[chains]
            total = cube[every, middle, last].sum()
            if before is not None and total <= before:
                break
            before = total
        assert middle is not None
        assert last is not None
        found.append((cube[every, middle, last].sum(), middle, last))
    _, middle, last = max(found, key=lambda one: one[0])
    return middle, last


def tables(cube: Cube, middle: Int[np.ndarray, " L"], last: Int[np.ndarray, " L"]) -> list[Float[np.ndarray, "L L"]]:
    """For the middle, the last and the first convolution in turn: the scores of every choice of it, the others held.

    Column j is the middle (last) convolution j; of the third table the middle and last ones of chain j together.
    """
    every = np.arange(len(cube))
    return [cube[every, :, last], cube[every, middle], cube[:, middle, last]]


@dataclass(frozen=True)
class Chained:
    """The chains of three convolutions that were chosen."""

    middle: Judged
    """The middle convolution of every first one."""
    last: Judged
    """The last convolution of every first one."""

    @property
    def verdict(self) -> str:
        """`paired` where both are, `no signal` where there is none."""
        verdicts = {self.middle.verdict, self.last.verdict}
        return next(one for one in ("no signal", "doubtful", "paired") if one in verdicts)


def chain(
    readings: Sequence[Factors], signals: Sequence[str] | None = None, *, shuffles: int = SHUFFLES, seed: int = 0
) -> Chained:
    """Chains of the convolutions by the signal that separates best, judged as `pairing.portfolio` judges pairs.

    `readings` are the same convolutions read in several ways, as with and without their normalisations folded into them. A
    chain is clear where each of its three convolutions is, the others held. Raises ValueError for an unknown signal.
    """
    names = NAMES if signals is None else tuple(signals)
    if unknown := [name for name in names if name not in NAMES]:
        raise ValueError(f"signal: expected one of {', '.join(NAMES)}, got {unknown[0]!r}")
    every = [all_cubes(readings)]
    for k in range(shuffles):  # every reading is shuffled alike
        every.append(all_cubes([factors.shuffled(np.random.default_rng((seed, k))) for factors in readings]))
    keys = [key for key in every[0] if key[0] in names]
    if not keys:
        raise ValueError(f"signal: expected one that convolutions without normalisations have, got {', '.join(names)}")
    judged = {key: _judge(key[0], [one[key] for one in every]) for key in keys}
    best = max(judged, key=lambda key: judged[key].separation)
    chosen = judged[best]
    needed = float(-scipy.special.stdtrit(shuffles - 1, SIGNAL_ERROR / (len(keys) * SIDES)))
    voters = [key for key in keys if judged[key].strength > needed]
    shared = {
        "certainty": np.min([candidate.sure for candidate in chosen.candidates], axis=0),
        "clear": max(candidate.clear for candidate in chosen.candidates),
        "strength": chosen.strength,
        "needed": needed,
        "separations": {_words(key, readings): one.separation for key, one in judged.items()},
        "voters": tuple(_words(key, readings) for key in voters),
    }
    sides = []
    for side in range(2):
        pairing = chosen.candidates[side].pairing
        votes = np.sum([judged[key].partners[side] == pairing.partner for key in voters], axis=0, dtype=int)
        of = {**vars(pairing), "signal": _words(best, readings)}
        sides.append(Judged(**of, **shared, votes=votes * np.ones(len(pairing.partner), int)))
    return Chained(*sides)


def _words(key: tuple[str, int], readings: Sequence[Factors]) -> str:
    name, reading = key
    return f"{name} (reading {reading + 1})" if len(readings) > 1 and name != TOGETHER else name


class _Judged(NamedTuple):
    """The chains that one signal chooses."""

    partners: tuple[Int[np.ndarray, " L"], Int[np.ndarray, " L"]]
    candidates: list[_Candidate]
    """The matchings of the middle, the last and the first convolutions beside those of the shuffled copies."""

    @property
    def separation(self) -> float:
        """The least of the three."""
        return min(candidate.separation for candidate in self.candidates)

    @property
    def strength(self) -> float:
        """The least of the three."""
        return min(candidate.strength for candidate in self.candidates)


def _judge(name: str, of_all: Sequence[Cube]) -> _Judged:
    solved = [assign(cube) for cube in of_all]
    side_by_side = zip(*(tables(cube, *answer) for cube, answer in zip(of_all, solved, strict=True)), strict=True)
    return _Judged(solved[0], [_candidate(name, *side, tries=SIDES) for side in side_by_side])
