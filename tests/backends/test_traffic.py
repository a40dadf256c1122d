from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgec.backends.onnx_cpu.traffic import weight_bytes_per_token
from edgec.errors import BundleError


def test_counts_what_is_read_whole(tmp_path: Path):
    table = numpy_helper.from_array(np.zeros((100, 8), np.float16), "table")
    weight = helper.make_tensor("weight", TensorProto.INT4, (8, 5), [1] * 40)
    scale = numpy_helper.from_array(np.ones(5, np.float32), "scale")
    unused = numpy_helper.from_array(np.ones(500, np.int64), "unused")
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("DequantizeLinear", ["weight", "scale"], ["w"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])
    graph = helper.make_graph(nodes, "g", [ids], [out], [table, weight, scale, unused])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph), path)
    assert weight_bytes_per_token(path) == 20 + 20
    # A tied table is read whole by the output matrix.
    graph.node.append(helper.make_node("MatMul", ["y", "table"], ["z"]))
    onnx.save(helper.make_model(graph), path)
    assert weight_bytes_per_token(path) == 20 + 20 + 1600


@pytest.mark.parametrize("fixture", ["peer_artifact", "lowered_artifact"])
def test_agrees_with_onnx_ir(fixture: str, request: pytest.FixtureRequest):
    path = request.getfixturevalue(fixture) / "model.onnx"
    lookups = {"Gather", "GatherBlockQuantized", "GroupQueryAttention", "RotaryEmbedding"}
    values = ir.load(path).graph.initializers.values()
    whole = [v for v in values if any(use.node.op_type not in lookups for use in v.uses())]
    assert weight_bytes_per_token(path) == sum(v.const_value.nbytes for v in whole) > 50_000


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_refuses_what_is_no_model(peer_artifact: Path, tmp_path: Path, cut: int):
    path = tmp_path / "model.onnx"
    path.write_bytes((peer_artifact / "model.onnx").read_bytes()[:cut])
    with pytest.raises(BundleError, match="no ONNX model"):
        weight_bytes_per_token(path)
