import numpy as np
import torch
from torch import nn

X = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)


class _ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(3))

    def forward(self, x):
        y = x.permute(0, 2, 3, 1)
        z = torch.cat([torch.relu(y) + self.bias, y * torch.sigmoid(y)], -1).softmax(-1)
        return z.permute(0, 3, 1, 2), torch.neg(x).transpose(1, 2).transpose(2, 1)


def _channels_last():
    return _ChannelsLast(), torch.randn(2, 3, 4, 5)


def test_transposes_around_elementwise_operators_cancel(export, fused, operators, names):
    model, inputs = export(_channels_last)
    fusions = fused(model, inputs)
    assert "Transpose" not in operators(model)
    assert "transposes" in names(fusions)


def test_two_become_one(parse, fused, operators):
    model = parse(
        "agraph (float[2,3,4,5] x) => (float[] y)"
        "{ a = Transpose<perm = [0, 2, 3, 1]>(x) b = Transpose<perm = [1, 0, 2, 3]>(a) y = Neg(b) }"
    )
    fused(model, (X,))
    assert operators(model) == ["Transpose", "Neg"]


def test_another_reader_gets_a_transpose_of_its_own(parse, fused, operators):
    model = parse(
        """agraph (float[2,3,4,5] x) => (float[] y, float[] z) {
            a = Transpose<perm = [0, 2, 3, 1]>(x)
            b = Mul(a, w)
            z = Identity(b)
            y = Transpose<perm = [0, 3, 1, 2]>(b)
        }""",
        w=X[0, :, 0, 0].copy(),
    )
    fused(model, (X,))
    assert sorted(operators(model)) == ["Mul", "Transpose"]


def test_an_involution_does_not_confuse_before_and_after(parse, fused, operators):
    model = parse(
        """agraph (float[2,3,4,5] x) => (float[] y) {
            a = Transpose<perm = [0, 1, 3, 2]>(x)
            b = Relu(a)
            c = Transpose<perm = [0, 1, 3, 2]>(b)
            d = Tanh(c)
            e = Transpose<perm = [0, 1, 3, 2]>(d)
            f = Exp(e)
            y = Transpose<perm = [0, 1, 3, 2]>(f)
        }"""
    )
    fused(model, (X,))
    assert operators(model) == ["Relu", "Tanh", "Exp"]


REDUCED = """agraph (float[2,3,4,5] x) => (float[] y) {
    a = Transpose<perm = [0, 2, 3, 1]>(x)
    b = CumSum(a, w)
    y = Transpose<perm = [0, 3, 1, 2]>(b)
}"""


def test_an_operator_that_knows_its_axes_is_not_crossed(parse, fused, operators):
    model = parse(REDUCED, w=np.array(1))
    fusions = fused(model, (X,))
    assert operators(model) == ["Transpose", "CumSum", "Transpose"]
    assert not fusions.fused


def test_moving_that_saves_nothing_is_a_near_miss(parse, fused, operators, reasons):
    model = parse(
        """agraph (float[2,3,4,5] x) => (float[] y, float[] z, float[] a) {
            a = Transpose<perm = [0, 2, 3, 1]>(x)
            b = Relu(a)
            z = Abs(b)
            y = Transpose<perm = [0, 3, 1, 2]>(b)
        }"""
    )
    fusions = fused(model, (X,))
    assert operators(model) == ["Transpose", "Relu", "Abs", "Transpose"]
    assert reasons(fusions, "transposes") == ["moving 2 operators before transposes would save none of them"]
