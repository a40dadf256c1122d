import math

import numpy as np
import pytest
import torch
from torch import nn

X = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
ROOT, HALF_ROOT = math.sqrt(2 / math.pi), 1 / math.sqrt(2)


class _Erf(nn.Module):
    def forward(self, x):
        a, b, z = x + 1, x + 2, x * x.flip(0)  # Gelu's factors are not those of z
        return (
            nn.functional.gelu(x),
            a * 0.5 * (1.0 + torch.erf(a / math.sqrt(2.0))),
            0.5 * b * (torch.erf(b * HALF_ROOT) + 1.0),
            z * (0.5 * (1.0 + torch.erf(z * HALF_ROOT))) * 3.0,
        )


class _Tanh(nn.Module):
    def forward(self, x):
        a, b, z = x + 1, x + 2, x * x.flip(0)
        return (
            nn.functional.gelu(x, approximate="tanh"),
            0.5 * a * (1.0 + torch.tanh(ROOT * (a + 0.044715 * torch.pow(a, 3.0)))),
            0.5 * b * (1.0 + torch.tanh(b * 0.7978845608 * (1.0 + 0.044715 * b * b))),
            0.5 * z * (1 + torch.tanh(ROOT * (z + 0.044715 * z * z * z))),
        )


def _erf():
    return _Erf(), torch.randn(2, 3, 8)


def _tanh():
    return _Tanh(), torch.randn(2, 3, 8)


@pytest.mark.parametrize(("make", "left"), [(_erf, "Erf"), (_tanh, "Tanh")])
def test_fires_on_what_exporters_write(export, canonical, fused, operators, make, left):
    model, inputs = export(make)
    model = canonical(model)
    fused(model, inputs)
    assert operators(model).count("Gelu") == 4
    assert left not in operators(model)
    assert {node.attributes.get_string("approximate") for node in model.graph if node.op_type == "Gelu"} == {
        "none" if left == "Erf" else "tanh"
    }


ERF = "agraph (float[2,3,8] x) => (float[2,3,8] y) {{ u = Div(x, r) e = Erf(u) a = Add(e, one) b = Mul({b}, a) {y} }}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            ERF.format(b="x", y="y = Mul(b, half)").replace("y) {", "y, float[2,3,8] e) {"),
            "e is an output of the graph",
        ),
        (
            ERF.format(b="x", y="y = Mul(b, half) z = Neg(a)").replace("y) {", "y, float[2,3,8] z) {"),
            "a is also read by Neg_z",
        ),
    ],
)
def test_refuses(parse, fused, operators, reasons, text, reason):
    numbers = {"r": math.sqrt(2), "one": 1, "half": 0.5}
    model = parse(
        text, **{name: np.array(number, np.float32) for name, number in numbers.items() if f" {name})" in text}
    )
    fusions = fused(model, (X,))
    assert "Gelu" not in operators(model)
    assert reasons(fusions, "gelu") == [reason]


@pytest.mark.parametrize(("b", "y"), [("x", "y = Mul(b, one)"), ("u", "y = Mul(b, half)")])
def test_leaves_what_is_something_else(parse, fused, operators, reasons, b, y):
    numbers = {"r": math.sqrt(2), "one": 1, "half": 0.5}
    text = ERF.format(b=b, y=y)
    model = parse(text, **{name: np.array(number, np.float32) for name, number in numbers.items()})
    fusions = fused(model, (X,))
    assert "Erf" in operators(model)
    assert not reasons(fusions, "gelu")
