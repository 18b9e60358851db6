"""A pre-norm causal transformer, trained here on text that a small grammar generates, and put back in order.

    python examples/causal_transformer.py [--blocks 24] [--steps 600] [--naive]

Its blocks are ordered as wholes (P = 1) and as attention and MLP apart (P = 2, as one function and as one for each kind), by
recorded outputs; and at last by the loss on the text alone. `--naive` runs plain best-improvement descent beside.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import descend_naively, drop, report

import dropjax

LETTERS = "\n abcdefghijklmnopqrstuvwxyz.,"
NOUNS = ["cat", "dog", "bird", "child", "teacher", "river", "stone", "garden", "king", "ship"]
VERBS = ["sees", "hears", "finds", "follows", "carries", "paints", "loves", "fears"]
WORDS = ["small", "old", "quiet", "red", "clever", "happy", "cold", "slow"]


def text(rng: np.random.Generator, length: int) -> np.ndarray:
    """So many letters of made-up sentences, as numbers."""
    said = ""
    while len(said) < length:
        subject, thing = (f"the {rng.choice(WORDS)} {rng.choice(NOUNS)}" for _ in range(2))
        said += f"{subject} {rng.choice(VERBS)} {thing}, and {thing} {rng.choice(VERBS)} {subject}.\n"
    return np.array([LETTERS.index(letter) for letter in said[:length]], np.int32)


def normalised(x, gain):
    """Each state divided by its RMS."""
    return gain * x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)


def attention(p, x):
    """Residual causal self-attention of normalised inputs."""
    rows, length, width = x.shape
    q, k, v = (a.reshape(rows, length, 4, width // 4) for a in jnp.split(normalised(x, p["gain"]) @ p["in"], 3, axis=-1))
    scores = jnp.einsum("nshd,nthd->nhst", q, k) / np.sqrt(width // 4)
    weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -1e9), -1)
    return x + jnp.einsum("nhst,nthd->nshd", weights, v).reshape(x.shape) @ p["out"]


def mlp(p, x):
    """Residual MLP of normalised inputs."""
    return x + jax.nn.gelu(normalised(x, p["gain"]) @ p["in"]) @ p["out"]


def start(rng: np.random.Generator, blocks: int, width: int, length: int):
    """Weights before training: embeddings, and the parts of each kind with a leading axis of blocks."""

    def drawn(*shape, size=1.0):
        return jnp.asarray(size * rng.normal(size=shape) / np.sqrt(shape[-2]), jnp.float32)

    ends = {
        "letters": jnp.asarray(0.1 * rng.normal(size=(len(LETTERS), width)), jnp.float32),
        "places": jnp.asarray(0.1 * rng.normal(size=(length, width)), jnp.float32),
        "gain": jnp.ones(width),
        "out": drawn(width, len(LETTERS)),
    }
    ones, small = jnp.ones((blocks, width)), 1 / np.sqrt(2 * blocks)
    parts = (
        {"gain": ones, "in": drawn(blocks, width, 3 * width), "out": drawn(blocks, width, width, size=small)},
        {"gain": ones, "in": drawn(blocks, width, 4 * width), "out": drawn(blocks, 4 * width, width, size=small)},
    )
    return ends, parts


def embed(ends, letters):
    """The states before the first block."""
    return ends["letters"][letters] + ends["places"][: letters.shape[1]]


def logits(ends, x):
    """Of the next letters, from the last states."""
    return normalised(x, ends["gain"]) @ ends["out"]


def row_loss(ends, letters, x):
    """Mean cross-entropy of each row's next letters, from its last states."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits(ends, x)[:, :-1], letters[:, 1:])
    return losses.mean(axis=1)


def train(blocks: int, width: int, length: int, steps: int, seed: int = 0):
    """The trained weights, and letters [256, length] that it has not seen."""
    rng = np.random.default_rng(seed)
    letters = text(rng, 200_000)
    weights = start(rng, blocks, width, length)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(3e-3, steps)))
    state = optimizer.init(weights)

    def loss(weights, letters):
        ends, parts = weights
        through = lambda x, part: (mlp(part[1], attention(part[0], x)), None)  # noqa: E731
        x, _ = jax.lax.scan(through, embed(ends, letters), parts)
        return row_loss(ends, letters, x).mean()

    @jax.jit
    def step(weights, state, letters):
        value, gradient = jax.value_and_grad(loss)(weights, letters)
        updates, state = optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state, value

    value = np.nan
    for _ in range(steps):
        begins = rng.integers(0, len(letters) - length, 16)
        weights, state, value = step(weights, state, letters[begins[:, None] + np.arange(length)])
    print(f"trained {blocks} blocks for {steps} steps: loss {float(value):.3f}, {np.log(len(LETTERS)):.3f} by guessing")
    return weights, text(rng, 256 * length).reshape(256, length)


def main(argv: list[str] | None = None) -> bool:
    """Whether every answer that is called solved is right, and all that have a target are solved."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--blocks", type=int, default=24)
    p.add_argument("--width", type=int, default=64)
    p.add_argument("--length", type=int, default=32)
    p.add_argument("--steps", type=int, default=600)
    p.add_argument("--rows", type=int, default=32)
    p.add_argument("--time-limit", type=float, default=300, help="seconds, of ordering by the loss alone")
    p.add_argument("--naive", action="store_true", help="plain best-improvement descent beside")
    args = p.parse_args(argv)
    (ends, parts), letters = train(args.blocks, args.width, args.length, args.steps)
    letters = letters[: args.rows]
    x = embed(ends, letters)
    rng = np.random.default_rng(1)

    def whole(parts, x):
        return mlp(parts[0][1], attention(parts[0][0], x))

    def both(parts, x):
        return mlp(parts[1], attention(parts[0], x))

    good = True
    for name, block, pieces in (
        ("P = 1, whole blocks", whole, (parts,)),
        ("P = 2, one function", both, parts),
        ("P = 2, one for each kind", (attention, mlp), parts),
    ):
        dropped, target, answer = drop(rng, block, pieces, x)
        found = dropjax.order(block, dropped, x, target)
        good &= report(name, found, answer) and found.solved
        if args.naive:
            descend_naively(name, block, dropped, x, target)

    dropped, target, answer = drop(rng, whole, (parts,), x)
    of_text = lambda outputs, letters: row_loss(ends, letters, outputs)  # noqa: E731
    by_text = dropjax.order(whole, dropped, x, letters, loss=of_text, time_limit=args.time_limit)
    good &= report("P = 1, by the loss on the text alone", by_text, answer)
    sound = row_loss(ends, letters, jnp.asarray(target)).mean()
    print(f"  the loss in the right order is {float(sound):.4g}: a loss alone may be lower elsewhere")
    return good


if __name__ == "__main__":
    begun = time.perf_counter()
    ended_well = main()
    print(f"{time.perf_counter() - begun:.0f} s")
    raise SystemExit(not ended_well)
