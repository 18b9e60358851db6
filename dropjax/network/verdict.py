"""Verification of an arrangement: every row, float32's noise, and the arrangements that it cannot be told from."""

from dataclasses import dataclass, field, replace
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Int, PyTree, Shaped

from dropjax.network import moves
from dropjax.network.protocol import squared_error
from dropjax.network.scorer import Scorer
from dropjax.runtime import mesh

EXACT = 1e-5
"""An exact answer's RMS error, as a fraction of the target's spread."""

NEAR = 1e-2
"""All rows are evaluated if the RMS error, in the same units, is below this; float32's noise excuses no larger one
either."""

TWICE = 2.0
"""Times float32's noise: the error of an exact answer, where that is more. Two runs differ by √2 times the noise of one."""

ALIKE, NEARER = 4.0, 20.0
"""Times float32's noise: RMS differences up to which outputs are the same, and up to which on few rows all are looked at."""

CERTAIN = 2.0
"""Standard errors over the rows by which a move has to raise a loss to be surely worse."""
RIVALS = 64
"""Moves that are looked at in that way: those that raise the loss least."""


def spread(leaf: Shaped[np.ndarray, "N ..."]) -> float:
    """The RMS distance of a target's numbers from their mean, each feature (on the last axis) having its own."""
    values = np.asarray(leaf, np.float64)
    own = values.reshape(-1, values.shape[-1]) if values.ndim > 1 else values[:, None]
    return float(np.sqrt(np.mean((own - own.mean(axis=0)) ** 2)))


def rms(a: Shaped[np.ndarray, "N ..."], b: Shaped[np.ndarray, "N ..."]) -> float:
    """RMS difference; ∞ in place of NaN."""
    found = float(np.sqrt(np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2)))
    return found if np.isfinite(found) else np.inf


@dataclass
class Judge:
    """Says whether arrangements reproduce the target. Without one that the outputs could reproduce, none does."""

    scorer: Scorer
    target: PyTree[Shaped[np.ndarray, "N ..."]] | None
    """The target on the host; None if the outputs cannot be compared with it."""
    default_loss: bool
    """Whether the search's loss is the mean squared error."""
    target_noise: float = 0.0
    """Standard deviation of the noise in the target, where that is declared."""
    errors: dict[bytes, float] = field(default_factory=dict)
    noises: dict[bytes, float] = field(default_factory=dict)

    @cached_property
    def scales(self) -> list[float]:
        """Spread of each of the target's arrays; the size of its numbers where all are the same."""
        return [spread(leaf) or float(np.sqrt(np.mean(np.square(leaf, dtype=np.float64)))) or 1.0 for leaf in self._leaves]

    @property
    def _leaves(self) -> list[np.ndarray]:
        return jax.tree.leaves(self.target)

    def solved(self, arrangement: Int[np.ndarray, "L P"], loss: float = 0.0) -> bool:
        """Whether the arrangement, of this loss on some rows, reproduces the target on all rows."""
        near = max(NEAR, 2 * TWICE * self._declared)
        if self.target is None or (self.default_loss and loss > (near * max(self.scales)) ** 2):
            return False
        if self._error(self.scorer.outputs_of(arrangement, self.scorer.chunk)) > near:
            return False
        return self.error(arrangement) <= max(self.tolerance(arrangement), TWICE * self._declared)

    @property
    def _declared(self) -> float:
        """The target's declared noise, as `error` has it."""
        return self.target_noise / min(self.scales, default=1.0) if self.target is not None else 0.0

    def exact(self, arrangement: Int[np.ndarray, "L P"]) -> bool:
        """Whether float32 accounts for the arrangement's error, whatever noise was declared."""
        return self.error(arrangement) <= self.tolerance(arrangement)

    def error(self, arrangement: Int[np.ndarray, "L P"]) -> float:
        """RMS(f − target) over all rows as a fraction of the target's spread; asking again costs nothing."""
        key = arrangement.tobytes()
        if key not in self.errors:
            self.errors[key] = self._error(self.scorer.outputs_of(arrangement))
        return self.errors[key]

    def _error(self, outputs: PyTree[Shaped[np.ndarray, "n ..."]]) -> float:
        """The error in the first rows' outputs; where these are several arrays, the largest one."""
        return self._apart(outputs, self.target)

    def tolerance(self, arrangement: Int[np.ndarray, "L P"]) -> float:
        """The error up to which the arrangement is exact."""
        return max(EXACT, min(TWICE * self.noise(arrangement), NEAR))

    def noise(self, arrangement: Int[np.ndarray, "L P"]) -> float:
        """The effect of rounding on the outputs, in the units of `error`: their change when all numbers of the parts and of
        the first rows are moved at random by up to one unit in their last place."""
        key = arrangement.tobytes()
        if key not in self.noises:
            (x, target), network = self.scorer.chunks[0], self.scorer.network
            parts, x = _shaken((network.parts, x))
            shaken = replace(self.scorer, network=replace(network, parts=parts), chunks=[(x, target)])
            outputs = [scorer.outputs_of(arrangement, self.scorer.chunk) for scorer in (self.scorer, shaken)]
            self.noises[key] = self._apart(*outputs)
        return self.noises[key]

    def _apart(self, one: PyTree[Shaped[np.ndarray, "n ..."]], other: PyTree[Shaped[np.ndarray, "n ..."]]) -> float:
        """How far apart the first rows' outputs are; of several arrays, the largest difference."""
        pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), self.scales, strict=True)
        return max(rms(a, b[: len(a)]) / scale for a, b, scale in pairs)

    def settled(self, arrangement: Int[np.ndarray, "L P"]) -> tuple[Int[np.ndarray, "L P"], moves.Moves]:
        """The answer, after any exchange that brings it nearer to the target by more than the noise, and its ties."""
        while True:
            ties, better = self._near(arrangement)
            if better is None:
                return arrangement, ties
            arrangement = better

    def _near(self, arrangement: Int[np.ndarray, "L P"]) -> tuple[moves.Moves, Int[np.ndarray, "L P"] | None]:
        """Exchanges that change the outputs by no more than the noise, and the arrangement after the best of those that
        bring them nearer to the target by more than that."""
        kinds, noise, error = arrangement.shape[1], self.noise(arrangement), self.error(arrangement)
        listed = moves.every_move(len(arrangement), moves.kind_sets(kinds)[0])
        listed = listed[listed[:, 0] == moves.SWAP]
        outputs = self.scorer.outputs_of(arrangement)
        of_outputs = replace(self.scorer.network, row_loss=Partial(squared_error))
        changes = self.scorer.towards(of_outputs, outputs).losses(moves.moved(arrangement, listed), self.scorer.chunk)
        near = np.sqrt(changes) <= max(NEARER * noise, 2 * error) * max(self.scales)
        ties, better, lowest = [], None, error - noise
        for move in listed[near]:
            (after,) = moves.moved(arrangement, move[None])
            if self._apart(self.scorer.outputs_of(after), outputs) <= ALIKE * noise:
                ties.append(move)
            elif self.error(after) < lowest:
                better, lowest = after, self.error(after)
        return np.array(ties, np.int32).reshape(-1, 4), better


def _shaken(tree: PyTree) -> PyTree:
    """Moves every real number at random by up to one unit in its last place."""

    def shake(number: int, a: Array) -> Array:
        if not jnp.issubdtype(a.dtype, jnp.floating):
            return a
        by = np.random.default_rng(number).uniform(-1, 1, np.shape(a)) * float(jnp.finfo(a.dtype).eps)
        return mesh.put((np.asarray(a, np.float64) * (1 + by)).astype(a.dtype))

    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [shake(number, leaf) for number, leaf in enumerate(leaves)])


def undecided(scorer: Scorer, arrangement: Int[np.ndarray, "L P"], least: moves.Moves) -> Int[np.ndarray, "n 4"]:
    """Those of the moves that raise the loss by less than `CERTAIN` standard errors of the mean over the rows."""
    if scorer.rows < 2:
        return least
    losses = scorer.row_losses(np.concatenate([arrangement[None], moves.moved(arrangement, least)])).astype(np.float64)
    with np.errstate(invalid="ignore"):
        rise = losses[1:] - losses[0]
        error = rise.std(axis=1, ddof=1) / np.sqrt(scorer.rows)
        return least[~(rise.mean(axis=1) > CERTAIN * error)]
