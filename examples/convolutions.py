"""A residual stage of convolutions, trained here to tell small pictures of strokes apart, put back in order.

    python examples/convolutions.py [--blocks 12] [--steps 300] [--naive]

Each block is x + conv(relu(conv(norm(x)))), and its two convolutions are dropped apart: P = 2.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import descend_naively, drop, report

import dropjax

KINDS = 8


def pictures(rng: np.random.Generator, count: int, size: int = 8):
    """Pictures [count, size, size] of a noisy stroke each, in one of `KINDS` directions, and which direction."""
    kind = rng.integers(0, KINDS, count)
    angle = np.pi * kind / KINDS + 0.1 * rng.normal(size=count)
    y, x = np.indices((size, size)) - (size - 1) / 2
    off = rng.normal(size=(2, count, 1, 1))
    across = (x - off[0]) * np.sin(angle)[:, None, None] - (y - off[1]) * np.cos(angle)[:, None, None]
    return (np.exp(-(across**2)) + 0.2 * rng.normal(size=across.shape)).astype(np.float32), kind


def convolved(x, kernel):
    """3 × 3, as many channels out as the kernel says."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def block(parts, x):
    """One residual block, of its two convolutions."""
    first, second = parts
    z = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    hidden = jax.nn.relu(convolved(z, first["kernel"]) + first["bias"])
    return x + convolved(hidden, second["kernel"]) + second["bias"]


def train(blocks: int, channels: int, steps: int):
    """The trained stem, parts and head, and pictures that it has not seen."""
    rng = np.random.default_rng(0)

    def drawn(*shape, size=1.0):
        return jnp.asarray(size * rng.normal(size=shape) / np.sqrt(np.prod(shape[-4:-1])), jnp.float32)

    bias = jnp.zeros((blocks, channels))
    parts = (
        {"kernel": drawn(blocks, 3, 3, channels, channels), "bias": bias},
        {"kernel": drawn(blocks, 3, 3, channels, channels, size=1 / np.sqrt(blocks)), "bias": bias},
    )
    weights = (drawn(3, 3, 1, channels), parts, drawn(channels, KINDS))
    images, labels = pictures(rng, 4096)
    optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, steps))
    state = optimizer.init(weights)

    def loss(weights, images, labels):
        stem, parts, head = weights
        x, _ = jax.lax.scan(lambda x, part: (block(part, x), None), convolved(images[..., None], stem), parts)
        return optax.softmax_cross_entropy_with_integer_labels(x.mean((1, 2)) @ head, labels).mean()

    @jax.jit
    def step(weights, state, images, labels):
        value, gradient = jax.value_and_grad(loss)(weights, images, labels)
        updates, state = optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state, value

    value = np.nan
    for _ in range(steps):
        chosen = rng.integers(0, len(images), 64)
        weights, state, value = step(weights, state, images[chosen], labels[chosen])
    print(f"trained {blocks} blocks for {steps} steps: loss {float(value):.3f}, {np.log(KINDS):.3f} by guessing")
    return weights, pictures(rng, 64)[0]


def main(argv: list[str] | None = None) -> bool:
    """Whether the stage came back, and what is called solved is right."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--blocks", type=int, default=12)
    p.add_argument("--channels", type=int, default=16)
    p.add_argument("--steps", type=int, default=300)
    p.add_argument("--rows", type=int, default=16)
    p.add_argument("--naive", action="store_true", help="plain best-improvement descent beside")
    args = p.parse_args(argv)
    (stem, parts, _), images = train(args.blocks, args.channels, args.steps)
    x = convolved(jnp.asarray(images[: args.rows, ..., None]), stem)
    dropped, target, answer = drop(np.random.default_rng(1), block, parts, x)
    found = dropjax.order(block, dropped, x, target)
    good = report(f"{args.blocks} blocks of two convolutions, P = 2", found, answer) and found.solved
    if args.naive:
        descend_naively("the same", block, dropped, x, target)
    return good


if __name__ == "__main__":
    raise SystemExit(not main())
