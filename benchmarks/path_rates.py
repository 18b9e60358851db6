"""How often unrelated halves are said to be pairs: `pairing.py unrelated`.

Three kinds of unrelated halves: random ones, halves of two models, and halves of one model's different layers.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from path_tables import weights

from dropjax.core.errors import InputError
from dropjax.io import checkpoints
from dropjax.io.convolutions import Chains
from dropjax.pair.found import Found, Layers, found
from dropjax.pair.paths import judged
from dropjax.pairing.chains import Factors, chain
from dropjax.pairing.evidence import Arrays
from dropjax.pairing.layers import pair_layers
from dropjax.pairing.paths import PATHS

SIZE = 64
"""Hidden units and features that halves are cut to: every model has as many."""
INNER = 16
"""Inner channels that bottlenecks are cut to."""
HEAD = 16
"""Units of a head where heads are looked at; models' own have 16 to 64."""
DEPTHS = (3, 6)
"""Halves that are paired with one another."""
PIECES = {"bottleneck": ((0, 3), (1, 4), (2,)), "layer": ((0,), (1, 2))}
"""Which arrays belong to one piece; elsewhere each array is one. Of bottlenecks: first, middle and last convolutions, and
the gains behind the first and the middle ones. Of layers: what attention writes, and what the MLP reads and writes."""
SOURCES = ("random", "other models", "other layers")
Parts = tuple[np.ndarray, ...]


def library(folder: Path, kind: str, only: Sequence[str] | None) -> dict[str, Parts]:
    """The arrays of one kind of path, by model; a stage of a convolutional network counts as a model."""
    shelf: dict[str, Parts] = {}
    for name, _, path, options in weights(folder, only):
        heads = int(options[1]) if options[:1] == ("--heads",) else None
        args = argparse.Namespace(ins=None, outs=None, gate=None, transposed=None, fold_norm=None, heads=heads)
        try:
            for one in found(args, checkpoints.open_checkpoint(path), [kind]):
                if isinstance(one, Found):
                    halves = one.readings[-1][1]
                    shelf[name] = halves.units(0, halves.shape[1])
                elif isinstance(one, Layers):
                    shelf[name] = one.arrays()
                elif isinstance(one, Chains) and (gains := one.gains()) is not None:
                    shelf[f"{name}, d = {one.shape[-1]}"] = (*one.arrays(False), *gains)
        except InputError:
            continue
    return {name: parts for name, parts in shelf.items() if len(parts[0]) >= DEPTHS[0]}


def drawn(rng: np.random.Generator, shapes: Sequence[tuple[int, ...]], features: int) -> list[np.ndarray]:
    """Random arrays: uniform, normal or heavy-tailed, with scales of rows, and scales of features that all layers share."""
    what = rng.integers(3)
    shared = np.exp(rng.choice([0.0, 1.0]) * rng.normal(size=features))
    parts = []
    for shape in shapes:
        part = (rng.uniform(-1, 1, shape), rng.normal(size=shape), rng.standard_t(3, shape))[what]
        part = part * np.exp(rng.choice([0.0, 0.5]) * rng.normal(size=(*shape[:2], *[1] * (len(shape) - 2))))
        parts.append((part * shared if shape[-1] == features else part).astype(np.float32))
    return parts


def random_parts(rng: np.random.Generator, kind: str, depth: int) -> list[np.ndarray]:
    """Random arrays of one kind of path; of attention every other time with grouped heads."""
    if kind == "bottleneck":
        kernels = [(depth, INNER, SIZE), (depth, 9, INNER, INNER), (depth, SIZE, INNER)]
        return drawn(rng, [*kernels, (depth, INNER), (depth, INNER)], SIZE)
    parts = drawn(rng, [(depth, SIZE, SIZE)] * (3 if kind == "layer" else 2), SIZE)
    if PATHS[kind].heads and rng.random() < 0.5:  # one of theirs for every two of ours
        parts[1] = parts[1][:, np.arange(SIZE) // (2 * HEAD) * HEAD + np.arange(SIZE) % HEAD]
    return parts


def model_parts(rng: np.random.Generator, kind: str, shelf: dict[str, Parts], depth: int, layers: bool) -> list[np.ndarray]:
    """Pieces of several models, or with `layers` of one model's different layers, whose features then stay the same."""
    pieces = PIECES.get(kind, ((0,), (1,)))
    times = len(pieces) if layers else -(-len(pieces) // len(shelf))
    able = [name for name, parts in shelf.items() if len(parts[0]) >= depth * times]
    names = [rng.choice(able)] * len(pieces) if layers else list(rng.permutation(able))
    names = (names * len(pieces))[: len(pieces)]  # of two models the first gives the third piece as well, of other layers
    left = {name: list(rng.permutation(len(shelf[name][0]))) for name in names}
    chosen: dict[int, np.ndarray] = {}
    features = [rng.permutation(10**4) for _ in pieces]
    for piece, name, order in zip(pieces, names, [features[0]] * len(pieces) if layers else features, strict=True):
        which = left[name][:depth]
        left[name] = left[name][depth:]
        for part in piece:
            chosen[part] = cut(kind, part, shelf[name][part][which], order)
    return [chosen[k] for k in sorted(chosen)]


def cut(kind: str, part: int, array: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The array cut to as many features, units and channels as every model has; `order` picks features."""
    if kind == "bottleneck":
        width = slice(0, SIZE)
        where = ((slice(0, INNER), width), (slice(None), slice(0, INNER), slice(0, INNER)), (width, slice(0, INNER)))
        return array[:, *where[part]] if part < 3 else array[:, :INNER]
    picked = order[order < array.shape[-1]][:SIZE]
    return np.ascontiguousarray(array[:, :SIZE, picked], np.float32)


def verdict(kind: str, parts: list[np.ndarray], seed: int) -> str:
    """What is said of these arrays."""
    if kind == "bottleneck":
        first, middle, last, *gains = parts
        return chain([Factors(first, middle, last, np.stack(gains))], seed=seed).verdict
    if kind == "layer":
        return pair_layers(parts[0], parts[1], parts[2], seed=seed).verdict
    options = argparse.Namespace(signal="auto", shuffles=8, random_seed=seed)
    halves = Arrays(parts[0], np.swapaxes(parts[1], 1, 2))
    return judged(options, kind, [halves], HEAD if PATHS[kind].heads else 0)[0].verdict


def unrelated(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for every kind of path and of unrelated halves: how often there is said to be a signal, or pairs."""
    for kind in args.paths or PATHS:
        shelf, pieces = library(args.folder, kind, args.only), len(PIECES.get(kind, (0, 1)))
        most, second = sorted([0, 0, *(len(parts[0]) for parts in shelf.values())])[:-3:-1]
        able = dict(zip(SOURCES, (DEPTHS[-1], second, most // pieces), strict=True))
        for source, depth in able.items():
            if depth >= DEPTHS[0] and source in (args.sources or able):
                counts = _counts(args, kind, source, shelf, depth)
                yield {"kind": "unrelated", "path": kind, "source": source, "draws": args.draws, **counts}


def _counts(args: argparse.Namespace, kind: str, source: str, shelf: dict[str, Parts], most: int) -> dict[str, int]:
    """How often each verdict is given, of `most` halves and fewer."""
    rng = np.random.default_rng(args.random_seed)
    counts = {"no signal": 0, "doubtful": 0, "paired": 0}
    for draw in range(args.draws):
        depth = min(most, DEPTHS[draw % len(DEPTHS)])
        if source == "random":
            parts = random_parts(rng, kind, depth)
        else:
            parts = model_parts(rng, kind, shelf, depth, source == "other layers")
        counts[verdict(kind, parts, draw)] += 1
    return counts
