import numpy as np
import pytest
import torch
from torch import nn

X = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)


class _Silus(nn.Module):
    def forward(self, x):
        gate, up = x + 1, x - 1
        return nn.functional.silu(x), gate * torch.sigmoid(gate) * up, torch.sigmoid(1.702 * x) * x


def _silus():
    return _Silus(), torch.randn(2, 3, 8)


def test_fires_on_what_exporters_write(export, canonical, fused, operators, names):
    model, inputs = export(_silus)
    model = canonical(model)
    fused(model, inputs)
    assert "QuickGelu" not in operators(model)
    fusions = fused(model, inputs, "onnx_cpu")
    assert names(fusions) == {"silu"}
    assert operators(model).count("QuickGelu") == 3
    assert "Sigmoid" not in operators(model)
    alphas = sorted(node.attributes.get_float("alpha") for node in model.graph if node.op_type == "QuickGelu")
    assert alphas == pytest.approx([1, 1, 1.702])


BODY = "agraph (float[2,3,8] x) => (float[2,3,8] y) {{ {} }}"


@pytest.mark.parametrize(
    ("body", "alpha"),
    [
        ("s = Sigmoid(x) y = Mul(s, x)", 1),
        ("a = Mul(x, k) s = Sigmoid(a) y = Mul(x, s)", 1.5),
        ("a = Mul(k, x) s = Sigmoid(a) y = Mul(a, s)", 1),  # x is what was multiplied
    ],
)
def test_fires_in_whatever_order(parse, fused, operators, body, alpha):
    model = parse(BODY.format(body), **({"k": np.array(1.5, np.float32)} if "k" in body else {}))
    fused(model, (X,), "onnx_cpu")
    assert operators(model)[-1] == "QuickGelu"
    assert model.graph[-1].attributes.get_float("alpha") == pytest.approx(alpha)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BODY.format("s = Sigmoid(x) m = Mul(x, s) n = Neg(s) y = Add(m, n)"), "s is also read by Neg_n"),
        (
            BODY.replace("y) {{", "y, float[2,3,8] s) {{").format("s = Sigmoid(x) y = Mul(x, s)"),
            "s is an output of the graph",
        ),
        (
            BODY.replace("float[", "float16[").format("s = Sigmoid(x) y = Mul(x, s)"),
            "it is not known to compute in float32",
        ),
    ],
)  # fmt: skip
def test_refuses(parse, fused, operators, reasons, text, reason):
    model = parse(text)
    before = operators(model)
    fusions = fused(model, (X.astype(np.float16) if "float16" in text else X,), "onnx_cpu")
    assert operators(model) == before
    assert reasons(fusions, "silu") == [reason]


@pytest.mark.parametrize("body", ["n = Neg(x) s = Sigmoid(n) y = Mul(x, s)", "s = Sigmoid(x) y = Mul(s, s)"])
def test_leaves_what_is_something_else(parse, fused, operators, body):
    model = parse(BODY.format(body))
    before = operators(model)
    fused(model, (X,), "onnx_cpu")
    assert operators(model) == before


def test_refuses_several_numbers(parse, fused, operators, reasons):
    model = parse(BODY.format("a = Mul(x, k) s = Sigmoid(a) y = Mul(x, s)"), k=np.arange(8, dtype=np.float32))
    fusions = fused(model, (X,), "onnx_cpu")
    assert operators(model) == ["Mul", "Sigmoid", "Mul"]
    assert "what the sigmoid's input is multiplied with is not one constant number" in reasons(fusions, "silu")
