"""What `python -m dropjax.pair --path NAME` finds in a checkpoint to be paired, and random weights of the same shapes."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dropjax.core.errors import InputError
from dropjax.io import attention, convolutions, families, halves, state_spaces
from dropjax.io.checkpoints import Checkpoint
from dropjax.io.convolutions import Chains
from dropjax.io.paths import Paths
from dropjax.pair import results
from dropjax.pairing.chains import Factors
from dropjax.pairing.evidence import Halves
from dropjax.pairing.layers import WIDEST

MLPS = ("in-out", "up-out", "gate-out", "gate-up")


@dataclass(frozen=True)
class Reordered:
    """Halves with another order on each side."""

    halves: Halves
    ours: Int[np.ndarray, " L"]
    theirs: Int[np.ndarray, " L"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (L, h, d) of the halves."""
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
    """Paths of one kind that can be paired."""

    kind: str
    ours: list[str]
    theirs: list[str]
    readings: list[tuple[str, Halves]]
    head: int
    lines: list[str]
    limits: str
    whole: bool
    record: dict[str, Any]


@dataclass(frozen=True)
class Layers:
    """Attentions and MLPs of the same layers, by their names."""

    attentions: list[str]
    mlps: list[str]
    arrays: Callable[[], tuple[Float[np.ndarray, "L q d"], Float[np.ndarray, "L h d"], Float[np.ndarray, "L h d"]]]
    """What attention writes, and what the MLP reads and writes, read when it is called."""
    width: int
    limits: str
    whole: bool


def found(args: argparse.Namespace, checkpoint: Checkpoint, kinds: Sequence[str]) -> Iterator[Found | Chains | Layers]:
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
        elif kind == "layer":
            yield from _layers(args, checkpoint)
        elif kind == "bottleneck":
            yield from convolutions.find_chains(checkpoint)
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


def _layers(args: argparse.Namespace, checkpoint: Checkpoint) -> Iterator[Layers]:
    """The layers, if there are as many attentions as MLPs and their names show which belong together."""
    paths = attention.find(checkpoint, "value-output", args.heads or 0, args.transposed)
    try:
        mlps = halves.find_halves(checkpoint, args.ins, args.outs, args.gate, args.transposed, args.fold_norm)
    except InputError:
        return
    if paths is None or paths.width != mlps.width or mlps.width > WIDEST:
        return
    outputs, ins = paths.readings[-1].theirs.names, mlps.sides[mlps.first].names
    partners = halves.true_partners(outputs, ins)
    if partners is None:
        return

    def arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        whole = paths.halves(paths.readings[-1])
        reads, writes = mlps.halves(mlps.first, "out").units(0, mlps.hidden)
        return whole.units(0, whole.shape[1])[1], reads[partners], writes[partners]

    limits = "".join(dict.fromkeys((paths.limits, mlps.account.limits)))
    about = mlps.width, limits, paths.whole and mlps.account.whole
    yield Layers(list(outputs), [ins[k] for k in partners], arrays, *about)


def left_unpaired(checkpoint: Checkpoint, missing: Sequence[str]) -> list[str]:
    """Lines about tensors with the names of paths of the missing kinds, so that nothing is left out silently."""
    shapes = {**checkpoint.shapes, **checkpoint.unread}
    of_attention = [n for n, shape in shapes.items() if len(shape) > 1 and families.reason_to_skip(n) == "of attention"]
    of_mlps = [n for n in checkpoint.unread if families.is_half(n) and not families.reason_to_skip(n)]
    wanted = {"of attention": of_attention if {"query-key", "value-output"} & set(missing) else []}
    wanted["of MLPs"] = of_mlps if not set(MLPS) - set(missing) else []
    lines = []
    for what, names in wanted.items():
        if names:
            unread = sum(name in checkpoint.unread for name in names)
            why = f"{unread} of them not read" if unread else "no two layers of a layout that is known"
            lines.append(f"called {what} and in no pairing above: {len(names)}, such as {names[0]} ({why})")
    return lines
