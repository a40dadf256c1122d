import warnings

import numpy as np
import onnx_ir as ir
import pytest
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


class TestZeros:
    """Without allowzero a 0 in a shape copies a size, with it there is nothing."""

    def test_what_the_dynamo_exporter_asks_for_is_copied(self, fused, operators, canonical):
        axes = ({0: torch.export.Dim("batch", min=2, max=64), 1: torch.export.Dim("length", min=2, max=64)},)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _Heads().eval(), (torch.randn(2, 5, 12),), dynamo=True, dynamic_shapes=axes, opset_version=18,
                verbose=False, optimize=False,
            )  # fmt: skip
        model = ir.serde.deserialize_model(program.model_proto)
        assert sum(node.attributes.get_int("allowzero", 0) for node in model.graph) == 2
        model = canonical(model)
        fused(model, (X,))
        assert operators(model) == ["Relu", "Reshape", "Transpose", "Reshape", "Tanh"]
        for node in (model.graph[1], model.graph[3]):
            assert node.attributes.get_int("allowzero", 0) == 0

    @pytest.mark.parametrize("attribute", ["", "<allowzero = 1>"])
    def test_sizes_that_are_not_0(self, attribute, parse, fused, operators):
        model = parse(TEXT.format("Concat<axis = 0>(a, b, k)", f"Reshape{attribute}(r, c)"), **NUMBERS)
        fused(model, (X,))
        assert operators(model) == ["Relu", "Reshape"]
        assert model.graph[1].inputs[1].const_value.numpy().tolist() == [0, 0, 3, 4]
        assert model.graph[1].attributes.get_int("allowzero", 0) == 0
        fused(model, (X[:0],))  # sizes that are copied may be anything

    def test_a_size_that_is_to_be_0(self, parse, fused, operators, reasons):
        model = parse(
            TEXT.format("Concat<axis = 0>(zero, a, k4)", "Reshape<allowzero = 1>(r, c)"), **NUMBERS, k4=np.array([4])
        )
        fusions = fused(model, (X[:, :0],))
        assert "Concat" in operators(model)
        assert reasons(fusions, "shapes") == ["a size that is asked for is 0"]

    def test_a_size_that_a_0_copies_is_not_open(self, parse, fused, operators):
        """Of (2, 5, 12) one asks for (0, ?, 4): what is open is 15, though all sizes of the input are known."""
        text = """agraph (float[2,5,12] x, float[u] z) => (float[] y) {
            r = Relu(x)
            s = Shape(z)
            c = Concat<axis = 0>(zero, s, k4)
            y = Reshape(r, c)
        }"""
        model = parse(text, zero=np.array([0]), k4=np.array([4]))
        fused(model, (X, np.zeros(15, np.float32)))
        assert operators(model) == ["Relu", "Reshape"]
        assert model.graph[1].inputs[1].const_value.numpy().tolist() in ([0, 15, 4], [2, 15, 4])

    def test_what_is_open_where_there_is_nothing(self, parse, fused):
        """It is 0, which would copy the second size."""
        text = """agraph (float[0,4] x, float[u] z) => (float[] y) {
            r = Relu(x)
            s = Shape(z)
            c = Concat<axis = 0>(k4, s)
            y = Reshape<allowzero = 1>(r, c)
        }"""
        model = parse(text, k4=np.array([4]))
        fused(model, (np.zeros((0, 4), np.float32), np.zeros(0, np.float32)))
