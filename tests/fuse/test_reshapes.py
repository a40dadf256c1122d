import numpy as np
import pytest
import torch
from torch import nn

X = np.random.default_rng(0).standard_normal((2, 12)).astype(np.float32)


class _Reshaped(nn.Module):
    def forward(self, x):
        y = torch.relu(x).reshape(2, 3, 4).reshape(2, 12).unsqueeze(1).squeeze(1)
        return torch.tanh(y.reshape(4, 3, 2).flatten(1))


def _reshaped():
    return _Reshaped(), torch.randn(2, 12)


def test_one_reshape_is_left(export, fused, operators):
    model, inputs = export(_reshaped)
    fused(model, inputs)
    assert operators(model) == ["Relu", "Reshape", "Tanh"]


MERGED = {
    "m = Reshape(a, s) b = Reshape(m, t)": ({"s": [3, 8], "t": [0, 2, 4]}, ["Tanh", "Reshape", "Neg"]),
    "m = Reshape(a, s) b = Reshape(m, t) ": ({"s": [2, 3, 4], "t": [0, -1]}, ["Tanh", "Neg"]),
    "m = Flatten(a) b = Reshape(m, t)": ({"t": [4, 6]}, ["Tanh", "Reshape", "Neg"]),
    "m = Unsqueeze(a, s) b = Reshape(m, t)": ({"s": [0], "t": [6, 4]}, ["Tanh", "Reshape", "Neg"]),
    "m = Reshape(a, s) b = Squeeze(m, t)": ({"s": [2, 1, 12], "t": [1]}, ["Tanh", "Neg"]),
}


@pytest.mark.parametrize("text", MERGED)
def test_the_last_shape_counts(parse, fused, operators, text):
    constants, left = MERGED[text]
    model = parse(
        f"agraph (float[2,12] x) => (float[] y) {{ a = Tanh(x) {text} y = Neg(b) }}",
        **{name: np.array(value) for name, value in constants.items()},
    )
    fused(model, (X,))
    assert operators(model) == left


def test_a_pair_goes_though_the_middle_is_read(parse, fused, operators):
    model = parse(
        "agraph (float[2,12] x) => (float[] y, float[] z)"
        "{ m = Unsqueeze(x, s) z = Neg(m) b = Squeeze(m, s) y = Exp(b) }",
        s=np.array([1]),
    )
    fused(model, (X,))
    assert operators(model) == ["Unsqueeze", "Neg", "Exp"]


def test_squeezing_another_axis_is_something_else(parse, fused, operators):
    model = parse(
        "agraph (float[2,1,12] x) => (float[] y) { m = Unsqueeze(x, s) b = Squeeze(m, t) y = Exp(b) }",
        s=np.array([0]), t=np.array([2]),
    )  # fmt: skip
    fused(model, (X[:, None],))
    assert operators(model) == ["Unsqueeze", "Squeeze", "Exp"]


def test_a_computed_shape_is_refused(parse, fused, operators, reasons):
    model = parse(
        "agraph (float[2,12] x, int64[2] t) => (float[] y) { m = Reshape(x, s) b = Reshape(m, t) y = Exp(b) }",
        s=np.array([3, 8]),
    )
    fusions = fused(model, (X, np.array([0, -1])))
    assert operators(model) == ["Reshape", "Reshape", "Exp"]
    assert reasons(fusions, "reshapes") == ["the second shape is computed: a zero in it would mean a size of the first"]


def test_a_copied_size_that_is_not_known_is_refused(parse, fused, operators, reasons):
    model = parse(
        "agraph (float[n,12] x) => (float[] y) { m = Reshape(x, s) b = Reshape(m, t) y = Exp(b) }",
        s=np.array([-1, 8]), t=np.array([0, 2, 4]),
    )  # fmt: skip
    fusions = fused(model, (X,))
    assert operators(model) == ["Reshape", "Reshape", "Exp"]
    assert reasons(fusions, "reshapes") == ["the second shape copies a size of the first that is not known"]
