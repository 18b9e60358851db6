"""`python -m dropjax.trace A B`: which layers of one checkpoint are layers of another, from the weights alone."""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dropjax import console
from dropjax.core.errors import InputError
from dropjax.core.solution import _versions, plain
from dropjax.io import checkpoints
from dropjax.pair.found import Found, found
from dropjax.pairing.origins import Origins, trace
from dropjax.runtime import device
from dropjax.runtime.writing import atomic_write, ensure_writable

KINDS = ("in-out", "up-out", "query-key", "value-output", "depthwise")
"""The paths by which layers are recognised. The attention and the MLP of a layer are traced separately."""


def parser() -> console.Parser:
    """The command line's arguments."""
    p = console.Parser(
        prog="python -m dropjax.trace",
        description="Which layers of checkpoint A are layers of B: fine-tuned, merged, permuted, rescaled or quantised.",
        done="0 every layer of A has one origin in B; 1 not every one",
    )
    p.add_argument("a", type=Path, metavar="A", help=".safetensors, .pth or .bin, or an .index.json")
    p.add_argument("b", type=Path, metavar="B", help="the same")
    p.add_argument("--path", choices=(*KINDS, "all"), default="all", help="trace only paths of this kind")
    p.add_argument("--heads", type=int, metavar="N", help="number of query heads (default: from a config.json beside each)")
    p.add_argument("--random-seed", type=int, default=0)
    p.add_argument("--json", type=Path, metavar="FILE", help="the whole record as JSON")
    p.add_argument("--quiet", action="store_true", help="print only the layers' names")
    return p


def main(argv: list[str] | None = None) -> int:
    """Traces one checkpoint to another; the exit status is 0 if every layer has an origin, 1 for anything else."""
    start = time.perf_counter()
    p = parser()
    args = p.parse_args(argv)
    if args.heads is not None and args.heads < 1:
        p.error(f"--heads: expected at least 1, got {args.heads}")
    if args.json is not None:
        ensure_writable(args.json)
    ours, theirs = (_paths(args, path) for path in (args.a, args.b))
    if not ours:
        raise InputError(f"{args.a}: expected at least 2 MLPs, attentions or depthwise blocks by their names, got none")
    device.configure()
    records = {}
    for kind, one in ours.items():
        records[kind] = record = _traced(args, one, theirs.get(kind))
        _print(kind, record, args.quiet)
    verdicts = {record["verdict"] for record in records.values()}
    verdict = verdicts.pop() if len(verdicts) == 1 else "in part"
    result = {"verdict": verdict, "paths": records, "seconds": time.perf_counter() - start, "device": device.describe()}
    if args.json is not None:
        text = json.dumps(plain(result | {"versions": _versions()}), indent=1, allow_nan=False) + "\n"
        atomic_write(args.json, lambda path: path.write_text(text))
    if not args.quiet:
        print(f"verdict: {verdict}\ntime: {result['seconds']:.1f} s", flush=True)
    return console.SOLVED if verdict == "traced" and all(one.whole for one in ours.values()) else console.NOT_SOLVED


def _paths(args: argparse.Namespace, path: Path) -> dict[str, Found]:
    kinds = KINDS if args.path == "all" else (args.path,)
    options = argparse.Namespace(ins=None, outs=None, gate=None, transposed=None, fold_norm=None, heads=args.heads)
    checkpoint = checkpoints.open_checkpoint(path)
    several = kinds if len(kinds) > 1 else (*kinds, "")  # a single kind that is not there is none, too, and no error
    return {one.kind: one for one in found(options, checkpoint, several) if isinstance(one, Found)}


def _traced(args: argparse.Namespace, ours: Found, theirs: Found | None) -> dict[str, Any]:
    """The JSON record of one kind of path."""
    left_out = {"limits": ours.limits.removeprefix(", "), "whole": ours.whole}
    why = "B has no such path" if theirs is None else ""
    if theirs is not None:
        widths = [one.readings[0][1].shape[2] for one in (ours, theirs)]
        why = f"A has d = {widths[0]:,}, B d = {widths[1]:,}" if widths[0] != widths[1] else ""
    if theirs is None or why:
        layers = [{"layer": name, "verdict": "none", "origin": None} for name in ours.ours]
        return {"verdict": "none", "why": why, "layers": layers, **left_out}
    size = ours.head if ours.head == theirs.head and ours.head else 1
    answer = trace(ours.readings[0][1], theirs.readings[0][1], size, args.random_seed)
    return {
        "verdict": answer.verdict,
        "needed": answer.clear,
        "layers": [_layer(answer, k, ours, theirs) for k in range(len(ours.ours))],
        **left_out,
    }


def _layer(answer: Origins, k: int, ours: Found, theirs: Found) -> dict[str, Any]:
    verdict, best = answer.verdicts[k], int(answer.best[k])
    margin = float(answer.margin[k])
    return {
        "layer": ours.ours[k],
        "verdict": verdict,
        "origin": theirs.ours[best] if verdict == "from" else None,
        "likeliest": theirs.ours[best],
        "likeness": answer.score[k, best],
        "certainty": answer.certainty[k],
        "margin": margin if margin < float("inf") else None,
    }


def _print(kind: str, record: dict[str, Any], quiet: bool) -> None:
    layers: Sequence[dict[str, Any]] = record["layers"]
    if quiet:
        print("\n".join(f"{one['layer']} {one['origin'] or 'none'}" for one in layers))
        return
    width = max(len(one["layer"]) for one in layers)
    lines = [f"{kind}: {len(layers)} layers of A"]
    for one in layers:
        origin = {"from": one["origin"], "none": "none", "doubtful": f"in doubt, likeliest {one.get('likeliest')}"}[
            one["verdict"]
        ]
        numbers = f"  (likeness {one['likeness']:.3f}, certainty {one['certainty']:.1f})" if "likeness" in one else ""
        lines.append(f"{one['layer']:<{width}}  {origin}{numbers}")
    clear = f" (certainty from {record['needed']:.2f})" if "needed" in record else ""
    why = f": {record['why']}" if record.get("why") else clear
    print(
        "\n".join([*lines, f"{record['verdict']}{why}" + (f", {record['limits']}" if record["limits"] else "")]), flush=True
    )


if __name__ == "__main__":
    console.run_command(main)
