"""State-space layers in other people's checkpoints: the projections into them and out of them, by names and shapes."""

import re
from collections import defaultdict

from dropjax.io import families
from dropjax.io.checkpoints import Checkpoint
from dropjax.io.families import natural, stem
from dropjax.io.paths import Part, Paths, Reading, rows, stored, without_twins

BESIDE = re.compile(r"(?:.*?\.)?(?:A_log|x_proj|dt_proj|dt_bias)")
"""Tensors that stand beside the projections of state spaces only."""


def find(checkpoint: Checkpoint, kind: str) -> Paths | None:
    """The most numerous paths of `kind`, `state-space` or `state-space gate`; None if there are fewer than two.

    The matrix into the layer [2h, d] holds the units that go through the state space and then those that gate them (Mamba).
    If it has more than 2h rows, the gate comes first (Mamba 2). The matrix out of the layer is [d, h].
    """
    seen = families.evidence(checkpoint.shapes, None)
    places = {
        stem(name).rpartition(".")[0] for name in (*checkpoint.shapes, *checkpoint.unread) if BESIDE.fullmatch(stem(name))
    }
    pairs: dict[tuple[int, ...], list[tuple[str, str]]] = defaultdict(list)
    incomplete = []
    names = {stem(name): name for name, shape in checkpoint.shapes.items() if len(shape) == 2}
    for place in sorted(places, key=natural):
        place = re.sub(r"\.?(?:x_proj|dt_proj)$", "", place)
        both = [names.get(f"{place}.{what}".lstrip(".")) for what in ("in_proj", "out_proj")]
        if both[0] is None or both[1] is None:
            incomplete += [name for name in both if name]
            continue
        (long, width), out = checkpoint.shapes[both[0]], checkpoint.shapes[both[1]]
        if out[0] != width or long < 2 * out[1] or stored([both[0]], seen)[0]:
            incomplete += [name for name in both if name]
            continue
        if (both[0], both[1]) not in pairs[long, width, out[1]]:
            pairs[long, width, out[1]].append((both[0], both[1]))
    ranked = sorted(pairs.items(), key=lambda item: len(item[1]), reverse=True)
    if not ranked or len(ranked[0][1]) < 2:
        return None
    ((long, width, hidden), members), others = ranked[0], ranked[1:]
    found = without_twins(checkpoint, *zip(*members, strict=True))
    ours, theirs = (tuple(members[k][side] for k in found.kept) for side in (0, 1))
    gate = kind == "state-space gate"
    start = hidden if gate == (long == 2 * hidden) else 0
    label = " (gate)" if gate else " (state)"
    reading = Reading(Part(ours, False, rows(start, hidden), label), Part(theirs, True, rows(0, hidden)), "[out, in]")
    return Paths(
        kind,
        checkpoint,
        width,
        (reading,),
        told="names and shapes",
        others=tuple(f"{len(pool)} like {pool[0][0]}" for _, pool in others),
        incomplete=tuple(dict.fromkeys(incomplete)),
        twins=found.twins,
        alike=found.alike,
        notes=checkpoint.notes,
    )
