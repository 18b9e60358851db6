"""`python -m dropjax.pair FILE --path NAME`: paths of any kind, each with its own verdict."""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dropjax.core.errors import InputError
from dropjax.io.checkpoints import Checkpoint
from dropjax.io.convolutions import Chains
from dropjax.pair import results
from dropjax.pair.found import Found, Layers, RandomHalves, Reordered, found, left_unpaired, random_factors
from dropjax.pairing.certainty import Judged
from dropjax.pairing.chains import Chained, Factors, chain
from dropjax.pairing.evidence import Halves
from dropjax.pairing.heads import head_signals, head_size
from dropjax.pairing.layers import pair_layers
from dropjax.pairing.paths import PATHS
from dropjax.pairing.portfolio import portfolio

Say = Callable[[Sequence[str]], None]


def judged(args: argparse.Namespace, kind: str, readings: Sequence[Halves], head: int) -> tuple[Judged, int]:
    """The pairing by the reading that separates best, and the index of that reading."""
    signals = None if args.signal == "auto" else (args.signal,)
    pairings = []
    for one in readings:
        extra = head_signals(one, head_size(one.shape[1], head)) if PATHS[kind].heads else None
        options = {"shuffles": args.shuffles, "seed": args.random_seed, "tries": len(readings)}
        pairings.append(portfolio(one, signals, extra=extra, **options))
    best = max(range(len(pairings)), key=lambda k: pairings[k].separations[pairings[k].signal])
    return pairings[best], best


def pair_paths(args: argparse.Namespace, checkpoint: Checkpoint, say: Say) -> tuple[dict[str, Any], bool]:
    """Pairs every path that is asked for: what the JSON says of each, and whether all are paired and nothing was left out.

    Raises `InputError` if there is none, and ValueError for a signal that a path does not have.
    """
    kinds = list(PATHS) if args.path == "all" else [args.path]
    records: dict[str, Any] = {}
    good = True
    start = time.perf_counter()
    for one in found(args, checkpoint, kinds):
        if isinstance(one, Found):
            kind, (record, verdict, whole) = one.kind, _pairs(args, one, say)
        elif isinstance(one, Layers):
            kind, (record, verdict, whole) = "layer", _of_layers(args, one, say)
        else:
            stages = sum(key.startswith("bottleneck") for key in records)
            kind = f"bottleneck {stages + 1}" if stages else "bottleneck"
            record, verdict, whole = _chains(args, one, say)
        records[kind] = record | {"seconds": time.perf_counter() - start}
        start = time.perf_counter()
        good &= whole and verdict == "paired"
    if not records:
        raise InputError(f"{checkpoint.path}: expected at least 2 paths ({', '.join(kinds)}) by their names, got none")
    if len(kinds) > 1 and (missing := [kind for kind in kinds if kind not in records]):
        left = left_unpaired(checkpoint, missing)
        say([f"not there, or not found by names: {', '.join(missing)}", *left])
        good &= not left
    return records, good


def _pairs(args: argparse.Namespace, one: Found, say: Say) -> tuple[dict[str, Any], str, bool]:
    say(one.lines)
    depth = len(one.ours)
    rng = np.random.default_rng(args.random_seed)
    orders = [rng.permutation(depth) if args.check else np.arange(depth) for _ in range(2)]
    answer, best = judged(args, one.kind, [Reordered(halves, *orders) for _, halves in one.readings], one.head)
    names = results.Names([one.ours[k] for k in orders[0]], [one.theirs[k] for k in orders[1]])
    truth = np.argsort(orders[1])[orders[0]] if args.check else None
    record = results.record(names, answer, truth) | {"selection": one.record, "reading": one.readings[best][0]}
    if args.quiet:
        print("\n".join(f"{pair['in']} {pair['out']}" for pair in record["pairs"]))
    say([*results.table(names, answer), *results.summary(answer, one.limits)])
    if len(one.readings) > 1:
        say([f"stored: {one.readings[best][0]}, of {len(one.readings)} ways that were tried"])
    if truth is not None:
        say([f"check: {record['correct']} of {depth} right; {results.chance(depth)}"])
    if args.baselines:
        shape = one.readings[0][1].shape
        fresh, _ = judged(args, one.kind, [RandomHalves(shape, args.random_seed)], one.head)
        right = int((fresh.partner == np.arange(depth)).sum())
        record["baselines"] = {"chance": 1.0, "untrained": _untrained(fresh.verdict, fresh.signal, right, depth, say)}
    return record, answer.verdict, one.whole


def _of_layers(args: argparse.Namespace, one: Layers, say: Say) -> tuple[dict[str, Any], str, bool]:
    """Pairs attentions with MLPs: the JSON record, the verdict, and whether nothing was left out."""
    depth = len(one.mlps)
    say([f"layer: {depth} attentions and MLPs, d = {one.width:,}"])
    rng = np.random.default_rng(args.random_seed)
    ours, theirs = (rng.permutation(depth) if args.check else np.arange(depth) for _ in range(2))
    writes, reads, back = one.arrays()
    options = {"shuffles": args.shuffles, "seed": args.random_seed}
    answer = pair_layers(writes[ours], reads[theirs], back[theirs], **options)
    names = results.Names([one.attentions[k] for k in ours], [one.mlps[k] for k in theirs])
    truth = np.argsort(theirs)[ours] if args.check else None
    record = results.record(names, answer, truth)
    if args.quiet:
        print("\n".join(f"{pair['in']} {pair['out']}" for pair in record["pairs"]))
    say([*results.table(names, answer), *results.summary(answer, one.limits)])
    if truth is not None:
        say([f"check: {record['correct']} of {depth} right; {results.chance(depth)}"])
    if args.baselines:
        draw = np.random.default_rng(args.random_seed)
        fresh = pair_layers(
            *(draw.uniform(-1, 1, part.shape).astype(np.float32) for part in (writes, reads, back)), **options
        )
        right = int((fresh.partner == np.arange(depth)).sum())
        untrained = _untrained(fresh.verdict, fresh.signal, right, depth, say)
        record["baselines"] = {"chance": 1.0, "untrained": untrained}
    return record, answer.verdict, one.whole


def _untrained(verdict: str, signal: str, right: int, depth: int, say: Say) -> dict[str, Any]:
    say([f"untrained weights of the same shapes: {verdict}, {right} of {depth} right"])
    return {"verdict": verdict, "signal": signal, "correct": right}


def _chains(args: argparse.Namespace, one: Chains, say: Say) -> tuple[dict[str, Any], str, bool]:
    say(one.lines())
    depth = one.shape[0]
    rng = np.random.default_rng(args.random_seed)
    orders = [rng.permutation(depth) if args.check else np.arange(depth) for _ in range(3)]
    names = [[one.names(part)[k] for k in order] for part, order in enumerate(orders)]
    readings = [Factors(*one.arrays(False), one.gains()), *([Factors(*one.arrays(True))] if one.folded else [])]
    readings = [reading.reordered(*orders) for reading in readings]
    answer = _chained(args, readings)
    record: dict[str, Any] = {"verdict": answer.verdict, "signal": answer.middle.signal, "selection": one.record()}
    truths = [np.argsort(order)[orders[0]] for order in orders[1:]]
    for part, (side, pairing) in enumerate((("middle", answer.middle), ("last", answer.last))):
        both = results.Names(names[0], names[part + 1])
        record[side] = results.record(both, pairing, truths[part] if args.check else None)
        say([f"{side} convolutions:", *results.table(both, pairing)])
    if args.quiet:
        three = zip(names[0], answer.middle.partner, answer.last.partner, strict=True)
        print("\n".join(f"{first} {names[1][j]} {names[2][k]}" for first, j, k in three))
    say(results.summary(answer.middle, one.limits))
    if args.check:
        right = (truths[0] == answer.middle.partner) & (truths[1] == answer.last.partner)
        record |= {"correct": int(right.sum()), "total": depth}
        say([f"check: {record['correct']} of {depth} chains of three right"])
    if args.baselines:
        fresh = _chained(args, [random_factors(one.shape, args.random_seed)])
        right = (fresh.middle.partner == np.arange(depth)) & (fresh.last.partner == np.arange(depth))
        untrained = _untrained(fresh.verdict, fresh.middle.signal, int(right.sum()), depth, say)
        record["baselines"] = {"chance": 1 / depth, "untrained": untrained}
    return record, answer.verdict, True


def _chained(args: argparse.Namespace, readings: Sequence[Factors]) -> Chained:
    signals = None if args.signal == "auto" else (args.signal,)
    return chain(readings, signals, shuffles=args.shuffles, seed=args.random_seed)
