import numpy as np
import torch
from torch import nn

X = np.random.default_rng(0).standard_normal((2, 5, 12)).astype(np.float32)


class _Heads(nn.Module):
    """What attention does with its sizes."""

    def forward(self, x):
        batch, length, _ = x.shape
        y = torch.relu(x).view(batch, length, 3, 4).transpose(1, 2)
        return torch.tanh(y.reshape(batch, 3, length * 4))


def test_sizes_that_are_copied_need_no_computation(legacy_dynamic, fused, operators, names):
    model, inputs = legacy_dynamic(_Heads(), torch.randn(2, 5, 12))
    assert operators(model).count("Shape") >= 2
    fusions = fused(model, inputs)
    assert operators(model)[:5] == ["Relu", "Reshape", "Transpose", "Reshape", "Tanh"]
    assert "shapes" in names(fusions)


TEXT = """agraph (float[n,m,12] x) => (float[] y) {{
    r = Relu(x)
    s = Shape(r)
    a = Gather(s, zero)
    b = Slice(s, one, two)
    c = {}
    y = {}
}}"""
NUMBERS = {"zero": np.array([0]), "one": np.array([1]), "two": np.array([2]), "k": np.array([3, 4])}


def test_two_copied_sizes(parse, fused, operators):
    model = parse(TEXT.format("Concat<axis = 0>(a, b, k)", "Reshape(r, c)"), **NUMBERS)
    fused(model, (X,))
    assert operators(model) == ["Relu", "Reshape"]
    assert model.graph[1].inputs[1].const_value.numpy().tolist() == [0, 0, 3, 4]


def test_a_copied_size_is_one_for_expand(parse, fused, operators):
    model = parse(
        TEXT.format("Concat<axis = 0>(k1, a, b, k12)", "Expand(r, c)"), **NUMBERS, k1=np.array([4]), k12=np.array([12])
    )
    fused(model, (X,))
    assert operators(model) == ["Relu", "Expand"]
    assert model.graph[1].inputs[1].const_value.numpy().tolist() == [4, 1, 1, 1]


def test_two_open_sizes_are_refused(parse, fused, operators, reasons):
    model = parse(TEXT.format("Concat<axis = 0>(b, k, a)", "Reshape(r, c)"), **NUMBERS)
    fusions = fused(model, (X,))
    assert "Concat" in operators(model)
    assert reasons(fusions, "shapes") == ["of the shape (m, 3, 4, n) too little is known"]
