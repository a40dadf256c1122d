import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 8)).astype(np.float32)


class _Norms(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        for tensor in self.norm.parameters():
            nn.init.normal_(tensor)

    def forward(self, x):
        a, b, c = x + 1, x * 2, x * 3
        centred = a - a.mean(-1, keepdim=True)
        turned = b - b.mean(-1, keepdim=True)
        squares = (c - c.mean(2, keepdim=True)) * (c - c.mean(2, keepdim=True))
        return (
            self.norm(x),
            self.norm.bias + self.norm.weight * (centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-6)),
            turned * torch.rsqrt(turned.pow(2).mean(-1, keepdim=True) + 1e-5),
            2.0 * ((c - c.mean(2, keepdim=True)) / torch.sqrt(squares.mean(2, keepdim=True) + 1e-5)) + 1.0,
        )


def _norms():
    return _Norms(), torch.randn(2, 3, 8)


def test_fires_on_what_exporters_write(export, canonical, fused, operators):
    model, inputs = export(_norms)
    model = canonical(model)
    fused(model, inputs)
    assert sorted(operators(model)) == ["Add", *["LayerNormalization"] * 4, "Mul", "Mul"]
    epsilons = [node.attributes.get_float("epsilon") for node in model.graph if node.op_type == "LayerNormalization"]
    np.testing.assert_allclose(sorted(epsilons), [1e-6, 1e-5, 1e-5, 1e-5], rtol=1e-5)


NORM = """agraph (float[{shape}] x) => (float[{shape}] y) {{
    m = ReduceMean(x, axes)
    d = Sub(x, m)
    s = Pow(d, two)
    v = ReduceMean(s, axes)
    e = Add(v, epsilon)
    r = Sqrt(e)
    n = Div(d, r)
    y = Mul(n, w)
}}"""


def _parsed(parse, text, axes=(-1,), w=None):
    weight = np.linspace(1, 2, 8, dtype=np.float32) if w is None else w
    return parse(
        text,
        axes=np.array(axes),
        two=np.array(2, np.float32),
        epsilon=np.array(1e-5, np.float32),
        w=weight,
    )


def test_weights_keep_their_names(parse, fused):
    model = _parsed(parse, NORM.format(shape="2,3,8"))
    fused(model, (X,))
    (node,) = model.graph
    assert [value.name for value in node.inputs] == ["x", "w"]
    assert set(model.graph.initializers) == {"w"}


REFUSED = {
    "the mean is not along the last axis alone": (NORM.format(shape="2,3,8"), {"axes": (1,)}),
    "the size of the last axis is not known": (
        NORM.format(shape="a,b,c").replace("Mul(n, w)", "Neg(n)"),
        {},
    ),
    "e is also read by Neg_z": (
        NORM.format(shape="2,3,8").replace("y) {", "y, float[2,3,1] z) {").replace("r = ", "z = Neg(e) r = "),
        {},
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refuses(parse, fused, operators, reasons, reason):
    text, changes = REFUSED[reason]
    model = _parsed(parse, text, **changes)
    if "w)" not in text:
        del model.graph.initializers["w"]
    fusions = fused(model, (X,))
    assert "LayerNormalization" not in operators(model)
    assert reason in reasons(fusions, "layernorm")


def test_what_is_centred_in_another_way_is_still_divided_by_its_root(canonical, parse, fused, operators):
    text = NORM.format(shape="2,3,8").replace("m = ReduceMean(x", "k = Neg(x) m = ReduceMean(k")
    model = canonical(_parsed(parse, text))
    fused(model, (X,))
    assert "LayerNormalization" not in operators(model)
    assert "RMSNormalization" in operators(model)


def test_a_factor_that_is_no_weight_stays(parse, fused, operators, reasons):
    model = _parsed(parse, NORM.format(shape="2,3,8"), w=RNG.standard_normal((3, 8)).astype(np.float32))
    fusions = fused(model, (X,))
    assert operators(model) == ["LayerNormalization", "Mul"]
    assert reasons(fusions, "layernorm") == ["the constant is not one number for each element of the last axis"]


def test_weights_of_a_norm_take_what_follows(parse, fused):
    model = parse(
        "agraph (float[2,3,8] x) => (float[2,3,8] y)"
        "{ a = LayerNormalization(x, w, b) k = Mul(a, w) m = Add(b, k) y = Mul(m, two) }",
        w=RNG.standard_normal(8).astype(np.float32),
        b=RNG.standard_normal(8).astype(np.float32),
        two=np.array([[[2]]], np.float32),
    )
    fused(model, (X,), atol=5e-6)
    (node,) = model.graph
    assert node.op_type == "LayerNormalization"
    assert all(isinstance(value, ir.Value) and value.is_initializer() for value in node.inputs[1:])
