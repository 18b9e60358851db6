"""Exact losses of many arrangements, each state computed once.

Arrangements that begin alike share their states up to where they part: all states to compute form a tree. They are computed
level by level, those behind the same parts one after another, so that parts are fetched once and stay in the cache.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PyTree, Shaped

from dropjax.network.protocol import COMPILED, Network, State
from dropjax.runtime import mesh


class Plan(NamedTuple):
    """Which states are computed from which, for up to C arrangements of L positions.

    Slots number the states that are held: C for even and C for odd positions, then x itself, then one for what fills up.
    """

    groups: Int[np.ndarray, ""]
    parts: Int[np.ndarray, "C*L P"]
    """The parts of each group of states that are behind the same parts."""
    first: Int[np.ndarray, "C*L+1"]
    """Where each group's steps begin."""
    source: Int[np.ndarray, "steps together"]
    """The slots that each step reads, and those that it fills."""
    result: Int[np.ndarray, "steps together"]
    real: Int[np.ndarray, ""]
    """Arrangements; as many of the following are real."""
    last: Int[np.ndarray, " C"]
    """The slot of each arrangement's last state."""


def plan(arrangements: Int[np.ndarray, "K L P"], capacity: int, together: int = 1) -> tuple[Plan, int]:
    """The plan for K ≤ `capacity` arrangements, and how many blocks it runs; `together` of them in a step."""
    count, depth, _ = arrangements.shape
    root, spare = 2 * capacity, 2 * capacity + 1
    parts, lengths, sources, results, blocks = [], [], [], [], 0
    slot = np.full(count, root)
    for k in range(depth):
        rows, row = np.unique(arrangements[:, k], axis=0, return_inverse=True)
        _, example, node = np.unique(row.reshape(-1) * (root + 1) + slot, return_index=True, return_inverse=True)
        before, group = slot[example], row.reshape(-1)[example]  # sorted by row, and so by group
        after = (k % 2) * capacity + np.arange(len(example))
        for g in range(len(rows)):
            mine = group == g
            fill = -int(mine.sum()) % together
            sources.append(np.concatenate([before[mine], np.full(fill, root)]))
            results.append(np.concatenate([after[mine], np.full(fill, spare)]))
            lengths.append(len(sources[-1]) // together)
        parts.append(rows)
        blocks += len(example)
        slot = after[node.reshape(-1)]
    first = np.concatenate([[0], np.cumsum(lengths)])
    whole = Plan(
        groups=np.int32(len(lengths)),  # pyright: ignore[reportArgumentType]  # NumPy's scalars are arrays of no axes
        parts=_filled(np.concatenate(parts), capacity * depth),
        first=_filled(first, capacity * depth + 1),
        source=_filled(np.concatenate(sources).reshape(-1, together), capacity * depth),
        result=_filled(np.concatenate(results).reshape(-1, together), capacity * depth),
        real=np.int32(count),  # pyright: ignore[reportArgumentType]
        last=_filled(slot, capacity),
    )
    return whole, blocks


def _filled(a: Int[np.ndarray, "n ..."], length: int) -> Int[np.ndarray, "m ..."]:
    return np.pad(a, [(0, length - len(a))] + [(0, 0)] * (a.ndim - 1)).astype(np.int32)


class Scored(NamedTuple):
    """The results of a plan's arrangements."""

    losses: Float[Array, "C N"]
    """Loss of each row of each arrangement; those of the arrangements that only fill up are 0."""
    outputs: PyTree[Shaped[Array, "N ..."]]
    """The last arrangement's outputs."""


@partial(jax.jit, static_argnames="capacity", compiler_options=COMPILED)
def run_plan(network: Network, x: State, target: PyTree | None, plan: Plan, capacity: int) -> Scored:
    """Runs every arrangement of a plan of this capacity over the rows of x."""
    together = plan.source.shape[1]

    def held(a: Array) -> Array:
        store = jnp.zeros((2 * capacity + 2, *a.shape), a.dtype).at[2 * capacity].set(a)
        return mesh.spread(store, None, mesh.ROWS)

    def of_group(group: Int[Array, ""], store: State) -> State:
        parts = network.pick(plan.parts[group])

        def one(step: Int[Array, ""], store: State) -> State:
            source, result = plan.source[step, 0], plan.result[step, 0]
            state = network.run(parts, jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, source, keepdims=False), store))
            return jax.tree.map(lambda a, new: lax.dynamic_update_index_in_dim(a, new, result, 0), store, state)

        def several(step: Int[Array, ""], store: State) -> State:
            states = jax.tree.map(lambda a: a[plan.source[step]], store)
            states = jax.vmap(network.run, (None, 0))(parts, states)
            return jax.tree.map(lambda a, new: a.at[plan.result[step]].set(new), store, states)

        return lax.fori_loop(plan.first[group], plan.first[group + 1], one if together == 1 else several, store)

    store = lax.fori_loop(0, plan.groups, of_group, jax.tree.map(held, x))

    def judge(k: Int[Array, ""], scored: Scored) -> Scored:
        outputs = network.read_out(jax.tree.map(lambda a: a[plan.last[k]], store))
        losses = network.row_loss(outputs, target).astype(jnp.float32)
        return Scored(scored.losses.at[k].set(losses), outputs)

    outputs = jax.eval_shape(network.read_out, x)
    rows = len(jax.tree.leaves(x)[0])
    nothing = Scored(jnp.zeros((capacity, rows)), jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), outputs))
    return lax.fori_loop(0, plan.real, judge, nothing)
