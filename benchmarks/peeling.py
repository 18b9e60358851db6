"""How far the table tells which block comes next: peeling.py [--short] [--rows N …] [--json FILE].

For stacks of several kinds, at their true states all along: the true next block's rank among the remaining ones by what it
promises to second order and by an exact look, with the partners that the table gives; how many of these are right; and what
a whole peeling finds, with pairs known and unknown.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jaxtyping import Array, Float, Int
from measuring import write_report
from recovery import SUITE

from dropjax import console
from dropjax.core.stack import Stack, forward, trajectory
from dropjax.make import training
from dropjax.make.planted import plant
from dropjax.make.training import Recipe
from dropjax.ordering import peeling
from dropjax.ordering.insertions import insertions
from dropjax.ordering.partners import matched
from dropjax.ordering.prefixes import likelihoods
from dropjax.ordering.regressions import Outlook, with_none
from dropjax.runtime import device

DEPTH, FEATURES, HIDDEN, NARROW, TABLE = 24, 32, 64, 12, 10_000
KINDS: dict[str, tuple[int, Recipe | None]] = {
    "5 epochs of adam": (FEATURES, Recipe(depth=DEPTH, hidden=HIDDEN, rate=1e-3, epochs=5)),
    "sgd, hardly moved": (FEATURES, Recipe(depth=DEPTH, hidden=HIDDEN, optimizer="sgd", rate=1e-3, epochs=20)),
    "h < d": (48, Recipe(depth=DEPTH, hidden=NARROW, optimizer="adamw", rate=1e-3, decay=0.01, epochs=40)),
    "adamw": (FEATURES, Recipe(depth=DEPTH, hidden=HIDDEN, optimizer="adamw", rate=1e-3, decay=0.1, epochs=30)),
    "planted": (FEATURES, None),
    "untrained": (FEATURES, Recipe(depth=DEPTH, hidden=HIDDEN, optimizer="sgd", rate=1e-12, epochs=1)),
}
"""Features of the generated table, and what is trained on it; None: planted."""
DEEP = {entry.name: (48, entry.recipe) for entry in SUITE if entry.name in ("L = 96, plain", "L = 128")}
SHORT = ("planted", "untrained")


def shuffled(stack: Stack, rng: np.random.Generator) -> tuple[Stack, Int[np.ndarray, "L 2"]]:
    """The stack with its halves shuffled, and the arrangement that puts it back."""
    truth = np.stack([rng.permutation(stack.depth), rng.permutation(stack.depth)], axis=1)
    return stack.arranged(jnp.asarray(np.argsort(truth, axis=0))), truth.astype(np.int32)


def made(kind: str, seed: int) -> tuple[Stack, Int[np.ndarray, "L 2"], Float[Array, "N d"], Float[Array, "N o"]]:
    """A stack of that kind, shuffled, with its answer and its table."""
    width, recipe = {**KINDS, **DEEP}[kind]
    x, true = training.generate_table(seed, TABLE, width)
    rng = np.random.default_rng(seed)
    stack = plant(rng, DEPTH, x, HIDDEN) if recipe is None else training.train(recipe, x, true, [seed])[0]
    pred = jax.jit(forward)(stack, jnp.asarray(x))
    return *shuffled(stack, rng), jnp.asarray(x), pred


def along(
    stack: Stack, truth: Int[np.ndarray, "L 2"], x: Array, pred: Array, every: int = 4, known: bool = False
) -> Iterator[dict[str, Any]]:
    """At every few of the true states: the true next block's rank, from 0, how much likelier it and the best block make the
    outputs, how many blocks do so by more than chance, and right partners of those remaining, unless all are `known`."""
    states, none = trajectory(stack, jnp.asarray(truth), x).states, np.full(stack.depth, -1)
    for k in range(0, stack.depth - 1, every):
        here, rest = states[k], truth[k:]
        found = rest if known else matched(stack, rest, none, here, pred)
        basis = peeling.directions(stack, found, here, pred)
        outlook = Outlook(found[:, 0], np.asarray(peeling.seen_through(stack, found, basis)), pred, peeling.AHEAD[0])
        promised = insertions(stack, np.zeros((0, 2), np.int32), found, here, outlook, peeling.AHEAD)
        promise = np.asarray(promised.rise)[:, 0]
        rises = _evidence_behind_each(stack, found, here, outlook._replace(ridge=promised.ridge)) - float(promised.evidence)
        yield {
            "placed": k,
            "remaining": len(rest),
            "rank_by_promise": int(np.sum(promise > promise[0])),
            "rank_by_look": int(np.sum(rises > rises[0])),
            "rise": float(rises[0]),
            "best_rise": float(rises.max()),
            "beyond_chance": int(np.sum(rises > peeling.by_chance(stack.depth))),
            "partners_right": int(np.sum(found[:, 1] == rest[:, 1])),
        }


def _evidence_behind_each(
    stack: Stack, found: Int[np.ndarray, "m 2"], x: Float[Array, "N d"], outlook: Outlook
) -> Float[np.ndarray, " m"]:
    """The outputs' evidence behind each of the blocks, in nats."""
    left = np.tile(found[:, 0], (len(found), 1))
    np.fill_diagonal(left, stack.depth)  # the block itself no longer remains
    return np.asarray(likelihoods(with_none(stack), found[:, None], x, left, outlook))


def whole(stack: Stack, truth: Int[np.ndarray, "L 2"], x: Array, pred: Array, known: bool) -> dict[str, Any]:
    """What a whole peeling finds: right pairs and Kendall's τ of the input halves' order."""
    certain = truth[np.argsort(truth[:, 0]), 1] if known else np.full(stack.depth, -1)
    start, table = time.perf_counter(), (np.asarray(x), np.asarray(pred))
    at = peeling.start_peeling(np.tile(np.arange(stack.depth)[:, None], 2))
    while at.placed < stack.depth:
        at = peeling.peel(stack, at, certain, *table)
    place = np.argsort(truth[:, 0])[at.arrangement[:, 0]]
    return {
        "pairs_known": known,
        "pairs_right": int(np.sum(at.arrangement[:, 1] == truth[place, 1])),
        "tau": float(np.asarray(scipy.stats.kendalltau(place, np.arange(stack.depth)))[0]),
        "least_lift": float(at.lift.min()),
        "seconds": time.perf_counter() - start,
    }


def study(stack: Stack, truth: Int[np.ndarray, "L 2"], x: Array, pred: Array) -> Iterator[dict[str, Any]]:
    """All records of a stack and some rows."""
    if stack.depth > DEPTH:
        yield from along(stack, truth, x, pred, every=16, known=True)
        return
    yield from along(stack, truth, x, pred)
    for known in (True, False):
        yield whole(stack, truth, x, pred, known)


def line(record: dict[str, Any]) -> str:
    """A record as a line of the table."""
    if "placed" in record:
        ranks = f"rank {record['rank_by_promise']:>2} by promise, {record['rank_by_look']:>2} by look"
        ranks += f" ({record['rise']:.0f} nats, best {record['best_rise']:.0f}, {record['beyond_chance']} beyond chance)"
        right = f"{record['partners_right']:>2} of {record['remaining']:>2} partners right"
        return f"  {record['placed']:>3} placed: {ranks}; {right}"
    how = f"pairs {'known' if record['pairs_known'] else 'unknown'}"
    return f"  peeled, {how}: {record['pairs_right']} pairs right, tau {record['tau']:.2f}, {record['seconds']:.0f} s"


def main() -> int:
    """Exit status 0, or 2 for bad input."""
    parser = console.Parser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="two kinds, which need no training")
    parser.add_argument("--only", metavar="KIND", choices=[*KINDS, *DEEP])
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 2000, 4000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    device.configure()
    records = []
    for kind in [args.only] if args.only else SHORT if args.short else KINDS:
        stack, truth, x, pred = made(kind, args.seed)
        for rows in args.rows:
            print(f"{kind}, {rows:,} rows")
            for record in study(stack, truth, x[:rows], pred[:rows]):
                records.append({"kind": kind, "rows": rows, **record})
                print(line(record), flush=True)
    write_report(args.json, records)
    return 0


if __name__ == "__main__":
    console.run_command(main)
