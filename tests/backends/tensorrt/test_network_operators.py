"""Operators of opset 23 in networks, written as TensorRT takes them, give what ONNX Runtime's own give."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from edgec.backends.tensorrt.network import lower_network
from edgec.errors import PlanError
from edgec.graph.emit import Emitter

BATCH, QUERIES, SIZE = 2, 5, 16
NEW = {"Attention", "RMSNormalization", "RotaryEmbedding"}
BOOL, FLOAT, INT64 = ir.DataType.BOOL, ir.DataType.FLOAT, ir.DataType.INT64


def run(model, feed):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    proto = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(proto, options, ["CPUExecutionProvider"]).run(None, feed)


def network(op_type, arrays, attributes, outputs=1):
    """Return a model of one operator that takes the arrays, None for an input that it lacks, and a feed."""
    emitter = Emitter()
    feed = {f"x{i}": array for i, array in enumerate(arrays) if array is not None}
    values = {
        name: ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)), shape=ir.Shape(array.shape))
        for name, array in feed.items()
    }
    inputs = [values.get(f"x{i}") for i in range(len(arrays))]
    made = emitter.ops(op_type, *inputs, name="node", outputs=[f"y{i}" for i in range(outputs)], **attributes)
    model = emitter.model("net", list(values.values()), made)
    ShapeInferencePass()(model)
    return model, feed


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def mask_of(*shape):
    mask = np.random.default_rng(3).random(shape) < 0.6
    mask[..., 0] = True
    return mask


ATTENTIONS = {
    "plain": ((4, 4, QUERIES), None, {}),
    "cross": ((4, 4, 7), None, {"scale": 0.5}),
    "booleans": ((4, 4, QUERIES), mask_of(BATCH, 1, QUERIES, QUERIES), {}),
    "numbers": ((4, 4, QUERIES), normal(BATCH, 4, QUERIES, QUERIES), {}),
    "causal": ((4, 4, QUERIES), None, {"is_causal": 1}),
    "causal and masked": ((4, 4, QUERIES), mask_of(BATCH, 1, QUERIES, QUERIES), {"is_causal": 1}),
    "grouped": ((4, 2, QUERIES), mask_of(QUERIES, QUERIES), {}),
    "capped": ((4, 4, QUERIES), None, {"softcap": 2.0}),
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("joined", [False, True], ids=["4d", "3d"])
@pytest.mark.parametrize("kind", list(ATTENTIONS))
def test_attention_of_every_kind(kind, joined, old):
    (heads, kv_heads, keys), mask, attributes = ATTENTIONS[kind]
    counts = (heads, kv_heads, kv_heads)
    arrays = [normal(BATCH, n, length, SIZE) for n, length in zip(counts, (QUERIES, keys, keys), strict=True)]
    if joined:
        arrays = [np.ascontiguousarray(a.transpose(0, 2, 1, 3)).reshape(BATCH, a.shape[2], -1) for a in arrays]
        attributes = {**attributes, "q_num_heads": heads, "kv_num_heads": kv_heads}
    model, feed = network("Attention", [*arrays, mask] if mask is not None else arrays, attributes)
    lowered = lower_network(model, half=False, old=old)
    assert not NEW & {node.op_type for node in lowered.graph}
    np.testing.assert_allclose(run(lowered, feed)[0], run(model, feed)[0], atol=2e-6)
    fused = lower_network(model, half=True, old=old)
    kept = [node for node in fused.graph if node.op_type == "Attention"]
    assert len(kept) == (not old and kind != "capped")
    assert all(value.dtype == ir.DataType.FLOAT16 for node in kept for value in node.inputs)
    np.testing.assert_allclose(run(fused, feed)[0], run(model, feed)[0], atol=0.01)


@pytest.mark.parametrize("old", [False, True])
def test_attention_behind_a_cache(old):
    arrays = [normal(BATCH, 4, n, SIZE) for n in (1, 1, 1, 6, 6)]
    arrays.insert(3, None)
    model, feed = network("Attention", arrays, {}, outputs=3)
    for made, expected in zip(run(lower_network(model, half=False, old=old), feed), run(model, feed), strict=True):
        np.testing.assert_allclose(made, expected, atol=2e-6)


def test_heads_that_no_kernel_has_are_taken_apart():
    model, _ = network("Attention", [normal(1, 2, 4, 8)] * 3, {})
    lowered = lower_network(model, half=True, old=False)
    assert not NEW & {node.op_type for node in lowered.graph}


def test_layers_share_one_mask():
    emitter = Emitter()
    x = ir.Value(name="x", type=ir.TensorType(FLOAT), shape=ir.Shape(["batch", 4, 5, SIZE]))
    mask = ir.Value(name="mask", type=ir.TensorType(BOOL), shape=ir.Shape(["batch", 1, 5, 5]))
    y = x
    for layer in range(3):
        y = emitter.op("Attention", y, y, y, mask, name=f"layer.{layer}")
        y.shape = x.shape
    lowered = lower_network(emitter.model("net", [x, mask], [y]), half=True, old=False)
    assert [node.op_type for node in lowered.graph].count("Where") == 1


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("shape", [(BATCH, QUERIES, 4 * SIZE), (BATCH, 4, QUERIES, SIZE)], ids=["3d", "4d"])
@pytest.mark.parametrize("turned", [0, 8], ids=["whole", "part"])
def test_rotary_embedding(turned, shape, positions):
    angles = normal(12, (turned or SIZE) // 2) if positions else normal(BATCH, QUERIES, (turned or SIZE) // 2)
    where = np.arange(2, 2 + QUERIES)[None].repeat(BATCH, axis=0) if positions else None
    arrays = [normal(*shape), np.cos(angles), np.sin(angles), where]
    model, feed = network("RotaryEmbedding", arrays, {"num_heads": 4, "rotary_embedding_dim": turned})
    lowered = lower_network(model, half=False, old=True)
    assert not NEW & {node.op_type for node in lowered.graph}
    np.testing.assert_allclose(run(lowered, feed)[0], run(model, feed)[0], atol=2e-6)


@pytest.mark.parametrize("attributes", [{}, {"axis": -2, "epsilon": 0.1}, {"axis": 1}])
def test_rms_normalization(attributes):
    weight = normal(6) if not attributes else normal(4, 6)
    model, feed = network("RMSNormalization", [normal(BATCH, 4, 6), weight], attributes)
    lowered = lower_network(model, half=False, old=True)
    assert not NEW & {node.op_type for node in lowered.graph}
    np.testing.assert_allclose(run(lowered, feed)[0], run(model, feed)[0], atol=2e-6)


@pytest.mark.parametrize(
    ("op_type", "arrays", "attributes", "outputs"),
    [
        ("Attention", [normal(1, 2, 3, SIZE)] * 3, {}, 4),
        ("Attention", [*[normal(1, 2, 1, SIZE)] * 3, None, *[normal(1, 2, 3, SIZE)] * 2], {"is_causal": 1}, 3),
        ("RotaryEmbedding", [normal(1, 2, 3, 8), normal(1, 3, 4), normal(1, 3, 4)], {"interleaved": 1}, 1),
    ],
    ids=["scores", "causal with a cache", "interleaved"],
)
def test_what_is_not_written_is_refused_by_name(op_type, arrays, attributes, outputs):
    model, _ = network(op_type, arrays, attributes, outputs)
    with pytest.raises(PlanError, match=f"edgec writes no .*{op_type}") as caught:
        lower_network(model, half=True, old=True)
    assert caught.value.where == "node"
