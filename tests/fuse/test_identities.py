import numpy as np
import pytest
import torch
from torch import nn

X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)


class _Idle(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout, self.identity = nn.Dropout(), nn.Identity()

    def forward(self, x):
        y = self.identity(self.dropout(torch.relu(x))).to(torch.float32)
        y = y.reshape(2, 3, 4).expand(2, 3, 4)[:, :, :].contiguous()
        return torch.sigmoid(nn.functional.pad(y, (0, 0)) * 1.0 + 0.0)


def _idle():
    return _Idle(), torch.randn(2, 3, 4)


def test_nothing_that_exporters_write_for_nothing_is_left(export, fused, operators):
    model, inputs = export(_idle)
    fused(model, inputs)
    assert operators(model) == ["Relu", "Sigmoid"]


IDLE = {
    "Identity(x)": {},
    "Dropout(x)": {},
    "Dropout(x, ratio, off)": {"ratio": np.array(0.5, np.float32), "off": np.array(False)},
    "Cast<to = 1>(x)": {},
    "Reshape(x, s)": {"s": np.array([0, 3, 4])},
    "Reshape(x, s) ": {"s": np.array([0, -1, 4])},
    "Expand(x, s)": {"s": np.array([3, 1])},
    "Slice(x, a, b)": {"a": np.array([0, 0]), "b": np.array([2, 2**62])},
    "Pad(x, p)": {"p": np.zeros(6, np.int64)},
    "Concat<axis = 1>(x)": {},
    "Max(x)": {},
    "Mul(x, one)": {"one": np.ones((1, 1), np.float32)},
    "Add(zero, x)": {"zero": np.zeros((), np.float32)},
    "Sub(x, zero)": {"zero": np.zeros(1, np.float32)},
    "Div(x, one)": {"one": np.ones((), np.float32)},
    "Squeeze(x)": {},
    "Transpose<perm = [0, 1, 2]>(x)": {},
}
BUSY = {
    "Cast<to = 10>(x)": {},
    "Reshape(x, s)": {"s": np.array([3, 2, 4])},
    "Expand(x, s)": {"s": np.array([5, 1, 3, 4])},
    "Slice(x, a, b)": {"a": np.array([0]), "b": np.array([1])},
    "Slice(x, a, b, a, c)": {"a": np.array([0]), "b": np.array([2**62]), "c": np.array([2])},
    "Pad(x, p)": {"p": np.array([0, 0, 0, 0, 0, 1])},
    "Mul(x, one)": {"one": np.ones((1, 1, 1, 1), np.float32)},
    "Sub(zero, x)": {"zero": np.zeros((), np.float32)},
    "Div(x, two)": {"two": np.array(2, np.float32)},
    "Concat<axis = 1>(x, x)": {},
    "Unsqueeze(x, a)": {"a": np.array([0])},
}


@pytest.mark.parametrize("call", IDLE)
def test_an_operator_without_effect_goes(parse, fused, operators, call):
    model = parse(f"agraph (float[2,3,4] x0) => (float[] y) {{ x = Tanh(x0) z = {call} y = Neg(z) }}", **IDLE[call])
    fused(model, (X,))
    assert operators(model) == ["Tanh", "Neg"]


@pytest.mark.parametrize("call", BUSY)
def test_an_operator_with_an_effect_stays(parse, fused, operators, call):
    kind = call.partition("(")[0].partition("<")[0]
    output = "float16" if kind == "Cast" else "float"
    model = parse(f"agraph (float[2,3,4] x0) => ({output}[] y) {{ x = Tanh(x0) y = {call} }}", **BUSY[call])
    fusions = fused(model, (X,))
    assert operators(model) == ["Tanh", kind]
    assert not fusions.fused


@pytest.mark.parametrize("call", ["Identity(x)", "Dropout(x)", "Reshape(x, s)"])
def test_an_output_that_is_an_input_keeps_its_name(parse, fused, operators, call):
    model = parse(f"agraph (float[2,3,4] x) => (float[2,3,4] y) {{ y = {call} }}", s=np.array([2, 3, 4]))
    fused(model, (X,))
    assert operators(model) == ["Identity"]


def test_an_output_takes_its_name_along(parse, fused, operators):
    model = parse(
        "agraph (float[2,3,4] x) => (float[2,3,4] y, float[2,3,4] z) { a = Tanh(x) y = Identity(a) z = Identity(a) }"
    )
    fused(model, (X,))
    assert operators(model) == ["Tanh", "Identity"]
