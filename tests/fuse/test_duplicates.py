import numpy as np
import torch
from torch import nn

X = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)


class _Twice(nn.Module):
    def forward(self, x):
        return torch.exp(x) * torch.tanh(torch.exp(x)), torch.exp(x)


def _twice():
    return _Twice(), torch.randn(2, 3)


def test_the_same_computation_is_done_once(export, fused, operators, names):
    model, inputs = export(_twice)
    twice = operators(model).count("Exp") > 1  # the legacy exporter merges them itself
    fusions = fused(model, inputs)
    assert sorted(operators(model)) == ["Exp", "Mul", "Tanh"]
    assert ("duplicates" in names(fusions)) == twice


def test_what_differs_in_an_attribute_or_is_random_stays(parse, fused, operators):
    model = parse(
        """agraph (float[2,3] x) => (float[2,3] y, int64 n) {
            a = Elu<alpha = 1.0>(x)
            b = Elu<alpha = 2.0>(x)
            y = Add(a, b)
            r = RandomUniformLike(x)
            s = RandomUniformLike(x)
            t = Sub(r, s)
            m = ReduceSumSquare<keepdims = 0>(t)
            p = Greater(m, zero)
            n = Cast<to = 7>(p)
        }""",
        zero=np.array(0, np.float32),
    )
    fused(model, (X,))  # n is 1 as long as two calls give different numbers
    assert operators(model).count("Elu") == 2
    assert operators(model).count("RandomUniformLike") == 2


def test_two_outputs_of_the_graph_both_stay(parse, fused, operators):
    model = parse("agraph (float[2,3] x) => (float[2,3] y, float[2,3] z) { y = Exp(x) z = Exp(x) }")
    fusions = fused(model, (X,))
    assert operators(model) == ["Exp", "Exp"]
    assert not fusions.fused


def test_nodes_with_several_outputs_merge(parse, fused, operators):
    model = parse(
        """agraph (float[2,3] x) => (float[1,3] y) {
            a, b = Split<axis = 0, num_outputs = 2>(x)
            c, d = Split<axis = 0, num_outputs = 2>(x)
            e = Add(a, d)
            f = Mul(b, c)
            y = Sub(e, f)
        }"""
    )
    fused(model, (X,))
    assert operators(model).count("Split") == 1


def test_equal_initializers_are_stored_once_and_unequal_ones_are_not(parse, fused):
    one, other = X[0].copy(), X[1].copy()
    model = parse(
        "agraph (float[2,3] x) => (float[2,3] y) { p = Mul(x, a) q = Div(p, b) y = Sub(q, c) }",
        a=one, b=one, c=other,
    )  # fmt: skip
    fusions = fused(model, (X,))
    assert set(model.graph.initializers) == {"a", "c"}
    assert [entry.nodes for entry in fusions.fused] == [("b",)]
