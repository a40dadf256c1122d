import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 6, 6)).astype(np.float32)
W = RNG.standard_normal((2, 3, 3, 3)).astype(np.float32)


def _activated():
    activations = [nn.ReLU(), nn.LeakyReLU(0.3), nn.Tanh(), nn.Sigmoid(), nn.ReLU6(), nn.Hardsigmoid()]
    layers = [layer for activation in activations for layer in (nn.Conv2d(3, 3, 3, padding=1), activation)]
    return nn.Sequential(*layers), torch.randn(2, 3, 6, 6)


def test_an_activation_goes_into_its_convolution(export, fused, operators, names):
    model, inputs = export(_activated)
    fused(model, inputs)
    assert "FusedConv" not in operators(model)
    convolutions = [node.name for node in model.graph if node.op_type == "Conv"]
    fusions = fused(model, inputs, "onnx_cpu")
    assert [node.name for node in model.graph] == convolutions
    assert operators(model) == ["FusedConv"] * 6
    assert names(fusions) == {"conv_activation"}
    assert model.opset_imports["com.microsoft"] == 1


def test_onnxruntime_does_the_same_when_it_loads_a_float_model(export, fused, tmp_path):
    model, inputs = export(_activated)
    fused(model, inputs)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimized = ir.load(tmp_path / "optimized.onnx")
    assert {node.op_type for node in optimized.graph} == {"FusedConv"}


REFUSED = {
    "the convolution is quantized: ONNX Runtime makes one kernel of it with its Q/DQ": (
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) c = Conv(d, w) y = Relu(c)"
    ),
    "a bound of Clip is not a constant": "m = ReduceMax<keepdims = 0>(x) c = Conv(x, w) y = Clip(c, , m)",
    "c is also read by Neg_n": "c = Conv(x, w) r = Relu(c) n = Neg(c) y = Add(r, n)",
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refuses(parse, fused, operators, reasons, reason):
    model = parse(
        f"agraph (float[2,3,6,6] x) => (float[2,2,4,4] y) {{ {REFUSED[reason]} }}",
        w=W, s=np.array(0.1, np.float32), z=np.array(128, np.uint8),
    )  # fmt: skip
    before = operators(model)
    fusions = fused(model, (X,), "onnx_cpu")
    assert operators(model) == before
    assert reasons(fusions, "conv_activation") == [reason]
