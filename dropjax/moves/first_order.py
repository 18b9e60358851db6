"""Linearisation of an arrangement: the first-order effect of every move, from one pass forward and one back.

The derivations, D1 to D7, are in docs/method.md; all other modules take first-order effects from here.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from dropjax.core.options import MEMORY
from dropjax.core.stack import ACTIVATIONS, Stack, Trajectory, adjoints, product, read_out, residual, trajectory
from dropjax.moves.arrangements import INSERTION, SWAP
from dropjax.runtime.rows import mean_over_rows, sum_over_rows

BATCH_ROWS = 1 << 14
"""Swaps of neighbours are scored as one batch of products if they have no more rows than this, all together."""


class Linearised(NamedTuple):
    """An arrangement's states, preactivations and adjoints: all that first-order scores need."""

    states: Float[Array, "L+1 N d"]
    preactivations: Float[Array, "L N h"]
    adjoints: Float[Array, "L+1 N o d"]


def bytes_per_row(stack: Stack, blocks: int | None = None, values: int = 0) -> int:
    """Bytes that each row of a linearisation takes: for every kernel that takes as many rows as memory holds.

    Preactivations, states and adjoints of `blocks` blocks, by default all, these two twice, for the steps between them are
    held as well; and `values` float32 numbers for each output.
    """
    (depth, hidden, width), outputs = stack.w_in.shape, len(stack.b_last)
    of_block = hidden + 2 * width * (1 + outputs)
    return 4 * ((depth if blocks is None else blocks) * of_block + outputs * values)


def linearise(stack: Stack, arrangement: Int[Array, "L 2"], x: Float[Array, "N d"]) -> Linearised:
    """One pass forward and one back (D1 in docs/method.md)."""
    return linearised(stack, arrangement, trajectory(stack, arrangement, x))


def linearised(
    stack: Stack, arrangement: Int[Array, "L 2"], at: Trajectory, behind: Float[Array, "N o d"] | None = None
) -> Linearised:
    """One pass back, after one forward; `behind` as in `adjoints`."""
    return Linearised(*at, adjoints(stack, arrangement, at, behind))


def adjacent_changes(stack: Stack, arrangement: Int[Array, "L 2"], at: Linearised) -> Float[Array, "L-1 N o"]:
    """Change of the outputs by each swap of neighbours: exact up to the state behind the two, linear from there.

    D3 in docs/method.md.
    """

    def change(of: tuple[Array, Array, Array, Array, Array]) -> Float[Array, "N o"]:
        first, second, before, after, adjoint = of
        between = before + residual(stack, second, before)
        return _inner(adjoint, between + residual(stack, first, between) - after)

    neighbours = (arrangement[:-1], arrangement[1:], at.states[:-2], at.states[2:], at.adjoints[2:])
    # Products of few rows are too small one by one; those of many leave the cache together.
    together = stack.depth * at.states.shape[1] <= BATCH_ROWS
    return jax.vmap(change)(neighbours) if together else lax.map(change, neighbours)


class Steps(NamedTuple):
    """Increments that the blocks add to the states and to the adjoints; flips are computed from these."""

    residuals: Float[Array, "L N d"]
    """R_k = x_{k+1} − x_k."""
    increments: Float[Array, "L N o d"]
    """U_k = g_k − g_{k+1}."""


def steps(at: Linearised) -> Steps:
    """The steps from each state, and from each adjoint, to the next."""
    return Steps(at.states[1:] - at.states[:-1], at.adjoints[:-1] - at.adjoints[1:])


def flips(at: Linearised) -> Float[Array, "N o L L"]:
    """Δ_ab for a < b (0 elsewhere): change of the outputs, to first order, by block b coming before block a.

    Δ_ab = ⟨U_a, R_b⟩ − ⟨U_b, R_a⟩ (D2 in docs/method.md).
    """
    of = steps(at)
    one_way = _one_way(of.increments, of.residuals)
    return jnp.triu(one_way - jnp.swapaxes(one_way, -1, -2), 1)


def flips_ahead(own: Steps, window: Steps) -> Float[Array, "N o A B"]:
    """`flips` of A blocks with each other and with those behind them, of B in all: a `window` that begins with `own`."""
    back = jnp.swapaxes(_one_way(window.increments, own.residuals), -1, -2)
    return jnp.triu(_one_way(own.increments, window.residuals) - back, 1)


def _one_way(increments: Float[Array, "A N o d"], residuals: Float[Array, "B N d"]) -> Float[Array, "N o A B"]:
    """⟨U_a, R_b⟩."""
    return jnp.einsum("anod,bnd->noab", increments, residuals, precision=lax.Precision.HIGHEST)


def with_neighbours(by_pair: Float[Array, "*#of A B"], near: Float[Array, "*#of K"]) -> Float[Array, "*#of A B"]:
    """Entry (k, k + 1) of each pair of neighbours replaced by what is exact up to the state behind the two, near[k]."""
    left = jnp.arange(near.shape[-1])
    return by_pair.at[..., left, left + 1].set(near)


def flips_and_swaps(stack: Stack, arrangement: Int[Array, "L 2"], at: Linearised) -> Float[Array, "N o L L"]:
    """`flips`, but for neighbours the exact change of the state behind them: `adjacent_changes`."""
    return with_neighbours(flips(at), jnp.moveaxis(adjacent_changes(stack, arrangement, at), 0, -1))


class FarChanges(NamedTuple):
    """Changes of the outputs, to first order, by the moves between any two positions i < j: sums of flips."""

    right: Float[Array, "N o L L"]
    """Insertion of the block at i at j: Σ_{k=i+1..j} Δ_ik."""
    left: Float[Array, "N o L L"]
    """Insertion of the block at j at i: Σ_{k=i..j−1} Δ_kj."""
    swap: Float[Array, "N o L L"]
    """Both blocks exchanged: each passes all between them, and they pass one another once."""


def far_move(kind: Int[Array, "*K"], i: Int[Array, "*K"], j: Int[Array, "*K"]) -> Int[Array, "*K 3"]:
    """The moves between positions i < j that `FarChanges` lists as its field number `kind`."""
    swapped = jnp.stack([jnp.full_like(i, SWAP), i, j], axis=-1)
    inserted = jnp.stack([jnp.full_like(i, INSERTION), jnp.where(kind == 0, i, j), jnp.where(kind == 0, j, i)], axis=-1)
    return jnp.where(jnp.expand_dims(kind == 2, -1), swapped, inserted)


def far_changes(at: Linearised) -> FarChanges:
    """All insertions and swaps, as sums of flips (D4 in docs/method.md)."""
    delta = flips(at)
    right = jnp.cumsum(delta, axis=-1)
    left = jnp.cumsum(delta[..., ::-1, :], axis=-2)[..., ::-1, :]
    left_of_rest = jnp.pad(left[..., 1:, :], [(0, 0)] * (left.ndim - 2) + [(0, 1), (0, 0)])
    return FarChanges(right, left, right + left_of_rest)


class FirstOrder(NamedTuple):
    """Predicted change of the MSE by every move; entries with i ≥ j are 0."""

    mse: Float[Array, ""]
    """MSE of the arrangement itself, which is exact."""
    adjacent: Float[Array, " L-1"]
    """Exchanges of neighbours, with their exact change of the state behind them."""
    far: Float[Array, "3 L L"]
    """`FarChanges`' insertions to the right, to the left, and swaps."""

    @property
    def moves(self) -> Float[Array, "3 L L"]:
        """`far`, with the values of `adjacent` for neighbours, because all three of their moves are the same swap."""
        return with_neighbours(self.far, self.adjacent)


def effect_sum(
    change: Float[Array, "N o ..."], error: Float[Array, "N o"], weight: Float[Array, " N"]
) -> Float[Array, "..."]:
    """Weighted sum over rows of 2eΔ + Δ²: what changes Δ of the outputs add to the squared error, e = f − pred.

    D5 in docs/method.md.
    """
    behind = (1,) * (change.ndim - 2)
    by_row = (2 * error.reshape(*error.shape, *behind) + change) * change
    return jnp.sum(weight.reshape(-1, 1, *behind) * by_row, axis=(0, 1))


def far_effects(
    at: Linearised, error: Float[Array, "N o"], weight: Float[Array, " N"], memory: int = MEMORY
) -> Float[Array, "3 L L"]:
    """`effect_sum` of each of `FarChanges`, as many rows at a time as `memory` holds."""

    def of(states: Array, adjoints: Array, error: Array, weight: Array) -> Float[Array, "3 L L"]:
        chunk = at._replace(states=jnp.swapaxes(states, 0, 1), adjoints=jnp.swapaxes(adjoints, 0, 1))
        return jnp.stack([effect_sum(change, error, weight) for change in far_changes(chunk)])

    parts = jnp.swapaxes(at.states, 0, 1), jnp.swapaxes(at.adjoints, 0, 1), error, weight
    outputs, depth = error.shape[1], len(at.preactivations)
    held = 4 * 8 * outputs * depth**2
    return sum_over_rows(of, parts, held, memory)


def first_order_sums(
    stack: Stack,
    arrangement: Int[Array, "L 2"],
    at: Linearised,
    pred: Float[Array, "N o"],
    weight: Float[Array, " N"],
    far: bool | Array = True,
    memory: int = MEMORY,
) -> FirstOrder:
    """`score_first_order` as sums over weighted rows; the moves over any distance only where `far` is true."""
    error = read_out(stack, at.states[-1]) - pred
    effect = partial(effect_sum, error=error, weight=weight)
    nowhere = jnp.zeros((3, stack.depth, stack.depth))
    return FirstOrder(
        mse=jnp.sum(weight[:, None] * error**2),
        adjacent=jax.vmap(effect)(adjacent_changes(stack, arrangement, at)),
        far=lax.cond(far, lambda: far_effects(at, error, weight, memory), lambda: nowhere),
    )


@partial(jax.jit, static_argnames="memory")
def score_first_order(
    stack: Stack, arrangement: Int[Array, "L 2"], x: Float[Array, "N d"], pred: Float[Array, "N o"], memory: int = MEMORY
) -> FirstOrder:
    """Predicted effects of all exchanges of neighbours, insertions and swaps: mean(2eΔ + Δ²), e = f − pred."""

    def of_chunk(x: Array, pred: Array, weight: Array) -> FirstOrder:
        return first_order_sums(stack, arrangement, linearise(stack, arrangement, x), pred, weight, memory=memory)

    return mean_over_rows(of_chunk, x, pred, bytes_per_row(stack), memory)


def contributions(
    stack: Stack, arrangement: Int[Array, "L 2"], positions: Int[Array, " n"], at: Linearised
) -> Float[Array, "n n N o"]:
    """φ_ab = ⟨g_{a+1}, W_out·act(W_in·x_a + b_in) + b_out⟩ with the input half at position a and the output half at b: what
    the two would contribute to the outputs at a, to first order (D6 in docs/method.md)."""
    act = ACTIVATIONS[stack.activation]
    outs = arrangement[positions, 1]
    all_halves = jnp.swapaxes(stack.w_out[outs], 1, 2).reshape(-1, stack.w_out.shape[1])

    def of_position(of: tuple[Array, Array]) -> Float[Array, "n N o"]:
        z, adjoint = of
        by_hidden = product(adjoint, all_halves).reshape(*adjoint.shape[:2], len(outs), -1)
        through_weights = jnp.einsum("nolh,nh->lno", by_hidden, act(z), precision=lax.Precision.HIGHEST)
        return through_weights + jnp.moveaxis(product(adjoint, stack.b_out[outs]), 2, 0)

    return lax.map(of_position, (at.preactivations[positions], at.adjoints[positions + 1]))


def pair_swap_changes(stack: Stack, arrangement: Int[Array, "L 2"], at: Linearised) -> Float[Array, "L L N o"]:
    """Change of the outputs, to first order, by the exchange of the output halves at every two positions.

    ⟨g_{a+1}, r_{a,b}(x_a) − r_a(x_a)⟩ and the same for b, where r_{a,b} has the input half at a and the output half at b
    (D7 in docs/method.md).
    """
    by_pair = contributions(stack, arrangement, jnp.arange(stack.depth), at)
    one_way = by_pair - jnp.einsum("aano->ano", by_pair)[:, None]
    return one_way + jnp.swapaxes(one_way, 0, 1)


def _inner(adjoint: Float[Array, "N o d"], change: Float[Array, "N d"]) -> Float[Array, "N o"]:
    return jnp.einsum("nod,nd->no", adjoint, change, precision=lax.Precision.HIGHEST)
