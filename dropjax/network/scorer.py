"""Exact scores on the first rows of a table, a few rows at a time, by one compiled program."""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PyTree

from dropjax.runtime import mesh
from dropjax.runtime.device import MEMORY, side_by_side, workers
from dropjax.network.exact import Plan, Scored, plan, run_plan
from dropjax.network.protocol import Network, State

MOST = 128
"""Arrangements of one plan, at most."""

@dataclass
class Scorer:
    """Exact losses of arrangements, and what they have cost so far."""

    network: Network
    chunks: list[tuple[State, PyTree]]
    """x and target in chunks of as many rows; the first rows once more fill up the last one."""
    rows: int
    """Rows N of the whole table."""
    chunk: int
    """Rows of a chunk."""
    capacity: int
    together: int
    evaluations: int = 0
    """Arrangements scored."""
    blocks: float = 0.0
    """Blocks run for that, in units of a block over all N rows."""

    @classmethod
    def of(cls, network: Network, x: State, target: PyTree | None, chunk: int, memory: int = MEMORY) -> "Scorer":
        """With the table put on the devices, `chunk` of its rows at a time."""
        rows = len(jax.tree.leaves(x)[0])
        where = [np.arange(start, start + chunk) % rows for start in range(0, rows, chunk)]
        host = jax.tree.map(np.asarray, (x, target))
        chunks = []
        for chosen in where:
            leaves, tree = jax.tree.flatten(jax.tree.map(lambda a, chosen=chosen: a[chosen], host))
            chunks.append(jax.tree.unflatten(tree, mesh.put_rows(leaves)))
        bytes_per_state = sum(a[0].nbytes for a in jax.tree.leaves(host[0])) * chunk
        fits = memory // (2 * workers() * max(bytes_per_state, 1)) - 1
        together = 1 if jax.default_backend() == "cpu" else 16
        return cls(mesh.put(network), chunks, rows, chunk, int(np.clip(fits, 2, MOST)), together)

    def row_losses(self, arrangements: Int[np.ndarray, "K L P"], rows: int | None = None) -> Float[np.ndarray, "K n"]:
        """Losses over the first `rows` rows, or all of them; ∞ where they are no numbers."""
        rows = rows or self.rows
        parts = self._parts(arrangements)
        plans = [self._plan(arrangements[part]) for part in parts]
        losses = np.empty((len(arrangements), rows), np.float32)
        for number in range(-(-rows // self.chunk)):
            begin = number * self.chunk
            results = side_by_side(lambda plan, number=number: self._run(plan, number).losses, plans)
            for part, result in zip(parts, results, strict=True):
                losses[part, begin : begin + self.chunk] = mesh.fetch(result)[: len(part), : rows - begin]
        return np.where(np.isfinite(losses), losses, np.inf)

    def losses(self, arrangements: Int[np.ndarray, "K L P"], rows: int | None = None) -> Float[np.ndarray, " K"]:
        """Means of `row_losses`."""
        return self.row_losses(arrangements, rows).mean(axis=1, dtype=np.float64)

    def outputs(self, arrangement: Int[np.ndarray, "L P"], rows: int | None = None) -> PyTree[np.ndarray, "n ..."]:
        """The outputs over the first `rows` rows, or all of them."""
        rows, one = rows or self.rows, self._plan(arrangement[None])
        found = [jax.tree.map(mesh.fetch, self._run(one, number).outputs) for number in range(-(-rows // self.chunk))]
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:rows], *found)

    def _plan(self, arrangements: Int[np.ndarray, "K L P"]) -> Plan:
        made, blocks = plan(arrangements, self.capacity, self.together)
        self.evaluations += len(arrangements)
        self._blocks = blocks
        self.blocks += blocks * self.chunk / self.rows
        return made

    def _run(self, plan: Plan, number: int) -> Scored:
        return run_plan(self.network, *self.chunks[number], plan, self.capacity)

    def _parts(self, arrangements: Int[np.ndarray, "K L P"]) -> list[Int[np.ndarray, " n"]]:
        """The arrangements' numbers in equal parts, one plan for each, those that begin alike together."""
        flat = arrangements.reshape(len(arrangements), -1)
        alike = np.lexsort(flat.T[::-1])
        count = max(workers(), -(-len(flat) // self.capacity))
        count = min(len(flat), -(-count // workers()) * workers())
        return np.array_split(alike, count)
