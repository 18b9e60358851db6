"""A residual stage of convolutions, trained here on scikit-learn's handwritten digits, put back in order.

    python examples/convolutions.py [--blocks 12] [--steps 300] [--naive [SECONDS]]

Each block is x + conv(relu(conv(norm(x)))), and its two convolutions are dropped apart: P = 2.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import descend_naively, drop, report
from sklearn.datasets import load_digits

import dropjax

KINDS, HELD_OUT = 10, 297


def digits():
    """Pictures [1797, 8, 8, 1] from 0 to 1 and the digit in each, in a fixed random order."""
    images, labels = load_digits(return_X_y=True)
    chosen = np.random.default_rng(0).permutation(len(images))
    return (images[chosen].reshape(-1, 8, 8, 1) / 16).astype(np.float32), labels[chosen]


def convolved(x, kernel):
    """A 3 × 3 convolution with the kernel's number of output channels."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def block(parts, x):
    """One residual block made of its two convolutions."""
    first, second = parts
    z = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    hidden = jax.nn.relu(convolved(z, first["kernel"]) + first["bias"])
    return x + convolved(hidden, second["kernel"]) + second["bias"]


def train(blocks: int, channels: int, steps: int):
    """The trained stem and parts, and pictures that were not used in training."""
    rng = np.random.default_rng(0)

    def drawn(*shape, size=1.0):
        return jnp.asarray(size * rng.normal(size=shape) / np.sqrt(np.prod(shape[-4:-1])), jnp.float32)

    bias = jnp.zeros((blocks, channels))
    parts = (
        {"kernel": drawn(blocks, 3, 3, channels, channels), "bias": bias},
        {"kernel": drawn(blocks, 3, 3, channels, channels, size=1 / np.sqrt(blocks)), "bias": bias},
    )
    weights = (drawn(3, 3, 1, channels), parts, drawn(channels, KINDS))
    images, labels = digits()
    optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, steps))
    state = optimizer.init(weights)

    def logits(weights, images):
        stem, parts, head = weights
        x = convolved(images, stem)
        for k in range(blocks):  # XLA's own loops are slow with convolutions
            x = block(jax.tree.map(lambda a, k=k: a[k], parts), x)
        return x.mean((1, 2)) @ head

    @jax.jit
    def step(weights, state, images, labels):
        loss = lambda weights: optax.softmax_cross_entropy_with_integer_labels(logits(weights, images), labels).mean()  # noqa: E731
        updates, state = optimizer.update(jax.grad(loss)(weights), state, weights)
        return optax.apply_updates(weights, updates), state

    for _ in range(steps):
        chosen = rng.integers(HELD_OUT, len(images), 64)
        weights, state = step(weights, state, images[chosen], labels[chosen])
    right = (logits(weights, images[:HELD_OUT]).argmax(1) == labels[:HELD_OUT]).mean()
    print(f"trained {blocks} blocks for {steps} steps: {right:.0%} of {HELD_OUT} other digits are told apart")
    return weights[:2], images[:HELD_OUT]


def main(argv: list[str] | None = None) -> bool:
    """Runs the example; returns whether the stage came back and whether an answer called solved is right."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--blocks", type=int, default=12)
    p.add_argument("--channels", type=int, default=16)
    p.add_argument("--steps", type=int, default=300)
    p.add_argument("--rows", type=int, default=16)
    p.add_argument(
        "--naive", nargs="?", const=600.0, type=float, metavar="SECONDS", help="plain descent beside, for so long"
    )
    args = p.parse_args(argv)
    (stem, parts), images = train(args.blocks, args.channels, args.steps)
    x = convolved(jnp.asarray(images[: args.rows]), stem)
    dropped, target, answer = drop(np.random.default_rng(1), block, parts, x)
    found = dropjax.order(block, dropped, x, target)
    good = report(f"{args.blocks} blocks of two convolutions, P = 2", found, answer) and found.solved
    if args.naive:
        descend_naively("the same", block, dropped, x, target, args.naive)
    return good


if __name__ == "__main__":
    raise SystemExit(not main())
