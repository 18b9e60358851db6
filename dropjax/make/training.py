"""Training a residual stack and dropping it, which gives puzzles whose answers are known.

`epochs` trains (the paper's Appendix A by default), `generate_table` makes a table worth learning, and `drop` shuffles
the pieces' numbers. The same seeds give the same puzzle on the same machine; another machine's rounding gives other
weights, but the same answer.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Float32, Int
from numpy.typing import ArrayLike

from dropjax.core.errors import InputError
from dropjax.core.puzzle import Puzzle
from dropjax.core.stack import ACTIVATIONS, Stack, forward, identity_arrangement, read_out, residual

OPTIMIZERS = ("adam", "adamw", "sgd")
FACTORS = 12
"""Hidden factors of a generated table."""


@dataclass(frozen=True)
class Recipe:
    """A stack to train and how to train it: by default as in the paper's Appendix A, which leaves the batch size open.

    Raises `InputError` for what cannot be trained.
    """

    depth: int = 48
    """Number of blocks L."""
    hidden: int = 96
    """Hidden units h of each block."""
    activation: str = "relu"
    optimizer: str = "adam"
    rate: float = 1e-4
    """Learning rate, the same throughout."""
    decay: float = 0.0
    """Weight decay of adamw, per unit of `rate`."""
    momentum: float = 0.9
    """Momentum of sgd."""
    epochs: int = 200
    batch: int = 64
    """Rows per step, or all rows if there are fewer."""

    def __post_init__(self) -> None:
        for name, known in (("activation", ACTIVATIONS), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in known:
                raise InputError(f"recipe: {name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name, least in (("depth", 1), ("hidden", 1), ("epochs", 1), ("batch", 1), ("decay", 0), ("momentum", 0)):
            _check("recipe", name, getattr(self, name), least)
        if not 0 < self.rate < math.inf:
            raise InputError(f"recipe: rate: expected a number above 0, got {self.rate}")
        if self.decay and self.optimizer != "adamw":
            raise InputError(f"recipe: decay: expected 0 with {self.optimizer} (adamw decays), got {self.decay}")

    def transformation(self) -> optax.GradientTransformation:
        """The optimizer, with PyTorch's defaults."""
        if self.optimizer == "adamw":
            return optax.adamw(self.rate, weight_decay=self.decay)
        if self.optimizer == "sgd":
            return optax.sgd(self.rate, momentum=self.momentum)
        return optax.adam(self.rate)


def _check(where: str, name: str, value: float, least: float) -> None:
    if not least <= value < math.inf:
        raise InputError(f"{where}: {name}: expected at least {least}, got {value}")


EXAMPLE_RECIPE = {
    "optimizer": "adamw",
    "rate": 1e-3,
    "decay": 0.1,
    "epochs": 10,
    "batch": 32,
    "rows": 50_000,
    "noise": 0.3,
    "table_seed": 5,
    "keep_rows": 5_000,
    "seed": [1],
}
"""The training of the example in the package: the options that differ from the command line's defaults."""
EXAMPLE_SHA256 = "c9b5d3b2e89ced7d6778cfae25104e4768e071d02c88475301704b663139f648"
"""SHA-256 of the example's answer, the numbers joined by commas."""


class Epoch(NamedTuple):
    """State, after an epoch, of S stacks that are trained at once."""

    number: int
    """The number of the epoch, from 1."""
    stacks: Stack
    """The stacks; each array has a leading axis of S."""
    loss: Float[Array, " S"]
    """Mean MSE of the epoch's batches, each computed before its step."""

    def stack(self, i: int) -> Stack:
        """Stack i of the S."""
        return jax.tree.map(lambda a: a[i], self.stacks)


def initial_stack(rng: np.random.Generator, recipe: Recipe, features: int, outputs: int) -> Stack:
    """A fresh stack, drawn as `torch.nn.Linear` draws: weights and biases uniform within ±1/sqrt(fan_in)."""
    layers = ((recipe.depth, recipe.hidden, features), (recipe.depth, features, recipe.hidden), (outputs, features))
    drawn = [
        jnp.asarray(rng.uniform(-1, 1, shape) * weight[-1] ** -0.5, jnp.float32)
        for weight in layers
        for shape in (weight, weight[:-1])
    ]
    return Stack(*drawn, activation=recipe.activation)


def loss(stack: Stack, x: Float[Array, "B d"], true: Float[Array, "B o"]) -> Float[Array, ""]:
    """MSE of the stack against `true`.

    `forward` for training: scanning over the blocks' own arrays, each block's gradient touches that block alone.
    """

    def block(x, halves):
        w_in, b_in, w_out, b_out = (half[None] for half in halves)
        one = replace(stack, w_in=w_in, b_in=b_in, w_out=w_out, b_out=b_out)
        return x + residual(one, identity_arrangement(1)[0], x), None

    x, _ = lax.scan(block, x, (stack.w_in, stack.b_in, stack.w_out, stack.b_out))
    return jnp.mean((read_out(stack, x) - true) ** 2)


@partial(jax.jit, static_argnames="recipe")
def _epoch(
    recipe: Recipe, stacks: Any, states: Any, rows: Int[Array, "S K B"], x: Float[Array, "N d"], true: Float[Array, "N o"]
):
    """Each of S stacks, its optimizer's state and its mean loss after a step on each of its own K batches of rows."""
    optimizer = recipe.transformation()

    def step(carry: Any, batch: Int[Array, " B"]):
        stack, state = carry
        value, gradient = jax.value_and_grad(loss)(stack, x[batch], true[batch])
        update, state = optimizer.update(gradient, state, stack)
        return (optax.apply_updates(stack, update), state), value

    (stacks, states), losses = jax.vmap(partial(lax.scan, step))((stacks, states), rows)
    return stacks, states, losses.mean(axis=1)


def epochs(recipe: Recipe, x: ArrayLike, true: ArrayLike, seeds: Sequence[int] = (0,)) -> Iterator[Epoch]:
    """Trains one stack for each seed, all at once, on x [N, d] against true [N, o] or [N]; yields after each epoch.

    Raises `InputError` as soon as a loss is no longer finite.
    """
    x = jnp.asarray(x, jnp.float32)
    true = jnp.asarray(true, jnp.float32).reshape(len(x), -1)
    size = min(recipe.batch, len(x))
    steps = len(x) // size
    rngs = [np.random.default_rng(seed) for seed in seeds]
    fresh = [initial_stack(rng, recipe, x.shape[1], true.shape[1]) for rng in rngs]
    stacks: Any = jax.tree.map(lambda *parts: jnp.stack(parts), *fresh)
    states = jax.vmap(recipe.transformation().init)(stacks)
    for number in range(1, recipe.epochs + 1):
        # the rows that fill no batch are others in each epoch
        rows = np.stack([rng.permutation(len(x))[: steps * size].reshape(steps, size) for rng in rngs])
        stacks, states, losses = _epoch(recipe, stacks, states, jnp.asarray(rows), x, true)
        if not np.isfinite(losses).all():
            raise InputError(f"training: expected a finite loss, got {max(losses)} in epoch {number}: the rate is too high")
        yield Epoch(number, stacks, losses)


def train(recipe: Recipe, x: ArrayLike, true: ArrayLike, seeds: Sequence[int] = (0,)) -> list[Stack]:
    """The stacks that `epochs` ends with, one for each seed. Raises `InputError` as `epochs` does."""
    (last,) = deque(epochs(recipe, x, true, seeds), maxlen=1)
    return [last.stack(i) for i in range(len(seeds))]


def generate_table(
    seed: int, rows: int, features: int, outputs: int = 1, noise: float = 0.0, factors: int = FACTORS, units: int = 24
) -> tuple[Float32[np.ndarray, "N d"], Float32[np.ndarray, "N o"]]:
    """A table to learn: correlated features x [N, d] and a smooth nonlinear target true [N, o], all of mean 0.

    x mixes `factors` hidden Gaussian factors and some noise of each feature's own, to variance 1. true is a random
    teacher, `units` sines of the features, to variance 1, and upon it Gaussian noise of standard deviation `noise`, which
    nothing can learn but which keeps every block learning. Raises `InputError`.
    """
    counts = ("features", features, 1), ("outputs", outputs, 1), ("factors", factors, 1), ("units", units, 1)
    for name, value, least in (("rows", rows, 2), *counts, ("noise", noise, 0)):
        _check("table", name, value, least)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, factors)) @ rng.normal(size=(factors, features)) / factors**0.5
    x = _standardised(x + 0.5 * rng.normal(size=x.shape))
    waves = np.sin(x @ rng.normal(size=(features, units)) / features**0.5 + rng.uniform(0, 2 * np.pi, units))
    taught = _standardised(waves @ rng.normal(size=(units, outputs)))
    return x.astype(np.float32), (taught + noise * rng.normal(size=taught.shape)).astype(np.float32)


def _standardised(columns: Float[np.ndarray, "N n"]) -> Float[np.ndarray, "N n"]:
    return (columns - columns.mean(axis=0)) / columns.std(axis=0)


def drop(stack: Stack, x: ArrayLike, true: ArrayLike | None, seed: int) -> tuple[Puzzle, tuple[int, ...]]:
    """Drops a stack: returns the puzzle and its answer, piece numbers in, out, in, out, …, last.

    The 2L + 1 numbers are a permutation drawn from `seed` alone. pred [N, o] is the stack's output in float32 at highest
    precision. x is [N, d], true [N, o] or [N] or None.
    """
    depth = stack.depth
    answer = tuple(map(int, np.random.default_rng(seed).permutation(2 * depth + 1)))
    arrays = map(np.asarray, (stack.w_in, stack.b_in, stack.w_out, stack.b_out))
    halves = [half for w_in, b_in, w_out, b_out in zip(*arrays, strict=True) for half in ((w_in, b_in), (w_out, b_out))]
    pieces = dict(zip(answer, [*halves, (stack.w_last, stack.b_last)], strict=True))
    roles = dict(zip(answer, ["in", "out"] * depth + ["last"], strict=True))
    pred = jax.jit(forward)(stack, jnp.asarray(x, jnp.float32))
    return Puzzle.from_arrays(pieces, np.asarray(x), np.asarray(pred), true, roles), answer
