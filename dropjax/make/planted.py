"""Planted stacks: drawn rather than trained, of any depth, and as hard to put together as the real puzzle.

`plant` draws one, `measure` says how hard it came out, with the real puzzle's own figures to compare (paper, Sections 3
and 4): right pairs' ratios within 1.76 and 3.23, wrong ones up to 0.58, and 4.3% of the pairs of blocks out of order in the
better of the paper's two seed orders.
"""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from dropjax.core.errors import InputError
from dropjax.core.stack import Stack, forward, identity_arrangement, replay, residual
from dropjax.moves.arrangements import adjacent_swaps
from dropjax.moves.exact import score_moves
from dropjax.moves.first_order import adjacent_changes, linearise
from dropjax.ordering.seeding import STATISTICS, block_statistics
from dropjax.pairing.ratio import diagonal_dominance

RATIOS = (1.85, 3.25)
"""Right pairs' ratios |tr(M)| / ‖M‖_F are drawn between these."""
INVERTED = 0.045
"""The share of pairs of blocks whose sizes are out of order."""
GROWTH = 3.0
"""The ratio of the sizes of the last blocks' W_out to those of the first."""
ROWS = 512
"""The number of rows on which a stack is balanced and measured."""
EXACT = 16
"""The number of swaps of neighbours that are scored exactly: those with the least effect to first order."""


class Difficulty(NamedTuple):
    """How hard a stack is to put together."""

    right: tuple[float, float]
    """Smallest and largest diagonal dominance ratio of a right pair (paper, Eq. 4)."""
    wrong: float
    """Largest ratio of a wrong pair."""
    seed_order: str
    """The seed order with the fewest pairs of blocks out of order, of all in the portfolio that sort by a number."""
    inverted: float
    """The share of pairs of blocks out of order in it."""
    smallest_effect: float
    """RMS change of the outputs by the swap of neighbours that changes them least."""
    noise: float
    """RMS difference between the outputs in float32 and in float64."""

    @property
    def margin(self) -> float:
        """How many times float32 noise the least swap of neighbours is."""
        return self.smallest_effect / self.noise


def plant(
    rng: np.random.Generator,
    depth: int,
    x: Float[np.ndarray, "N d"],
    hidden: int = 96,
    outputs: int = 1,
    activation: str = "relu",
    strength: float = 4.0,
) -> Stack:
    """A stack of L = `depth` blocks for a table with inputs x, with W_out = −size·(W_inᵀ + noise).

    The noise is what brings a pair's ratio to the one drawn for it. Sizes grow `GROWTH`-fold from the first block to the
    last, in an order shuffled just so much that `INVERTED` of their pairs are out of order. b_out takes the mean away that
    the residual has over the first rows: without that, all swaps of neighbours change the outputs by much the same
    constant, and hide one another. `strength` is minus the sum, over the blocks, of the mean diagonal of W_out·W_in: a
    stack of any depth neither explodes nor forgets its input. Tables with as many factors as features suit best: the fewer
    directions the swaps' effects have, the more orders no swap of neighbours improves.

    Raises `InputError` if d and h allow no such ratios.
    """
    features = x.shape[1]
    w_in = rng.normal(size=(depth, hidden, features)) / features**0.5
    w_out = _with_ratios(w_in, rng.normal(size=(depth, features, hidden)), rng.uniform(*RATIOS, depth))
    w_out *= _sizes(rng.normal(size=depth))[:, None, None]
    w_out *= -strength * features / np.einsum("kdh,khd->", w_out, w_in)
    b_in = rng.normal(size=(depth, hidden)) / 4
    w_last, b_last = rng.normal(size=(outputs, features)) / features**0.5, rng.normal(size=outputs)
    drawn = w_in, b_in, w_out, np.zeros((depth, features)), w_last, b_last
    stack = Stack(*(jnp.asarray(part, jnp.float32) for part in drawn), activation=activation)
    return replace(stack, b_out=_balance(stack, jnp.asarray(x[:ROWS])))


@jax.jit
def _balance(stack: Stack, x: Float[Array, "N d"]) -> Float[Array, "L d"]:
    """The b_out with which every residual has mean 0, for a stack without b_out."""

    def block(x: Float[Array, "N d"], halves: Int[Array, "2"]):
        r = residual(stack, halves, x)
        mean = jnp.mean(r, axis=0)
        return x + r - mean, -mean

    return lax.scan(block, x, identity_arrangement(stack.depth))[1]


def _with_ratios(
    w_in: Float[np.ndarray, "L h d"], noise: Float[np.ndarray, "L d h"], ratios: Float[np.ndarray, " L"]
) -> Float[np.ndarray, "L d h"]:
    """−(W_inᵀ + τ·noise), of norm 1, with the τ ≥ 0 of each block that gives |tr(M)| = ratio·‖M‖_F.

    With A = W_inᵀ·W_in and B = noise·W_in, τ is the larger root of tr(A + τB)² = ratio²·‖A + τB‖².
    """
    a, b = np.swapaxes(w_in, 1, 2) @ w_in, noise @ w_in
    trace_a, trace_b = (np.trace(m, axis1=1, axis2=2) for m in (a, b))
    aa, ab, bb = (np.einsum("kij,kij->k", m, n) for m, n in ((a, a), (a, b), (b, b)))
    square = ratios**2
    p, q, r = square * bb - trace_b**2, square * ab - trace_a * trace_b, square * aa - trace_a**2
    if not (r < 0).all() or not (p > 0).all():
        most = np.sqrt(np.min(trace_a**2 / aa))
        raise InputError(
            f"planted stack: expected a width that allows ratios up to {max(ratios):.2f}, got one up to {most:.2f}"
        )
    tau = (-q + np.sqrt(q**2 - p * r)) / p
    w_out = -(np.swapaxes(w_in, 1, 2) + tau[:, None, None] * noise)
    return w_out / np.linalg.norm(w_out, axis=(1, 2), keepdims=True)


def _sizes(jitter: Float[np.ndarray, " L"]) -> Float[np.ndarray, " L"]:
    """Growing sizes with as much of `jitter` as puts `INVERTED` of their pairs out of order, or just less."""
    trend = np.linspace(0, np.log(GROWTH), len(jitter))
    low, high = 0.0, np.log(GROWTH)
    for _ in range(12):  # not to the point where two sizes meet
        middle = (low + high) / 2
        low, high = (middle, high) if inverted(trend + middle * jitter) <= INVERTED else (low, middle)
    return np.exp(trend + low * jitter)


def inverted(numbers: Float[np.ndarray, " L"]) -> float:
    """The share of all pairs i < j with numbers[i] > numbers[j]."""
    count = len(numbers)
    return float(np.triu(numbers[:, None] > numbers, 1).sum() / max(1, count * (count - 1) / 2))


def _least_swap(stack: Stack, x: Float[Array, "N d"], pred: Float[Array, "N o"]) -> float:
    """The least MSE between the outputs and those after a swap of neighbours."""
    blocks = identity_arrangement(stack.depth)
    changes = jax.jit(lambda stack: adjacent_changes(stack, blocks, linearise(stack, blocks, x)))(stack)
    least = np.sort(np.argsort(np.mean(np.square(changes), axis=(1, 2)))[:EXACT])
    return float(jnp.min(score_moves(stack, blocks, adjacent_swaps(stack.depth)[least], x, pred)))


def measure(stack: Stack, x: Float[np.ndarray, "N d"]) -> Difficulty:
    """How hard the stack, its blocks in order, is to put together from a table with these inputs."""
    ratio, _ = diagonal_dominance(stack.w_in, stack.w_out)
    right = np.diag(ratio)
    others = ratio[~np.eye(stack.depth, dtype=bool)]
    statistics = block_statistics(stack, identity_arrangement(stack.depth), jnp.asarray(x))
    parts = {}
    for name in STATISTICS:
        part = inverted(np.asarray(statistics[name]))
        parts[f"{name} ascending"], parts[f"{name} descending"] = part, 1 - part
    best = min(parts, key=lambda name: parts[name])
    few = jnp.asarray(x[:ROWS])
    pred = jax.jit(forward)(stack, few)
    return Difficulty(
        right=(float(right.min()), float(right.max())),
        wrong=float(others.max(initial=0)),
        seed_order=best,
        inverted=parts[best],
        smallest_effect=_least_swap(stack, few, pred) ** 0.5,
        noise=float(np.sqrt(np.mean((pred - replay(stack, np.asarray(few))) ** 2))),
    )
