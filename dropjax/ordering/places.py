"""An order as places on a line, each known up to a Gaussian, and made certain by the errors of the outputs.

To first order the outputs are those of the order at hand plus the flips of the pairs of blocks that stand the wrong way
round in it. It is unknown which pairs do, but that is a function of their two places, whose expectation, slope by either
place and remaining variance are known. So the outputs are linear in the places, with noise of known covariance, and the
posterior follows from the errors. The posterior is the linearisation for the next round, always from the same prior: the
posterior linearisation of García-Fernández et al. (IEEE Transactions on Signal Processing 63(20), 2015). The noise makes the
difference between a block that has passed a hundred others, whose flips mostly cancel, and a block that has passed none.
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax import lax
from jaxtyping import Array, Float, Int

from dropjax.core.options import MEMORY
from dropjax.core.stack import Stack, advance, read_out, trajectory
from dropjax.moves.first_order import (
    Steps,
    adjacent_changes,
    bytes_per_row,
    flips_ahead,
    linearised,
    steps,
    with_neighbours,
)
from dropjax.runtime import mesh

DEEP = 64
"""Stacks of more blocks than this are ordered by places at once: there are more pairs than rows, and single moves
mislead."""

FEWEST, PER_PLACE = 1000, 3
"""Predictions that places are fitted to: at least the first number, and the second number for each place."""
FEW = 500
"""Number of predictions from which the uncertainty of a start's places is estimated."""
TRIED = np.geomspace(1e-8, 2, 40)
"""White noise tried in that estimate, as fractions of the MSE."""

REACHES = (8, 16, 32, 64, 128, 256)
"""Numbers of positions over which two blocks may stand the wrong way round; the first that spans `FAR` deviations is
used."""
FAR = 2.5
EXACT = 16
"""Largest reach with which neighbours count by their exact change: among more pairs a single one does not matter."""
UNSURE = 0.5
"""Smallest standard deviation of a place, in places: that of a block that may stand anywhere between its neighbours."""
FIT = 1.2
"""A posterior is believed if the mean square of the whitened errors is at most this; above it, white noise is added."""
WHITE = 1e-4, 3.0
"""The white noise, as a fraction of the mean variance of the flips: its first value, and the factor between two trials."""

WHOLE = 5
"""Number of rounds whose posterior is taken as it is. After them whole steps would oscillate around the answer."""
STEP = 0.6
"""Fraction of each step that is taken from then on."""
FITTED = 0.4
"""The covariance is right if the MSE of the order at hand is this fraction of the expected MSE."""
PATIENCE = 20
"""The search ends after this many rounds without a better order."""
DOUBT = 0.5, 1.0
"""Bounds of the fraction of the covariance that is believed."""
STUCK, FINER = 10, 0.5
"""After this many rounds without a better order the search turns to blocks of small effect: it lowers the bound of doubt by
this factor, and the white noise by its square."""


class Places(NamedTuple):
    """Gaussian over the places of L blocks in the true order, 0 … L − 1."""

    mean: Float[np.ndarray, " L"]
    covariance: Float[np.ndarray, "L L"]

    @property
    def order(self) -> Int[np.ndarray, " L"]:
        """The blocks by their mean places."""
        return np.argsort(self.mean, kind="stable")

    def taken(self, order: Int[np.ndarray, " L"]) -> "Places":
        """The places of the blocks in another order."""
        return Places(self.mean[order], self.covariance[np.ix_(order, order)])

    def towards(self, other: "Places", part: float) -> "Places":
        """The belief that lies a fraction of the way towards another one."""
        return Places(*((1 - part) * a + part * b for a, b in zip(self, other, strict=True)))


class Precedence(NamedTuple):
    """Linear estimates, from places, of whether the blocks at positions i and i + 1 + k stand the wrong way round."""

    probability: Float[Array | np.ndarray, "L reach"]
    slope: Float[Array | np.ndarray, "L reach"]
    """Slope of the probability by the place of the block at i; the slope by the other place is its negative."""
    variance: Float[Array | np.ndarray, "L reach"]
    """Variance that the two places leave of p·(1 − p)."""


class Linear(NamedTuple):
    """The M = N·o outputs as a linear function of the L places, in the order of the positions at hand."""

    effect: Float[Array, "M L"]
    """Change of the outputs by a block's moving right by one place."""
    shift: Float[Array, " M"]
    """Expected change by the pairs that stand the wrong way round."""
    noise: Float[Array, "M M"]
    """Covariance of the remaining change."""
    error: Float[Array, " M"]
    """Errors f − pred of the order at hand."""
    expected: Float[Array, ""]
    """The MSE that the order at hand should have."""


def is_deep(depth: int) -> bool:
    """Whether a stack of that depth is put in order by its blocks' places alone."""
    return depth > DEEP


def rows_needed(depth: int, outputs: int) -> int:
    """Number of rows that places are fitted to, at most all rows of the table."""
    return -(-max(FEWEST, PER_PLACE * depth) // outputs)


def precedence(mean: Float[np.ndarray, " L"], covariance: Float[np.ndarray, "L L"]) -> Precedence:
    """Which blocks stand the wrong way round, of blocks in the order of their mean places (D11 in docs/method.md)."""
    depth = len(mean)
    deviation = np.sqrt(np.mean(np.diag(covariance)))
    reach = min(next((reach for reach in REACHES if reach >= FAR * deviation), REACHES[-1]), depth - 1)
    i = np.arange(depth)[:, None]
    j = i + 1 + np.arange(reach)
    inside, j = j < depth, np.minimum(j, depth - 1)
    own = np.diag(covariance)
    spread = np.sqrt(np.maximum(own[i] + own[j] - 2 * covariance[i, j], 2 * UNSURE**2))
    apart = (mean[j] - mean[i]) / spread
    probability, slope = scipy.special.ndtr(-apart), np.exp(-(apart**2) / 2) / (np.sqrt(2 * np.pi) * spread)
    variance = np.maximum(probability * (1 - probability) - (spread * slope) ** 2, 0)
    return Precedence(*(np.where(inside, of, 0).astype(np.float32) for of in (probability, slope, variance)))


@partial(jax.jit, static_argnames="memory")
def linear_model(
    stack: Stack,
    arrangement: Int[Array, "L 2"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    pairs: Precedence,
    memory: int = MEMORY,
) -> Linear:
    """The outputs by the places, from one pass forward and one back (D12 in docs/method.md).

    The pass back goes from segment to segment of the stack, and runs each once more from the states that it begins with:
    of all that happens on the way, one segment and the `reach` blocks behind it are held, of the size that `memory` allows.
    """
    depth, width, (rows, outputs) = stack.depth, stack.w_in.shape[2], pred.shape
    count, reach = rows * outputs, pairs.probability.shape[1]
    of_block = rows * bytes_per_row(stack, blocks=2, values=4 * reach)  # itself, and the steps of one behind it
    block = max(1, min(depth, max(reach // 4, 8), memory // 4 // of_block))
    segments = -(-depth // block)
    filled, halves = _lengthened(stack, arrangement, segments * block + 1)
    bands = Precedence(*(jnp.pad(band, ((0, segments * block - depth), (0, 0))) for band in pairs))
    first = block * jnp.arange(segments)

    def enter(x: Float[Array, "N d"], first: Int[Array, ""]) -> tuple[Array, Array]:
        return advance(filled, halves, first, first + block, x), x

    last, entered = lax.scan(enter, x, first)

    def add(carried: tuple[Linear, Steps, Array], segment: tuple[Array, Array]):
        so_far, window, behind = carried
        x, first = segment
        here = lax.dynamic_slice_in_dim(halves, first, block + 1)  # with the last one's neighbour, of the next segment
        at = linearised(filled, here, trajectory(filled, here, x), behind)
        own = Steps(*(of[:-1] for of in steps(at)))
        window = Steps(*map(jnp.concatenate, zip(own, window, strict=True)))
        delta = flips_ahead(own, window)
        if reach <= EXACT:
            delta = with_neighbours(delta, jnp.moveaxis(adjacent_changes(filled, here, at), 0, -1))
        summed = _with_flips(so_far, delta.reshape(count, block, block + reach), _windowed(bands, first, block), first)
        return (summed, Steps(*(of[:reach] for of in window)), at.adjoints[1]), None

    nothing = Linear(
        effect=jnp.zeros((count, segments * block + reach)),
        shift=jnp.zeros(count),
        noise=jnp.zeros((count, count)),
        error=(read_out(stack, last) - pred).reshape(-1),
        expected=jnp.float32(0),
    )
    nowhere = Steps(jnp.zeros((reach, rows, width)), jnp.zeros((reach, rows, outputs, width)))
    at_end = nothing, nowhere, jnp.broadcast_to(stack.w_last, (rows, *stack.w_last.shape))
    (summed, *_), _ = lax.scan(add, at_end, (entered, first), reverse=True)
    return summed._replace(effect=summed.effect[:, :depth])


def _lengthened(stack: Stack, arrangement: Int[Array, "L 2"], length: int) -> tuple[Stack, Int[Array, "length 2"]]:
    """The stack with an additional output half of zeros, and an arrangement that puts it behind the last block: such blocks
    and their flips change nothing."""
    w_out, b_out = (jnp.pad(a, ((0, 1),) + ((0, 0),) * (a.ndim - 1)) for a in (stack.w_out, stack.b_out))
    beyond = jnp.tile(jnp.array([[0, stack.depth]], arrangement.dtype), (length - stack.depth, 1))
    return replace(stack, w_out=w_out, b_out=b_out), jnp.concatenate([arrangement, beyond])


def _windowed(bands: Precedence, first: Int[Array, ""], block: int) -> Precedence:
    """The precedence of a segment's blocks, from `first` on, with all blocks within reach: [block, block + reach]."""
    reach = bands.probability.shape[1]
    a, apart = np.arange(block), np.arange(block + reach) - np.arange(block)[:, None]
    inside = (apart > 0) & (apart <= reach)

    def windowed(band: Float[Array | np.ndarray, "padded reach"]) -> Float[Array, "block window"]:
        here = lax.dynamic_slice_in_dim(jnp.asarray(band), first, block)
        return jnp.where(inside, here[a[:, None], np.clip(apart - 1, 0, reach - 1)], 0)

    return Precedence(*map(windowed, bands))


def _with_flips(so_far: Linear, delta: Float[Array, "M block window"], pairs: Precedence, first: Int[Array, ""]) -> Linear:
    """The model with some more flips, of the blocks from `first` on and those behind them."""
    probability, slope, variance = pairs
    inner = partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    effect = so_far.effect
    for sign, part in ((1, inner("mab,ab->ma", delta, slope)), (-1, inner("mab,ab->mb", delta, slope))):
        there = lax.dynamic_slice_in_dim(effect, first, part.shape[1], axis=1)
        effect = lax.dynamic_update_slice_in_dim(effect, there + sign * part, first, axis=1)
    left = (jnp.sqrt(variance) * delta).reshape(len(delta), -1)
    return so_far._replace(
        effect=effect,
        shift=so_far.shift + inner("mab,ab->m", delta, probability),
        noise=so_far.noise + inner("mp,np->mn", left, left),
        expected=so_far.expected + inner("mab,mab,ab->", delta, delta, probability) / len(delta),
    )


def modelled(
    stack: Stack,
    arrangement: Int[np.ndarray, "L 2"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    places: Places,
    memory: int = MEMORY,
) -> Linear | None:
    """`linear_model` on the host, of an arrangement in the order of its mean places; None where something overflows."""
    pairs = precedence(*places)
    linear: Linear = jax.tree.map(mesh.fetch, linear_model(stack, arrangement, x, pred, pairs, memory))
    return linear if all(np.isfinite(part).all() for part in linear) else None


def posterior(
    prior: Float[np.ndarray, " L"], variance: float, places: Places, linear: Linear, white: float = WHITE[0]
) -> Places:
    """The places given the errors: from independent ones with means `prior`, by the linearisation about `places`.

    D13 in docs/method.md.

    All arrays are in the order of the positions at hand. White noise, at first the fraction `white` of the mean variance of
    the flips, is added until the whitened errors are as small as `FIT` demands.
    """
    effect, shift, noise, error = (np.asarray(a, np.float64) for a in linear[:4])
    seen = -error - shift - effect @ (prior - places.mean)
    of_errors = variance * effect @ effect.T + noise
    unit = max(np.mean(np.diag(noise)), 1e-6 * np.mean(seen**2), 1e-300)
    while True:
        try:
            factor = scipy.linalg.cho_factor(of_errors + white * unit * np.eye(len(seen)), lower=True)
            whitened = scipy.linalg.cho_solve(factor, seen)
            if seen @ whitened <= FIT * len(seen):
                break
        except np.linalg.LinAlgError:  # by float32's rounding of the flips' covariance
            pass
        white *= WHITE[1]
    known = variance**2 * effect.T @ scipy.linalg.cho_solve(factor, effect)
    return Places(prior + variance * effect.T @ whitened, variance * np.eye(len(prior)) - known)


def shrunk(depth: int, variance: float) -> Float[np.ndarray, " L"]:
    """The mean places of a start's blocks, each with the given variance: a larger variance draws them towards the middle."""
    middle = (depth - 1) / 2
    return middle + np.sqrt(max(0.0, 1 - 12 * variance / depth**2)) * (np.arange(depth) - middle)


def log_evidence(variance: float, linear: Linear) -> float:
    """Logarithm, up to a constant, of the probability density of the errors, for independent places around their expected
    ones and with the white noise that makes it largest (D14 in docs/method.md)."""
    effect, shift, noise, error = (np.asarray(a, np.float64) for a in linear[:4])
    values, vectors = np.linalg.eigh(variance * effect @ effect.T + noise)
    seen = np.square(vectors.T @ (error + shift))
    tried = np.maximum(values, 0) + max(np.mean(np.square(error)), 1e-300) * TRIED[:, None]
    return float(-np.min(np.sum(np.log(tried) + seen / tried, axis=1)) / 2)


def likeliest_deviation(
    stack: Stack, start: Int[np.ndarray, "L 2"], x: Float[Array, "N d"], pred: Float[Array, "N o"], memory: int = MEMORY
) -> float:
    """Standard deviation of the places in a start, the same for all: twice the value of largest evidence, because effects
    that are not linear in the flips make that value too small, but at most that of places that are not known at all.

    The MSE alone does not tell it, because the flips of a block that has passed many others partly cancel.
    """
    unknown = len(start) / np.sqrt(12)
    doublings = int(np.log2(max(unknown / UNSURE, 1)))
    best, most = unknown, -np.inf
    for deviation in unknown / 2.0 ** np.arange(doublings, 0, -1):
        places = Places(shrunk(len(start), deviation**2), deviation**2 * np.eye(len(start)))
        linear = modelled(stack, start, x, pred, places, memory)
        if linear is None:
            break
        evidence = log_evidence(deviation**2, linear)
        if evidence < most:
            break
        best, most = 2 * float(deviation), evidence
    return best


class Placing(NamedTuple):
    """State of a search for the places of the blocks."""

    places: Places
    prior: Float[np.ndarray, " L"]
    """Mean of each place before anything is known but the start."""
    variance: float
    """Variance of each place in the prior."""
    doubt: float
    """Fraction of the covariance that is believed; it falls while the outputs fit better than expected."""
    fine: float
    """Fraction of `DOUBT`'s lower bound that doubt may fall to; multiplied by `FINER` wherever the search was stuck."""
    order: Int[np.ndarray, " L"]
    """The best arrangement so far."""
    mse: float
    """The MSE of the best arrangement, over the rows that places are fitted to."""
    rounds: int
    waited: int
    """Rounds since the best arrangement was found."""

    @property
    def ended(self) -> bool:
        """Whether no better order is to be expected."""
        return self.waited >= PATIENCE


def start_placing(
    stack: Stack, start: Int[np.ndarray, "L 2"], x: Float[Array, "N d"], pred: Float[Array, "N o"], memory: int = MEMORY
) -> Placing:
    """The state before the first round, with the uncertainty of the places that is likeliest given the errors of few
    rows."""
    rows = -(-FEW // pred.shape[1])
    variance = likeliest_deviation(stack, start, x[:rows], pred[:rows], memory) ** 2
    prior = shrunk(len(start), variance)
    return Placing(
        Places(prior, variance * np.eye(len(start))),
        prior,
        variance,
        doubt=DOUBT[1],
        fine=1.0,
        order=np.arange(len(start)),
        mse=float("inf"),
        rounds=0,
        waited=0,
    )


def placing_round(
    stack: Stack,
    start: Int[np.ndarray, "L 2"],
    at: Placing,
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    memory: int = MEMORY,
) -> Placing:
    """Linearises once more about the order at hand, and updates the places by the errors."""
    order = at.places.order
    here = at.places.taken(order)
    believed = here._replace(covariance=at.doubt * here.covariance)
    linear = modelled(stack, start[order], x, pred, believed, memory)
    if linear is None:
        return at._replace(rounds=at.rounds + 1, waited=PATIENCE)
    mse = float(np.mean(np.square(linear.error, dtype=np.float64)))
    better = mse < at.mse
    found = posterior(at.prior[order], at.variance, here, linear, WHITE[0] * at.fine**2).taken(np.argsort(order))
    doubt = at.doubt * np.sqrt(mse / (FITTED * max(float(linear.expected), 1e-300)))
    waited = 0 if better else at.waited + 1
    return Placing(
        places=at.places.towards(found, 1.0 if at.rounds < WHOLE else STEP),
        prior=at.prior,
        variance=at.variance,
        doubt=float(np.clip(doubt, at.fine * DOUBT[0], DOUBT[1])),
        fine=at.fine * (FINER if waited == STUCK else 1.0),
        order=order if better else at.order,
        mse=min(mse, at.mse),
        rounds=at.rounds + 1,
        waited=waited,
    )
