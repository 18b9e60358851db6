"""What moves do to the outputs, to first order: sums of flips, from one pass forward and a few back.

A network's *steps* are its blocks, or the parts of its blocks where each kind of part has a function of its own. Run once,
with states x_0 … x_F, steps have the residuals R_f = x_{f+1} − x_f; run back, from some combinations of the outputs, the
adjoints g_f have the increments U_f = g_f − g_{f+1}. Step b running before step a < b adds Δ_ab = ⟨U_a, R_b⟩ − ⟨U_b, R_a⟩ to
each combination, and a move adds the sum of Δ_ab over all pairs that it puts the other way round.

Where one function runs all P parts of a block, its parts are no steps. A move of parts of some kinds then adds, at each
position t whose block changes to r̃_t, ⟨g_{t+1}, r̃_t(x_t) − r_t(x_t)⟩, one kind at a time.

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
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

from dropjax.network import moves
from dropjax.network.moves import Moves
from dropjax.network.protocol import COMPILED, Network, State

HIGHEST = lax.Precision.HIGHEST

RIDGES = (1e-3, 1e-2, 0.1, 1.0)
"""Ridges of the regressions on flips, in units of the flips' mean square sum."""

MOVES_AT_ONCE = 512
"""Number of moves whose pairs of steps are held at the same time."""


class Linearised(NamedTuple):
    """An arrangement's flips, on n rows and for c combinations of their outputs."""

    flips: Float[Array, "F F n c"]
    """Δ_ab for steps a < b; 0 elsewhere."""
    replaced: Float[Array, "L K L n c"]
    """Change of the outputs if, for one kind, the part of one position stands at another, [in, kind, of]. K is P if one
    function runs all parts of a block, and 0 otherwise."""
    error: Float[Array, "n c"]
    """The Δ, in the same combinations, that would minimise the loss's quadratic model; the first entry is 0."""


def steps(network: Network) -> int:
    """Number of steps F of an arrangement."""
    return network.depth * (network.kinds if network.in_turn else 1)


def is_complete(network: Network) -> bool:
    """Whether flips account for every move: for moves of single parts, these must be steps."""
    return network.in_turn or network.kinds == 1


def is_possible(network: Network, x: State) -> bool:
    """Whether the outputs have derivatives."""
    return all(jnp.issubdtype(a.dtype, jnp.floating) for a in jax.tree.leaves(jax.eval_shape(network.read_out, x)))


def _floats(state: State) -> list[Float[Array, "N ..."]]:
    return [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.inexact)]


def _with_floats(state: State, floats: list[Float[Array, "N ..."]]) -> State:
    leaves, tree = jax.tree.flatten(state)
    rest = iter(floats)
    return jax.tree.unflatten(tree, [next(rest) if jnp.issubdtype(a.dtype, jnp.inexact) else a for a in leaves])


def flat_outputs(outputs: PyTree[Shaped[Array, "N ..."]]) -> Float[Array, "N o"]:
    """All outputs of each row side by side."""
    return jax.vmap(lambda row: ravel_pytree(row)[0])(outputs)


@partial(jax.jit, static_argnames="count", compiler_options=COMPILED)
def linearise(
    network: Network,
    arrangement: Int[Array, "L P"],
    x: State,
    target: PyTree | None,
    key: Key[Array, ""],
    count: int,
) -> Linearised:
    """One pass forward and 1 + `count` back; `key` draws the random combinations."""
    subs = network.steps if network.in_turn else (network.run,)

    def of_parts(parts, s: int):
        return parts[s] if network.in_turn else parts

    def forward(state: State, row: Int[Array, " P"]):
        parts, before, residuals = network.pick(row), [], []
        for s, step in enumerate(subs):
            before.append(state)
            state = step(of_parts(parts, s), state)
            residuals.append([a - b for a, b in zip(_floats(state), _floats(before[-1]), strict=True)])
        return state, (tuple(before), jax.tree.map(lambda *a: jnp.stack(a), *residuals))

    last, (before, residuals) = lax.scan(forward, x, arrangement)
    residuals = [r.reshape(-1, *r.shape[2:3], r[0, 0, 0].size) for r in residuals]

    def outputs_of(floats: list) -> Float[Array, "N o"]:
        return flat_outputs(network.read_out(_with_floats(last, floats)))

    outputs, back = jax.vjp(outputs_of, _floats(last))
    combinations, error = _combinations(network, network.read_out(last), target, key, count)
    g = jax.vmap(lambda v: back(v.astype(outputs.dtype))[0])(combinations)

    def increments(u: list[Float[Array, "c N ..."]]) -> Float[Array, "F N c"]:
        """Inner products of one step's U with every step's R."""
        flat = [a.reshape(*a.shape[:2], -1) for a in u]
        products = (jnp.einsum("cnd,fnd->fnc", a, r, precision=HIGHEST) for a, r in zip(flat, residuals, strict=True))
        return jnp.asarray(sum(products))

    def backward(g: list, of_block: tuple[Int[Array, " P"], tuple[State, ...]]):
        (row, states), found = of_block, []
        parts, others = network.pick(row), _replaced(network, arrangement, row, states[0], g)
        for s in reversed(range(len(subs))):
            through = lambda floats, s=s: _floats(subs[s](of_parts(parts, s), _with_floats(states[s], floats)))  # noqa: E731
            _, back = jax.vjp(through, _floats(states[s]))
            earlier = jax.vmap(lambda v, back=back: back(v)[0])(g)
            found.append(increments([a - b for a, b in zip(earlier, g, strict=True)]))
            g = earlier
        return g, (jnp.stack(found[::-1]), others)

    _, (one_way, others) = lax.scan(backward, g, (arrangement, before), reverse=True)
    size = len(arrangement) * len(subs)
    one_way = one_way.reshape(size, size, *error.shape)
    delta = one_way - jnp.swapaxes(one_way, 0, 1)
    upper = jnp.triu(jnp.ones((size, size), bool), 1)
    return Linearised(jnp.where(upper[:, :, None, None], delta, 0).astype(jnp.float32), others.astype(jnp.float32), error)


def _replaced(
    network: Network, arrangement: Int[Array, "L P"], row: Int[Array, " P"], state: State, g: list[Float[Array, "c N ..."]]
) -> Float[Array, "K L N c"]:
    """Change by each position's part of each kind if it stands in this row, whose block gets `state`; g are the adjoints
    behind the block."""
    sound = _floats(network.run(network.pick(row), state))

    def one(row: Int[Array, " P"]) -> Float[Array, "N c"]:
        other = _floats(network.run(network.pick(row), state))
        return jnp.asarray(sum(_products(u, a - b) for u, a, b in zip(g, other, sound, strict=True)))

    def of_kind(p: int) -> Float[Array, "L N c"]:
        return lax.map(lambda k: one(row.at[p].set(k)), arrangement[:, p])

    if is_complete(network):
        return jnp.zeros((0, len(arrangement), len(jax.tree.leaves(state)[0]), len(g[0])))
    return jnp.stack([of_kind(p) for p in range(network.kinds)])


def _products(u: Float[Array, "c N ..."], r: Float[Array, "N ..."]) -> Float[Array, "N c"]:
    """Inner products of each row of r with each combination's u."""
    return jnp.einsum("cnd,nd->nc", u.reshape(*u.shape[:2], -1), r.reshape(len(r), -1), precision=HIGHEST)


def _combinations(
    network: Network, outputs: PyTree[Shaped[Array, "N ..."]], target: PyTree | None, key: Key[Array, ""], count: int
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
        random = jax.random.normal(key, (count, rows, size), flat.dtype)
        spread = count
    probe = jax.random.rademacher(key, flat.shape, flat.dtype)
    gradient, bent = jax.jvp(jax.grad(total), (flat,), (probe,))
    by_row = jnp.mean(bent * probe, axis=1)  # an estimate of the Hessian's mean diagonal
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


def exchanged(network: Network, candidates: Moves) -> Bool[np.ndarray, "n L P L"]:
    """Which position's part of each kind each move puts in each position, where it moves that kind."""
    comes = moves.sources(candidates, network.depth)[:, :, None] == np.arange(network.depth)
    return comes[:, :, None] & moves.moved_kinds(candidates, network.kinds)[:, None, :, None]


def changes(network: Network, at: Linearised, candidates: Moves) -> Float[np.ndarray, "n N c"]:
    """What each move is predicted to add to each combination of outputs."""
    size, rows, count = at.flips.shape[1:]
    upper = np.triu_indices(size, 1)
    found = turned(network, candidates)[:, *upper].astype(np.float32) @ np.asarray(at.flips)[upper].reshape(-1, rows * count)
    if not is_complete(network):
        apart = ~moves.moved_kinds(candidates, network.kinds).all(axis=1)
        replaced = np.asarray(at.replaced).reshape(-1, rows * count)
        found[apart] = exchanged(network, candidates[apart]).reshape(-1, len(replaced)).astype(np.float32) @ replaced
    return found.reshape(-1, rows, count)


def predicted(network: Network, at: Linearised, candidates: Moves) -> Float[np.ndarray, " K"]:
    """What each move is predicted to add to the mean loss."""
    found = []
    for begin in range(0, len(candidates), MOVES_AT_ONCE):
        change = changes(network, at, candidates[begin : begin + MOVES_AT_ONCE])
        found.append((change[:, :, 0] + np.sum(change[:, :, 1:] ** 2, axis=2)).mean(axis=1))
    return np.concatenate(found)


def proposals(network: Network, arrangement: Int[np.ndarray, "L P"], at: Linearised) -> Int[np.ndarray, "K L P"]:
    """Arrangements that regressions of the error on all flips ask for; K is always the same.

    Ridge regressions tell how much of each pair's flip the error asks for, all at once, also where flips make up for one
    another and no move alone helps. Each step's expected place is its own plus the flips that it is to make (Borda's count).
    """
    size = at.flips.shape[0]
    a, b = np.triu_indices(size, 1)
    flips = np.asarray(at.flips, np.float64)[a, b][:, :, 1:].reshape(len(a), -1)
    values, vectors = np.linalg.eigh(flips.T @ flips)
    along = vectors.T @ np.asarray(at.error, np.float64)[:, 1:].reshape(-1)
    found = []
    for ridge in RIDGES:
        share = flips @ (vectors @ (along / (np.maximum(values, 0) + ridge * max(values.sum() / len(a), 1e-300))))
        for asked in (share, share / 2, 2 * share, share > 0.3, share > 0.7):
            made = np.clip(np.asarray(asked, np.float64), 0, 1)
            place = np.arange(size) + np.bincount(a, made, size) - np.bincount(b, made, size)
            found.append(_by_place(network, arrangement, place))
    return np.stack(found)


def _by_place(
    network: Network, arrangement: Int[np.ndarray, "L P"], place: Float[np.ndarray, " F"]
) -> Int[np.ndarray, "L P"]:
    """An arrangement with each kind's parts, or the blocks, in the order of their steps' places."""
    if not network.in_turn:
        return arrangement[np.argsort(place, kind="stable")]
    by_kind = place.reshape(network.depth, network.kinds)
    return np.stack([arrangement[np.argsort(by_kind[:, p], kind="stable"), p] for p in range(network.kinds)], axis=1)
