import numpy as np
import pytest
import torch
from torch import nn

X = np.random.default_rng(0).standard_normal((2, 1, 6)).astype(np.float32)


class _Expanded(nn.Module):
    def forward(self, x):
        half = x[..., : x.shape[-1] // 2]
        return torch.neg(x).expand(-1, x.shape[0] * 2, -1), torch.exp(half)


def test_fires_on_what_older_exporters_write(canonical, legacy_dynamic, fused, operators, names):
    model, inputs = legacy_dynamic(_Expanded(), torch.randn(2, 1, 6))
    model = canonical(model)
    fusions = fused(model, inputs)
    assert "sizes" in names(fusions)
    assert not {"Where", "Equal", "Div"} & set(operators(model))


KNOWN = """agraph (float[n,1,6] x) => (float[] y) {
    s = Shape(x)
    d = Gather(s, two)
    h = Div(d, two)
    e = Unsqueeze(h, zeros)
    y = Slice(x, zeros, e, twos)
}"""
CONSTANTS = {"two": np.array(2), "zeros": np.array([0]), "twos": np.array([2])}


def test_known_sizes_are_constant(parse, fused, operators):
    model = parse(KNOWN, **CONSTANTS)
    fused(model, (X,))
    assert operators(model) == ["Slice"]


EXPANDED = """agraph (float[n,1,6] x, int64[1] k) => (float[] y) {{
    s = Shape<end = 1>(x)
    t = {size}
    c = Concat<axis = 0>(s, t, minus)
    e = Equal(c, minuses)
    w = Where(e, ones, c)
    y = Expand(x, w)
}}"""


@pytest.mark.parametrize(("size", "stays"), [("Mul(s, s)", False), ("Sub(s, k)", True), ("Identity(k)", True)])
def test_a_size_that_may_be_negative_is_asked_for(parse, fused, operators, size, stays):
    model = parse(EXPANDED.format(size=size), minus=np.array([-1]), minuses=np.array([-1] * 3), ones=np.array([1] * 3))
    fused(model, (X, np.array([-1])))
    assert ("Where" in operators(model)) == stays
