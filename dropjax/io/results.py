"""Writing of result folders and of `solution.json`."""

import json
from pathlib import Path

import numpy as np

from dropjax.core.solution import Solution
from dropjax.io.converted import write_tensors
from dropjax.io.result_page import result_page
from dropjax.runtime.writing import atomic_write, write_all


def write_result(folder: str | Path, solution: Solution, expected_sha256: str | None = None) -> None:
    """Write the result folder: `permutation.txt`, `solution.json`, the reassembled stack as `model.safetensors`, and a page,
    `index.html`.

    The model's tensors have the names that PyTorch's `nn.Sequential` gives the paper's two classes: `0.inp.weight`, …,
    `L.layer.weight`. Raises `NotWritten` if the folder cannot be written, and then leaves nothing of it behind.
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
    """Write `solution.json` alone; `-` is standard output. Raises `NotWritten` if that fails."""
    atomic_write(path, _json(solution, expected_sha256))


def _json(solution: Solution, expected_sha256: str | None) -> str:
    return json.dumps(solution.to_json(expected_sha256), indent=1, allow_nan=False) + "\n"
