"""Ranking from pairwise comparisons by the Bradley-Terry model (paper, §4.3), and tests of their transitivity.

Item i beats j with probability s_i / (s_i + s_j). Wins and strengths are kept as logarithms in float64: soft wins reach
exp(−593) and strengths span 47 nats on the real puzzle. x64 is switched on here alone, and the fit runs on the host.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax import lax
from jaxtyping import Array, Float, Int, Real

LIMITS = {"mm": 100_000, "newton": 1_000}
"""Iterations after which each solver gives up. Newton's method may take n steps where one win in e^n is all that holds
two groups of items together."""

SURE_STEP = 1.79
"""Length in nats of log odds up to which Newton's step, or a part of it, raises the likelihood whatever the data, because
the model is generalised self-concordant (Sun and Tran-Dinh 2019): e^d ≤ d² + d + 1."""

LONGEST_STEP = 10.0
"""Longest step, in nats of log odds. A longer one can end where the likelihood is too flat for float64 to find back."""


class FitOutcome(StrEnum):
    """How a fit ended."""

    CONVERGED = "converged"
    NOT_CONVERGED = "not_converged"
    """The iterations ran out, or the comparisons hang together by less than float64 can tell."""
    SEPARABLE = "separable"
    """No maximum exists: some items never lost to any of the others."""
    DISCONNECTED = "disconnected"
    """No maximum exists: some items were never compared with any of the others."""


@dataclass(frozen=True)
class Fit:
    """Fitted strengths, and how far to trust them."""

    log_strengths: Float[np.ndarray, " n"]
    """Log strengths of mean zero, always finite; all zero if no maximum exists."""
    outcome: FitOutcome
    iterations: int
    residual: float
    """Largest difference, over the items, of the wins had and the wins that the strengths predict."""

    @property
    def converged(self) -> bool:
        """Whether the solver's stopping rule was met."""
        return self.outcome is FitOutcome.CONVERGED


def log_soft_wins(gaps: Real[np.ndarray, "n n"], temperature: float) -> Float[np.ndarray, "n n"]:
    """log w[i, j], the logarithm of the share of a win that i has over j (paper, Eq. 8); −inf on the diagonal.

    `gaps` is antisymmetric: gaps[i, j] > 0 speaks for i before j. Raises ValueError unless temperature > 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    log_wins = -np.logaddexp(0, -np.asarray(gaps, np.float64) / temperature)
    np.fill_diagonal(log_wins, -np.inf)
    return log_wins


def fit(
    log_wins: Float[np.ndarray, "n n"],
    solver: Literal["mm", "newton"] = "newton",
    tolerance: float = 1e-8,
    max_iterations: int | None = None,
) -> Fit:
    """The strengths of largest likelihood, given the logarithm of how often i (row) beat j (column).

    Any wins ≥ 0 will do, whole or not; the diagonal is ignored. "mm" repeats the paper's Eq. 9 (Hunter 2004) until no log
    strength changes by `tolerance` in one iteration; the maximum may then still be many such changes away. "newton" stops
    when its own step, which is all that is left but for its square, is below `tolerance`. Nothing is added to the
    likelihood: where it has no maximum (Ford 1957), the outcome says so. Raises ValueError if `log_wins` is not square or
    holds NaN or +inf.
    """
    if solver not in LIMITS:
        raise ValueError(f"solver: expected one of {', '.join(LIMITS)}, got {solver}")
    log_wins = np.array(log_wins, np.float64)
    if log_wins.ndim != 2 or len(log_wins) != log_wins.shape[1] or not len(log_wins):
        raise ValueError(f"log_wins: expected a square matrix, got shape {log_wins.shape}")
    np.fill_diagonal(log_wins, -np.inf)
    if not (log_wins < np.inf).all():
        raise ValueError("log_wins: expected numbers or −inf, got NaN or +inf")

    limit = LIMITS[solver] if max_iterations is None else max_iterations
    flaw = _flaw(log_wins)
    with jax.enable_x64(True), jax.default_device(_host()):
        # Without a maximum, or with a single item, nothing is iterated: the result is the zeros and their residual.
        end, residual = jax.device_get(_run(log_wins, float(tolerance), 0 if flaw or len(log_wins) == 1 else limit, solver))
    converged = len(log_wins) == 1 or end.change < tolerance
    outcome = flaw or (FitOutcome.CONVERGED if converged else FitOutcome.NOT_CONVERGED)
    return Fit(end.log_strengths, outcome, int(end.iterations), float(residual))


def order(fitted: Fit) -> Int[np.ndarray, " n"]:
    """The items, the strongest first; equally strong ones in the order of their numbers."""
    return np.argsort(-fitted.log_strengths, kind="stable")


def _host():
    """The host's CPU: float64 is slow on some accelerators and missing on others."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX was configured without the CPU
        return jax.local_devices()[0]


def _flaw(log_wins: Float[np.ndarray, "n n"]) -> FitOutcome | None:
    """Why the likelihood has no maximum; None where it has one, every item being linked to every other by wins."""
    won = log_wins > -np.inf
    if won[0, 1:].all() and won[1:, 0].all():  # soft wins link all items through one: no search is needed
        return None
    if scipy.sparse.csgraph.connected_components(won, connection="strong", return_labels=False) == 1:
        return None
    linked = scipy.sparse.csgraph.connected_components(won, connection="weak", return_labels=False) == 1
    return FitOutcome.SEPARABLE if linked else FitOutcome.DISCONNECTED


class State(NamedTuple):
    """State of an iteration."""

    log_strengths: Float[Array, " n"]
    """Log strengths of mean zero."""
    change: Float[Array, ""]
    """Largest change of a log strength in the last iteration, in Newton's method before any damping."""
    iterations: Int[Array, ""]


Solver = tuple[Float[Array, " n"], Callable[[State], State]]
"""A solver: the log strengths to start from, and one iteration."""


@partial(jax.jit, static_argnames="solver")
def _run(
    log_wins: Float[Array, "n n"], tolerance: float | Float[Array, ""], limit: int | Int[Array, ""], solver: str
) -> tuple[State, Float[Array, ""]]:
    """The last state and the residual it leaves. NaN ends the loop like any change that is not ≥ `tolerance`."""
    start, step = {"mm": _mm, "newton": _newton}[solver](log_wins)
    end = lax.while_loop(
        lambda state: (state.change >= tolerance) & (state.iterations < limit),
        step,
        State(start, jnp.array(jnp.inf), jnp.array(0)),
    )
    return end, jnp.abs(_surplus(jnp.exp(log_wins), end.log_strengths)).max()


def _chances(log_strengths: Float[Array, " n"]) -> tuple[Float[Array, "n n"], Float[Array, "n n"]]:
    """Probabilities that i beats j and that j beats i, from one exponential; small ones are as precise as large ones."""
    by = log_strengths[:, None] - log_strengths
    odds = jnp.exp(-jnp.abs(by))
    return jnp.where(by > 0, 1, odds) / (1 + odds), jnp.where(by > 0, odds, 1) / (1 + odds)


def _surplus(wins: Float[Array, "n n"], log_strengths: Float[Array, " n"]) -> Float[Array, " n"]:
    """Each item's wins less those expected, which is the likelihood's gradient, computed as surprising wins less surprising
    defeats: wins that were certain cancel, and would swamp the others in rounding.
    """
    _, losing = _chances(log_strengths)
    surprise = wins * losing
    return surprise.sum(axis=1) - surprise.sum(axis=0)


def _mm(log_wins: Float[Array, "n n"]) -> Solver:
    """The solver by Eq. 9, from equal strengths."""
    wins = jnp.exp(log_wins)
    games = wins + wins.T
    log_won = jax.nn.logsumexp(log_wins, axis=1)
    log_most = jnp.maximum(log_wins, log_wins.T)  # of a pair's games: within log 2 of all of them
    extreme = jnp.where(log_most > -jnp.inf, jnp.abs(log_most), 0).max()

    def plain(x: Float[Array, " n"]) -> Float[Array, " n"]:
        middle = (x.max() + x.min()) / 2
        s = jnp.exp(x - middle)
        return jnp.log((games / (s[:, None] + s)).sum(axis=1)) - middle

    def in_logs(x: Float[Array, " n"]) -> Float[Array, " n"]:
        return jax.nn.logsumexp(jnp.logaddexp(log_wins, log_wins.T) - jnp.logaddexp(x[:, None], x), axis=1)

    def step(state: State) -> State:
        x = state.log_strengths
        # Thirty times faster, and just as precise while nothing can leave float64's range of ±708 nats.
        log_denominator = lax.cond(extreme + jnp.ptp(x) / 2 < 690, plain, in_logs, x)
        after = log_won - log_denominator
        after -= after.mean()
        return State(after, jnp.abs(after - x).max(), state.iterations + 1)

    return jnp.zeros(len(log_wins)), step


def _newton(log_wins: Float[Array, "n n"]) -> Solver:
    """A guess from each item's total, and a Newton step on the log-likelihood, damped where it would overshoot."""
    wins = jnp.exp(log_wins)
    games = wins + wins.T
    # The log odds of a win over the others as a whole, as if they were of one strength: half the steps on dense wins. Where
    # few pairs were compared that can be too much, and extreme odds make it crude; then from equal strengths, as MM.
    totals = jax.nn.logsumexp(log_wins, axis=1) - jax.nn.logsumexp(log_wins, axis=0)
    guess = (1 - 1 / len(wins)) * (totals - totals.mean())
    start = jnp.where((jnp.ptp(guess) < 100) & (_surplus(wins, guess) @ guess >= 0), guess, 0)

    def step(state: State) -> State:
        x = state.log_strengths
        winning, losing = _chances(x)
        weights = games * winning * losing
        laplacian = jnp.diag(weights.sum(axis=1)) - weights
        # Only differences are determined. Counting the best-known item's own weight twice holds it in place, exactly.
        fixed = jnp.argmax(laplacian.diagonal())
        factor = jnp.linalg.cholesky(laplacian.at[fixed, fixed].multiply(2), symmetrize_input=False)
        full = jax.scipy.linalg.cho_solve((factor, True), _surplus(wins, x))
        full -= full.mean()
        # Halved until the likelihood still rises at its end, or until it is one of the short ones that are sure to raise it.
        width = jnp.ptp(full)
        length = lax.while_loop(
            lambda t: (t * width >= SURE_STEP) & (_surplus(wins, x + t * full) @ full < 0),
            lambda t: t / 2,
            jnp.minimum(1, LONGEST_STEP / width),
        )
        after = x + length * full
        change = jnp.abs(full).max()
        return State(jnp.where(jnp.isfinite(change), after, x), change, state.iterations + 1)

    return start, step


@dataclass(frozen=True)
class Transitivity:
    """How far "A before B" is from an order."""

    violating_triples: int
    """Directed triples: A before B, B before C, but not A before C. Each three-cycle holds three of them."""
    members: Int[np.ndarray, "c 3"]
    """The three-cycles: each item before the next, the last before the first. The first has the lowest number."""
    margins: Float[np.ndarray, " c"]
    """The smallest of the three |gaps| of each cycle."""
    spans: Int[np.ndarray, " c"] | None
    """The largest less the smallest place among the members of each cycle, if places were given."""
    median_margin_all: float
    """Median |gap| over all pairs; NaN where there are none."""

    @property
    def three_cycles(self) -> int:
        """Number of three-cycles."""
        return len(self.members)

    @property
    def median_margin_cycles(self) -> float:
        """Median of the cycles' margins; NaN where there are none."""
        return _median(self.margins)


def transitivity(gaps: Float[np.ndarray, "n n"], places: Int[np.ndarray, " n"] | None = None) -> Transitivity:
    """Violations of transitivity (paper, §4.3) by the antisymmetric `gaps`, gaps[i, j] > 0 meaning i before j.

    `places` are the items' true positions, where they are known.
    """
    gaps = np.asarray(gaps, np.float64)
    before = gaps > 0
    between = before.astype(np.float64) @ before  # how many B stand between A and C
    violating = int(between[~before].sum())  # A = C has nothing between
    cycles = [_cycles_from(before, a) for a in range(len(gaps))]
    members = np.concatenate([np.empty((0, 3), np.int32), *cycles])
    margins = np.abs(gaps[members, np.roll(members, -1, axis=1)]).min(axis=1)
    spans = None if places is None else np.ptp(np.asarray(places)[members], axis=1)
    return Transitivity(violating, members, margins, spans, _median(np.abs(gaps[np.triu_indices(len(gaps), 1)])))


def _cycles_from(before: np.ndarray, a: int) -> Int[np.ndarray, "k 3"]:
    """The three-cycles whose lowest-numbered member is a."""
    behind = a + 1 + np.flatnonzero(before[a, a + 1 :])
    ahead = a + 1 + np.flatnonzero(before[a + 1 :, a])
    b, c = np.nonzero(before[np.ix_(behind, ahead)])
    return np.stack([np.full(len(b), a), behind[b], ahead[c]], axis=1).astype(np.int32)


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if values.size else float("nan")
