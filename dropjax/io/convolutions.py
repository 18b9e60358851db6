"""Residual blocks of convolutions in other people's checkpoints: 1×1, k×k, 1×1, by names and shapes."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from dropjax.io import families
from dropjax.io.checkpoints import Checkpoint
from dropjax.io.families import natural, stem
from dropjax.io.paths import Part, Paths, Reading, rows, without_twins
from dropjax.io.selection import Twin

NUMBERED = [
    re.compile(rf"(?:(.*)\.)?{words}")
    for words in (r"conv_?(\d)", r"layer\.(\d)\.convolution", r"(\d{1,2})", r"(\d{1,2})\.(?:0|conv)")
]
"""Names of the three convolutions: in torchvision and timm; in transformers; in sequences of layers, or of layers that each
come with a normalisation."""
EXPAND, PROJECT = "conv_pw|expand_conv|_expand_conv|conv_exp|expand", "conv_pwl|project_conv|_project_conv|project"
"""Names of the 1×1 convolutions before and after a depthwise one, if they have names rather than numbers."""
EPSILON = 1e-5
"""The number that batch normalisation adds to a variance: PyTorch's default."""


class Block(NamedTuple):
    """The convolutions of one residual block, in the order of their numbers."""

    place: str
    names: tuple[str, ...]


def blocks(checkpoint: Checkpoint) -> list[Block]:
    """Every module that holds exactly three convolutions: [h, d, 1, 1], [h, h/g, k, k] and [e, h, 1, 1]."""
    places: dict[str, list[tuple[int, str]]] = defaultdict(list)
    named: dict[str, dict[str, str]] = defaultdict(dict)
    kernels = [name for name, shape in checkpoint.shapes.items() if len(shape) == 4 and all(shape)]
    for name in sorted(kernels, key=natural):
        words = stem(name)[-families.LONGEST :]
        for pattern in NUMBERED:
            if match := pattern.fullmatch(words):
                places[match[1] or ""].append((int(match[2]), name))
        for role, pattern in (("expand", EXPAND), ("project", PROJECT)):
            if match := re.fullmatch(rf"(?:(.*?)\.)?(?:{pattern})", words):
                named[match[1] or ""][role] = name
        if match := re.fullmatch(r"(?:(.*?)\.)?\w*(?:dw|depthwise)\w*", words):
            named[match[1] or ""]["depthwise"] = name
    found = [Block(place, tuple(name for _, name in sorted(convolutions))) for place, convolutions in places.items()]
    found += [Block(place, (of["expand"], of["depthwise"], of["project"])) for place, of in named.items() if len(of) == 3]
    fitting = [b for b in found if len(b.names) == 3 and _fits([checkpoint.shapes[name] for name in b.names])]
    return list({block.names: block for block in fitting}.values())


def _fits(shapes: Sequence[tuple[int, ...]]) -> bool:
    first, middle, last = shapes
    pointwise = first[2:] == last[2:] == (1, 1)
    return pointwise and middle[0] == first[0] == last[1] and middle[0] % middle[1] == 0


@dataclass(frozen=True)
class Chains:
    """The convolutions of bottlenecks of one shape, read as they are and with their batch normalisations folded in."""

    checkpoint: Checkpoint
    blocks: tuple[Block, ...]
    folded: bool
    """Whether every convolution has a batch normalisation that can be folded into it."""
    alone: tuple[str, ...] = ()
    """The first convolution of each block that has no partner: it changes the width, or no other block has its shapes."""
    twins: tuple[Twin, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The numbers of blocks, of taps and of hidden channels, and the width."""
        first, middle, _ = (self.checkpoint.shapes[name] for name in self.blocks[0].names)
        return len(self.blocks), middle[2] * middle[3], first[0], first[1]

    def names(self, part: int) -> tuple[str, ...]:
        """The names of the first (0), middle (1) or last (2) convolution of every block."""
        return tuple(block.names[part] for block in self.blocks)

    def arrays(
        self, folded: bool
    ) -> tuple[Float[np.ndarray, "L h d"], Float[np.ndarray, "L t h h"], Float[np.ndarray, "L d h"]]:
        """The first, middle (one matrix per tap) and last convolutions, with or without their normalisations `folded` in.

        Raises `InputError`.
        """
        firsts, middles, lasts = ([self._one(block.names[part], folded) for block in self.blocks] for part in range(3))
        return (
            np.stack([one[:, :, 0, 0] for one in firsts]),
            np.stack([_taps(one) for one in middles]),
            np.stack([one[:, :, 0, 0] for one in lasts]),
        )

    def gains(self) -> Float[np.ndarray, "2 L h"] | None:
        """The gains of the normalisations after the first and middle convolutions; None if some have none."""
        if not self.folded:
            return None
        sides = ([self.checkpoint.read(f"{_norm(self.checkpoint, name)}.weight") for name in self.names(k)] for k in (0, 1))
        return np.stack([np.stack(side) for side in sides])

    def _one(self, name: str, folded: bool) -> Float[np.ndarray, "o i k l"]:
        kernel = self.checkpoint.read(name)
        if folded:
            norm = _norm(self.checkpoint, name)
            gain, variance = (self.checkpoint.read(f"{norm}.{what}") for what in ("weight", "running_var"))
            kernel = kernel * (gain / np.sqrt(np.maximum(variance, 0) + EPSILON))[:, None, None, None]
        return kernel

    def lines(self) -> list[str]:
        """Lines that tell a reader what is paired and what is not."""
        depth, taps, hidden, width = self.shape
        ways = "without batch normalisations, and with them folded in" if self.folded else "as they are"
        lines = [
            f"bottleneck: {depth} paths of three convolutions, d = {width:,}, h = {hidden:,}, {taps} taps",
            f"found by names and shapes; read {ways}",
        ]
        if self.twins:
            lines.append(f"left out as twins: {len(self.twins)}, such as {self.twins[0].copy} of {self.twins[0].of}")
        return lines + ([f"without a partner: {len(self.alone)}, such as {self.alone[0]}"] if self.alone else [])

    def record(self) -> dict[str, Any]:
        """The account as JSON holds it."""
        depth, taps, hidden, width = self.shape
        counts = {"paths": depth, "d": width, "h": hidden, "taps": taps}
        return {
            **counts,
            "told": "names and shapes",
            "folded": self.folded,
            "alone": self.alone,
            "twins": [t._asdict() for t in self.twins],
        }

    @property
    def limits(self) -> str:
        """The words to append to a verdict about what it does not cover."""
        return f", for the chosen ones only ({len(self.twins)} left out as twins)" if self.twins else ""


def _taps(kernel: Float[np.ndarray, "o i k l"]) -> Float[np.ndarray, "t o h"]:
    """The kernel as one matrix per tap. In a grouped convolution, weights between groups are zero."""
    outputs, inputs, high, wide = kernel.shape
    taps = kernel.transpose(2, 3, 0, 1).reshape(high * wide, outputs, inputs)
    if inputs == outputs:
        return taps
    full = np.zeros((high * wide, outputs, outputs), np.float32)
    for start in range(0, outputs, inputs):
        full[:, start : start + inputs, start : start + inputs] = taps[:, start : start + inputs]
    return full


def _norm(checkpoint: Checkpoint, name: str) -> str:
    """The name of the batch normalisation after a convolution, or "" if there is none."""
    words = re.sub(r"\.weight$", "", name)
    number = re.fullmatch(r"(.*?)(\d+)(?:\.0)?", words)
    guesses = [re.sub("conv(?=[^.]*$)", "bn", words), words.replace("convolution", "normalization")]
    if number:
        guesses += [f"{number[1]}{int(number[2]) + 1}", f"{number[1]}{number[2]}.1"]
    rows_ = checkpoint.shapes[name][:1]
    wanted = ("weight", "running_var")
    return next((g for g in guesses if g != words and all(checkpoint.shapes.get(f"{g}.{w}") == rows_ for w in wanted)), "")


def find_chains(checkpoint: Checkpoint) -> list[Chains]:
    """Bottlenecks with a full or grouped middle convolution, at least two of each shape, the most numerous shape first."""
    pools = _pools(checkpoint, depthwise=False)
    alone = tuple(block.names[0] for pool in pools if len(pool) == 1 or not _same_width(checkpoint, pool) for block in pool)
    found = []
    for pool in pools:
        if len(pool) > 1 and _same_width(checkpoint, pool):
            apart = without_twins(checkpoint, [b.names[0] for b in pool], [b.names[2] for b in pool])
            members = tuple(pool[k] for k in apart.kept)
            folded = all(_norm(checkpoint, name) for block in members for name in block.names)
            found.append(Chains(checkpoint, members, folded, () if found else alone, apart.twins))
    return [chains for chains in found if len(chains.blocks) > 1]


def _same_width(checkpoint: Checkpoint, pool: Sequence[Block]) -> bool:
    first, _, last = (checkpoint.shapes[name] for name in pool[0].names)
    return first[1] == last[0]


def _pools(checkpoint: Checkpoint, depthwise: bool) -> list[list[Block]]:
    """The blocks grouped by their shapes, the largest group first."""
    pools: dict[tuple[Any, ...], list[Block]] = defaultdict(list)
    for block in blocks(checkpoint):
        shapes = tuple(checkpoint.shapes[name] for name in block.names)
        if (shapes[1][1] == 1) == depthwise:
            pools[shapes].append(block)
    return sorted(pools.values(), key=len, reverse=True)


def find_depthwise(checkpoint: Checkpoint) -> Paths | None:
    """The 1×1 convolutions around depthwise ones, of the most numerous shape; None if there are fewer than two blocks.

    A depthwise convolution mixes no channels, so the hidden channels of both are the same.
    """
    pools = [pool for pool in _pools(checkpoint, depthwise=True) if _same_width(checkpoint, pool)]
    if not pools or len(pools[0]) < 2:
        return None
    chosen, *others = pools
    firsts, lasts = [b.names[0] for b in chosen], [b.names[2] for b in chosen]
    found = without_twins(checkpoint, firsts, lasts)
    hidden, width = checkpoint.shapes[firsts[0]][:2]
    ours, theirs = (tuple(names[k] for k in found.kept) for names in (firsts, lasts))
    reading = Reading(Part(ours, False, rows(0, hidden)), Part(theirs, True, rows(0, hidden)), "[out, in, 1, 1]")
    return Paths(
        "depthwise",
        checkpoint,
        width,
        (reading,),
        told="names and shapes",
        others=tuple(f"{len(pool)} like {pool[0].names[0]}" for pool in others),
        twins=found.twins,
        alike=found.alike,
        notes=checkpoint.notes,
    )
