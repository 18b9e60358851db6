"""What a solved stack and its table show: the numbers behind every figure of the report, and nothing drawn.

Unless said otherwise a stack stands in its order here: input half k and output half k are the block at position k
(`Stack.arranged`). Means are over the rows given.
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num
from scipy.stats import rankdata

from dropjax.core.stack import ACTIVATIONS, Stack, identity_arrangement, preactivation, residual, trajectory
from dropjax.moves.arrangements import SWAP, moved
from dropjax.moves.exact import score_arrangements, squared_error
from dropjax.ordering.bubble import bubble_repair, bubble_rounds
from dropjax.ordering.seeding import block_statistics
from dropjax.pairing.ratio import diagonal_dominance, match
from dropjax.runtime.device import scored_together
from dropjax.search.problem import Problem

# Blocks


class Blocks(NamedTuple):
    """Each block at work in the stack, fed by the blocks before it; entry k is the block at position k."""

    singular_values: Float[Array, "L d"]
    """Of W_out·W_in, largest first."""
    delta_norm: Float[Array, " L"]
    """E‖r_k(x)‖₂ at the table's raw inputs (paper, Eq. 5)."""
    residual_norm: Float[Array, " L"]
    """E‖r_k(x_k)‖₂ at the states x_k that reach the block."""
    state_norm: Float[Array, " L"]
    """E‖x_k‖₂."""
    activation: Float[Array, "L h"]
    """E[D(x_k)], unit by unit: the share of rows on which it is active; for another activation than ReLU its mean slope."""
    trace: Float[Array, " L"]
    """tr(W_out·W_in)."""
    jacobian_squared: Float[Array, " L"]
    """E‖J_r‖_F²."""
    jacobian_trace: Float[Array, " L"]
    """E[tr J_r]."""
    isometry: Float[Array, " L"]
    """‖E[J_fᵀ·J_f] − I‖_F, which Proposition 1 takes for 0."""
    row_isometry: Float[Array, " L"]
    """E‖J_fᵀ·J_f − I‖_F, on the first `few` rows alone."""


@partial(jax.jit, static_argnames="few")
def measure_blocks(stack: Stack, x: Float[Array, "N d"], few: int = 128) -> Blocks:
    """Every block's size, activations and Jacobians J_r = W_out·D·W_in, J_f = I + J_r (paper, Eqs. 5 and 10 to 15).

    The means of ‖J_r‖² and J_rᵀ·J_r follow from E[D] and E[D·1·1ᵀ·D] without a Jacobian being formed.
    """
    act = ACTIVATIONS[stack.activation]
    inner = partial(jnp.einsum, precision=lax.Precision.HIGHEST)

    def at(state: Float[Array, "N d"], halves: Int[Array, "2"]):
        w_in, w_out = stack.w_in[halves[0]], stack.w_out[halves[1]]
        z = preactivation(stack, halves[0], state)
        _, slope = jax.jvp(act, (z,), (jnp.ones_like(z),))
        r = residual(stack, halves, state)
        product = inner("dh,he->de", w_out, w_in)
        mean = slope.mean(axis=0)
        together = inner("nh,ng->hg", slope, slope) / len(slope)
        outs, ins = inner("dh,dg->hg", w_out, w_out), inner("hd,gd->hg", w_in, w_in)
        mean_j = inner("dh,h,he->de", w_out, mean, w_in)
        mean_jj = inner("hd,hg,ge->de", w_in, together * outs, w_in)
        jacobians = inner("dh,nh,he->nde", w_out, slope[:few], w_in)
        rows = jacobians + jnp.swapaxes(jacobians, 1, 2) + inner("nkd,nke->nde", jacobians, jacobians)
        return state + r, Blocks(
            singular_values=jnp.linalg.svd(product, compute_uv=False),
            delta_norm=_mean_norm(residual(stack, halves, x)),
            residual_norm=_mean_norm(r),
            state_norm=_mean_norm(state),
            activation=mean,
            trace=jnp.trace(product),
            jacobian_squared=jnp.sum(together * outs * ins),
            jacobian_trace=jnp.trace(mean_j),
            isometry=jnp.linalg.norm(mean_j + mean_j.T + mean_jj),
            row_isometry=jnp.mean(jnp.linalg.norm(rows, axis=(1, 2))),
        )

    return lax.scan(at, x, identity_arrangement(stack.depth))[1]


def _mean_norm(rows: Float[Array, "N d"]) -> Float[Array, ""]:
    return jnp.mean(jnp.linalg.norm(rows, axis=1))


def effective_rank(singular_values: Float[np.ndarray, "... d"]) -> Float[np.ndarray | np.float64, "..."]:
    """exp of the entropy of the singular values' shares (Roy and Vetterli 2007): d where all are equal, 1 where one is
    alone. The paper's Figure 9 does not say which effective rank it means.
    """
    values = np.asarray(singular_values, np.float64)
    share = values / values.sum(axis=-1, keepdims=True)
    return np.exp(-np.sum(share * np.log(np.where(share > 0, share, 1)), axis=-1))


def products(stack: Stack) -> Float[np.ndarray, "L d d"]:
    """W_out·W_in of each block."""
    return np.asarray(jnp.einsum("ldh,lhe->lde", stack.w_out, stack.w_in, precision=lax.Precision.HIGHEST))


# Pairing


class RightPairs(NamedTuple):
    """W_out·W_in = −ε·I + E of each block (paper, Eqs. 16 to 18)."""

    epsilon: Float[np.ndarray, " L"]
    """|tr| / d."""
    rest_norm: Float[np.ndarray, " L"]
    """‖E‖_F."""
    predicted: Float[np.ndarray, " L"]
    """√d / √(1 + ‖E‖² / (ε²·d)), which is d(i, i) again; at most √d."""


def right_pairs(product: Float[np.ndarray, "L d d"]) -> RightPairs:
    """Splits each product into a multiple of the identity and the rest; E is taken with the trace's own sign."""
    product = np.asarray(product, np.float64)
    d = product.shape[-1]
    mean = np.trace(product, axis1=1, axis2=2) / d
    rest = np.linalg.norm(product - mean[:, None, None] * np.eye(d), axis=(1, 2))
    ratio = np.divide(rest**2, mean**2 * d, out=np.full(len(mean), np.inf), where=mean != 0)
    return RightPairs(np.abs(mean), rest, np.sqrt(d / (1 + ratio)))


class WrongPairs(NamedTuple):
    """Products of halves that do not belong together, against independent entries of mean zero (paper, Eqs. 19 to 21)."""

    standardised: Float[np.ndarray, " K"]
    """Each trace over its predicted standard deviation σ_out·σ_in·√(d·h): of mean 0 and deviation 1 by Eq. 20."""
    trace_deviation: float
    """Measured standard deviation of the traces."""
    predicted_deviation: float
    """Root mean square of the predicted ones."""
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
    """The pairs that `right` does not mark; `score` and `trace` are `pairing.diagonal_dominance`'s."""
    hidden, width = w_in.shape[1:]
    sigma_in, sigma_out = (np.sqrt(np.mean(np.square(w, dtype=np.float64), axis=(1, 2))) for w in (w_in, w_out))
    predicted = (np.sqrt(width * hidden) * sigma_in[:, None] * sigma_out)[~right]
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


# Commutators


class Commutators(NamedTuple):
    """Two blocks A (row) and B (column) one after the other, both ways, from the state that reaches A; for A before B."""

    size: Float[Array, "L L"]
    """E‖B(A(x)) − A(B(x))‖₂."""
    first_order: Float[Array, "L L"]
    """E‖J_B·r_A − J_A·r_B‖₂, what `size` is while both residuals are small."""
    product: Float[Array, "L L"]
    """E[‖r_A‖·‖r_B‖], the scale that the paper's Eq. 6 names."""
    change: Float[Array, "L L"]
    """E‖B(A(x)) − x‖₂: all that the two do."""


@jax.jit
def commutators(stack: Stack, x: Float[Array, "N d"]) -> Commutators:
    """How far every two blocks are from commuting (paper, Eq. 6); 4·L² block evaluations."""
    order = identity_arrangement(stack.depth)
    norm = lambda rows: jnp.linalg.norm(rows, axis=1)  # noqa: E731

    def of_first(first: tuple[Array, Array]) -> Commutators:
        a, state = first
        r_a = residual(stack, a, state)

        def with_second(b: Int[Array, "2"]) -> Commutators:
            r_b, jr_a = jax.jvp(lambda x: residual(stack, b, x), (state,), (r_a,))
            _, jr_b = jax.jvp(lambda x: residual(stack, a, x), (state,), (r_b,))
            b_of_a = r_a + residual(stack, b, state + r_a)
            a_of_b = r_b + residual(stack, a, state + r_b)
            parts = (norm(b_of_a - a_of_b), norm(jr_a - jr_b), norm(r_a) * norm(r_b), norm(b_of_a))
            return Commutators(*map(jnp.mean, parts))

        return lax.map(with_second, order)

    return lax.map(of_first, (order, trajectory(stack, order, x).states[:-1]))


def by_distance(values: Float[np.ndarray, "L L"]) -> Float[np.ndarray, "L-1 3"]:
    """Lower quartile, median and upper quartile of the entries above the diagonal, by distance from it (1 to L−1)."""
    values = np.asarray(values, np.float64)
    return np.array([np.quantile(np.diagonal(values, k), (0.25, 0.5, 0.75)) for k in range(1, len(values))]).reshape(-1, 3)


# Orders


class Disorder(NamedTuple):
    """How far an order is from the right one."""

    spearman: float
    """Rank correlation of the order with the right one."""
    kendall: float
    inversions: int
    """Pairs of blocks that stand the wrong way round."""
    largest_displacement: int
    rounds: int
    """Largest number of later blocks that stand left of one block: the sweeps that sorting it takes."""


def disorder(places: Int[np.ndarray, " L"]) -> Disorder:
    """`places` lists the right position of each block, in the order looked at.

    A sweep from left to right that exchanges every two neighbours in the wrong order carries a block any distance right,
    but any one only one place left; so it lowers by one each block's count of later blocks left of it, and ends after as
    many rounds as the largest count, with one exchange for each inversion (Knuth, TAOCP 3, Section 5.2.2).
    """
    places = np.asarray(places)
    wrong = np.triu(places[:, None] > places, 1)
    order = np.arange(len(places))
    pairs = len(places) * (len(places) - 1) // 2
    return Disorder(
        spearman=rank_correlation(order, places) if len(places) > 1 else 1.0,
        kendall=1 - 2 * float(wrong.sum()) / max(pairs, 1),
        inversions=int(wrong.sum()),
        largest_displacement=int(np.abs(places - order).max()),
        rounds=int(wrong.sum(axis=0).max()),
    )


def rank_correlation(a: Num[np.ndarray, " n"], b: Num[np.ndarray, " n"]) -> float:
    """Spearman's; NaN where there are no two different values to rank."""
    ranks = np.stack([rankdata(a), rankdata(b)]) if len(a) else np.zeros((2, 1))
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1]) if np.all(np.ptp(ranks, axis=1) > 0) else float("nan")


def places_in(order: Int[np.ndarray, "L 2"], solved: Int[np.ndarray, "L 2"]) -> Int[np.ndarray, " L"]:
    """Where each block of `order` stands in `solved`; blocks are known by their input halves."""
    place = np.empty(len(solved), np.int64)
    place[np.asarray(solved)[:, 0]] = np.arange(len(solved))
    return place[np.asarray(order)[:, 0]]


class Exchange(NamedTuple):
    """One exchange of neighbours that a repair kept."""

    round: int
    """From 1."""
    position: int
    """Of the left one."""
    left: int
    """Right place of the block that stood left before."""
    right: int
    """Right place of the block that stood right before."""

    @property
    def sorts(self) -> bool:
        """Whether it put the two the right way round."""
        return self.left > self.right


class Decisions(NamedTuple):
    """Every decision of a repair by sweeps."""

    kept: list[Exchange]
    missed: list[Exchange]
    """Exchanges that would have sorted and were not kept."""


def decisions(rounds: Sequence[Int[np.ndarray, " L"]]) -> Decisions:
    """What sweeps from left to right decided, from the right places before the first and after each.

    A sweep can be read off its two ends: what stands at i behind it was decided at i and is never touched again.
    """
    found = Decisions([], [])
    for number, (before, after) in enumerate(pairwise(rounds), 1):
        carried = int(before[0])
        for i, (following, left) in enumerate(zip(map(int, before[1:]), map(int, after), strict=False)):
            exchange = Exchange(number, i, carried, following)
            if left != carried:
                found.kept.append(exchange)
                continue
            carried = following
            if exchange.sorts:
                found.missed.append(exchange)
    return found


@jax.jit
def sweep_back(
    stack: Stack, arrangement: Int[Array, "L 2"], x: Float[Array, "N d"], pred: Float[Array, "N o"]
) -> tuple[Int[Array, "L 2"], Int[Array, ""], Float[Array, ""]]:
    """One sweep over all neighbours from right to left, keeping an exchange where the MSE falls: order, exchanges, MSE.

    `repair` has the paper's sweep from left to right; the two in turn are a cocktail sort.
    """
    states = trajectory(stack, arrangement, x).states
    weight = jnp.ones(len(x))

    def step(back: Int[Array, ""], at):
        arrangement, kept, mse = at
        i = stack.depth - 2 - back
        candidate = moved(arrangement, jnp.stack([jnp.full_like(i, SWAP), i, i + 1]))
        # What stands left of i has not changed, nor has the state that it hands on.
        score = squared_error(stack, candidate, i, states[i], pred, weight) / pred.size
        better = score < mse
        return jnp.where(better, candidate, arrangement), kept + better, jnp.where(better, score, mse)

    start = squared_error(stack, arrangement, 0, x, pred, weight) / pred.size
    return lax.fori_loop(0, stack.depth - 1, step, (arrangement, jnp.int32(0), start))


# Table


class Table(NamedTuple):
    """A table's features, described."""

    mean: Float[np.ndarray, " d"]
    deviation: Float[np.ndarray, " d"]
    skewness: Float[np.ndarray, " d"]
    kurtosis: Float[np.ndarray, " d"]
    """In excess of a normal distribution's 0; −1.2 is uniform, −2 two equal points."""
    near_one: Float[np.ndarray, " d"]
    """Share of values within 0.1 of +1 or −1."""
    smallest: float
    largest: float
    distinct: Int[np.ndarray, " d"]
    """Different values of each feature."""
    correlation: Float[np.ndarray, "d d"]
    spectrum: Float[np.ndarray, " d"]
    """Shares of the correlation matrix's eigenvalues, largest first."""
    effective_rank: float
    """exp of the entropy of `spectrum`."""
    next_row: Float[np.ndarray, " d"]
    """Correlation of each feature with itself one row on: what is left of an order in time."""
    linear: Float[np.ndarray, " o"]
    """Share of pred's variance that a linear fit on the features explains."""


def describe_table(x: Float[np.ndarray, "N d"], pred: Float[np.ndarray, "N o"]) -> Table:
    """Marginals, correlations and effective rank; features that never vary count as uncorrelated."""
    x, pred = np.asarray(x, np.float64), np.asarray(pred, np.float64)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    z = (x - mean) / np.where(deviation > 0, deviation, 1)
    correlation = z.T @ z / len(z)
    spectrum = np.maximum(np.linalg.eigvalsh(correlation)[::-1], 0)
    spectrum = spectrum / max(spectrum.sum(), np.finfo(float).tiny)
    design = np.column_stack([z, np.ones(len(z))])
    rest = pred - design @ np.linalg.lstsq(design, pred, rcond=None)[0]
    variance = pred.var(axis=0)
    return Table(
        mean=mean,
        deviation=deviation,
        skewness=np.mean(z**3, axis=0),
        kurtosis=np.mean(z**4, axis=0) - 3,
        near_one=np.mean(np.abs(np.abs(x) - 1) <= 0.1, axis=0),
        smallest=float(x.min()),
        largest=float(x.max()),
        distinct=np.array([len(np.unique(column)) for column in x.T]),
        correlation=correlation,
        spectrum=spectrum,
        effective_rank=float(np.exp(-np.sum(spectrum * np.log(np.where(spectrum > 0, spectrum, 1))))),
        next_row=np.mean(z[1:] * z[:-1], axis=0) if len(z) > 1 else np.zeros(x.shape[1]),
        linear=1 - rest.var(axis=0) / np.where(variance > 0, variance, 1),
    )


# Training


def signals(stack: Stack, x: Float[Array, "N d"]) -> dict[str, float]:
    """What pairs and orders a stack, measured against its own order: for following a training.

    negative_traces       share of blocks with tr(W_out·W_in) < 0
    paired                share of pairs found by d(i, j) (paper, Section 3.1)
    own_min, own_median   d of right pairs
    other_max             d of the likeliest wrong pair
    w_out_norm, delta_norm, w_in_norm   rank correlations with depth, NaN of one block
    """
    score, trace = diagonal_dominance(stack.w_in, stack.w_out)
    own = score.diagonal()
    other = score[~np.eye(len(score), dtype=bool)]
    depth = np.arange(len(score))
    statistics = block_statistics(stack, identity_arrangement(stack.depth), x)
    norms = {name: np.asarray(statistics[name]) for name in ("w_out_norm", "delta_norm")}
    norms["w_in_norm"] = np.linalg.norm(np.asarray(stack.w_in), axis=(1, 2))
    return {
        "negative_traces": float(np.mean(trace.diagonal() < 0)),
        "paired": float(np.mean(match("ddr", score).partner == depth)),
        "own_min": float(own.min()),
        "own_median": float(np.median(own)),
        "other_max": float(other.max(initial=0)),
        **{name: rank_correlation(depth, norm) for name, norm in norms.items()},
    }


# The paper's route


class Route(NamedTuple):
    """Bubble repair from one start, round by round."""

    table: list[tuple[int, int, float, int]]
    """(round, swaps, MSE over all rows, swaps so far); round 0 is the start. A last round without a swap is no row."""
    arrangements: Int[np.ndarray, "K L 2"]
    """One for each row of the table."""
    evaluations: int


def repair_route(problem: Problem, few: Problem, start: Int[np.ndarray, "L 2"], limit: float = math.inf) -> Route:
    """Bubble repair decided on the rows of `few`, reported over those of `problem` (paper, Tables 1 to 3).

    It ends after `limit` rounds, an even number, if not before.
    """
    repaired = bubble_repair(few.stack, start, few.x, few.pred, limit=limit)
    rounds = [(0, start), *((swaps, order) for swaps, order in repaired.history if swaps)]
    orders = np.stack([order for _, order in rounds])
    mse = np.asarray(score_arrangements(problem.stack, jnp.asarray(orders), problem.x, problem.pred))
    total = np.cumsum([swaps for swaps, _ in rounds])
    table = [(k, int(swaps), float(mse[k]), int(total[k])) for k, (swaps, _) in enumerate(rounds)]
    return Route(table, orders, repaired.evaluations)


class BothWays(NamedTuple):
    """Repair by sweeps from left to right and back in turn."""

    arrangement: Int[np.ndarray, "L 2"]
    swaps: list[int]
    """Kept in each sweep, the last of them left out where it kept none."""
    mse: float
    """Over the rows that decided."""


def repair_both_ways(few: Problem, start: Int[np.ndarray, "L 2"]) -> BothWays:
    """Sweeps in both directions in turn until one keeps nothing, which is one after another of either direction."""
    arrangement, swaps, mse = start, [], np.inf
    while True:
        if len(swaps) % 2:
            arrangement, kept, mse = sweep_back(few.stack, arrangement, few.x, few.pred)
        else:
            part = bubble_rounds(few.stack, arrangement, few.x, few.pred, 1, scored_together(len(start) - 1))
            arrangement, kept, mse = part.arrangement, part.swaps[0], part.mse
        if not int(kept) and len(swaps) > 0:
            return BothWays(np.asarray(arrangement), swaps, float(mse))
        swaps.append(int(kept))
