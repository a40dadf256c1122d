import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgec.fuse import fuse

X = np.random.default_rng(0).standard_normal((2, 5, 24)).astype(np.float32)

HEADS = """
    q4 = Reshape(q, split) k4 = Reshape(k, split) v4 = Reshape(v, split)
    qt = Transpose<perm=[0,2,1,3]>(q4) kt = Transpose<perm=[0,2,1,3]>(k4) vt = Transpose<perm=[0,2,1,3]>(v4)
"""
BODY = f"q = Neg(x) k = Exp(x) v = Tanh(x) {HEADS} a = Attention(qt, kt, vt) at = Transpose<perm=[0,2,1,3]>(a)"


def _model(body: str, shape: str = "batch,sequence,24") -> ir.Model:
    text = f"""<ir_version: 11, opset_import: ["" : 23]>
        agraph (float[{shape}] x) => (float[] y) {{ {body} y = Abs(j) }}"""
    proto = onnx.parser.parse_model(text)
    constants = {"split": [0, -1, 4, 6], "join": [0, -1, 24], "other": [-1, 24]}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.array(v), k) for k, v in constants.items())
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def _run(model: ir.Model) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return session.run(None, {"x": X})[0]


def _kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_reshapes_and_transposes_go():
    model = _model(f"{BODY} j = Reshape(at, join)")
    before = _run(model)
    found = fuse(model, "canonical")
    assert _kinds(model) == ["Neg", "Exp", "Tanh", "Attention", "Abs"]
    assert [entry.rule for entry in found.fused if entry.rule == "attention_layout"] == ["attention_layout"]
    np.testing.assert_allclose(_run(model), before, atol=1e-6)


def test_one_value_in_three_roles():
    body = BODY.replace("Attention(qt, kt, vt)", "Attention(qt, qt, qt)")
    model = _model(f"{body} j = Reshape(at, join)")
    before = _run(model)
    fuse(model, "canonical")
    assert _kinds(model) == ["Neg", "Attention", "Abs"]
    np.testing.assert_allclose(_run(model), before, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"{BODY} j = Reshape(at, other)", "joins the last two axes"),
        (f"{BODY} j = Exp(at)", "is not joined"),
        (f"{BODY} n = Neg(at) r = Reshape(at, join) m = Reshape(n, join) j = Add(r, m)", "is not joined"),
        (
            BODY.replace("Attention(qt, kt, vt)", "Attention(qt, k4, v4)") + " j = Reshape(at, join)",
            "nothing shows that k4",
        ),
    ],
)
def test_other_shapes_are_left(body, reason):
    model = _model(body)
    found = fuse(model, "canonical")
    attention = next(node for node in model.graph if node.op_type == "Attention")
    assert "q_num_heads" not in attention.attributes
    assert any(reason in miss.reason for miss in found.missed if miss.rule == "attention_layout")


def test_attention_that_never_split_is_no_near_miss():
    model = _model("j = Attention<q_num_heads=4, kv_num_heads=4>(x, x, x)")
    assert not [miss for miss in fuse(model, "canonical").missed if miss.rule == "attention_layout"]
