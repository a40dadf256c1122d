import numpy as np
import torch
from torch import nn

RNG = np.random.default_rng(0)
W = RNG.standard_normal((3, 5)).astype(np.float32)
B = RNG.standard_normal(5).astype(np.float32)


class _Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(5))

    def forward(self, x):
        return torch.relu(x @ self.weight + self.bias)


def _dense():
    return _Dense(), torch.randn(4, 3)


def test_a_product_of_matrices_and_its_bias_become_gemm(export, fused, operators, names):
    model, inputs = export(_dense)
    fusions = fused(model, inputs)
    assert operators(model) == ["Gemm", "Relu"]
    assert "gemm" in names(fusions)


def test_what_is_not_a_matrix_stays(parse, fused, operators, reasons):
    model = parse("agraph (float[2,4,3] x) => (float[] y) { p = MatMul(x, w) y = Add(b, p) }", w=W, b=B)
    fusions = fused(model, (RNG.standard_normal((2, 4, 3)).astype(np.float32),))
    assert operators(model) == ["MatMul", "Add"]
    assert reasons(fusions, "gemm") == []


def test_a_bias_for_each_row_is_refused(parse, fused, operators, reasons):
    model = parse("agraph (float[4,3] x) => (float[] y) { p = MatMul(x, w) y = Add(p, b) }", w=W, b=W[:1].repeat(4, 0))
    fusions = fused(model, (RNG.standard_normal((4, 3)).astype(np.float32),))
    assert operators(model) == ["MatMul", "Add"]
    assert reasons(fusions, "gemm") == ["the bias is not one number for each of 5 outputs"]
