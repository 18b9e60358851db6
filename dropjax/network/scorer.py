"""Exact scores over a table's first rows, a few rows at a time, so that one compiled program does it all."""

from dataclasses import dataclass, field, replace

import jax
import numpy as np
from jaxtyping import Float, Int, PyTree, Shaped

from dropjax.core.options import MEMORY
from dropjax.network.exact import Plan, Scored, plan, run_plan
from dropjax.network.protocol import Network, State
from dropjax.runtime import mesh
from dropjax.runtime.device import side_by_side, workers

MOST = 128
"""Largest number of arrangements in one plan."""

TOGETHER = 16
"""Number of states that an accelerator runs through the same parts as one batch. A CPU gains nothing from batches."""


@dataclass
class Cost:
    """Cost of the scoring so far."""

    evaluations: int = 0
    """Arrangements scored."""
    blocks: float = 0.0
    """Blocks run for them, in units of one block over all rows of the table."""


@dataclass(frozen=True)
class Scorer:
    """Exact losses of arrangements."""

    network: Network
    chunks: list[tuple[State, PyTree]]
    """x and target in chunks of as many rows; the first rows once more fill up the last one."""
    rows: int
    """Rows N of the whole table."""
    chunk: int
    """Rows of a chunk."""
    outputs: int
    """Outputs o of each row."""
    capacity: int
    together: int
    cost: Cost = field(default_factory=Cost)
    """The cost so far, shared with the scorers that `towards` and `with_parts` make of this one."""

    @classmethod
    def of(
        cls, network: Network, x: State, target: PyTree | None, chunk: int, memory: int = MEMORY, together: int | None = None
    ) -> "Scorer":
        """Puts the table on the devices in chunks of rows; states take up to half of `memory`, in bytes."""
        rows = len(jax.tree.leaves(x)[0])
        bytes_per_state = sum(np.asarray(a[0]).nbytes for a in jax.tree.leaves(x)) * chunk
        fits = memory // (4 * workers() * max(bytes_per_state, 1)) - 1
        together = together or (1 if jax.default_backend() == "cpu" else TOGETHER)
        found = jax.tree.leaves(jax.eval_shape(network.read_out, x))
        outputs = sum(a.size for a in found) // rows
        chunks = in_chunks((x, target), rows, chunk)
        return cls(mesh.put(network), chunks, rows, chunk, outputs, int(np.clip(fits, 2, MOST)), together)

    def towards(self, network: Network, target: PyTree) -> "Scorer":
        """A scorer of these rows with another target, for a network with the same parts."""
        targets = in_chunks(target, self.rows, self.chunk)
        return replace(self, network=network, chunks=[(x, new) for (x, _), new in zip(self.chunks, targets, strict=True)])

    def row_losses(self, arrangements: Int[np.ndarray, "K L P"], rows: int | None = None) -> Float[np.ndarray, "K n"]:
        """Losses over the first `rows` rows, or over all; ∞ in place of NaN."""
        rows = rows or self.rows
        parts = self._parts(arrangements)
        plans = [self._plan(arrangements[part], rows) for part in parts]
        losses = np.empty((len(arrangements), rows), np.float32)
        for number, begin in enumerate(range(0, rows, self.chunk)):
            results = side_by_side(lambda plan, number=number: self._run(plan, number).losses, plans)
            for part, result in zip(parts, results, strict=True):
                losses[part, begin : begin + self.chunk] = mesh.fetch(result)[: len(part), : rows - begin]
        return np.where(np.isfinite(losses), losses, np.inf)

    def losses(self, arrangements: Int[np.ndarray, "K L P"], rows: int | None = None) -> Float[np.ndarray, " K"]:
        """Means of `row_losses`."""
        return self.row_losses(arrangements, rows).mean(axis=1, dtype=np.float64) if len(arrangements) else np.zeros(0)

    def outputs_of(
        self, arrangement: Int[np.ndarray, "L P"], rows: int | None = None
    ) -> PyTree[Shaped[np.ndarray, "n ..."]]:
        """The outputs over the first `rows` rows, or all of them."""
        rows = rows or self.rows
        one = self._plan(arrangement[None], rows)
        found = [jax.tree.map(mesh.fetch, self._run(one, number).outputs) for number in range(-(-rows // self.chunk))]
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:rows], *found)

    def _plan(self, arrangements: Int[np.ndarray, "K L P"], rows: int) -> Plan:
        made, blocks = plan(arrangements, self.capacity, self.together)
        self.cost.evaluations += len(arrangements)
        self.cost.blocks += blocks * rows / self.rows
        return made

    def _run(self, plan: Plan, number: int) -> Scored:
        return run_plan(self.network, *self.chunks[number], plan, self.capacity)

    def _parts(self, arrangements: Int[np.ndarray, "K L P"]) -> list[Int[np.ndarray, " n"]]:
        """The arrangements' numbers in parts of one plan each, those that begin alike together."""
        flat = arrangements.reshape(len(arrangements), -1)
        alike = np.lexsort(flat.T[::-1])
        count = max(workers(), -(-len(flat) // self.capacity))
        return [part for part in np.array_split(alike, -(-count // workers()) * workers()) if len(part)]


def in_chunks(tree: PyTree, rows: int, chunk: int) -> list[PyTree]:
    """Each array's rows, `chunk` at a time, on the devices; the first rows once more fill up the last chunk."""
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
    chosen = [np.arange(begin, begin + chunk) % rows for begin in range(0, rows, chunk)]
    return [
        jax.tree.unflatten(structure, mesh.put_rows([leaf[rows_of] for leaf in leaves]) if leaves else ())
        for rows_of in chosen
    ]
