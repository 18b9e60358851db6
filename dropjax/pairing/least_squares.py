"""Pairs by least squares: a block is linear in its output half, so to first order the outputs are linear in a soft pairing.

It needs a roughly right order and owes nothing to the weights.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Array, Float, Int

from dropjax.core.options import MEMORY
from dropjax.core.stack import Stack, read_out
from dropjax.moves.first_order import bytes_per_row, contributions, linearise
from dropjax.runtime import mesh
from dropjax.runtime.rows import map_over_rows

RIDGES = (0.1, 0.3, 1.0, 3.0)
"""Ridges of a pairing, in units of the features' mean square sum: weaker ones would return the pairing at hand, right or
not."""


@partial(jax.jit, static_argnames="memory")
def contributions_and_errors(
    stack: Stack,
    arrangement: Int[Array, "L 2"],
    positions: Int[Array, " n"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    memory: int = MEMORY,
) -> tuple[Float[Array, "n n N o"], Float[Array, "N o"]]:
    """`first_order.contributions` of the halves at some positions, and the errors f − pred."""
    hidden, count = stack.w_in.shape[1], len(positions)

    def of_chunk(x: Array, pred: Array) -> tuple[Array, Array]:
        at = linearise(stack, arrangement, x)
        by_pair = contributions(stack, arrangement, positions, at)
        return jnp.einsum("abno->nabo", by_pair), read_out(stack, at.states[-1]) - pred

    held = bytes_per_row(stack, values=2 * count * (count + hidden))
    by_pair, error = map_over_rows(of_chunk, (x, pred), held, memory)
    return jnp.einsum("nabo->abno", by_pair), error


def soft_pairing(
    features: Float[np.ndarray, "n n K"], error: Float[np.ndarray, " K"], ridges: Sequence[float] = RIDGES
) -> list[Float[np.ndarray, "n n"]]:
    """For each ridge, the P that minimises ‖e + Σ_ij (P_ij − δ_ij)·φ_ij‖² + λ‖P − 1/n‖² (D15 in docs/method.md).

    The ridge pulls towards the uniform matrix, not towards the pairing at hand, so that this is not favoured.
    """
    count = len(features)
    flat = features.reshape(count * count, -1).astype(np.float64)
    rest = -error.astype(np.float64) + np.einsum("iik->k", features) - flat.mean(axis=0) * count
    gram, towards = flat @ flat.T, flat @ rest
    scale = np.trace(gram) / len(gram)
    return [
        1 / count + np.linalg.solve(gram + ridge * scale * np.eye(len(gram)), towards).reshape(count, count)
        for ridge in ridges
    ]


def proposals(
    stack: Stack,
    arrangement: Int[np.ndarray, "L 2"],
    doubtful: Int[np.ndarray, " D"],
    score: Float[np.ndarray, "L L"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    sizes: Sequence[int],
    memory: int = MEMORY,
) -> list[Int[np.ndarray, "L 2"]]:
    """Other pairings of the same input halves at the same positions, those that most regressions agree on first.

    `doubtful` are input halves, the most doubtful first; the regressions are made over the first few of them, for several
    sizes. `score` is the pairing's score from the weights.
    """
    votes: Counter[bytes] = Counter()
    place = np.argsort(arrangement[:, 0])
    most = min(max(sizes), len(doubtful))
    positions = place[doubtful[:most]]
    features, error = map(mesh.fetch, contributions_and_errors(stack, arrangement, positions, x, pred, memory))
    features, error = features.reshape(most, most, -1), error.reshape(-1)
    for size in sorted({min(size, most) for size in sizes}):
        chosen = positions[:size]
        own = score[np.ix_(arrangement[chosen, 0], arrangement[chosen, 1])]
        own = (own - own.mean()) / max(own.std(), 1e-30)
        for soft in soft_pairing(features[:size, :size], error):
            for weight in (0.0, 0.5):
                seen = soft / max(soft.std(), 1e-30) + weight * own
                _, column = scipy.optimize.linear_sum_assignment(seen, maximize=True)
                proposal = arrangement.copy()
                proposal[chosen, 1] = arrangement[chosen[column], 1]
                votes[proposal.tobytes()] += 1
    del votes[arrangement.tobytes()]
    return [np.frombuffer(key, arrangement.dtype).reshape(arrangement.shape) for key, _ in votes.most_common()]
