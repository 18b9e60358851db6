"""`python -m dropjax.pair FILE --path NAME`: paths of any kind, each with a verdict of its own."""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dropjax.core.errors import InputError
from dropjax.io import attention, convolutions, halves, state_spaces
from dropjax.io.checkpoints import Checkpoint
from dropjax.io.convolutions import Chains
from dropjax.io.paths import Paths
from dropjax.pair import results
from dropjax.pairing.certainty import Judged
from dropjax.pairing.chains import Chained, Factors, chain
from dropjax.pairing.evidence import Halves
from dropjax.pairing.heads import head_signals, head_size
from dropjax.pairing.paths import PATHS
from dropjax.pairing.portfolio import portfolio

MLPS = ("in-out", "up-out", "gate-out", "gate-up")
Say = Callable[[Sequence[str]], None]


@dataclass(frozen=True)
class Reordered:
    """Halves in another order on either side."""

    halves: Halves
    ours: Int[np.ndarray, " L"]
    theirs: Int[np.ndarray, " L"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(L, h, d)."""
        return self.halves.shape

    def units(self, start: int, stop: int) -> tuple[Float[np.ndarray, "L s d"], Float[np.ndarray, "L s d"]]:
        """See `pairing.evidence.Halves`."""
        a, b = self.halves.units(start, stop)
        return a[self.ours], b[self.theirs]


@dataclass(frozen=True)
class RandomHalves:
    """Fresh halves of the same shapes, drawn as `torch.nn.Linear` draws: uniform within ±1/sqrt(fan_in)."""

    shape: tuple[int, int, int]
    seed: int

    def units(self, start: int, stop: int) -> tuple[Float[np.ndarray, "L s d"], Float[np.ndarray, "L s d"]]:
        """See `pairing.evidence.Halves`."""
        depth, hidden, width = self.shape
        rng = np.random.default_rng((self.seed, start))
        size = depth, stop - start, width
        a, b = ((2 * rng.random(size, np.float32) - 1) * np.float32(fan_in**-0.5) for fan_in in (width, hidden))
        return a, b


def random_factors(chains: tuple[int, int, int, int], seed: int) -> Factors:
    """Fresh convolutions of the same shapes, (L, taps, h, d), drawn as PyTorch draws them."""
    depth, taps, hidden, width = chains
    rng = np.random.default_rng(seed)

    def draw(*shape: int, fan_in: int) -> Float[np.ndarray, "..."]:
        return (2 * rng.random(shape, np.float32) - 1) * np.float32(fan_in**-0.5)

    return Factors(
        draw(depth, hidden, width, fan_in=width),
        draw(depth, taps, hidden, hidden, fan_in=taps * hidden),
        draw(depth, width, hidden, fan_in=hidden),
    )


@dataclass(frozen=True)
class Found:
    """Paths of one kind, as something to be paired."""

    kind: str
    ours: list[str]
    theirs: list[str]
    readings: list[tuple[str, Halves]]
    head: int
    lines: list[str]
    limits: str
    whole: bool
    record: dict[str, Any]


def found(args: argparse.Namespace, checkpoint: Checkpoint, kinds: Sequence[str]) -> Iterator[Found | Chains]:
    """The paths of these kinds that the checkpoint has."""
    if set(kinds) & set(MLPS):
        yield from _mlps(args, checkpoint, kinds)
    for kind in kinds:
        paths = None
        if kind in ("query-key", "value-output"):
            paths = attention.find(checkpoint, kind, args.heads or 0, args.transposed)
        elif kind == "depthwise":
            paths = convolutions.find_depthwise(checkpoint)
        elif kind.startswith("state-space"):
            paths = state_spaces.find(checkpoint, kind)
        elif kind == "bottleneck" and (chains := convolutions.find_chains(checkpoint)) is not None:
            yield chains
        if paths is not None:
            yield _of(paths)


def _of(paths: Paths) -> Found:
    first = paths.readings[0]
    ours, theirs = ([name + part.label for name in part.names] for part in (first.ours, first.theirs))
    readings = [(reading.words, paths.halves(reading)) for reading in paths.readings]
    about = paths.lines(), paths.limits, paths.whole, paths.record()
    return Found(paths.kind, ours, theirs, [*readings], paths.head, *about)


def _mlps(args: argparse.Namespace, checkpoint: Checkpoint, kinds: Sequence[str]) -> Iterator[Found]:
    try:
        mlps = halves.find_halves(checkpoint, args.ins, args.outs, args.gate, args.transposed, args.fold_norm)
    except InputError:
        if len(kinds) == 1 or args.ins or args.outs or args.gate:
            raise
        return
    named = {"in-out": ("in", "out"), "up-out": ("up", "out"), "gate-out": ("gate", "out"), "gate-up": ("gate", "up")}
    for kind, (ours, theirs) in named.items():
        if kind in kinds and ours in mlps.sides:
            first, second = ([name + mlps.sides[of].label for name in mlps.sides[of].names] for of in (ours, theirs))
            account = mlps.account
            lines = [f"{kind}: {mlps.depth} paths, d = {mlps.width:,}, h = {mlps.hidden:,}", *account.lines(mlps.transposed)]
            about = lines, account.limits, account.whole, results.selection(mlps)
            yield Found(kind, first, second, [("", mlps.halves(ours, theirs))], 0, *about)


def judged(args: argparse.Namespace, kind: str, readings: Sequence[Halves], head: int) -> tuple[Judged, int]:
    """The pairing by the reading that separates best, and which that is."""
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

    Raises `InputError` where there is none, and ValueError for a signal that a path does not have.
    """
    kinds = list(PATHS) if args.path == "all" else [args.path]
    records: dict[str, Any] = {}
    good = True
    start = time.perf_counter()
    for one in found(args, checkpoint, kinds):
        kind = "bottleneck" if isinstance(one, Chains) else one.kind
        record, verdict, whole = _chains(args, one, say) if isinstance(one, Chains) else _pairs(args, one, say)
        records[kind] = record | {"seconds": time.perf_counter() - start}
        start = time.perf_counter()
        good &= whole and verdict == "paired"
    if not records:
        raise InputError(f"{checkpoint.path}: expected at least 2 paths ({', '.join(kinds)}) by their names, got none")
    if len(kinds) > 1 and (missing := [kind for kind in kinds if kind not in records]):
        say([f"not there, or not told by names: {', '.join(missing)}"])
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


def _untrained(verdict: str, signal: str, right: int, depth: int, say: Say) -> dict[str, Any]:
    say([f"untrained weights of the same shapes: {verdict}, {right} of {depth} right"])
    return {"verdict": verdict, "signal": signal, "correct": right}


def _chains(args: argparse.Namespace, one: Chains, say: Say) -> tuple[dict[str, Any], str, bool]:
    say(one.lines())
    depth = one.shape[0]
    rng = np.random.default_rng(args.random_seed)
    orders = [rng.permutation(depth) if args.check else np.arange(depth) for _ in range(3)]
    names = [[one.names(part)[k] for k in order] for part, order in enumerate(orders)]
    folds = [True, False] if one.folded else [False]
    readings = [Factors(*(a[order] for a, order in zip(one.arrays(fold), orders, strict=True))) for fold in folds]
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
    return record, answer.verdict, not one.others


def _chained(args: argparse.Namespace, readings: Sequence[Factors]) -> Chained:
    signals = None if args.signal == "auto" else (args.signal,)
    return chain(readings, signals, shuffles=args.shuffles, seed=args.random_seed)
