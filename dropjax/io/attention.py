"""Attention's projections in other people's checkpoints: query with key, and value with output, by names and shapes."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from dropjax.core.errors import InputError
from dropjax.io import families
from dropjax.io.checkpoints import Checkpoint
from dropjax.io.families import Evidence, natural, stem
from dropjax.io.paths import Part, Paths, Reading, repeated, rows, stored, without_twins

WORDS = (
    r"{}_proj(?:_weight|ect(?:ion)?)?",  # Llama, OPT, BART
    r"(?:to_|w|W_?|linear_|lin_|att?n?_)?{}",  # diffusers, Llama as published, Conformer, T5
    r"{}_(?:lin|linear|layer)",  # DistilBERT
    r"(?:self|(?<=attention\.)attention)\.{}",  # BERT, ViT
)
"""Names of separate projections; the braces stand for q, k, v or query, key, value."""
LETTERS = {"query": ("q", "query", "Q"), "key": ("k", "key", "K"), "value": ("v", "value", "V")}
FUSED = {
    "qkv": r"c_attn|(?:to_|w|W_?|linear_|proj_|att_)?qkv(?:_proj|_linear)?|W_pack|in_proj_weight|att_proj|query_key_value",
    "kv": r"(?:to_|w|W_?|linear_|proj_)?kv(?:_proj)?|key_value",
}
"""Names of matrices that hold several projections in this order; in GPT-NeoX and Megatron, in this order for each head."""
BY_HEAD = r"query_key_value|linear_qkv"
OUTPUT = (
    r"o_proj|out_proj(?:_weight)?|(?:to_|w|W_?|linear_)?o(?:ut)?(?:\.0)?|output(?:\.dense)?|dense|out_lin|c_proj"
    r"|proj|linear_(?:proj|out)|out(?:_linear|put_proj)"
)
"""Names of the projection back to the residual stream."""
HEAD_NORMS = re.compile(r"(?:[qk]_(?:layer_?)?norm|norm_[qk]|(?:query|key)_norm)")
"""Names of normalisations of single heads; their length is the size of a head."""
COUNTS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "attention_heads")
"""Names of the number of heads in a config.json."""


class Projection(NamedTuple):
    """One projection of one layer: `count` rows from `start` (columns if it is stored [in, out])."""

    name: str
    fused: str = ""
    """`qkv` or `kv` if the matrix holds more than this projection."""


class Layer(NamedTuple):
    """One layer's projections."""

    place: str
    parts: Mapping[str, Projection]


def layers(names: Sequence[str]) -> list[Layer]:
    """Every module with projections of attention, complete or not."""
    places: dict[tuple[str, int], dict[str, Projection]] = defaultdict(dict)
    projections = [name for name in names if families.reason_to_skip(name) == "of attention"]
    for name in sorted(projections, key=natural):
        for place, key, projection in _roles(name):
            places[place].setdefault(key, projection)
    outputs = _outputs(names, {place for place, _ in places})
    merged: dict[str, dict[str, Projection]] = {}
    for (place, _), parts in places.items():
        for role, projection in parts.items():
            merged.setdefault(place, {}).setdefault(role, projection)
    return [
        Layer(place, parts | ({"output": Projection(outputs[place])} if place in outputs else {}))
        for place, parts in merged.items()
    ]


def _roles(name: str) -> Iterator[tuple[tuple[str, int], str, Projection]]:
    words = stem(name)[-families.LONGEST :]
    for fused, pattern in FUSED.items():
        if match := re.fullmatch(rf"(?:(.*?)\.)?(?:{pattern})", words):
            for role in ("query", "key", "value")[3 - len(fused) :]:
                yield (match[1] or "", -1), role, Projection(name, fused)
            return
    for role, letters in LETTERS.items():
        for k, template in reversed(list(enumerate(WORDS))):
            pattern = template.replace("{}", f"(?:{'|'.join(letters)})")
            if match := re.fullmatch(rf"(?:(.*?)\.)?(?:{pattern})", words):
                yield (match[1] or "", k), role, Projection(name)
                return


def _outputs(names: Sequence[str], places: set[str]) -> dict[str, str]:
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        words = stem(name)[-families.LONGEST :]
        for match in re.finditer(r"(?:^|\.)", words):
            place, last = words[: match.start()], words[match.end() :]
            if place in places and re.fullmatch(OUTPUT, last):
                found[place].append(name)
    return {place: found_here[0] for place, found_here in found.items() if len(found_here) == 1}


class Member(NamedTuple):
    """The two parts of one layer, and how they would be read."""

    ours: str
    theirs: str
    shape: tuple[Any, ...]
    """What layers that are paired together share: lengths, positions of the rows, and possible layouts."""


def find(checkpoint: Checkpoint, kind: str, heads: int = 0, transposed: bool | None = None) -> Paths | None:
    """The most numerous paths of `kind` (`query-key` or `value-output`); None if there are fewer than two.

    `heads` is the number of query heads, needed for grouped heads and for matrices that hold all projections head by head.
    If it is 0, a config.json beside the file or the normalisations of single heads give it. Raises `InputError` if it
    is needed and unknown, or does not divide the query units.
    """
    seen = families.evidence(checkpoint.shapes, transposed)
    names = [name for name, shape in checkpoint.shapes.items() if len(shape) == 2 and all(shape)]
    ours, theirs = ("query", "key") if kind == "query-key" else ("value", "output")
    pools: dict[tuple[Any, ...], list[Member]] = defaultdict(list)
    incomplete = []
    for layer in layers(names):
        member = None
        if ours in layer.parts and theirs in layer.parts:
            member = _member(layer, kind, seen)
        if member is None:
            incomplete += [layer.parts[role].name for role in (ours, theirs) if role in layer.parts]
        else:
            pools[member.shape].append(member)
    unread = [n for n, s in checkpoint.unread.items() if len(s) > 1 and families.reason_to_skip(n) == "of attention"]
    ranked = sorted(pools.items(), key=lambda item: len(item[1]), reverse=True)
    if not ranked or len(ranked[0][1]) < 2:
        return None
    (shape, members), others = ranked[0], ranked[1:]
    found = without_twins(checkpoint, [m.ours for m in members], [m.theirs for m in members])
    if len(found.kept) < 2:
        return None
    members = [members[k] for k in found.kept]
    size = _head_size(checkpoint, shape[0], heads)
    return Paths(
        kind,
        checkpoint,
        width=shape[2],
        readings=tuple(_readings(checkpoint, kind, members, size)),
        head=size,
        others=tuple(f"{len(pool)} like {pool[0].ours}" for _, pool in others),
        incomplete=tuple(dict.fromkeys(incomplete)),
        unreadable=tuple(unread),
        twins=found.twins,
        alike=found.alike,
        notes=checkpoint.notes,
    )


def _member(layer: Layer, kind: str, seen: Evidence) -> Member | None:
    """The two parts of the layer, or None if their shapes do not fit. Lengths: query units, key and value units, d."""
    first, second = ("query", "key") if kind == "query-key" else ("value", "output")
    ours, theirs = layer.parts[first], layer.parts[second]
    output = layer.parts.get("output")
    our_way, told = (
        stored([ours.name], seen)
        if ours.name == theirs.name or second == "output"
        else stored([ours.name, theirs.name], seen)
    )
    rows_, columns = seen.shapes[ours.name]
    if ours.fused == "qkv":  # its longer side holds several projections
        our_way, told = (rows_ < columns, "shapes") if rows_ != columns else (our_way, told)
    ways = [our_way] if our_way is not None else [False, True]
    width = columns if not ways[0] else rows_
    long = rows_ if not ways[0] else columns
    queries, groups = _lengths(layer, first, long, width, seen)
    if not queries or not groups or queries % groups:
        return None
    if second == "key":
        their_way = ways
        if not theirs.fused and seen.shapes[theirs.name] != ((width, groups) if ways[0] else (groups, width)):
            return None
    else:
        assert output is not None
        shape = seen.shapes[output.name]
        if set(shape) != {width, queries} or len(shape) != 2:
            return None
        if width != queries:
            their_way = [shape == (queries, width)]
        else:
            way, _ = stored([output.name], seen)
            same = ours.name.endswith(".weight") == output.name.endswith(".weight")
            if ours.fused and our_way is not None and rows_ != columns:
                way = our_way  # as GPT-2's Conv1D stores all its layers
            their_way = [way] if way is not None else (ways if same and our_way is not None else [False, True])
    key = (queries, groups, width, ours.fused, theirs.fused, tuple(ways), tuple(their_way), _by_head(ours), told)
    return Member(ours.name, theirs.name, key)


def _by_head(projection: Projection) -> bool:
    return projection.fused == "qkv" and bool(re.search(rf"(?:^|\.)(?:{BY_HEAD})$", stem(projection.name)))


def _lengths(layer: Layer, first: str, long: int, width: int, seen: Evidence) -> tuple[int, int]:
    """The numbers of query units and of key or value units; 0 if they are unclear."""
    projection = layer.parts[first]
    output = layer.parts.get("output")
    across = 0
    if output is not None and width in seen.shapes[output.name]:
        one, other = seen.shapes[output.name]
        across = other if one == width else one
    if projection.fused == "qkv":
        queries = long // 3 if long % 3 == 0 and across in (0, width, long // 3) else across
        rest = long - queries
        return (queries, rest // 2) if queries and rest > 0 and rest % 2 == 0 else (0, 0)
    if first == "query":
        key = layer.parts["key"]
        if key.fused:
            return long, max(set(seen.shapes[key.name]) - {width} or {width}) // 2
        others = seen.shapes[key.name]
        return long, others[0] if others[1] == width else others[1]
    groups = long // 2 if projection.fused else long
    return across or groups, groups


def _head_size(checkpoint: Checkpoint, queries: int, heads: int) -> int:
    """The units of a head, from the user, single heads' normalisations or a config.json beside the file; 0 if unknown."""
    if heads:
        if queries % heads:
            raise InputError(f"{checkpoint.path}: --heads: expected a number that divides {queries} units, got {heads}")
        return queries // heads
    lengths = {s[0] for n, s in checkpoint.shapes.items() if len(s) == 1 and HEAD_NORMS.search(stem(n))}
    if len(lengths) == 1 and queries % (size := lengths.pop()) == 0 and size < queries:
        return size
    return _configured(checkpoint, queries)


def _configured(checkpoint: Checkpoint, queries: int) -> int:
    try:
        config = json.loads((checkpoint.path.parent / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return 0
    for one in (config, config.get("text_config")) if isinstance(config, dict) else ():
        if isinstance(one, dict):
            counts = [one[name] for name in COUNTS if isinstance(one.get(name), int) and one[name] > 0]
            size = one.get("head_dim")
            if isinstance(size, int) and size > 0 and queries % size == 0:
                return size
            if counts and queries % counts[0] == 0:
                return queries // counts[0]
    return 0


def _readings(checkpoint: Checkpoint, kind: str, members: Sequence[Member], head: int) -> Iterator[Reading]:
    """The ways to read the parts that names and shapes allow."""
    queries, groups, _, our_fused, their_fused, ways, their_ways, by_head, told = members[0].shape
    names = tuple(m.ours for m in members), tuple(m.theirs for m in members)
    if (groups != queries or by_head) and not head:
        raise InputError(
            f"{checkpoint.path}: {kind}: expected the number of heads, which separates the rows of {names[0][0]}, by "
            "--heads or in a config.json beside it, got none"
        )
    pairs = [(way, way) for way in ways] if kind == "query-key" else [(a, b) for a in ways for b in their_ways]
    orders = [False, True] if by_head else [False]
    for interleaved in orders:
        cut = _cuts(queries, groups, head, our_fused, their_fused, interleaved)
        ours, theirs = ("query", "key") if kind == "query-key" else ("value", "output")
        for way, their_way in pairs:
            label, their_label = f" ({ours})" if our_fused else "", f" ({theirs})" if their_fused else ""
            words = " and ".join(dict.fromkeys("[in, out]" if one else "[out, in]" for one in (way, their_way)))
            words += f" (from {told})" if told else ""
            words += ", head by head" if interleaved else ""
            yield Reading(
                Part(names[0], way, cut[ours], label),
                Part(names[1], their_way != (theirs == "output"), cut[theirs], their_label),
                words,
            )


def _cuts(
    queries: int, groups: int, head: int, our_fused: str, their_fused: str, interleaved: bool
) -> dict[str, Int[np.ndarray, " h"]]:
    """The rows of each projection in its matrix; grouped heads of keys and values are repeated for each query head."""
    size = head or queries
    if interleaved:  # each group has the heads of its queries, then one of a key and one of a value
        per = queries // groups
        unit = np.arange(queries)
        group, within = unit // size // per, unit % size
        first = group * (per + 2) * size
        return {
            "query": first + unit // size % per * size + within,
            "key": first + per * size + within,
            "value": first + (per + 1) * size + within,
            "output": rows(0, queries),
        }
    full = {"qkv": queries, "kv": 0}
    key = full.get(their_fused if their_fused else "", 0)
    value = {"qkv": queries + groups, "kv": groups}.get(our_fused, 0)
    grouped = size if groups != queries else queries
    return {
        "query": rows(0, queries),
        "key": repeated(key, groups, queries, grouped),
        "value": repeated(value, groups, queries, grouped),
        "output": rows(0, queries),
    }
