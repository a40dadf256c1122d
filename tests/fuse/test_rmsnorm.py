import numpy as np
import pytest
import torch
from torch import nn

X = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)


class _Norms(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8))

    def forward(self, x):
        a, b = x + 1, x + 2
        return (
            self.weight * (x * torch.rsqrt(x.to(torch.float32).pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype),
            (a / torch.sqrt(a.pow(2).mean(-1, keepdim=True) + 1e-5)) * (1.0 + self.weight),
            b * ((b * b).mean(2, keepdim=True) + 1e-5).pow(-0.5),
        )


def _norms():
    return _Norms(), torch.randn(2, 3, 8)


def test_fires_on_what_exporters_write(export, canonical, fused, operators):
    model, inputs = export(_norms)
    model = canonical(model)
    fused(model, inputs)
    assert sorted(operators(model)) == ["Add", "Add", *["RMSNormalization"] * 3]
    weights = [node.inputs[1].name for node in model.graph if node.op_type == "RMSNormalization"]
    assert "weight" in weights


NORM = """agraph (float[{shape}] x) => (float[{shape}] y) {{
    s = Mul(x, x)
    v = ReduceMean(s, axes)
    e = Add(v, epsilon)
    r = Sqrt(e)
    y = Div(x, r)
}}"""
PLAIN = NORM.format(shape="2,3,8")


@pytest.mark.parametrize(
    ("text", "axis", "reason"),
    [
        (PLAIN, 1, "the mean is not along the last axis alone"),
        (NORM.format(shape="a,b,c"), -1, "the size of the last axis is not known"),
        (PLAIN.replace("y) {", "y, float[2,3,1] r) {"), -1, "r is an output of the graph"),
        (PLAIN.replace("y) {", "y, float[2,3,1] z) {").replace("r =", "z = Neg(v) r ="), -1, "v is also read by Neg_z"),
    ],
)
def test_refuses(parse, fused, operators, reasons, text, axis, reason):
    model = parse(text, axes=np.array([axis]), epsilon=np.array(1e-5, np.float32))
    fusions = fused(model, (X,))
    assert "RMSNormalization" not in operators(model)
    assert reason in reasons(fusions, "rmsnorm")


def test_what_is_divided_by_another_root_is_left(parse, fused, operators, reasons):
    text = PLAIN.replace("Div(x, r)", "Div(s, r)")
    model = parse(text, axes=np.array([-1]), epsilon=np.array(1e-5, np.float32))
    fusions = fused(model, (X,))
    assert "RMSNormalization" not in operators(model)
    assert not reasons(fusions, "rmsnorm")
