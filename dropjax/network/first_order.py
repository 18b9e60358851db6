"""What moves do to the outputs, to first order: sums of flips, from one pass forward and a few back.

A network's *steps* are its blocks, or the parts of its blocks where each kind of part has a function of its own. Run once,
with states x_0 … x_F, steps have the residuals R_f = x_{f+1} − x_f; run back, from some combinations of the outputs, the
adjoints g_f have the increments U_f = g_f − g_{f+1}. Step b running before step a < b adds Δ_ab = ⟨U_a, R_b⟩ − ⟨U_b, R_a⟩ to
each combination, and a move adds the sum of Δ_ab over all pairs that it puts the other way round.

Outputs may be many, so combinations of them are looked at: the loss's own gradient, and random ones, whose squares sum to
the loss's curvature times ‖Δ‖² in expectation.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from dropjax.network import moves
from dropjax.network.moves import Moves
from dropjax.network.protocol import Network, State

MOVES_AT_ONCE = 512
"""Moves whose pairs of steps are held at the same time."""


class Linearised(NamedTuple):
    """An arrangement's flips, on n rows and for c combinations of their outputs."""

    flips: Float[Array, "F F n c"]
    """Δ_ab for steps a < b; 0 elsewhere."""
    error: Float[Array, "n c"]
    """What Δ would have to be for the loss's quadratic model to be least, in the same combinations; the first is 0."""


def steps(network: Network) -> int:
    """Steps F that an arrangement has."""
    return network.depth * (network.kinds if network.in_turn else 1)


def is_complete(network: Network) -> bool:
    """Whether flips account for every move: for moves of single parts, these must be steps."""
    return network.in_turn or network.kinds == 1


def _floats(state: State) -> list[Float[Array, "N ..."]]:
    return [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.inexact)]


def _with_floats(state: State, floats: list[Float[Array, "N ..."]]) -> State:
    leaves, tree = jax.tree.flatten(state)
    rest = iter(floats)
    return jax.tree.unflatten(tree, [next(rest) if jnp.issubdtype(a.dtype, jnp.inexact) else a for a in leaves])


def flat_outputs(outputs: PyTree[Array, "N ..."]) -> Float[Array, "N o"]:
    """All outputs of each row side by side."""
    return jax.vmap(lambda row: ravel_pytree(row)[0])(outputs)


@partial(jax.jit, static_argnames="count")
def linearise(
    network: Network,
    arrangement: Int[Array, "L P"],
    x: State,
    target: PyTree | None,
    noise: Float[Array, "count"] | Array,
    count: int,
) -> Linearised:
    """One pass forward and 1 + `count` back; `noise` is a key for the random combinations."""
    subs = network.steps if network.in_turn else (network.run,)

    def of_parts(parts, s: int):
        return parts[s] if network.in_turn else parts

    def forward(state: State, row: Int[Array, " P"]):
        parts, before = network.pick(row), []
        for s, step in enumerate(subs):
            before.append(state)
            state = step(of_parts(parts, s), state)
        return state, tuple(before)

    last, before = lax.scan(forward, x, arrangement)

    def outputs_of(floats: list) -> Float[Array, "N o"]:
        return flat_outputs(network.read_out(_with_floats(last, floats)))

    outputs, back = jax.vjp(outputs_of, _floats(last))
    combinations, error = _combinations(network, network.read_out(last), target, noise, count)
    g = jax.vmap(lambda v: back(v.astype(outputs.dtype))[0])(combinations)

    def backward(g: list, of_block: tuple[Int[Array, " P"], tuple[State, ...]]):
        (row, states), increments = of_block, []
        parts = network.pick(row)
        for s in reversed(range(len(subs))):
            through = lambda floats, s=s: _floats(subs[s](of_parts(parts, s), _with_floats(states[s], floats)))  # noqa: E731
            after, back = jax.vjp(through, _floats(states[s]))
            earlier = jax.vmap(lambda v, back=back: back(v)[0])(g)
            residual = [a - b for a, b in zip(after, _floats(states[s]), strict=True)]
            increments.append(([a - b for a, b in zip(earlier, g, strict=True)], residual))
            g = earlier
        return g, jax.tree.map(lambda *a: jnp.stack(a), *increments[::-1])

    _, (increments, residuals) = lax.scan(backward, g, (arrangement, before), reverse=True)
    depth = len(arrangement) * len(subs)

    def inner(u: Float[Array, "L s c N ..."], r: Float[Array, "L s N ..."]) -> Float[Array, "F F N c"]:
        rows = r.shape[2]
        u, r = u.reshape(depth, count + 1, rows, -1), r.reshape(depth, rows, -1)
        return jnp.einsum("acnd,bnd->abnc", u, r, precision=lax.Precision.HIGHEST)

    one_way = sum(inner(u, r) for u, r in zip(increments, residuals, strict=True))
    delta = jnp.asarray(one_way) - jnp.swapaxes(one_way, 0, 1)
    upper = jnp.triu(jnp.ones((depth, depth), bool), 1)
    return Linearised(jnp.where(upper[:, :, None, None], delta, 0).astype(jnp.float32), error)


def _combinations(
    network: Network, outputs: PyTree[Array, "N ..."], target: PyTree | None, noise: Array, count: int
) -> tuple[Float[Array, "c N o"], Float[Array, "N c"]]:
    """The gradient of each row's loss by its outputs, and `count` combinations whose squares add up to its curvature; and
    minus the step to the least loss that gradient and curvature point to, in these combinations."""
    flat = flat_outputs(outputs)
    rows, size = flat.shape
    _, restore = ravel_pytree(jax.tree.map(lambda a: a[0], outputs))

    def total(flat: Float[Array, "N o"]) -> Float[Array, ""]:
        return jnp.sum(network.row_loss(jax.vmap(restore)(flat), target))

    if size <= count:
        random = jnp.tile(jnp.eye(count, size)[:, None], (1, rows, 1))
        spread = 1.0
    else:
        random = jax.random.normal(noise, (count, rows, size), flat.dtype)
        spread = count
    gradient, curvature = jax.jvp(jax.grad(total), (flat,), (random[0],))
    by_row = jnp.sum(curvature * random[0], axis=1) / jnp.maximum(jnp.sum(random[0] ** 2, axis=1), 1e-30)
    by_row = jnp.maximum(by_row, 1e-6 * jnp.maximum(jnp.mean(by_row), 0) + 1e-30)
    vectors = random * jnp.sqrt(by_row / 2 / spread)[:, None]
    error = jnp.einsum("cno,no->nc", vectors, -gradient / by_row[:, None])
    return jnp.concatenate([gradient[None], vectors]), jnp.pad(error, ((0, 0), (1, 0))).astype(jnp.float32)


def turned(network: Network, candidates: Moves) -> Bool[np.ndarray, "K F F"]:
    """Which pairs of steps a < b each move puts the other way round."""
    depth, kinds = network.depth, network.kinds
    where = np.argsort(moves.sources(candidates, depth), axis=1)  # where the parts at each position go
    if not network.in_turn:
        place = where
    else:
        stays = np.arange(depth)[None, :, None]
        goes = np.where(moves.moved_kinds(candidates, kinds)[:, None], where[:, :, None], stays)
        place = (goes * kinds + np.arange(kinds)).reshape(len(candidates), -1)
    return np.triu(place[:, :, None] > place[:, None, :], 1)


def predicted(network: Network, at: Linearised, candidates: Moves) -> Float[np.ndarray, " K"]:
    """What each move is predicted to add to the mean loss."""
    size, rows, count = at.flips.shape[1:]
    upper = np.triu_indices(size, 1)
    flips = np.asarray(at.flips)[upper].reshape(-1, rows * count)
    found = []
    for begin in range(0, len(candidates), MOVES_AT_ONCE):
        pairs = turned(network, candidates[begin : begin + MOVES_AT_ONCE])[:, *upper]
        change = (pairs.astype(np.float32) @ flips).reshape(-1, rows, count)
        found.append((change[:, :, 0] + np.sum(change[:, :, 1:] ** 2, axis=2)).mean(axis=1))
    return np.concatenate(found)
