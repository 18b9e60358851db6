"""Parts shared by the examples: dropping a network, printing a result, and a naive descent for comparison."""

import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np

from dropjax import Ordering


def run(block, parts, arrangement, x):
    """The state after the last block, run block by block."""
    for row in arrangement:
        chosen = [jax.tree.map(lambda a, k=int(k): a[k], part) for part, k in zip(parts, row, strict=True)]
        if callable(block):
            x = block(tuple(chosen), x)
        else:
            for step, part in zip(block, chosen, strict=True):
                x = step(part, x)
    return x


def drop(rng: np.random.Generator, block, parts, x):
    """The shuffled parts of each kind, the intact network's output, and the arrangement that puts the parts back."""
    depth, kinds = len(jax.tree.leaves(parts)[0]), len(parts)
    sound = np.tile(np.arange(depth)[:, None], (1, kinds))
    target = np.asarray(run(jax.jit(block) if callable(block) else [jax.jit(step) for step in block], parts, sound, x))
    shuffles = [rng.permutation(depth) for _ in parts]
    dropped = tuple(jax.tree.map(lambda a, s=s: a[s], part) for part, s in zip(parts, shuffles, strict=True))
    return dropped, target, np.stack([np.argsort(s) for s in shuffles], axis=1)


def report(name: str, found: Ordering, answer: np.ndarray) -> bool:
    """Prints the result; returns whether an answer that is called solved is right."""
    right = float((found.arrangement == answer).mean())
    error = "" if found.error is None else f", error {found.error:.1e} of the spread"
    print(
        f"{name}: {found.outcome}, {right:.0%} of the parts in their places, loss {found.start_loss:.4g} → {found.loss:.4g}"
        f"{error}; {found.seconds:.1f} s, {found.evaluations:,} evaluations, {found.passes:,.0f} passes",
        flush=True,
    )
    for kind, found_moves in (("tie", found.ties), ("undecided", found.undecided)):
        for move in found_moves[:5]:
            print(f"  {kind}: {move}")
        if len(found_moves) > 5:
            print(f"  and {len(found_moves) - 5} more")
    return right == 1 or not found.solved or len(found.ties) > 0


def descend_naively(name: str, block, parts, x, target, limit: float = 600) -> None:
    """Best improvement over all exchanges and insertions, of parts of one kind and of whole blocks, each run from the start
    on all rows by one compiled program."""
    depth, kinds, parts = len(jax.tree.leaves(parts)[0]), len(parts), jax.tree.map(jnp.asarray, parts)

    @jax.jit
    def loss(arrangement):
        def step(x, row):
            chosen = tuple(jax.tree.map(lambda a, k=row[p]: a[k], part) for p, part in enumerate(parts))
            if callable(block):
                return block(chosen, x), None
            for function, part in zip(block, chosen, strict=True):
                x = function(part, x)
            return x, None

        return ((jax.lax.scan(step, x, arrangement)[0] - target) ** 2).mean()

    orders = []
    for i, j in itertools.permutations(range(depth), 2):
        taken = [k for k in range(depth) if k != i]
        orders.append([*taken[:j], i, *taken[j:]])
        if i < j - 1:  # the exchange of neighbours is an insertion
            orders.append([{i: j, j: i}.get(k, k) for k in range(depth)])
    moved = dict.fromkeys([*((p,) for p in range(kinds)), tuple(range(kinds))])
    at = np.tile(np.arange(depth)[:, None], (1, kinds))
    first = best = float(loss(at))
    begun, evaluations, ended = time.perf_counter(), 1, None
    while ended is None:
        found = (best, at)
        for columns, order in itertools.product(moved, orders):
            after = at.copy()
            after[:, columns] = at[order][:, columns]
            found = min(found, (float(loss(after)), after), key=lambda one: one[0])
            evaluations += 1
            if time.perf_counter() - begun > limit:
                ended = "time is up"
                break
        if found[0] < 1e-10 * first:
            ended = "exact"
        elif ended is None and found[0] >= best:
            ended = "no move lowers it"
        best, at = found
    seconds = time.perf_counter() - begun
    print(f"  plain descent, {name}: loss {best:.3g}, {ended}; {seconds:.1f} s, {evaluations:,} evaluations", flush=True)
