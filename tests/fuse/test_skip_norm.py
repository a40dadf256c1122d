import numpy as np
import pytest
import torch
from torch import nn

SLOWER = "ONNX Runtime takes longer for the two in one than for both, but for few numbers"
RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 8)).astype(np.float32)


class _Rms(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class _Residual(nn.Module):
    """Two blocks, before norms; the first sum is read by the norm and by the second sum."""

    def __init__(self, norm):
        super().__init__()
        self.first, self.second = norm(), norm()

    def forward(self, x):
        y = x + torch.tanh(x)
        z = y + torch.tanh(self.first(y))
        return self.second(z)


def test_fires_on_what_exporters_write(export, canonical, fused, operators, names):
    model, inputs = export(lambda: (_Residual(_Rms), torch.randn(2, 3, 8)))
    model = canonical(model)
    fused(model, inputs)
    fusions = fused(model, inputs, "onnx_cpu")
    assert names(fusions) == {"skip_norm"}
    assert operators(model) == ["Tanh", "SkipSimplifiedLayerNormalization"] * 2


def test_refuses_layer_norm_and_keeps_onnxruntime_from_fusing_it(export, canonical, fused, operators, reasons):
    model, inputs = export(lambda: (_Residual(lambda: nn.LayerNorm(8)), torch.randn(2, 3, 8)))
    model = canonical(model)
    fused(model, inputs)
    fusions = fused(model, inputs, "onnx_cpu")
    assert operators(model) == ["Tanh", "Sum", "LayerNormalization"] * 2
    assert reasons(fusions, "skip_norm") == [SLOWER] * 2


TEXT = """agraph (float[2,3,8] x, float[2,3,8] z) => (float[2,3,8] y) {
    s = Add(x, z) y = RMSNormalization<axis = -1>(s, g)
}"""


def _model(canonical, parse, text, **initializers):
    # onnx's text format has no RMSNormalization before opset 23.
    model = parse(text.replace("RMSNormalization", "LayerNormalization"), **initializers)
    model = canonical(model)
    for node in model.graph:
        if node.op_type == "LayerNormalization":
            node.op_type = "RMSNormalization"
    return model


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (TEXT.replace("2,3,8", "20,3,8"), SLOWER),
        (TEXT.replace("axis = -1", "axis = 1"), "the norm is not known to be along the last of two or three axes"),
        (TEXT.replace("2,3,8", "1,2,3,8"), "the norm is not known to be along the last of two or three axes"),
        (TEXT.replace("2,3,8] z", "1,1,8] z"), "nothing shows that what is added has one shape: [2,3,8] and [1,1,8]"),
        (TEXT.replace("2,3,8] z", "3,8] z"), "nothing shows that what is added has one shape: [2,3,8] and [3,8]"),
        (TEXT.replace("2,3,8] z", "n,3,8] z"), "nothing shows that what is added has one shape: [2,3,8] and [n,3,8]"),
        (TEXT.replace("float[", "float16["), "it is not known to compute in float32"),
        (TEXT.replace("] z)", "] z, float[8] g)"), "the weight is not a constant with one number for each element"),
    ],
)  # fmt: skip
def test_refuses(parse, canonical, fused, operators, reasons, text, reason):
    half = "float16" in text
    gain = np.ones((3, 8) if "axis = 1" in text else 8, np.float16 if half else np.float32)
    model = _model(canonical, parse, text, **({} if "] g)" in text else {"g": gain}))
    sizes = [[2 if not isinstance(size, int) else size for size in value.shape] for value in model.graph.inputs[:2]]
    inputs = [RNG.standard_normal(size).astype(gain.dtype) for size in sizes]
    fusions = fused(model, (*inputs, gain) if "] g)" in text else tuple(inputs), "onnx_cpu")
    assert operators(model) == ["Add", "RMSNormalization"]
    assert [why.replace(" ", "") for why in reasons(fusions, "skip_norm")] == [reason.replace(" ", "")]


def test_the_sum_may_be_an_output(parse, canonical, fused, operators):
    model = _model(canonical, parse, TEXT.replace("y) {", "y, float[2,3,8] s) {"), g=np.ones(8, np.float32))
    fused(model, (X, X[::-1].copy()), "onnx_cpu")
    assert operators(model) == ["SkipSimplifiedLayerNormalization"]


def test_other_sums_and_norms_stay(parse, canonical, fused, operators):
    text = "agraph (float[2,3,8] x) => (float[2,3,8] y) { s = Add(x, g) y = RMSNormalization<axis = -1>(s, g) }"
    model = _model(canonical, parse, text, g=np.ones(8, np.float32))
    fusions = fused(model, (X,), "onnx_cpu")
    assert operators(model) == ["Add", "RMSNormalization"]
    assert not fusions.missed
