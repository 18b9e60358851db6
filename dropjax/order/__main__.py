"""`python -m dropjax.order MODEL`: put the layers of an encoder of the BERT family back in order."""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float32, Int
from safetensors import safe_open

from dropjax import console
from dropjax.core.errors import InputError
from dropjax.core.options import MEMORY
from dropjax.core.solution import _versions, plain
from dropjax.io.checkpoints import Checkpoint, open_checkpoint
from dropjax.io.converted import write_tensors
from dropjax.io.encoders import PART_NAMES, PARTS, Encoder, State, find_encoder, read_recorded
from dropjax.network.result import Check, Progress, Stage
from dropjax.network.solving import check_order, identity
from dropjax.runtime import device
from dropjax.runtime.journal import Journal
from dropjax.runtime.writing import atomic_write, ensure_writable
from dropjax.solve.__main__ import memory_size, positive

INPUTS, OUTPUTS, MASK = (
    ("x", "inputs", "hidden_states.0"),
    ("target", "outputs", "last_hidden_state"),
    ("mask", "attention_mask"),
)
"""Keys of recorded hidden states; the first one in the file is used."""

FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
"""Names of checkpoints in a model's folder."""

ROWS, TOKENS = 8, 16
"""Shape of the random tokens that are used if no inputs are given."""


def parser() -> console.Parser:
    """The command line's arguments."""
    p = console.Parser(
        prog="python -m dropjax.order",
        description="Put the layers of an encoder of the BERT family back in order, or say that they are.",
        done="0 the recorded outputs are reproduced; 1 they are not, and the best arrangement found is printed",
    )
    p.add_argument(
        "model", type=Path, metavar="MODEL", help=".safetensors, .index.json, .pth or .bin, or the folder that holds one"
    )
    data = p.add_argument_group("recorded hidden states, .safetensors")
    data.add_argument(
        "--inputs", type=Path, metavar="FILE", help=f"{INPUTS[0]} [N,T,d] before the first layer, {MASK[0]} [N,T]"
    )
    data.add_argument(
        "--outputs", type=Path, metavar="FILE", help=f"{OUTPUTS[0]} [N,T,d] after the last layer; may be the same file"
    )
    data.add_argument(
        "--shuffle", type=int, metavar="SEED", help="shuffle the layers of an intact MODEL first; needs no recorded states"
    )
    search = p.add_argument_group("search")
    search.add_argument(
        "--parts", type=int, choices=tuple(PARTS), default=2, help="parts of a layer that may be separated (%(default)s)"
    )
    search.add_argument(
        "--heads", type=positive(int), help="number of attention heads (default: from config.json beside MODEL)"
    )
    search.add_argument("--time-limit", type=positive(float), metavar="SECONDS", help="keep trying until the time is up")
    search.add_argument("--checkpoint", type=Path, metavar="FILE", help="file in which the search keeps its results so far")
    search.add_argument("--resume", action="store_true", help="continue the search in --checkpoint")
    search.add_argument("--random-seed", type=int, default=0, help="of the search (%(default)s)")
    machine = p.add_argument_group("machine")
    machine.add_argument("--platform", choices=("cpu", "gpu", "cuda", "rocm", "tpu"))
    machine.add_argument("--memory", type=memory_size, default=MEMORY, metavar="SIZE", help="such as 512M or 2G")
    machine.add_argument("--no-cache", action="store_true", help="keep no compiled programs between runs")
    result = p.add_argument_group("results")
    result.add_argument("--out", type=Path, metavar="FILE", help="MODEL with its layers in order, a .safetensors")
    result.add_argument("--json", type=Path, metavar="FILE", help="the whole record")
    result.add_argument("--quiet", action="store_true", help="print only the arrangement")
    return p


class Followed(Progress):
    """Shows a line about each stage when it has ended, and one about the running stage."""

    def __init__(self, shown: console.Silent) -> None:
        self.shown = shown

    def begins(self, stage: str) -> None:
        """Shows the stage that begins."""
        self.shown.begins(stage)

    def ends(self, stage: Stage) -> None:
        """Prints the stage that has ended."""
        moves = f"  {stage.moves} moves" if stage.moves else ""
        rows = f"loss {stage.loss:.3g} on {stage.rows} rows"
        self.shown.says(f"{stage.name:<16} {stage.seconds:7.2f} s  {rows}  {stage.evaluations:,} evaluations{moves}")


def recorded(args: argparse.Namespace, encoder: Encoder) -> tuple[State, Float32[np.ndarray, "N T d"] | None]:
    """The state before the first layer, and the outputs if they are given."""
    target = None if args.outputs is None else read_recorded(args.outputs, OUTPUTS)
    if args.inputs is None:
        tokens = np.random.default_rng(args.shuffle).integers(0, encoder.vocabulary(), (ROWS, TOKENS))
        return State(encoder.embedded(tokens), np.ones(tokens.shape, np.float32)), target  # pyright: ignore[reportArgumentType]
    x, mask = read_recorded(args.inputs, INPUTS), read_recorded(args.inputs, MASK, optional=True)
    assert x is not None
    if x.ndim != 3:
        raise InputError(f"{args.inputs}: {INPUTS[0]}: expected hidden states [N, T, d], got the shape {list(x.shape)}")
    mask = np.ones(x.shape[:2], np.float32) if mask is None else mask
    if mask.shape != x.shape[:2]:
        raise InputError(f"{args.inputs}: {MASK[0]}: expected the shape {list(x.shape[:2])}, got {list(mask.shape)}")
    return State(x, mask), target  # pyright: ignore[reportArgumentType]  # NumPy arrays


def shuffled(parts: tuple, seed: int) -> tuple[tuple, Int[np.ndarray, "L P"]]:
    """The parts of each kind in a random order, and the arrangement that puts them back."""
    rng = np.random.default_rng(seed)
    depth = len(jax.tree.leaves(parts)[0])
    orders = [rng.permutation(depth) for _ in parts]
    dropped = tuple(jax.tree.map(lambda a, o=o: a[o], part) for part, o in zip(parts, orders, strict=True))
    return dropped, np.stack([np.argsort(o) for o in orders], axis=1)


def behind(block, parts: tuple, state: State) -> Float32[np.ndarray, "N T d"]:
    """The state after all layers in the order of the checkpoint."""
    last, _ = jax.jit(lambda parts, state: jax.lax.scan(lambda s, part: (block(part, s), None), state, parts))(parts, state)
    return np.asarray(last.x)


def read_out(state: State):
    """The hidden states that outputs are compared with."""
    return state.x


def verdict(found: Check, encoder: Encoder, answer: Int[np.ndarray, "L P"] | None) -> list[str]:
    """The closing lines: the outcome, the error and the order of the layers."""
    ordering, names = found.ordering, PART_NAMES[found.ordering.arrangement.shape[1]]
    lines = [found.described(names)]
    if ordering.solved:
        lines.append(
            f"{ordering.outcome.replace('_', ' ')}: error {ordering.error:.1e} of the spread over all {ordering.rows} rows"
        )
    else:
        lines.append(f"NOT SOLVED ({ordering.stop_reason})")
    lines += [f"no table can tell whether to {tie.named(names)}" for tie in ordering.ties]
    for p, name in enumerate(names):
        order = ", ".join(str(encoder.numbers[k]) for k in ordering.arrangement[:, p])
        lines.append(f"{name}, from the first layer to the last: those that stand in layers {order}")
    if answer is not None:
        lines.append(
            f"of {answer.size} shuffled parts, {int((ordering.arrangement == answer).sum())} are back in their places"
        )
    lines.append(f"{ordering.evaluations:,} evaluations, {ordering.passes:.0f} passes, {ordering.seconds:.1f} s")
    return lines


def write_model(path: Path, checkpoint: Checkpoint, names: Mapping[str, str]) -> None:
    """Writes the checkpoint's tensors, bit for bit, under their new names."""
    arrays = {}
    with safe_open(checkpoint.path, "numpy") as file:
        for name in file.keys():  # noqa: SIM118  # no mapping
            arrays[names.get(name, name)] = file.get_tensor(name)
        metadata = file.metadata()
    atomic_write(path, lambda path: write_tensors(path, arrays, metadata))


def check_arguments(p: console.Parser, args: argparse.Namespace) -> None:
    """Refuses arguments that contradict one another in one line; replaces a folder by the checkpoint in it."""
    held = [args.model / name for name in FILES if (args.model / name).is_file()]
    if args.model.is_dir() and not held:
        p.error(f"{args.model}: expected a folder with {' or '.join(FILES)} in it, got none of them")
    args.model = held[0] if held else args.model
    if args.shuffle is None and None in (args.inputs, args.outputs):
        p.error("expected --inputs FILE and --outputs FILE, or --shuffle SEED for a demonstration, got neither")
    if args.shuffle is not None and args.out is not None:
        p.error("--out goes with recorded states, got --shuffle")
    if args.out is not None and args.model.suffix != ".safetensors":
        p.error(f"--out goes with a MODEL in one .safetensors, got {args.model.name}")
    if args.resume and args.checkpoint is None:
        p.error("--resume goes with --checkpoint FILE, got none")
    for path in (args.out, args.json, args.checkpoint):
        if path is not None:
            ensure_writable(path)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; the exit status is 0 if the outputs are reproduced, 1 if not, and 2 for bad input."""
    begun = time.perf_counter()
    p = parser()
    args = p.parse_args(argv)
    check_arguments(p, args)
    device.configure(args.platform, cache=not args.no_cache)
    device.ensure_usable()
    with console.interruptions() as interrupted, console.progress(args.quiet) as shown:
        encoder = find_encoder(open_checkpoint(args.model), args.heads)
        parts, answer = encoder.parts(args.parts), None
        x, target = recorded(args, encoder)
        if args.shuffle is not None:
            target = behind(encoder.block, parts, x) if target is None else target
            parts, answer = shuffled(parts, args.shuffle)
        options = {"random_seed": args.random_seed, "memory": args.memory}
        journal = None
        if args.checkpoint is not None:
            journal = Journal(
                args.checkpoint, identity(parts, x, target, model=str(encoder.settings), **options), args.resume
            )
        if not args.quiet:
            (rows, length, width), depth = x.x.shape, len(encoder.numbers)
            print(f"{args.model}: {depth} layers of {args.parts} parts, d = {width}, {rows} rows of {length} tokens")
        found = check_order(
            encoder.block,
            parts,
            x,
            target,
            read_out=read_out,
            time_limit=args.time_limit,
            progress=Followed(shown),
            interrupted=interrupted,
            journal=journal,
            **options,
        )
        ordering = found.ordering
        if args.out is not None and ordering.solved:
            write_model(args.out, encoder.checkpoint, encoder.renamed(ordering.arrangement))
        if args.json is not None:
            record = ordering.to_json() | {
                "wrong": found.wrong,
                "mending": list(map(str, found.mending)),
                "sound": found.sound,
            }
            record |= {"total": time.perf_counter() - begun, "device": device.describe(), "versions": _versions()}
            record |= {"back_in_place": None if answer is None else int((ordering.arrangement == answer).sum())}
            text = json.dumps(plain(record), indent=1, allow_nan=False) + "\n"
            atomic_write(args.json, lambda path: path.write_text(text))
    if args.quiet:
        print(json.dumps(ordering.arrangement.tolist()))
    else:
        print("\n".join(verdict(found, encoder, answer)))
    return console.SOLVED if ordering.solved else console.NOT_SOLVED


if __name__ == "__main__":
    console.run_command(main)
