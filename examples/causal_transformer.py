"""A pre-norm causal transformer in Equinox, trained here on text that a small grammar generates, and put back in order.

    python examples/causal_transformer.py [--blocks 24] [--steps 600] [--naive [SECONDS]] [--only P1 P2 …]

Its blocks are ordered as wholes (P1) and as attention and MLP apart (P2: a function for each kind; P2-joint: one function of
both), by recorded outputs; and at last by the loss on the text alone (text). `--naive` runs plain best-improvement descent
beside.
"""

import argparse
import time

import equinox as eqx
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
    """The given number of letters of made-up sentences, as numbers."""
    said = ""
    while len(said) < length:
        subject, thing = (f"the {rng.choice(WORDS)} {rng.choice(NOUNS)}" for _ in range(2))
        said += f"{subject} {rng.choice(VERBS)} {thing}, and {thing} {rng.choice(VERBS)} {subject}.\n"
    return np.array([LETTERS.index(letter) for letter in said[:length]], np.int32)


class Attention(eqx.Module):
    """Residual causal self-attention of normalised inputs, for one row of states [T, d]."""

    norm: eqx.nn.LayerNorm
    attend: eqx.nn.MultiheadAttention

    def __init__(self, width: int, key: jax.Array):
        self.norm = eqx.nn.LayerNorm(width)
        self.attend = eqx.nn.MultiheadAttention(4, width, key=key)

    def __call__(self, x):
        """The states behind it."""
        z = jax.vmap(self.norm)(x)
        return x + self.attend(z, z, z, mask=jnp.tril(jnp.ones((len(x), len(x)), bool)))


class Feedforward(eqx.Module):
    """Residual MLP of normalised inputs, for one row of states [T, d]."""

    norm: eqx.nn.LayerNorm
    mlp: eqx.nn.MLP

    def __init__(self, width: int, key: jax.Array):
        self.norm = eqx.nn.LayerNorm(width)
        self.mlp = eqx.nn.MLP(width, width, 4 * width, depth=1, activation=jax.nn.gelu, key=key)

    def __call__(self, x):
        """The states behind it."""
        return x + jax.vmap(lambda token: self.mlp(self.norm(token)))(x)


class Ends(eqx.Module):
    """The layers before the first block and after the last one."""

    letters: eqx.nn.Embedding
    places: jax.Array
    norm: eqx.nn.LayerNorm
    out: eqx.nn.Linear

    def __init__(self, width: int, length: int, key: jax.Array):
        keys = jax.random.split(key, 3)
        self.letters = eqx.nn.Embedding(weight=0.1 * jax.random.normal(keys[0], (len(LETTERS), width)))
        self.places = 0.1 * jax.random.normal(keys[1], (length, width))
        self.norm = eqx.nn.LayerNorm(width)
        self.out = eqx.nn.Linear(width, len(LETTERS), key=keys[2])

    def embed(self, letters):
        """The states [N, T, d] before the first block."""
        return self.letters.weight[letters] + self.places

    def losses(self, x, letters):
        """Mean cross-entropy [N] of each row's next letters, from its last states."""
        logits = jax.vmap(jax.vmap(lambda token: self.out(self.norm(token))))(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], letters[:, 1:]).mean(axis=1)


def as_part(modules: eqx.Module):
    """One kind of part for `dropjax.order`: a module's arrays, which have a leading axis of blocks, and `(part, state)`.

    Whatever else a module holds, such as an activation or a size, is no array: it stays with the function.
    """
    arrays, rest = eqx.partition(modules, eqx.is_array)
    return arrays, lambda part, x: jax.vmap(eqx.combine(part, rest))(x)


def train(blocks: int, width: int, length: int, steps: int):
    """The trained ends, attentions and MLPs, and letters [256, length] that were not used in training."""
    rng, keys = np.random.default_rng(0), jax.random.split(jax.random.key(0), 2 * blocks + 1)
    letters = text(rng, 200_000)
    # One module each, whose arrays are all blocks' arrays stacked.
    attentions = eqx.filter_vmap(lambda key: Attention(width, key))(keys[:blocks])
    mlps = eqx.filter_vmap(lambda key: Feedforward(width, key))(keys[blocks:-1])
    # As GPT-2 begins: with small embeddings, and what blocks add the smaller the more there are.
    last = lambda blocks: (blocks[0].attend.output_proj.weight, blocks[1].mlp.layers[1].weight)  # noqa: E731
    scaled = eqx.tree_at(last, (attentions, mlps), replace_fn=lambda w: w / np.sqrt(2 * blocks))
    model = (Ends(width, length, keys[-1]), *scaled)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(3e-3, steps)))
    state = optimizer.init(eqx.filter(model, eqx.is_array))

    def loss(model, letters):
        ends, (attentions, attend), (mlps, feed) = model[0], *map(as_part, model[1:])
        through = lambda x, part: (feed(part[1], attend(part[0], x)), None)  # noqa: E731
        x, _ = jax.lax.scan(through, ends.embed(letters), (attentions, mlps))
        return ends.losses(x, letters).mean()

    @eqx.filter_jit
    def step(model, state, letters):
        value, gradient = eqx.filter_value_and_grad(loss)(model, letters)
        updates, state = optimizer.update(gradient, state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state, value

    value = np.nan
    for _ in range(steps):
        begins = rng.integers(0, len(letters) - length, 16)
        model, state, value = step(model, state, letters[begins[:, None] + np.arange(length)])
    print(f"trained {blocks} blocks for {steps} steps: loss {float(value):.3f}, {np.log(len(LETTERS)):.3f} by guessing")
    return model, text(rng, 256 * length).reshape(256, length)


def main(argv: list[str] | None = None) -> bool:
    """Runs the example; returns whether every answer called solved is right, and all that have a target are solved."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--blocks", type=int, default=24)
    p.add_argument("--width", type=int, default=64)
    p.add_argument("--length", type=int, default=32)
    p.add_argument("--steps", type=int, default=600)
    p.add_argument("--rows", type=int, default=32)
    p.add_argument("--only", nargs="+", choices=("P1", "P2", "P2-joint", "text"), default=("P1", "P2", "P2-joint", "text"))
    p.add_argument("--time-limit", type=float, default=300, help="seconds, of ordering by the loss alone")
    p.add_argument(
        "--naive", nargs="?", const=600.0, type=float, metavar="SECONDS", help="plain descent beside, for so long"
    )
    args = p.parse_args(argv)
    (ends, attentions, mlps), letters = train(args.blocks, args.width, args.length, args.steps)
    letters = letters[: args.rows]
    x = ends.embed(letters)
    rng = np.random.default_rng(1)
    (attentions, attend), (mlps, feed) = as_part(attentions), as_part(mlps)

    def whole(parts, x):
        return feed(parts[0][1], attend(parts[0][0], x))

    def both(parts, x):
        return feed(parts[1], attend(parts[0], x))

    good = True
    for name, block, parts in (
        ("P1", whole, ((attentions, mlps),)),
        ("P2", (attend, feed), (attentions, mlps)),
        ("P2-joint", both, (attentions, mlps)),
    ):
        if name in args.only:
            dropped, target, answer = drop(rng, block, parts, x)
            found = dropjax.order(block, dropped, x, target)
            good &= report(name, found, answer) and found.solved
            if args.naive:
                descend_naively(name, block, dropped, x, target, args.naive)

    if "text" in args.only:
        dropped, target, answer = drop(rng, whole, ((attentions, mlps),), x)
        by_text = dropjax.order(whole, dropped, x, letters, loss=ends.losses, time_limit=args.time_limit)
        good &= report("P1, by the loss on the text alone", by_text, answer)
        sound = ends.losses(jnp.asarray(target), letters).mean()
        print(f"  the loss in the right order is {float(sound):.4g}: a loss alone may be lower elsewhere")
    return good


if __name__ == "__main__":
    begun = time.perf_counter()
    ended_well = main()
    print(f"{time.perf_counter() - begun:.0f} s")
    raise SystemExit(not ended_well)
