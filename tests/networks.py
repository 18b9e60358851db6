"""Small networks that are no MLP stacks, and what the kernels must compute with them, in plain Python loops."""

import jax
import jax.numpy as jnp
import numpy as np

SMALL = 0.3


def normalised(x):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)


def dense(rng, L, out, into):
    return {
        "weight": (rng.normal(size=(L, out, into)) / np.sqrt(into)).astype(np.float32),
        "bias": (rng.normal(size=(L, out)) / 4).astype(np.float32),
    }


def linear(x, p):
    return jnp.matmul(x, p["weight"].T, precision="highest") + p["bias"]


def attention(p, x):
    """A residual self-attention with normalised inputs: softmax and LayerNorm."""
    z = normalised(x)
    q, k, v = (linear(z, p[name]) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("nsd,ntd->nst", q, k, precision="highest") / np.sqrt(q.shape[-1]), -1)
    return x + SMALL * linear(jnp.einsum("nst,ntd->nsd", weights, v, precision="highest"), p["o"])


def mlp(p, x):
    return x + SMALL * linear(jnp.tanh(linear(normalised(x), p["in"])), p["out"])


def transformer(rng, L=4, d=6, h=8, tokens=3, rows=4):
    """(block, parts of P = 2, x): attention and MLP, jointly."""
    parts = (
        {name: dense(rng, L, d, d) for name in "qkvo"},
        {"in": dense(rng, L, h, d), "out": dense(rng, L, d, h)},
    )
    x = rng.normal(size=(rows, tokens, d)).astype(np.float32)
    return lambda p, x: mlp(p[1], attention(p[0], x)), parts, x


def plain(rng, L=5, d=6, rows=7):
    """(block, parts of P = 1, x): a smooth residual block of one array."""
    w = (rng.normal(size=(L, d, d)) / np.sqrt(d)).astype(np.float32)
    return (
        lambda p, x: x + SMALL * jnp.tanh(jnp.matmul(x, p[0].T, precision="highest")),
        (w,),
        rng.normal(size=(rows, d)).astype(np.float32),
    )


def thirds(rng, L=3, d=5, rows=6):
    """(block, parts of P = 3, x): a state that is a pytree, one of whose arrays holds whole numbers that never change."""
    parts = tuple((rng.normal(size=(L, d, d)) / np.sqrt(d)).astype(np.float32) for _ in range(3))

    def block(p, state):
        a, (b, shift) = state["a"], state["rest"]
        a = a + SMALL * jnp.tanh(jnp.matmul(b, p[0].T, precision="highest") + shift[:, None])
        b = (
            b
            + SMALL * jnp.sin(jnp.matmul(a, p[1].T, precision="highest"))
            + 0.1 * jnp.matmul(a, p[2].T, precision="highest")
        )
        return {"a": a, "rest": (b, shift)}

    a, b = rng.normal(size=(2, rows, d)).astype(np.float32)
    return block, parts, {"a": a, "rest": (b, rng.integers(0, 3, rows).astype(np.int32))}


NETWORKS = {"P=1": plain, "P=2": transformer, "P=3, pytree": thirds}


def outputs(block, parts, arrangement, x):
    """The last state, block by block."""
    for row in np.asarray(arrangement):
        x = block(tuple(jax.tree.map(lambda a, k=k: a[k], part) for part, k in zip(parts, row, strict=True)), x)
    return jax.tree.map(np.asarray, x)


def dropped(rng, block, parts, x):
    """The parts shuffled, kind by kind, the target, and the arrangement that puts them back."""
    L, P = len(jax.tree.leaves(parts)[0]), len(parts)
    target = outputs(block, parts, np.tile(np.arange(L)[:, None], (1, P)), x)
    shuffles = [rng.permutation(L) for _ in parts]
    shuffled = tuple(jax.tree.map(lambda a, s=s: a[s], part) for part, s in zip(parts, shuffles, strict=True))
    return shuffled, target, np.stack([np.argsort(s) for s in shuffles], axis=1)
