"""Shifts of means by rounding: against layers run alone, and as corrections of a whole network."""

from functools import partial

import numpy as np
import onnx_ir as ir
import pytest
import torch

from edgec.calibrate.run import run
from edgec.errors import CheckpointError, UsageError
from edgec.quantize.bias import mean_shift

NET = """
<ir_version: 10, opset_import: ["" : 23]>
net (float[n, 6, s, s] x) => (float[n, k, 5] y)
<float[16, 6, 1, 1] we, float[16] be, float[16, 1, 3, 3] wd, float[16] bd, float[16, 1, 3, 3] wf, float[16] bf,
 float[8, 16, 1, 1] wp, float[8] bp, float[8, 7] wm, float[7] bm, float[7, 5] wg, float[5] bg,
 int64[3] rows, int64[2] flat, int64[3] back, float low, float high> {
    [expand] e = Conv(x, we, be)
    er = Relu(e)
    [depthwise] d = Conv<group = 16, pads = [1, 1, 1, 1]>(er, wd, bd)
    dr = Relu(d)
    [further] f = Conv<group = 16>(dr, wf, bf)
    fr = Clip(f, low, high)
    [project] p = Conv(fr, wp, bp)
    pr = Relu(p)
    r = Reshape(pr, rows)
    t = Transpose<perm = [0, 2, 1]>(r)
    [matrix] m = MatMul(t, wm)
    mb = Add(m, bm)
    mr = Relu(mb)
    mf = Reshape(mr, flat)
    [gemm] g = Gemm(mf, wg, bg)
    y = Reshape(g, back)
}
"""
LAYERS = {"expand": "we", "depthwise": "wd", "further": "wf", "project": "wp", "matrix": "wm", "gemm": "wg"}
BIASES = {"expand": "be", "depthwise": "bd", "further": "bf", "project": "bp", "matrix": "bm", "gemm": "bg"}
CONSTANTS = {
    "rows": np.array([0, 8, -1]),
    "flat": np.array([-1, 7]),
    "back": np.array([-1, 16, 5]),
    "low": np.float32(0),
    "high": np.float32(6),
}


@pytest.fixture(scope="module")
def model():
    random = np.random.default_rng(0)
    empty = ir.from_onnx_text(NET)
    shapes = {
        v.name: tuple(v.shape) for node in empty.graph for v in node.inputs if v.name[0] in "wb" and v.name != "back"
    }
    arrays = {
        name: random.normal(size=shape) / np.sqrt(max(np.prod(shape[1:]), 1))
        if name[0] == "w"
        else random.random(shape)
        for name, shape in shapes.items()
    }
    tensors = {**{name: array.astype(np.float32) for name, array in arrays.items()}, **CONSTANTS}
    return ir.from_onnx_text(NET, [ir.tensor(np.asarray(array), name=name) for name, array in tensors.items()])


def batches(*counts, seed=1):
    random = np.random.default_rng(seed)
    return [{"x": random.normal(0.5, 1, size=(count, 6, 6, 6)).astype(np.float32)} for count in counts]


def constant(graph, name, array):
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def quantized(model, corrections=None):
    """Return the model with 4-bit weights, uint8 inputs of layers and int32 biases of Conv and Gemm."""
    made = model.clone()
    graph = made.graph
    for node in [node for node in graph if node.name in LAYERS]:
        weight = graph.initializers[LAYERS[node.name]].const_value.numpy()
        axis = 0 if node.op_type == "Conv" else 1
        others = tuple(other for other in range(weight.ndim) if other != axis)
        scales = np.abs(weight).max(axis=others) / 7
        shape = [-1 if other == axis else 1 for other in range(weight.ndim)]
        codes = np.rint(weight / scales.reshape(shape)).astype(np.int8)
        inner = [constant(graph, f"{node.name}.codes", codes), constant(graph, f"{node.name}.scales", scales)]
        dequantize = ir.node("DequantizeLinear", inner, {"axis": axis})
        step = [
            constant(graph, f"{node.name}.step", np.array(0.05, np.float32)),
            constant(graph, f"{node.name}.zero", np.array(60 if node.name == "expand" else 0, np.uint8)),
        ]
        quantize = ir.node("QuantizeLinear", [node.inputs[0], *step])
        rounded = ir.node("DequantizeLinear", [quantize.outputs[0], *step])
        graph.insert_before(node, [dequantize, quantize, rounded])
        node.replace_input_with(1, dequantize.outputs[0])
        node.replace_input_with(0, rounded.outputs[0])
        value = graph.initializers[BIASES[node.name]]
        bias = value.const_value.numpy() + (0 if corrections is None else corrections[node.name])
        if node.op_type == "MatMul":
            value.const_value = ir.tensor(bias.astype(np.float32), name=value.name)
        else:
            scale = constant(graph, f"{node.name}.bias.scale", scales * np.float32(0.05))
            whole = constant(graph, f"{node.name}.bias", np.rint(bias / scale.const_value.numpy()).astype(np.int32))
            added = ir.node("DequantizeLinear", [whole, scale], {"axis": 0})
            graph.insert_before(node, added)
            node.replace_input_with(2, added.outputs[0])
    return made


def channel_means(array, axis):
    return array.astype(np.float64).mean(axis=tuple(other for other in range(array.ndim) if other != axis))


def convolve(x, weight, bias, **options):
    return torch.nn.functional.conv2d(*map(torch.from_numpy, (x, weight, bias)), **options).numpy()


READS_AND_GIVES = {
    "expand": ("x", "e", convolve),
    "depthwise": ("er", "d", partial(convolve, groups=16, padding=1)),
    "further": ("dr", "f", partial(convolve, groups=16)),
    "project": ("fr", "p", convolve),
    "matrix": ("t", "m", lambda x, weight, _: x @ weight),
    "gemm": ("mf", "g", lambda x, weight, bias: x @ weight + bias),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_shift_is_that_of_the_layer_alone(model, name):
    """Written out: the layer with rounded weights, bias and inputs, on what the float network gives it."""
    (batch,), rounded = batches(9), quantized(model)
    reads, gives, compute = READS_AND_GIVES[name]
    made = next(run(model, [batch], list({gives, reads} - {"x"}))) | batch
    constants = {key: value.const_value.numpy() for key, value in rounded.graph.initializers.items()}
    codes, scales = constants[f"{name}.codes"], constants[f"{name}.scales"]
    weight = codes * scales.reshape([-1, 1, 1, 1] if codes.ndim == 4 else [1, -1])
    bias = constants[f"{name}.bias"] * constants[f"{name}.bias.scale"] if name != "matrix" else None
    zero = int(constants[f"{name}.zero"])
    x = (np.clip(np.rint(made[reads] / np.float32(0.05)) + zero, 0, 255) - zero) * np.float32(0.05)
    found = compute(x, weight, bias if bias is None else bias.astype(np.float32))
    axis = 1 if codes.ndim == 4 else found.ndim - 1
    shift = channel_means(made[gives], axis) - channel_means(found, axis)
    np.testing.assert_allclose(mean_shift(model, rounded, [name], [batch])[name], shift, atol=1e-5)
    assert np.abs(shift).max() > 0.01


def test_channels_of_a_transposed_convolution_are_those_it_gives():
    """Five outputs of three inputs: the weight has them along its second axis."""
    text = """<ir_version: 10, opset_import: ["" : 23]>
    up (float[n, 3, 4, 4] x) => (float[n, 5, 8, 8] y) <float[3, 5, 2, 2] w, float[5] b>
    { [up] y = ConvTranspose<strides = [2, 2]>(x, w, b) }"""
    random = np.random.default_rng(3)
    weight, bias = (random.normal(size=size).astype(np.float32) for size in ((3, 5, 2, 2), 5))
    rounded = np.round(weight * 2) / 2
    exact, other = (
        ir.from_onnx_text(text, [ir.tensor(array, name="w"), ir.tensor(bias, name="b")]) for array in (weight, rounded)
    )
    other.graph.initializers["w"].name = "w.float"  # one that the float graph has is taken to be the same
    x = random.normal(1, 1, size=(6, 3, 4, 4)).astype(np.float32)
    made = [
        torch.nn.functional.conv_transpose2d(torch.from_numpy(x), torch.from_numpy(array), stride=2).numpy()
        for array in (weight, rounded)
    ]
    expected = channel_means(made[0] - made[1], 1)
    assert np.abs(expected).max() > 0.01
    pieces = [{"x": x[:1]}, {"x": x[1:]}]
    np.testing.assert_allclose(mean_shift(exact, other, ["up"], pieces, threads=1)["up"], expected, atol=1e-5)


def test_batches_of_any_size_count_by_their_samples(model):
    rounded = quantized(model)
    (whole,) = batches(10)
    pieces = [{"x": whole["x"][start:stop]} for start, stop in ((0, 1), (1, 8), (8, 10))]
    expected = mean_shift(model, rounded, LAYERS, [whole], threads=1)
    for name, shift in mean_shift(model, rounded, LAYERS, iter(pieces), threads=1).items():
        assert shift.dtype == np.float64
        np.testing.assert_allclose(shift, expected[name], atol=1e-6)


def test_corrected_biases_bring_means_and_outputs_back(model):
    corrections = mean_shift(model, quantized(model), LAYERS, batches(32, 32))
    unseen = batches(64, seed=2)
    (expected,) = run(model, unseen, ["p", "g"])

    def errors(rounded):
        (found,) = run(rounded, unseen, ["p", "g"])
        means = [np.abs(channel_means(expected[name] - found[name], 1)).mean() for name in found]
        return np.array([*means, np.square(expected["g"] - found["g"]).mean()])

    before, after = errors(quantized(model)), errors(quantized(model, corrections))
    assert (after[:2] < before[:2] / 4).all()
    assert after[2] < before[2] / 2


def test_a_perfect_layer_has_no_shift(model):
    for shift in mean_shift(model, model, LAYERS, batches(4)).values():
        np.testing.assert_array_equal(shift, 0)


def test_models_are_left_alone(model):
    rounded = quantized(model)
    before = [ir.to_proto(graph).SerializeToString() for graph in (model, rounded)]
    mean_shift(model, rounded, LAYERS, batches(2))
    assert [ir.to_proto(graph).SerializeToString() for graph in (model, rounded)] == before


def test_no_layers(model):
    assert mean_shift(model, model, [], batches(1)) == {}


def test_refusals(model):
    with pytest.raises(UsageError, match="no samples"):
        mean_shift(model, model, LAYERS, [])
    with pytest.raises(UsageError, match="not what the model takes"):
        mean_shift(model, model, LAYERS, [{"y": np.zeros(3)}])
    with pytest.raises(ValueError, match="both graphs must have nothing"):
        mean_shift(model, model, ["expand", "nothing"], batches(1))
    with pytest.raises(CheckpointError, match="not finite") as error:
        mean_shift(model, quantized(model), ["expand"], [{"x": np.full((1, 6, 6, 6), np.inf, np.float32)}])
    assert error.value.where == "expand"
