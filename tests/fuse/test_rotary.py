import numpy as np
import pytest
import torch
from torch import nn

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 5, 8)).astype(np.float32)
ANGLES = RNG.standard_normal((2, 5, 4)).astype(np.float32)


class _Rotary(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("frequencies", 1.0 / (100.0 ** (torch.arange(0, 8, 2) / 8.0)))

    @staticmethod
    def _turned(x):
        return torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), dim=-1)

    def forward(self, x, positions):
        angles = positions[:, :, None].float() * self.frequencies[None, None, :]
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = (angles.cos() * 1.5).unsqueeze(1), (angles.sin() * 1.5).unsqueeze(1)
        y = x.neg()
        return (x * cos) + (self._turned(x) * sin), (y * cos) + (self._turned(y) * sin)


def _each_row():
    return _Rotary(), torch.randn(2, 3, 5, 8), torch.tensor([[0, 1, 2, 3, 4], [2, 3, 4, 5, 6]])


def _one_row():
    return _Rotary(), torch.randn(2, 3, 5, 8), torch.arange(5)[None]


@pytest.mark.parametrize("make", [_each_row, _one_row])
def test_fires_on_what_exporters_write(export, canonical, fused, operators, make):
    model, inputs = export(make)
    model = canonical(model)
    fused(model, inputs)
    kinds = operators(model)
    assert kinds.count("RotaryEmbedding") == 2
    assert kinds.count("Slice") <= 2  # of the angles, which both share
    assert "Neg" in kinds  # that of y
    assert kinds.count("Neg") == 1


ROTARY = """agraph (float[2,3,5,8] x, float[2,5,4] a) => (float[2,3,5,8] y) {
    b = Concat<axis = -1>(a, a)
    c = Cos(b)
    cos = Unsqueeze(c, one)
    s = Sin(b)
    sin = Unsqueeze(s, one)
    low = Slice(x, zero, four, last)
    high = Slice(x, four, eight, last)
    n = Neg(high)
    t = Concat<axis = -1>(n, low)
    p = Mul(x, cos)
    q = Mul(sin, t)
    y = Add(q, p)
}"""
REFUSED = {
    "the parts that are rotated are not known to be halves": (
        ROTARY.replace("(x, zero, four,", "(x, zero, two,").replace("(x, four, eight,", "(x, two, eight,")
    ),
    "the angles of both halves are not known to be the same": ROTARY.replace("(a, a)", "(a, k)").replace(
        "b = ", "k = Neg(a) b = "
    ),
    "the angles are not known to be the same for all heads": ROTARY.replace("Unsqueeze(s, one)", "Reshape(s, shape)"),
    "t is also read by Neg_z": ROTARY.replace("y) {", "y, float[2,3,5,8] z) {").replace("p = ", "z = Neg(t) p = "),
}
CONSTANTS = {
    **{name: np.array([number]) for name, number in {"zero": 0, "one": 1, "two": 2, "four": 4, "eight": 8}.items()},
    "last": np.array([3]),
    "shape": np.array([2, 1, 5, 8]),
}


def _parsed(parse, text):
    return parse(text, **{name: data for name, data in CONSTANTS.items() if f", {name}" in text})


def test_fires_whatever_comes_first(parse, canonical, fused, operators):
    model = canonical(_parsed(parse, ROTARY))
    fused(model, (X, ANGLES))
    assert "RotaryEmbedding" in operators(model)
    assert "Neg" not in operators(model)


@pytest.mark.parametrize("reason", REFUSED)
def test_refuses(parse, fused, operators, reasons, reason):
    model = _parsed(parse, REFUSED[reason])
    fusions = fused(model, (X, ANGLES))
    assert "RotaryEmbedding" not in operators(model)
    assert reasons(fusions, "rotary") == [reason]
