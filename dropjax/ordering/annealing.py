"""Annealing of an order that no seed order comes near: many moves a round, proposed by first-order scores, decided exactly.

One pass forward and one back give the predicted effect of every swap and insertion. A round draws moves as plain annealing
would and subjects each to the Metropolis test on its predicted effect. The moves that passed and do not overlap are applied
together, and a second, exact test decides on the rise beyond what the first test allowed (delayed acceptance: Christen and
Fox, 2005).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key, UInt32

from dropjax.core.stack import Stack, Trajectory, read_out, trajectory
from dropjax.moves.arrangements import moved
from dropjax.moves.first_order import far_move, first_order_sums, linearised
from dropjax.runtime import mesh

DRAWS = 256
"""Moves drawn in a round."""


class Annealed(NamedTuple):
    """State and result of an annealing."""

    arrangement: Int[Array, "L 2"]
    mse: Float[Array, ""]
    """MSE of `arrangement` over the rows given."""
    best: Int[Array, "L 2"]
    best_mse: Float[Array, ""]
    changes: Float[Array, "3 L L"]
    """Predicted changes of the MSE from `arrangement`: insertion of i at j, of j at i, and the exchange of i and j."""
    most: Int[Array, ""]
    """Largest number of moves that a round applies: acceptance doubles it, rejection halves it."""
    rounds: Int[Array, ""]
    moves: Int[Array, ""]
    """Moves accepted."""
    key: UInt32[Array, " k"]
    """Key of the random numbers, as data."""


def start_annealing(arrangement: Int[np.ndarray, "L 2"], seed: int) -> Annealed:
    """The state before the first round."""
    depth = len(arrangement)
    here, infinite, nowhere, zero = mesh.put(
        (arrangement, np.float32(np.inf), np.zeros((3, depth, depth), np.float32), np.int32(0))
    )
    return Annealed(here, infinite, here, infinite, nowhere, zero, zero, zero, jax.random.key_data(jax.random.key(seed)))


def from_here(at: Annealed, arrangement: Int[np.ndarray, "L 2"]) -> Annealed:
    """This annealing, continued from another arrangement; the first round only evaluates it."""
    infinite, zero = mesh.put((np.float32(np.inf), np.int32(0)))
    return at._replace(arrangement=mesh.put(arrangement), mse=infinite, best_mse=infinite, most=zero)


@jax.jit
def anneal_rounds(
    stack: Stack,
    start: Annealed,
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    hot: Float[Array, ""],
    cold: Float[Array, ""],
    schedule: Int[Array, ""],
    most: Int[Array, ""],
) -> Annealed:
    """Up to `most` rounds of a schedule whose temperature falls geometrically from `hot` to `cold` in `schedule` rounds.

    Temperatures are in units of the MSE. Two tests let moves pass (D17 in docs/method.md).
    """
    depth, weight = stack.depth, jnp.full(len(x), 1 / pred.size)

    def predict(arrangement: Int[Array, "L 2"], through: Trajectory) -> Float[Array, "3 L L"]:
        at = linearised(stack, arrangement, through)
        return first_order_sums(stack, arrangement, at, pred, weight).moves

    def step(at: Annealed) -> Annealed:
        key, drawing, testing = jax.random.split(jax.random.wrap_key_data(at.key), 3)
        temperature = hot * (cold / hot) ** (at.rounds / schedule)
        candidate, applied, allowed = _apply_drawn(at, temperature, drawing)
        through = trajectory(stack, candidate, x)
        mse = jnp.mean((read_out(stack, through.states[-1]) - pred) ** 2)
        beyond = mse - at.mse - allowed
        accepted = jnp.isinf(at.mse) | ((applied > 0) & (beyond < temperature * jax.random.exponential(testing)))
        better = accepted & (mse < at.best_mse)
        return Annealed(
            arrangement=jnp.where(accepted, candidate, at.arrangement),
            mse=jnp.where(accepted, mse, at.mse),
            best=jnp.where(better, candidate, at.best),
            best_mse=jnp.where(better, mse, at.best_mse),
            changes=lax.cond(accepted, predict, lambda *_: at.changes, candidate, through),
            most=jnp.where(
                applied == 0,
                jnp.maximum(at.most, 1),
                jnp.where(accepted, jnp.minimum(2 * at.most, depth), (at.most + 1) // 2),
            ),
            rounds=at.rounds + 1,
            moves=at.moves + jnp.where(accepted, applied, 0),
            key=jax.random.key_data(key),
        )

    last = jnp.minimum(start.rounds + most, schedule)
    return lax.while_loop(lambda at: at.rounds < last, step, start)


def _apply_drawn(
    at: Annealed, temperature: Float[Array, ""], key: Key[Array, ""]
) -> tuple[Int[Array, "L 2"], Int[Array, ""], Float[Array, ""]]:
    """Moves drawn at random that pass on their predicted effect, applied where they do not overlap.

    Also returns their number and the rise of the MSE that the test has allowed. Spans are log-uniform, from neighbours to
    the whole depth.
    """
    depth = len(at.arrangement)
    by_span, by_place, by_kind, by_test = jax.random.split(key, 4)
    span = jnp.exp(jax.random.uniform(by_span, (DRAWS,)) * jnp.log(depth)).astype(jnp.int32)
    i = (jax.random.uniform(by_place, (DRAWS,)) * (depth - span)).astype(jnp.int32)
    j, kind = i + span, jax.random.randint(by_kind, (DRAWS,), 0, 3)
    effect = at.changes[kind, i, j]
    passed = effect < temperature * jax.random.exponential(by_test, (DRAWS,))
    move = far_move(kind, i, j)
    positions = jnp.arange(depth)

    def apply(so_far, k):
        arrangement, free, count, allowed = so_far
        inside = (i[k] <= positions) & (positions <= j[k])
        here = passed[k] & (count < at.most) & jnp.all(free | ~inside)
        arrangement = jnp.where(here, moved(arrangement, move[k]), arrangement)
        return (
            arrangement,
            free & ~(here & inside),
            count + here,
            allowed + jnp.where(here, jnp.maximum(effect[k], 0), 0),
        ), None

    start = (at.arrangement, jnp.ones(depth, bool), jnp.int32(0), jnp.float32(0))
    (arrangement, _, count, allowed), _ = lax.scan(apply, start, jnp.arange(DRAWS))
    return arrangement, count, allowed
