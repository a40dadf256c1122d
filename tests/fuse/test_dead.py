import numpy as np
import torch
from torch import nn

X = np.ones((2, 3), np.float32)


class _Ignored(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x):
        self.unused(x)
        return self.used(x)


def _ignored():
    return _Ignored(), torch.ones(2, 3)


def test_what_no_output_depends_on_goes(export, fused, operators):
    model, inputs = export(_ignored)
    fused(model, inputs)
    assert operators(model) == ["Gemm"]
    assert set(model.graph.initializers) == {"used.weight", "used.bias"}


def test_unused_nodes_and_initializers_go_also_from_branches(parse, fused, operators):
    model = parse(
        """agraph (float[2,3] x, bool c) => (float[2,3] y) {
            u = Relu(x)
            v = Neg(u)
            y = If(c) <
                then_branch = g1 () => (float[2,3] a) { d = Sin(x) a = Tanh(x) },
                else_branch = g2 () => (float[2,3] b) { b = Mul(x, w) }>
        }""",
        w=np.array(2, np.float32),
        unused=np.ones(4, np.float32),
    )
    fusions = fused(model, (X, np.array(False)))
    assert operators(model) == ["If", "Tanh", "Mul"]
    assert set(model.graph.initializers) == {"w"}
    assert set(fusions.fused[0].nodes) == {"Relu_u", "Neg_v", "Sin_d"}


def test_what_only_a_branch_reads_stays(parse, fused, operators):
    model = parse(
        """agraph (float[2,3] x, bool c) => (float[2,3] y) {
            u = Exp(x)
            y = If(c) <
                then_branch = g1 () => (float[2,3] a) { a = Tanh(u) },
                else_branch = g2 () => (float[2,3] b) { b = Sin(x) }>
        }"""
    )
    fusions = fused(model, (X, np.array(True)))
    assert operators(model) == ["Exp", "If", "Tanh", "Sin"]
    assert not fusions.fused
