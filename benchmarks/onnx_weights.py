"""The weights of an ONNX model under names that `python -m dropjax.pair` can read.

Exporters transpose and rename matrices; the node that multiplies with one still has its module's name. So each matrix is
stored under that name, as PyTorch stores it: [out, in]. Needs onnx.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import save_file


def convert(model: Path, out: Path) -> Path:
    """Writes all floating-point weights of the model to a safetensors file, `out`, and returns that."""
    graph = onnx.load(model).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            arrays[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    names, weights = _names(graph), {}
    for name, array in arrays.items():
        if array.ndim and np.issubdtype(array.dtype, np.floating):
            new, turned = names.get(name, (name, False))
            weights[new] = np.ascontiguousarray(array.T if turned else array, np.float32)
    save_file(weights, out)
    return out


def _names(graph: onnx.GraphProto) -> dict[str, tuple[str, bool]]:
    """For each matrix, the name of the first module that uses it, and whether it is stored [in, out]."""
    found: dict[str, tuple[str, bool]] = {}
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv") or "/" not in node.name:
            continue
        module = node.name.strip("/").rpartition("/")[0].replace("/", ".")
        turned = node.op_type == "MatMul" or (
            node.op_type == "Gemm" and not any(a.name == "transB" and a.i for a in node.attribute)
        )
        found.setdefault(node.input[1], (f"{module}.weight", turned))
    return found
