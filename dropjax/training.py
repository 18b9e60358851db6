"""Training a residual stack, and dropping it: the puzzles whose answers the project knows.

`epochs` trains (the paper's Appendix A by default), `generate_table` makes a table worth learning, and `drop` shuffles
the pieces' numbers. Everything repeats with its seed; the weights' last digits depend on the machine.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key
from numpy.typing import ArrayLike

from dropjax.puzzle import Puzzle
from dropjax.stack import Stack, forward, read_out, residual

OPTIMIZERS = ("adam", "adamw", "sgd")


@dataclass(frozen=True)
class Recipe:
    """What is trained, and how. The defaults are the paper's Appendix A; the batch size, which it leaves open, is ours."""

    depth: int = 48
    """Number of blocks L."""
    hidden: int = 96
    """Hidden units h of each block."""
    activation: str = "relu"
    optimizer: str = "adam"
    rate: float = 1e-4
    decay: float = 0.0
    """Decoupled weight decay, which only adamw has."""
    momentum: float = 0.9
    """Of sgd."""
    epochs: int = 200
    batch: int = 64

    def transformation(self) -> optax.GradientTransformation:
        """The optimizer by its name, as PyTorch defines it."""
        if self.optimizer == "adamw":
            return optax.adamw(self.rate, weight_decay=self.decay)
        if self.optimizer == "sgd":
            return optax.sgd(self.rate, momentum=self.momentum)
        return optax.adam(self.rate)


EXAMPLE_RECIPE = Recipe(optimizer="adamw", rate=1e-3, decay=0.1, epochs=10, batch=32)
"""Trains the example that ships with the package, with seed 1 on rows generated with seed 1."""
EXAMPLE_NOISE = 0.3
EXAMPLE_ROWS = 50_000
"""Rows it was trained on."""
EXAMPLE_KEPT = 5_000
"""Rows that it ships with, the first ones."""
EXAMPLE_SEED = 1
EXAMPLE_SHA256 = "c9b5d3b2e89ced7d6778cfae25104e4768e071d02c88475301704b663139f648"
"""Of the example's answer, its numbers joined by commas."""


class Epoch(NamedTuple):
    """Where S stacks trained at once stand after an epoch; each array of `stacks` has S in front."""

    number: int
    """From 1."""
    stacks: Stack
    loss: Float[Array, " S"]
    """Mean over the epoch's batches of the MSE that each met, before it was learned from."""


def initial_stack(key: Key[Array, ""], recipe: Recipe, features: int, outputs: int) -> Stack:
    """A fresh stack, drawn as `torch.nn.Linear` draws: weights and biases uniform within ±1/sqrt(fan_in)."""
    depth, hidden = recipe.depth, recipe.hidden
    shapes = (
        ((depth, hidden, features), (depth, hidden)),
        ((depth, features, hidden), (depth, features)),
        (
            (outputs, features),
            (outputs,),
        ),
    )
    drawn = []
    for layer, (weight, bias) in zip(jax.random.split(key, 3), shapes, strict=True):
        bound = weight[-1] ** -0.5
        for part, shape in zip(jax.random.split(layer), (weight, bias), strict=True):
            drawn.append(jax.random.uniform(part, shape, jnp.float32, -bound, bound))
    return Stack(*drawn, activation=recipe.activation)


def loss(stack: Stack, x: Float[Array, "B d"], true: Float[Array, "B o"]) -> Float[Array, ""]:
    """MSE of the stack against `true`.

    `forward` for training: scanning over the blocks' own arrays, each block's gradient touches that block alone.
    """

    def block(x, halves):
        w_in, b_in, w_out, b_out = (half[None] for half in halves)
        one = replace(stack, w_in=w_in, b_in=b_in, w_out=w_out, b_out=b_out)
        return x + residual(one, (0, 0), x), None

    x, _ = lax.scan(block, x, (stack.w_in, stack.b_in, stack.w_out, stack.b_out))
    return jnp.mean((read_out(stack, x) - true) ** 2)


@partial(jax.jit, static_argnames="recipe")
def _begin(recipe: Recipe, keys: Key[Array, " S"], x: Float[Array, "N d"], true: Float[Array, "N o"]):
    stacks = jax.vmap(lambda key: initial_stack(key, recipe, x.shape[1], true.shape[1]))(keys)
    return stacks, jax.vmap(recipe.transformation().init)(stacks)


@partial(jax.jit, static_argnames="recipe")
def _epoch(recipe: Recipe, stacks: Stack, states, keys: Key[Array, " S"], x: Float[Array, "N d"], true: Float[Array, "N o"]):
    size = min(recipe.batch, len(x))
    optimizer = recipe.transformation()

    def learn(carry, rows: Int[Array, " B"]):
        stack, state = carry
        value, gradient = jax.value_and_grad(loss)(stack, x[rows], true[rows])
        update, state = optimizer.update(gradient, state, stack)
        return (optax.apply_updates(stack, update), state), value

    def one(stack, state, key):
        # the rows left over by the last whole batch are others in each epoch
        rows = jax.random.permutation(key, len(x))[: len(x) // size * size].reshape(-1, size)
        (stack, state), losses = lax.scan(learn, (stack, state), rows)
        return stack, state, losses.mean()

    return jax.vmap(one)(stacks, states, keys)


def epochs(recipe: Recipe, x: ArrayLike, true: ArrayLike, seeds: Sequence[int] = (0,)) -> Iterator[Epoch]:
    """Train one stack for each seed, all at once, on x [N, d] against true [N, o]; yields after every epoch."""
    x, true = jnp.asarray(x, jnp.float32), jnp.asarray(true, jnp.float32)
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
    stacks, states = _begin(recipe, jax.vmap(jax.random.fold_in, (0, None))(keys, 0), x, true)
    for number in range(1, recipe.epochs + 1):
        at = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        stacks, states, losses = _epoch(recipe, stacks, states, at, x, true)
        yield Epoch(number, stacks, losses)


def generate_table(
    seed: int, rows: int, features: int, outputs: int = 1, noise: float = 0.0, factors: int = 12, units: int = 24
) -> tuple[Float[Array, "N d"], Float[Array, "N o"]]:
    """A table to learn: correlated features x [N, d] and a smooth nonlinear target true [N, o], all of mean 0.

    x mixes `factors` hidden Gaussian factors and as much noise of each feature's own, to variance 1. true is a random
    teacher, `units` sines of the features, to variance 1, and upon it Gaussian noise of standard deviation `noise`, which
    nothing can learn but which keeps every block learning.
    """
    latent, mixing, own, directions, phases, weights, unlearnable = jax.random.split(jax.random.key(seed), 7)
    draw = jax.random.normal
    x = draw(latent, (rows, factors)) @ draw(mixing, (factors, features)) / factors**0.5
    x = jax.nn.standardize(x + 0.5 * draw(own, x.shape), axis=0)
    waves = jnp.sin(x @ draw(directions, (features, units)) / features**0.5 + 3 * draw(phases, (units,)))
    taught = jax.nn.standardize(waves @ draw(weights, (units, outputs)), axis=0)
    return x, taught + noise * draw(unlearnable, taught.shape)


def drop(stack: Stack, x: ArrayLike, true: ArrayLike | None, seed: int) -> tuple[Puzzle, tuple[int, ...]]:
    """The puzzle of a stack that fell on the floor, and its answer: piece numbers in, out, in, out, …, last.

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
