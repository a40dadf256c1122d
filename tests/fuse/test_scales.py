import numpy as np
import pytest
import torch
from torch import nn

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 6, 6)).astype(np.float32)
W = RNG.standard_normal((2, 3, 3, 3)).astype(np.float32)


class _Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 4, 3, bias=False), nn.ConvTranspose2d(4, 6, 2, groups=2)
        self.dense, self.matrix = nn.Linear(6, 5), nn.Parameter(torch.randn(5, 4))
        self.scale = nn.Parameter(torch.rand(4, 1, 1) + 0.5)

    def forward(self, x):
        y = torch.relu((self.conv(x) * self.scale + 1) / 2)
        z = torch.relu(3 * self.up(y) - 0.5).mean((2, 3))
        return (torch.tanh(self.dense(z) * 4) @ self.matrix) / 8


def _scaled():
    return _Scaled(), torch.randn(2, 3, 6, 6)


def test_arithmetic_after_linear_operators_goes_into_their_weights(export, fused, operators, names):
    model, inputs = export(_scaled)
    fusions = fused(model, inputs)
    assert not {"Mul", "Div", "Add", "Sub"} & set(operators(model))
    assert "scales" in names(fusions)


REFUSED = {
    "the constant is not one number for each output": ("c = Conv(x, w) y = Mul(c, k)", np.ones((4, 4)) * 2),
    "the constant has more axes than what it is multiplied with": (
        "c = Conv(x, w) y = Mul(c, k)",
        np.ones((1,) * 5) * 2,
    ),
    "it divides by zero": ("c = Conv(x, w) y = Div(c, k)", np.zeros(1)),
    "c is also read by Neg_n": ("c = Conv(x, w) d = Mul(c, k) n = Neg(c) y = Add(d, n)", np.array([2])),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refuses(parse, fused, operators, reasons, reason):
    text, numbers = REFUSED[reason]
    model = parse(f"agraph (float[2,3,6,6] x) => (float[] y) {{ {text} }}", w=W, k=numbers.astype(np.float32))
    before = operators(model)
    fusions = fused(model, (X,))
    assert operators(model) == before
    assert reason in reasons(fusions, "scales")


def test_two_computed_values_are_no_near_miss(parse, fused, reasons):
    model = parse("agraph (float[2,3,6,6] x) => (float[] y) { c = Conv(x, w) s = Sigmoid(c) y = Mul(c, s) }", w=W)
    assert reasons(fused(model, (X,)), "scales") == []
