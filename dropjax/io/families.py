"""Finding the halves of MLPs in a checkpoint: by the names that public models give them, or else by their shapes.

To read a stored matrix as a half, three facts are needed: whether it is an input half, whether it is stored [out, in] or
[in, out], and which of its lengths is d. Any two give the third. Names tell the first; biases and normalisations tell the
others.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

Shapes = Mapping[str, tuple[int, ...]]


class Family(NamedTuple):
    """The names that one family of models gives the halves of an MLP: regular expressions for the last words of a name."""

    up: str
    """The input half. In a gated MLP it is the one that the gate multiplies; in a fused one, the matrix that holds both."""
    out: str = ""
    """The output half. If it is empty, `up` names both, and the one with the higher number is the output half."""
    gate: str = ""
    """The gate, which goes through the activation; empty if there is none."""
    within: str = ""
    """The module that the names must be in."""
    told: bool = True
    """Whether the names tell which half comes first. If they do not, biases or normalisations must confirm it."""
    gate_second: bool = False
    """Whether the gate is the second part of a fused matrix, as in diffusers' GEGLU."""


MLP = (
    r"(?:^|[._])(?:mlp(?:s|_?block)?|ffns?|ffw|ffm|ff|feed_?forward|moe|(?:shared_)?experts?|denserelu\w*)"
    r"\d*(?:[._]\d+)*(?:[._]|$)"
)
"""The part of a name that stands for an MLP, as a regular expression."""
_DOWN, _UP = (f"(?:adapter_)?{way}(?:_proj(?:ect)?|_project|_linear)?" for way in ("down", "up"))
FAMILIES = (
    Family(_DOWN, _UP, within="adapt|bottleneck"),  # adapters: d → h → d with h < d
    Family("up_proj", "down_proj", "gate_proj"),  # Llama, Mistral, Qwen, Gemma, DeepSeek
    Family("w3", "w2", "w1"),  # Llama as published, Mixtral
    Family("w2", "w3", "w1"),  # EVA-02; its shapes distinguish it from the one above
    Family("wi_1", "wo", "wi_0"),  # T5 1.1
    Family("fc_2", "proj", "fc_1"),  # LitGPT
    Family("fc1_x", "fc2", "fc1_g"),  # timm's SwiGLU
    Family("(?:w_?)?up", "(?:w_?)?down", "(?:w_?)?gate"),
    Family("gate_up_proj|gate_and_up_proj|up_gate_proj", "down_proj"),  # Phi-3: fused
    Family(r"(?:net\.)?0\.proj", r"(?:net\.)?2", within=MLP, gate_second=True),  # diffusers
    Family("w12", "w3"),  # DINOv2: fused
    Family("up_proj", "down_proj"),  # MPT, Nemotron
    Family("dense_h_to_4h", "dense_4h_to_h"),  # GPT-NeoX, BLOOM, Falcon, GLM
    Family(r"intermediate\.dense", r"output\.dense"),  # BERT
    Family("intermediate_dense", "output_dense"),  # wav2vec 2.0
    Family("c_fc", "c_proj"),  # GPT-2, CLIP
    Family("fc_in", "fc_out"),  # GPT-J
    Family("[Ww]_?i(?:n)?", "[Ww]_?o(?:ut)?"),  # T5, ModernBERT, ProteinMPNN
    Family("linear_in|lin_in|inp", "linear_out|lin_out|out"),  # the paper's classes
    Family("ffn", "ffn_output"),  # ALBERT
    Family("fc", "proj", within=MLP),  # LitGPT
    Family("key", "value", within=MLP),  # RWKV's channel mixing
    Family("up", "down", within=MLP),
    Family(r"(?:fc|lin|linear(?:_fc)?|dense|layer|mlp|pwconv|proj|w|W|Dense)?_?\d+"),  # BART, nn.Transformer, nn.Sequential
    Family(r"\d+(?:\.(?:0|proj))?"),  # x-transformers
    Family(_DOWN, _UP, told=False),  # adapters, or MLPs
)
"""The families, the most specific first: a matrix belongs to the first one in which it and its partners fit."""
ADAPTERS = r"(?:^|[._])(?:lora|loha|lokr|hada|ia3|dora|oft|boft)(?:[._]|$)"
"""Names of low-rank and other changes to another matrix."""
ATTENTION = r"(?:^|[._])(?:\w*att(?:n|entions?)?|mha)\d*(?:_(?!layers|blocks)|\.|$)"
"""The part of a name that stands for attention alone. (Layers in `attn_layers` have MLPs as well.)"""
PROJECTIONS = (
    r"(?:to_)?(?:[qkv]|qk|kv|qkv|w[qkv]|Wqkv)(?:_[ab])?(?:_proj\w*|_lin|_linear)?|o_proj|to_out(?:\.0)?|in_proj_weight"
    r"|query(?:_key_value)?|key|value|c_attn|proj_qkv|(?:query|key|value)_(?:proj|layer)"
)
"""Last words of the names of attention's projections."""
MIXERS = "in_proj|out_proj|dt_proj|x_proj"
"""Last words of the names of projections of attention, state spaces and convolutions."""
NORMS = r"norm|(?:^|[._/])ln(?:[._/\d]|$)"
"""Words in the names of normalisations."""
LONGEST = 300
"""The number of characters at the end of a name that are looked at, because a long name can be made slow to match."""
GATES = re.compile(r"(^|[._])(gate\w*|w1|wi_0|wg)$")
"""Names of the gate, for MLPs that are found by shapes and have twice as many input halves as output halves."""


class Mlp(NamedTuple):
    """The matrices of one MLP."""

    up: str
    out: str
    gate: str
    told: str
    """The evidence of which half comes first."""
    layout: str
    """The evidence of how the matrices are stored; empty if there is none."""
    transposed: bool
    """Whether they are stored [in, out]."""
    known: bool = True
    """Whether `told` is evidence rather than a guess."""
    fused: bool = False
    gate_second: bool = False


class Found(NamedTuple):
    """MLPs of one kind and one shape."""

    mlps: list[Mlp]
    hidden: int
    width: int

    @property
    def words(self) -> str:
        """The number of MLPs, and the names of one."""
        return f"{len(self.mlps)} like {self.mlps[0].up} with {self.mlps[0].out}"


def natural(name: str) -> list[tuple[bool, int, str]]:
    """A key that sorts layer 10 after layer 9. It compares numbers by their length first: they may be too long for `int`."""
    words = re.split(r"0*([0-9]+)", name)
    return [(k % 2 == 1, len(word) if k % 2 else 0, word) for k, word in enumerate(words)]


def stem(name: str) -> str:
    """The layer's name without `weight` or `kernel`, its words separated by dots."""
    return re.sub(r"(?:^|\.)(?:weight|kernel|weight_packed)$", "", name.replace("/", ".").removesuffix(".qweight"))


def reason_to_skip(name: str) -> str:
    """What the matrix is by its name, if it is no half of an MLP; else empty."""
    words = stem(name)[-LONGEST:]
    if re.search(ADAPTERS, words, re.IGNORECASE):
        return "of adapters"
    mlp = max((m.start() for m in _overlapping(MLP, words)), default=-1)
    attention = max((m.start() for m in _overlapping(ATTENTION, words)), default=-1)
    if attention > mlp or (mlp < 0 and re.search(rf"(?:^|\.)(?:{PROJECTIONS})$", words)):
        return "of attention"
    return "that mix tokens" if mlp < 0 and re.search(rf"(?:^|\.)(?:{MIXERS})$", words) else ""


def _overlapping(pattern: str, text: str) -> Iterator[re.Match[str]]:
    return re.finditer(f"(?={pattern})", text, re.IGNORECASE)


class Evidence(NamedTuple):
    """A checkpoint's shapes, and what its vectors show about its matrices."""

    shapes: Shapes
    norms: frozenset[int]
    """Lengths of normalisations, which are d in most networks."""
    transposed: bool | None = None
    """How the user says that all matrices are stored."""

    def width(self, shape: Sequence[int]) -> int | None:
        """The axis of a matrix whose length is d, by the lengths of normalisations."""
        known = set(shape) & self.norms
        return known.pop() if len(known) == 1 and len(set(shape)) == 2 else None

    def stored(self, names: Sequence[str]) -> tuple[bool | None, str]:
        """Whether matrices are stored [in, out], and the evidence: a bias has one number for each output."""
        if self.transposed is not None:
            return self.transposed, "--transposed" if self.transposed else "--no-transposed"
        says = set()
        for name in names:
            bias = self.shapes.get(re.sub("(weight|kernel)$", "bias", name), ())
            rows, columns = self.shapes[name]
            if len(bias) == 1 and rows != columns and bias[0] in (rows, columns):
                says.add(bias[0] == columns)
        if len(says) == 1:
            return says.pop(), "biases"
        return (True, "names") if all(name.endswith("kernel") for name in names) else (None, "")


def evidence(shapes: Shapes, transposed: bool | None) -> Evidence:
    """What the checkpoint's vectors show."""
    vectors = {name: shape[0] for name, shape in shapes.items() if len(shape) == 1}
    return Evidence(shapes, frozenset(n for name, n in vectors.items() if re.search(NORMS, name, re.IGNORECASE)), transposed)


# By name


def by_name(names: Sequence[str], seen: Evidence) -> list[Found]:
    """The MLPs found by names, the most numerous kind first."""
    left, mlps = {name: stem(name) for name in sorted(names, key=natural)}, []
    for family in FAMILIES:
        for up, out, gate in _members(family, left):
            mlp = oriented(up, out, gate, family, seen)
            if mlp is not None and up in left and out in left and (not gate or gate in left):
                mlps.append(mlp)
                for name in (up, out, gate):
                    left.pop(name, None)
    return pooled(mlps, seen.shapes)


def _members(family: Family, stems: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """The input half, output half and gate (or "") of every module in which a family's names are complete."""
    places: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    roles = {"up": family.up, "out": family.out, "gate": family.gate}
    compiled = {role: re.compile(rf"(?:(.*?)\.)?({words})") for role, words in roles.items() if words}
    for name, words in stems.items():
        for role, pattern in compiled.items():
            if (match := pattern.fullmatch(words)) and _stands_in(family.within, match[1]):
                numbered = "" if family.out else "\n" + re.split(r"\d", match[2])[0]
                places[(match[1] or "") + numbered][role].append(name)
    if not family.out:
        return [(of["up"][0], of["up"][1], "") for of in places.values() if len(of["up"]) == 2]
    return [
        (of["up"][0], of["out"][0], of["gate"][0] if family.gate else "")
        for of in places.values()
        if len(of) == len(compiled) and all(len(found) == 1 for found in of.values())
    ]


def is_half(name: str) -> bool:
    """Whether a matrix has a name that some family gives to a half of an MLP."""
    words = stem(name)
    for family in FAMILIES:
        for role in filter(None, (family.up, family.out, family.gate)):
            match = re.fullmatch(rf"(?:(.*?)\.)?({role})", words)
            if match and _stands_in(family.within, match[1]):
                # A bare number is the name of anything.
                return not match[2].isdecimal() or _stands_in(MLP, match[1])
    return False


def _stands_in(pattern: str, place: str | None) -> bool:
    return not pattern or bool(re.search(pattern, (place or "")[-LONGEST:], re.IGNORECASE))


def oriented(up: str, out: str, gate: str, family: Family, seen: Evidence) -> Mlp | None:
    """The MLP of these matrices, or None if their shapes do not fit."""
    (rows, columns), (out_rows, out_columns) = seen.shapes[up], seen.shapes[out]
    if gate and seen.shapes[gate] != (rows, columns):
        return None
    if (out_rows, out_columns) != (columns, rows):
        # A fused input half: [2h, d] with [d, h], or [d, 2h] with [h, d].
        straight, flipped = (out_rows, 2 * out_columns) == (columns, rows), (out_columns, 2 * out_rows) == (rows, columns)
        stored, _ = seen.stored([up])
        if gate or not (straight or flipped) or stored not in (None, flipped):
            return None
        return Mlp(up, out, "", "names", "shapes", flipped, fused=True, gate_second=family.gate_second)
    transposed, layout = seen.stored([name for name in (up, out, gate) if name])
    if not family.told:
        return _bottleneck(up, out, transposed, layout, seen)
    width = seen.width((rows, columns))
    if transposed is None and width is not None:
        transposed, layout = width == rows, "normalisations"
    elif width is not None and not gate and width != (rows if transposed else columns):
        return Mlp(up, out, "", "names, which biases and normalisations contradict", layout, bool(transposed), False)
    return Mlp(up, out, gate, "names", layout, bool(transposed))


def _bottleneck(down: str, up: str, transposed: bool | None, layout: str, seen: Evidence) -> Mlp:
    """The MLP of `down` and `up`, which may be an adapter, d → h → d with h < d, or the halves of an MLP with h > d.

    Normalisations decide; without them, biases must at least show that `down` has fewer outputs than inputs.
    """
    rows, columns = seen.shapes[down]
    width, named = seen.width((rows, columns)), rows > columns  # `down` has fewer outputs than inputs: so it is stored
    if width is not None:
        adapter, told, known = width == max(rows, columns), "normalisations", transposed in (None, named)
    else:
        adapter = known = transposed == named
        told = f"names and {layout}".removesuffix(" and names") if known else "h > d"
    first, second = (down, up) if adapter else (up, down)
    return Mlp(first, second, "", told, layout or "names", named if transposed is None else transposed, known)


def pooled(mlps: Sequence[Mlp], shapes: Shapes) -> list[Found]:
    """The MLPs grouped by kind, shape and storage; the most numerous group first, and of equal ones the largest."""
    pools: dict[tuple, list[Mlp]] = defaultdict(list)
    for mlp in mlps:
        rows, columns = shapes[mlp.out]
        width, hidden = (columns, rows) if mlp.transposed else (rows, columns)
        pools[bool(mlp.gate), mlp.fused, mlp.gate_second, mlp.transposed, hidden, width].append(mlp)
    found = [
        Found(sorted(pool, key=lambda mlp: natural(mlp.up)), hidden, width) for (*_, hidden, width), pool in pools.items()
    ]
    return sorted(found, key=lambda one: (len(one.mlps), one.hidden * one.width), reverse=True)


# By shape


def by_shape(names: Sequence[str], seen: Evidence) -> list[Found]:
    """The MLPs found by shapes alone: as many matrices [h, d] or [2h, d] as [d, h], and at least 2 of each.

    h is taken to be larger than d unless normalisations show otherwise. The n-th input half and the n-th output half need
    not be a pair.
    """
    shapes: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name in sorted(names, key=natural):
        shapes[seen.shapes[name]].append(name)
    found: list[Mlp] = []
    for (rows, columns), tall in shapes.items():
        wide = shapes.get((columns, rows), [])
        if rows > columns and len(wide) >= 2 and len(tall) == len(wide):
            found += _untold(tall, wide, seen)
        elif rows != columns and len(wide) >= 2 and len(tall) == 2 * len(wide):
            gates = [name for name in tall if GATES.search(stem(name))]
            ups = [name for name in tall if name not in gates]
            if len(gates) == len(ups):
                transposed, layout = seen.stored([*tall, *wide])
                if transposed is None and (width := seen.width((rows, columns))) is not None:
                    transposed, layout = width == rows, "normalisations"
                threes = zip(ups, wide, gates, strict=True)
                found += [Mlp(*three, "shapes and names", layout, bool(transposed)) for three in threes]
        for fused, transposed in (((columns, rows // 2), False), ((columns // 2, rows), True)):
            outs = shapes.get(fused, []) if (columns if transposed else rows) % 2 == 0 else []
            contradicted = seen.stored(tall)[0] not in (None, transposed)
            if len(outs) == len(tall) >= 2 and fused != (rows, columns) and not contradicted:
                found += [
                    Mlp(*both, "", "shapes", "shapes", transposed, fused=True) for both in zip(tall, outs, strict=True)
                ]
    return pooled(found, seen.shapes)


def _untold(tall: Sequence[str], wide: Sequence[str], seen: Evidence) -> list[Mlp]:
    transposed, layout = seen.stored([*tall, *wide])
    width = seen.width(seen.shapes[tall[0]])
    known = transposed is not None and width is not None
    told = "h > d" if width is None else "normalisations and biases" if known else "normalisations"
    expands = width is None or width == min(seen.shapes[tall[0]])
    ups, outs = (tall, wide) if expands != bool(transposed) else (wide, tall)
    return [Mlp(*both, "", told, layout, bool(transposed), known) for both in zip(ups, outs, strict=True)]


def shapes_in_words(names: Sequence[str], shapes: Shapes) -> str:
    """The number of matrices of each shape, for the first few shapes."""
    counts = Counter(shapes[name] for name in names)
    return ", ".join(f"{count} of {list(shape)}" for shape, count in list(counts.items())[:4])
