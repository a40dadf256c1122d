import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from edgec.fuse import fuse

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 6, 6)).astype(np.float32)


def _seen(norm):
    """A normalization with statistics that are not those of a new one."""
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return norm


def _convolutions():
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        _seen(nn.BatchNorm2d(8)),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=4, bias=False),
        _seen(nn.BatchNorm2d(8)),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 2, groups=2),
        _seen(nn.BatchNorm2d(6)),
    ]
    return nn.Sequential(*layers), torch.randn(2, 3, 6, 6)


def _dense():
    return nn.Sequential(nn.Linear(5, 7), _seen(nn.BatchNorm1d(7)), nn.ReLU()), torch.randn(4, 5)


def _before():
    layers = [nn.ReLU(), _seen(nn.BatchNorm2d(4)), nn.Conv2d(4, 6, 3, groups=2)]
    return nn.Sequential(*layers), torch.randn(2, 4, 5, 5)


@pytest.mark.parametrize("make", [_convolutions, _dense, _before])
def test_no_normalization_is_left_of_what_exporters_write(export, fused, operators, names, make):
    model, inputs = export(make)
    fusions = fused(model, inputs)
    assert "BatchNormalization" not in operators(model)
    assert operators(model).count("Add") == 0
    if operators(model).count("ConvTranspose"):  # the legacy exporter folds those after Conv itself
        assert "batchnorm" in names(fusions)


def _norm(**changes):
    values = {
        "gamma": [1.5, -0.5],
        "beta": [0.1, 0.2],
        "mean": [0.3, -0.3],
        "var": [1.0, 2.0],
        **changes,
    }
    return {name: np.array(data, np.float32) for name, data in values.items() if data is not None}


W = RNG.standard_normal((2, 3, 3, 3)).astype(np.float32)
BEFORE = """agraph (float[2,3,6,6] x) => (float[2,2,6,6] y) {
    c = BatchNormalization(x, gamma, beta, mean, var)
    y = Conv<pads = [1, 1, 1, 1]>(c, w)
}"""
CONV = "agraph (float[2,3,6,6] x) => (float[2,2,a,b] y) {{ c = Conv{conv}(x, w) y = BatchNormalization{norm}({args}) }}"
ARGS = "c, gamma, beta, mean, var"


def test_weights_keep_their_names_and_are_read_when_needed(parse, fused):
    model = parse(CONV.format(conv="", norm="", args=ARGS), w=W, **_norm())
    fused(model, (X,))
    (node,) = model.graph
    assert node.op_type == "Conv"
    assert [value.name for value in node.inputs] == ["x", "w", "w_bias"]
    assert isinstance(node.inputs[1].const_value, ir.LazyTensor)
    assert set(model.graph.initializers) == {"w", "w_bias"}


def test_weights_are_not_read_while_they_are_folded(parse):
    weight = RNG.standard_normal((16, 3, 3, 3)).astype(np.float32)
    many = {"gamma": [1.5] * 16, "beta": [1] * 16, "mean": [0.5] * 16, "var": [1] * 16}
    text = CONV.format(conv="", norm="", args=ARGS).replace("[2,2,a,b]", "[2,16,4,4]")
    model = parse(text, w=weight, **_norm(**many))
    reads = []
    value = model.graph.initializers["w"]
    stored = value.const_value
    value.const_value = ir.LazyTensor(lambda: reads.append("w") or stored, stored.dtype, stored.shape, name="w")
    assert fuse(model, "canonical").fused[-1].rule == "batchnorm"
    assert not reads
    folded = model.graph.initializers["w"].const_value.numpy()
    assert reads == ["w"]
    np.testing.assert_allclose(folded, weight * 1.5 / np.sqrt(1 + 1e-5), rtol=1e-6)


def test_matmul_gets_an_addition(parse, fused, operators):
    model = parse(
        "agraph (float[4,3] x) => (float[] y) { c = MatMul(x, w) y = BatchNormalization(c, gamma, beta, mean, var) }",
        w=RNG.standard_normal((3, 2)).astype(np.float32),
        **_norm(),
    )
    fused(model, (X[0, 0, :4, :3].copy(),))
    assert "BatchNormalization" not in operators(model)


def test_gemm_keeps_alpha_and_loses_beta(parse, fused):
    model = parse(
        "agraph (float[4,3] x) => (float[4,2] y)"
        "{ c = Gemm<alpha = 0.5, beta = 3.0, transB = 1>(x, w, b) y = BatchNormalization(c, gamma, beta, mean, var) }",
        w=RNG.standard_normal((2, 3)).astype(np.float32),
        b=np.array([[1, 2]], np.float32),
        **_norm(),
    )
    fused(model, (X[0, 0, :4, :3].copy(),))
    (node,) = model.graph
    assert (node.op_type, node.attributes.get_float("alpha")) == ("Gemm", 0.5)
    assert "beta" not in node.attributes


def test_a_convolution_after_it_may_pad_if_nothing_is_added(parse, fused, operators):
    zero = _norm(gamma=[1, 2, 3], beta=[0, 0, 0], mean=[0, 0, 0], var=[1, 2, 3])
    model = parse(BEFORE, w=W, **zero)
    fused(model, (X,))
    assert operators(model) == ["Conv"]


REFUSED = {
    "is in training mode": (
        CONV.format(conv="", norm="<training_mode = 1>", args=ARGS).replace("y =", "y, m, v ="),
        {},
    ),
    "the variance of BatchNormalization_y is not a constant": (
        CONV.format(conv="", norm="", args="c, gamma, beta, mean, v").replace("x) =>", "x, float[2] v) =>"),
        {"var": None},
    ),
    "c is also read by Relu_z": (
        CONV.format(conv="", norm="", args=ARGS)
        .replace("y) {", "y, float[2,2,a,b] z) {")
        .replace("}", "z = Relu(c) }"),
        {},
    ),
    "c is an output of the graph": (
        CONV.format(conv="", norm="", args=ARGS).replace("y) {", "y, float[2,2,4,4] c) {"),
        {},
    ),
    "the weight w is shared with Conv_z": (
        CONV.format(conv="", norm="", args=ARGS)
        .replace("y) {", "y, float[2,2,a,b] z) {")
        .replace("}", "r = Relu(x) z = Conv(r, w) }"),
        {},
    ),
    "the weight is not a constant": (
        CONV.format(conv="", norm="", args=ARGS)
        .replace("Conv(x, w)", "Conv(x, u)")
        .replace("{ c", "{ u = Tanh(k) c")
        .replace("x) =>", "x, float[2,3,3,3] k) =>"),
        {},
    ),
    "the convolution pads with zeros": (
        BEFORE,
        {"gamma": [1, 2, 3], "beta": [1, 1, 1], "mean": [0, 1, 0], "var": [1, 2, 3]},
    ),
    "expected Conv or ConvTranspose or Gemm or MatMul, found Relu at Relu_c": (
        CONV.format(conv="", norm="", args=ARGS).replace("Conv(x, w)", "Relu(x)").replace("float[2,3", "float[2,2"),
        {},
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refuses(parse, fused, operators, reasons, reason):
    text, changes = REFUSED[reason]
    model = parse(text, w=W, **_norm(**changes))
    shapes = {"x": X, "v": np.array([1, 2], np.float32), "k": W}
    inputs = tuple(shapes[value.name] for value in model.graph.inputs)
    if "found Relu" in reason:
        inputs = (X[:, :2].copy(),)
    fusions = fused(model, inputs)
    assert "BatchNormalization" in operators(model)
    assert any(reason in found for found in reasons(fusions, "batchnorm")), reasons(fusions, "batchnorm")
