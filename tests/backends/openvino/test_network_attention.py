"""Attention as products: the same numbers in both runtimes, and what is left as it is."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import openvino as ov
import pytest
from onnx.shape_inference import infer_shapes

from edgec.backends.openvino.network_attention import split_attention

JOINED = "float[N, S, 32] q, float[N, T, 32] k, float[N, T, 32] v"
APART = "float[N, 4, S, 8] q, float[N, 4, T, 8] k, float[N, 4, T, 8] v"
HEADS = "q_num_heads=4, kv_num_heads=4"
MASK = "[N, one, S, T] mask"


def model_of(inputs, body, outputs="float[] y"):
    text = f'<ir_version: 10, opset_import: ["": 23]> g ({inputs}) => ({outputs}) {{{body}}}'
    proto = onnx.parser.parse_model(text)
    for node in proto.graph.node:
        node.name = node.output[0]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return ir.from_proto(infer_shapes(proto))


def split(model):
    made = model.clone()
    split_attention(made.graph)
    onnx.checker.check_model(ir.to_proto(made))
    return made


def kinds(model):
    return [node.op_type for node in model.graph]


def feed_of(rank, *, masked=False):
    """Return q, k, v for 2 samples, 5 queries and 7 keys, and which pairs a mask hides: all keys of one query."""
    rng = np.random.default_rng(0)
    shapes = [(2, 5, 32), (2, 7, 32), (2, 7, 32)] if rank == 3 else [(2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8)]
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    hidden = rng.random((2, 1, 5, 7)) < 0.4
    hidden[..., 0] = False
    hidden[1, 0, 2] = masked
    return dict(zip("qkv", arrays, strict=True)), hidden


def onnx_runtime(model, feed):
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]


def compiled(model):
    core = ov.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"}
    return core.compile_model(core.read_model(ir.to_proto(model).SerializeToString()), "CPU", settings)


def check(model, feed, rows=slice(None)):
    """Make sure that what is made of a model computes the same in both runtimes; return it, and what it computes."""
    made = split(model)
    expected, found = onnx_runtime(model, feed), onnx_runtime(made, feed)
    np.testing.assert_allclose(found[rows], expected[rows], atol=1e-5)
    np.testing.assert_allclose(compiled(made)(feed)[0], found, atol=1e-5)
    return made, found


@pytest.mark.parametrize("scale", ["", "scale=0.7"])
@pytest.mark.parametrize("rank", [3, 4])
def test_heads_joined_and_apart(rank, scale):
    attributes = ", ".join(part for part in (HEADS if rank == 3 else "", scale) if part)
    said = f"<{attributes}>" if attributes else ""
    model = model_of(JOINED if rank == 3 else APART, f"y = Attention {said} (q, k, v)")
    feed, _ = feed_of(rank)
    made, _ = check(model, feed)
    assert "Attention" not in kinds(made)
    assert kinds(made).count("MatMul") == 2
    assert kinds(made).count("Softmax") == 1
    assert [value.name for value in made.graph.outputs] == ["y"]
    plain = onnx_runtime(model_of(JOINED if rank == 3 else APART, f"y = Attention <{HEADS}> (q, k, v)"), feed)
    assert np.allclose(plain, onnx_runtime(made, feed), atol=1e-5) == (not scale)


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks(rank, kind):
    heads = f"<{HEADS}>" if rank == 3 else ""
    model = model_of(f"{JOINED if rank == 3 else APART}, {kind}{MASK}", f"y = Attention {heads} (q, k, v, mask)")
    feed, hidden = feed_of(rank)
    masks = [~hidden] if kind == "bool" else [
        *(np.where(hidden, np.float32(number), np.float32(0)) for number in (-np.inf, np.finfo("f").min, -1e9)),
        np.random.default_rng(2).standard_normal(hidden.shape).astype(np.float32),
    ]  # fmt: skip
    for mask in masks:
        made, found = check(model, {**feed, "mask": mask})
        assert not np.allclose(found, check(model, {**feed, "mask": np.ones_like(mask)})[1], atol=1e-2)
    assert "Attention" not in kinds(made)


@pytest.mark.parametrize("number", [None, -np.inf, np.finfo("f").min, -1e9])
def test_rows_of_which_everything_is_hidden_are_numbers(number):
    """Means of values, whose weights do not matter: other rows know nothing of them."""
    kind = "bool" if number is None else "float"
    model = model_of(f"{JOINED}, {kind}{MASK}", f"y = Attention <{HEADS}> (q, k, v, mask)")
    feed, hidden = feed_of(3, masked=True)
    feed["mask"] = ~hidden if number is None else np.where(hidden, np.float32(number), np.float32(0))
    others = np.ones((2, 5), bool)
    others[1, 2] = False
    _, found = check(model, feed, others)
    assert np.isfinite(found).all()
    assert (found[1, 2] <= feed["v"][1].max(0)).all()
    assert (found[1, 2] >= feed["v"][1].min(0)).all()


def test_masks_of_fewer_axes():
    model = model_of(f"{JOINED}, bool[S, T] mask", f"y = Attention <{HEADS}> (q, k, v, mask)")
    feed, hidden = feed_of(3)
    check(model, {**feed, "mask": ~hidden[0, 0]})


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_a_mask_is_prepared_once_for_all_layers(kind):
    body = f"""a = Attention <{HEADS}> (q, k, v, mask) b = Attention <{HEADS}> (a, k, v, mask)
               c = Attention <{HEADS}> (b, k, v, mask) y = Add (b, c)"""
    model = model_of(f"{JOINED}, {kind}{MASK}", body)
    feed, hidden = feed_of(3)
    made, _ = check(model, {**feed, "mask": ~hidden if kind == "bool" else np.where(hidden, -9, 0).astype("f")})
    assert kinds(made).count("Where" if kind == "bool" else "Max") == 1
    assert kinds(made).count("Softmax") == 3
    names = [node.name for node in made.graph]
    assert len(set(names)) == len(names)


def test_values_of_another_size_than_keys():
    model = model_of("float[N, S, 32] q, float[N, T, 32] k, float[N, T, 12] v", f"y = Attention <{HEADS}> (q, k, v)")
    feed, _ = feed_of(3)
    assert check(model, {**feed, "v": feed["v"][..., :12].copy()})[1].shape == (2, 5, 12)


def test_the_plugin_fuses_them_again():
    model = model_of(f"{JOINED}, float{MASK}", f"y = Attention <{HEADS}> (q, k, v, mask)")
    layers = {
        node.get_rt_info()["layerType"].astype(str)
        for node in compiled(split(model)).get_runtime_model().get_ordered_ops()
    }
    assert not {"MatMul", "Softmax"} & layers
    assert {"Subgraph", "ScaledDotProductAttention"} & layers


def test_attributes_that_say_what_is_so_anyway():
    feed, _ = feed_of(3)
    made, _ = check(model_of(JOINED, f"y = Attention <{HEADS}, is_causal=0, softcap=0.0> (q, k, v)"), feed)
    assert "Attention" not in kinds(made)


CACHE = ", float[N, 4, P, 8] pk, float[N, 4, P, 8] pv"
ODD = {
    "causal": (JOINED, f"y = Attention <{HEADS}, is_causal=1> (q, k, v)"),
    "soft cap": (JOINED, f"y = Attention <{HEADS}, softcap=5.0> (q, k, v)"),
    "softmax in another type": (JOINED, f"y = Attention <{HEADS}, softmax_precision=1> (q, k, v)"),
    "cache": (JOINED + CACHE, f"y, nk, nv = Attention <{HEADS}> (q, k, v, , pk, pv)"),
    "keys are read": (JOINED + CACHE, f"a, nk, nv = Attention <{HEADS}> (q, k, v, , pk, pv) y = Neg (nk)"),
    "fewer heads of keys": (
        "float[N, S, 32] q, float[N, T, 16] k, float[N, T, 16] v",
        "y = Attention <q_num_heads=4, kv_num_heads=2> (q, k, v)",
    ),
    "fewer heads of keys, apart": (
        "float[N, 4, S, 8] q, float[N, 2, T, 8] k, float[N, 2, T, 8] v",
        "y = Attention (q, k, v)",
    ),
    "heads of unknown size": (
        "float[N, 4, S, D] q, float[N, 4, T, D] k, float[N, 4, T, D] v",
        "y = Attention (q, k, v)",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_left_alone(name):
    model = model_of(*ODD[name])
    before = ir.to_proto(model).SerializeToString()
    split_attention(model.graph)
    assert ir.to_proto(model).SerializeToString() == before
    assert "Attention" in kinds(model)
