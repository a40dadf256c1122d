import numpy as np
import pytest
import torch
from torch import nn

RNG = np.random.default_rng(0)
HIDDEN, WIDTH = 8, 12


class _Gated(nn.Module):
    def __init__(self, activation, bias=False):
        super().__init__()
        self.activation = activation
        self.gate, self.up = nn.Linear(HIDDEN, WIDTH, bias=bias), nn.Linear(HIDDEN, WIDTH, bias=bias)
        self.down = nn.Linear(WIDTH, HIDDEN, bias=False)

    def forward(self, x):
        return self.down(self.activation(self.gate(x)) * self.up(x))


def _lowered(export, canonical, fused, make):
    model, inputs = export(make)
    model = canonical(model)
    fused(model, inputs)
    return model, fused(model, inputs, "onnx_cpu")


@pytest.mark.parametrize(
    "activation", [nn.SiLU(), nn.GELU(), nn.Sigmoid(), nn.Identity()], ids=lambda m: type(m).__name__
)
def test_fires_on_what_exporters_write(export, canonical, fused, operators, names, activation):
    model, fusions = _lowered(export, canonical, fused, lambda: (_Gated(activation), torch.randn(1, 3, HIDDEN)))
    assert "gate_up" in names(fusions)
    assert operators(model).count("MatMul") == 2
    (split,) = [node for node in model.graph if node.op_type == "Split"]
    assert [value.shape[-1] for value in split.outputs] == [WIDTH, WIDTH]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: (_Gated(nn.SiLU()), torch.randn(2, 3, HIDDEN)), "6 rows are multiplied: one product is slower"),
        (lambda: (_Gated(nn.SiLU(), bias=True), torch.randn(1, 3, HIDDEN)), "biases are added behind the products"),
    ],
)
@pytest.mark.parametrize("export", [("legacy", 17)], indirect=True)
def test_refuses(export, canonical, fused, operators, reasons, make, reason):
    model, fusions = _lowered(export, canonical, fused, make)
    assert operators(model).count("MatMul") == 3
    assert reasons(fusions, "gate_up") == [reason]


BODY = "agraph (float[1,2,8] x) => (float[1,2,8] y) {{ a = MatMul(x, w) {} y = Mul({}, b) }}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BODY.format("b = MatMul(x, w)", "a"), "the weight w has other uses"),
        (BODY.format("b = MatMul(x, batched)", "a"), "the weight batched is not a matrix"),
        (BODY.format("n = Neg(x) b = MatMul(n, v)", "a"), None),
        (BODY.format("s = Softplus(a) b = MatMul(x, v)", "s"), None),
    ],
)
def test_leaves_the_rest(parse, fused, operators, reasons, text, reason):
    shapes = {"w": (8, 8), "v": (8, 8), "batched": (1, 8, 8)}
    used = {n: RNG.standard_normal(s).astype(np.float32) for n, s in shapes.items() if f" {n})" in text}
    model = parse(text, **used)
    fusions = fused(model, (RNG.standard_normal((1, 2, 8)).astype(np.float32),), "onnx_cpu")
    assert operators(model).count("MatMul") == 2
    assert reasons(fusions, "gate_up") == ([] if reason is None else [reason])
