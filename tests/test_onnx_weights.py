"""The benchmark's reading of ONNX models: weights as PyTorch stores them, under their modules' names."""

import numpy as np
import onnx
import onnx_weights
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file


@pytest.fixture
def model(tmp_path):
    """A linear layer by each of two operators, a convolution, and a bias among the nodes; and their arrays."""
    rng = np.random.default_rng(0)
    arrays = {
        "onnx::MatMul_1": rng.normal(size=(3, 5)),
        "7": rng.normal(size=(2, 5)),
        "8": rng.normal(size=(2, 2, 3)),
        "whole": np.ones(3, np.int64),
    }
    tensors = [
        numpy_helper.from_array(a if a.dtype == np.int64 else a.astype(np.float32), name) for name, a in arrays.items()
    ]
    bias = numpy_helper.from_array(np.arange(5, dtype=np.float32))
    nodes = [
        helper.make_node("Constant", [], ["bias"], value=bias),
        helper.make_node("MatMul", ["x", "onnx::MatMul_1"], ["z"], name="/layers.0/fc1/MatMul"),
        helper.make_node("Add", ["z", "bias"], ["y"], name="/layers.0/fc1/Add"),
        helper.make_node("Gemm", ["y", "7"], ["u"], name="/layers.0/fc2/Gemm", transB=1),
        helper.make_node("Conv", ["v", "8"], ["w"], name="/stem/conv/Conv"),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "v")]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("u", "w")]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, tensors)), path)
    return path, {name: a.astype(np.float32) for name, a in arrays.items()}


def test_weights_stand_under_their_modules_names_as_pytorch_stores_them(model, tmp_path):
    path, arrays = model
    found = load_file(onnx_weights.convert(path, tmp_path / "model.safetensors"))
    assert found.keys() == {"layers.0.fc1.weight", "layers.0.fc2.weight", "stem.conv.weight", "bias"}
    np.testing.assert_array_equal(found["layers.0.fc1.weight"], arrays["onnx::MatMul_1"].T)
    np.testing.assert_array_equal(found["layers.0.fc2.weight"], arrays["7"])
    np.testing.assert_array_equal(found["stem.conv.weight"], arrays["8"])
    np.testing.assert_array_equal(found["bias"], np.arange(5))
