"""Result folders and `solution.json`."""

import json
from pathlib import Path

import numpy as np

from dropjax.core.solution import Solution
from dropjax.io.converted import write_tensors
from dropjax.io.result_page import result_page
from dropjax.runtime.writing import atomic_write, write_all


def write_result(folder: str | Path, solution: Solution, expected_sha256: str | None = None) -> None:
    """The result folder: `permutation.txt`, `solution.json`, the reassembled stack as `model.safetensors`, and `index.html`,
    a page for people.

    The model's names are those of PyTorch's `nn.Sequential` over the paper's two classes: `0.inp.weight`, …,
    `L.layer.weight`. Raises `NotWritten` where the folder cannot be written, and leaves nothing of it then.
    """
    folder, stack = Path(folder), solution.stack
    halves = {"inp.weight": stack.w_in, "inp.bias": stack.b_in, "out.weight": stack.w_out, "out.bias": stack.b_out}
    model = {f"{k}.{name}": layer for name, layers in halves.items() for k, layer in enumerate(np.asarray(layers))}
    last = {"weight": stack.w_last, "bias": stack.b_last}
    model |= {f"{stack.depth}.layer.{name}": np.asarray(layer) for name, layer in last.items()}
    record, page = _json(solution, expected_sha256), result_page(solution, expected_sha256)
    write_all(
        {
            folder / "model.safetensors": lambda path: write_tensors(path, model),
            folder / "permutation.txt": solution.permutation_text,
            folder / "solution.json": record,
            folder / "index.html": page,
        }
    )


def write_json(path: str | Path, solution: Solution, expected_sha256: str | None = None) -> None:
    """`solution.json` alone; `-` is standard output. Raises `NotWritten` where it cannot be written."""
    atomic_write(path, _json(solution, expected_sha256))


def _json(solution: Solution, expected_sha256: str | None) -> str:
    return json.dumps(solution.to_json(expected_sha256), indent=1, allow_nan=False) + "\n"
