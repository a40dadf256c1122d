"""Equalisation across layers: what a network computes stays, ranges become alike, int8 gets better."""

import numpy as np
import onnx_ir as ir
import pytest

from edgec.calibrate.calibrators import minmax
from edgec.calibrate.observe import observe
from edgec.calibrate.run import run
from edgec.quantize.equalize import Equalized, equalize

HEADER = '<ir_version: 10, opset_import: ["" : 23]>\n'
SEPARABLE = """
net (float[n, 8, h, w] x) => (float[n, 8, h, w] y)
<float[32, 8, 1, 1] we, float[32] be, float[32, 1, 3, 3] wd, float[32] bd, float[8, 32, 1, 1] wp, float[8] bp> {
    [expand] e = Conv(x, we, be)
    er = Relu(e)
    [depthwise] d = Conv<group = 32, pads = [1, 1, 1, 1]>(er, wd, bd)
    dr = Relu(d)
    [project] y = Conv(dr, wp, bp)
}
"""
MATRICES = """
net (float[n, t, 12] x) => (float[n, t, 3] y) <float[12, 20] a, float[20] b, float[20, 3] c, float[3] d> {
    [first] p = MatMul(x, a)
    q = Add(b, p)
    r = LeakyRelu<alpha = 0.1>(q)
    [second] s = MatMul(r, c)
    y = Add(s, d)
}
"""
GEMMS = """
net (float[n, 12] x) => (float[n, 3] y) <float[20, 12] a, float[1, 20] b, float[20, 3] c, float[3] d> {
    [first] p = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(x, a, b)
    r = Relu(p)
    [second] y = Gemm(r, c, d)
}
"""
POOLS = """
net (float[n, 4, 9, 9] x) => (float[n, 6, 1, 1] y) <float[8, 4, 3, 3] a, float[6, 4, 1, 1] c> {
    [first] p = Conv(x, a)
    q = Relu(p)
    r = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(q)
    s = GlobalAveragePool(r)
    [second] y = Conv<group = 2>(s, c)
}
"""


def network(text, seed=0, spread=4.0):
    """Return a model with random weights, whose channels differ by factors of up to e^spread up and down."""
    random = np.random.default_rng(seed)
    model = ir.from_onnx_text(HEADER + text)
    tensors = []
    for node in model.graph:
        for value in node.inputs:
            if value.producer() is None and not value.is_graph_input() and value.name not in {t.name for t in tensors}:
                shape = tuple(value.shape)
                scale = np.exp(random.uniform(-spread, spread, (*shape[:1], *(1,) * (len(shape) - 1))))
                tensors.append(ir.tensor((random.normal(size=shape) * scale).astype(np.float32), name=value.name))
    return ir.from_onnx_text(HEADER + text, tensors)


def weights(model):
    return {name: value.const_value.numpy().copy() for name, value in model.graph.initializers.items()}


def inputs(model, count=8, seed=1):
    (value,) = model.graph.inputs
    shape = (count, *(size if isinstance(size, int) else 6 for size in value.shape[1:]))
    return {value.name: np.random.default_rng(seed).normal(size=shape).astype(np.float32)}


def outputs(model, batch):
    (made,) = run(model, [batch], threads=1)
    return made["y"]


@pytest.mark.parametrize("text", [SEPARABLE, MATRICES, GEMMS, POOLS])
@pytest.mark.parametrize("seed", range(3))
def test_outputs_stay(text, seed):
    model = network(text, seed)
    batch, before = inputs(model), weights(model)
    expected = outputs(model, batch)
    done = equalize(model)
    found = outputs(model, batch)
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
    assert sum(one.refused is None for one in done) == len(done) - 1
    assert any((weights(model)[name] != before[name]).any() for name in before)


@pytest.mark.parametrize(
    ("text", "giving", "reading"),
    [
        (MATRICES, lambda w: np.vstack([w["a"], w["b"]]), lambda w: w["c"].T),
        (GEMMS, lambda w: np.vstack([w["a"].T, w["b"]]), lambda w: w["c"].T),
        (SEPARABLE, lambda w: np.vstack([w["we"][:, :, 0, 0].T, w["be"]]), lambda w: w["wd"].reshape(32, -1).T),
        (SEPARABLE, lambda w: np.vstack([w["wd"].reshape(32, -1).T, w["bd"]]), lambda w: w["wp"][:, :, 0, 0]),
        (POOLS, lambda w: w["a"].reshape(8, -1).T, lambda w: np.hstack([w["c"][:3, :, 0, 0], w["c"][3:, :, 0, 0]])),
    ],
)
def test_ranges_on_both_sides_become_alike(text, giving, reading):
    model = network(text)

    def ratios():
        made = weights(model)
        return np.abs(giving(made)).max(0) / np.abs(reading(made)).max(0)

    assert np.ptp(np.log2(ratios())) > 3
    equalize(model)
    # Scales are powers of two, which leave a factor of two on either side.
    assert np.abs(np.log2(ratios())).max() <= 1 + 1e-6


def test_scales_are_powers_of_two_and_the_second_time_changes_nothing():
    model = network(SEPARABLE)
    before = weights(model)
    done = equalize(model)
    after = weights(model)
    ratios = {name: array / before[name] for name, array in after.items()}
    for name, ratio in ratios.items():
        assert after[name].dtype == np.float32
        assert (np.frexp(ratio)[0] == 0.5).all()
    assert done == [
        Equalized("expand", "depthwise", largest_scale=max(ratios["be"].max(), 1 / ratios["be"].min())),
        Equalized("depthwise", "project", largest_scale=max(ratios["bd"].max(), 1 / ratios["bd"].min())),
        Equalized("project", refused="what it gives is an output of the model"),
    ]
    assert [one.largest_scale for one in equalize(model)] == [1, 1, 1]
    assert all((weights(model)[name] == array).all() for name, array in after.items())


def int8(model, batch):
    """Return the outputs with rounded weights (a scale for each output) and inputs of layers (one scale for all)."""
    layers = [node for node in model.graph if node.op_type == "Conv"]
    ranges = observe(model, [node.inputs[0].name for node in layers], [batch], threads=1)
    rounded = model.clone()
    for node in [node for node in rounded.graph if node.op_type == "Conv"]:
        weight = node.inputs[1].const_value.numpy()
        scale = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127
        node.inputs[1].const_value = ir.tensor(np.rint(weight / scale) * scale, name=node.inputs[1].name)
        low, high = minmax.find_range(ranges[node.inputs[0].name], 256, symmetric=False)
        step = (high - low) / 255
        constants = [np.float32(step), np.uint8(np.rint(-low / step))]
        values = []
        for kind, array in zip(("scale", "zero"), constants, strict=True):
            tensor = ir.tensor(np.array(array), name=f"{node.name}.{kind}")
            value = ir.Value(name=tensor.name, const_value=tensor, type=ir.TensorType(tensor.dtype))
            rounded.graph.register_initializer(value)
            values.append(value)
        quantize = ir.node("QuantizeLinear", [node.inputs[0], *values])
        dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], *values])
        rounded.graph.insert_before(node, [quantize, dequantize])
        node.replace_input_with(0, dequantize.outputs[0])
    return outputs(rounded, batch)


@pytest.mark.parametrize("seed", range(3))
def test_int8_is_better_where_channels_differ_wildly(seed):
    """Channels as training leaves them behind BatchNorm: each pair of layers undoes the other's scales."""
    model = network(SEPARABLE, seed, spread=0)
    random = np.random.default_rng(seed)
    for first, second in (("e", "d"), ("d", "p")):
        scale = np.exp(random.uniform(-4, 4, 32)).astype(np.float32)
        for name, factor in ((f"w{first}", scale), (f"b{first}", scale), (f"w{second}", 1 / scale)):
            value = model.graph.initializers[name]
            array = value.const_value.numpy()
            shape = (1, -1, 1, 1) if name == "wp" else (-1, *(1,) * (array.ndim - 1))
            value.const_value = ir.tensor(array * factor.reshape(shape), name=name)
    batch = inputs(model, 16)
    expected = outputs(model, batch)

    def error():
        return np.sqrt(np.square(int8(model, batch) - expected).mean()) / expected.std()

    before = error()
    equalize(model)
    after = error()
    assert after < before / 2
    assert after < 0.03


def test_dead_channels_and_large_biases_are_left_alone():
    model = network(MATRICES)
    values = {name: model.graph.initializers[name] for name in "abc"}
    arrays = weights(model)
    arrays["a"][:, 3] = arrays["b"][3] = arrays["c"][5] = 0
    arrays["a"][:, 7], arrays["b"][7], arrays["c"][7] = 1e-20, 1, 1
    for name, value in values.items():
        value.const_value = ir.tensor(arrays[name], name=name)
    equalize(model)
    found = weights(model)
    for channel in (3, 5, 7):
        assert (found["a"][:, channel] == arrays["a"][:, channel]).all()
        assert found["b"][channel] == arrays["b"][channel]
        assert (found["c"][channel] == arrays["c"][channel]).all()


REFUSALS = {
    "Clip is behind it": SEPARABLE.replace("Relu(e)", "Clip(e, zero, six)").replace(
        "wp, float[8] bp", "wp, float[8] bp, float zero, float six"
    ),
    "Gelu is behind it": MATRICES.replace("LeakyRelu<alpha = 0.1>", "Gelu"),
    "what it gives is read more than once": MATRICES.replace("MatMul(r, c)", "MatMul(r, c) \n z = Neg(q)"),
    "what it gives is an output of the model": MATRICES.replace("[n, t, 3] y)", "[n, t, 3] y, float[n, t, 20] r)"),
    "Add is behind it": MATRICES.replace("x) =>", "x, float[20] b) =>").replace(
        "float[20] b, float[20, 3]", "float[20, 3]"
    ),
    "the weight of first is read more than once": GEMMS.replace("y = Gemm", "z = Neg(a) \n y = Gemm"),
    "the weight of second is read more than once": GEMMS.replace(
        "y = Gemm(r, c, d)", "y = Gemm(r, c, d) \n z = Neg(c)"
    ),
    "MatMul behind it does not multiply its channels by weights": MATRICES.replace("MatMul(r, c)", "MatMul(c, r)"),
    "its bias is not one number for each channel": GEMMS.replace("float[1, 20] b", "float[1] b"),
    "its bias is no constant of its own": GEMMS.replace("y = Gemm", "z = Neg(b) \n y = Gemm"),
    "the weight of second is no float constant": GEMMS.replace(
        " (float[n, 12] x", " (float[20, 3] c, float[n, 12] x"
    ).replace(", float[20, 3] c,", ","),
    "the weight of first is no matrix": MATRICES.replace("float[12, 20] a", "float[1, 12, 20] a"),
    "second transposes what it reads": GEMMS.replace("Gemm(r", "Gemm<transA = 1>(r"),
    "MaxPool behind it gives more than one value": POOLS.replace("r = MaxPool", "r, i = MaxPool").replace(
        "6, 1, 1] y)", "6, 1, 1] y, int64[n, 8, 3, 3] i)"
    ),
    "MaxPool is behind it": MATRICES.replace("LeakyRelu<alpha = 0.1>", "MaxPool<kernel_shape = [1]>"),
    "Conv behind it does not multiply its channels by weights": """
net (float[n, 4, 9] x) => (float[n, 4, 9] y) <float[9, 9] a, float[4, 4, 1] c> {
    [first] p = MatMul(x, a)
    [second] y = Conv(p, c)
}
""",
    "what it gives is read in a subgraph": """
net (float[n, 4] x, bool flag) => (float[n, 4] y) <float[4, 4] a, float[4, 4] c> {
    [first] p = MatMul(x, a)
    y = If(flag) <then_branch = one () => (float[n, 4] q) { q = MatMul(p, c) },
                  else_branch = two () => (float[n, 4] b) { b = Neg(x) }>
}
""",
}


@pytest.mark.parametrize(("reason", "text"), REFUSALS.items(), ids=REFUSALS)
def test_refusals(reason, text):
    model = network(text)
    before = weights(model)
    first = equalize(model)[0]
    assert (first.refused, first.reader) == (reason, None)
    touched = [name for name in ("we", "be", "a", "b") if name in before]
    assert all((weights(model)[name] == before[name]).all() for name in touched)
