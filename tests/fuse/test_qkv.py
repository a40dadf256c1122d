import math

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from edgec.fuse import fuse

RNG = np.random.default_rng(0)
HEADS, SIZE = 4, 6
HIDDEN = HEADS * SIZE


class _Attention(nn.Module):
    """Attention with as many heads for keys and values as `shared` says; `bias` is of the queries."""

    def __init__(self, shared=HEADS, bias=False):
        super().__init__()
        self.query = nn.Linear(HIDDEN, HIDDEN, bias=bias)
        self.key, self.value = (nn.Linear(HIDDEN, shared * SIZE, bias=bias) for _ in range(2))

    def forward(self, x, other=None):
        other = x if other is None else other
        made = (self.query(x), self.key(other), self.value(other))
        q, k, v = (part.view(*part.shape[:2], -1, SIZE).transpose(1, 2) for part in made)
        repeats = q.shape[1] // k.shape[1]
        if repeats > 1:
            k, v = (
                part[:, :, None].expand(-1, -1, repeats, -1, -1).reshape(part.shape[0], -1, *part.shape[2:])
                for part in (k, v)
            )
        weights = (torch.matmul(q, k.transpose(2, 3)) / math.sqrt(SIZE)).softmax(-1)
        return torch.matmul(weights, v).transpose(1, 2).reshape(x.shape)


def _lowered(export, canonical, fused, make):
    model, inputs = export(make)
    model = canonical(model)
    fused(model, inputs)
    return model, inputs, fused(model, inputs, "onnx_cpu")


@pytest.mark.parametrize("shared", [HEADS, 2])
def test_fires_on_what_exporters_write(export, canonical, fused, operators, names, shared):
    def make():
        return _Attention(shared), torch.randn(1, 3, HIDDEN)

    model, inputs = export(make)
    model = canonical(model)
    fused(model, inputs)
    assert operators(model).count("MatMul") == 3
    assert "qkv" in names(fused(model, inputs, "onnx_cpu"))
    assert operators(model).count("MatMul") == operators(model).count("Split") == 1
    (wide,) = [node for node in model.graph if node.op_type == "MatMul"]
    assert wide.inputs[1].shape == [HIDDEN, HIDDEN + 2 * shared * SIZE]
    assert not fuse(model, "onnx_cpu").fused


def test_keys_and_values_alone_where_queries_read_something_else(export, canonical, fused, operators):
    def make():
        return _Attention(), torch.randn(1, 2, HIDDEN), torch.randn(1, 3, HIDDEN)

    model, *_ = _lowered(export, canonical, fused, make)
    assert operators(model).count("MatMul") == 2
    (split,) = [node for node in model.graph if node.op_type == "Split"]
    assert len(split.outputs) == 2


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: (_Attention(), torch.randn(2, 3, HIDDEN)), "6 rows are multiplied: one product is slower"),
        (lambda: (_Attention(bias=True), torch.randn(1, 3, HIDDEN)), "biases are added behind the products"),
    ],
)
@pytest.mark.parametrize("export", [("legacy", 17)], indirect=True)
def test_refuses(export, canonical, fused, operators, reasons, make, reason):
    model, _, fusions = _lowered(export, canonical, fused, make)
    assert operators(model).count("MatMul") == 3
    assert reasons(fusions, "qkv") == [reason]


def test_refuses_where_rows_are_open(canonical, legacy_dynamic, fused, operators, reasons):
    model, inputs = legacy_dynamic(_Attention(), torch.randn(1, 2, HIDDEN))
    model = canonical(model)
    fused(model, inputs)
    fusions = fused(model, inputs, "onnx_cpu")
    assert operators(model).count("MatMul") == 3
    (reason,) = reasons(fusions, "qkv")
    assert reason.startswith("how many rows are multiplied is not known")


TEXT = """agraph (float[1,2,8] x{past}) => (float[1,2,8] y) {{
    q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, {v})
    y = Attention<q_num_heads = 2, kv_num_heads = 2>(q, k, v{inputs})
}}"""
WEIGHTS = {name: RNG.standard_normal((8, 8)).astype(np.float32) for name in ("wq", "wk", "wv")}


def _text(rows, v="wv", *, past=False):
    """Return attention as it is from opset 23 on, which is not what the fixture parses."""
    names = (", float[1,2,p,4] a, float[1,2,p,4] b", ", , a, b") if past else ("", "")
    graph = TEXT.format(past=names[0], inputs=names[1], v=v).replace("1,2,8", rows)
    text = f'<ir_version: 11, opset_import: ["" : 23, "com.microsoft" : 1]>\n{graph}'
    used = [ir.tensor(array, name=name) for name, array in WEIGHTS.items() if f"{name})" in graph]
    return ir.from_onnx_text(text, used)


def test_refuses_a_weight_with_other_uses(operators, reasons):
    model = _text("1,2,8", "wk")
    fusions = fuse(model, "onnx_cpu")
    assert operators(model).count("MatMul") == 3
    assert reasons(fusions, "qkv") == ["the weight wk has other uses"]


@pytest.mark.parametrize("past", [False, True])
def test_with_a_past_most_runs_are_of_one_row(operators, reasons, past):
    model = _text("1,n,8", past=past)
    fusions = fuse(model, "onnx_cpu")
    assert operators(model).count("MatMul") == (1 if past else 3)
    assert bool(reasons(fusions, "qkv")) is not past


def test_the_wide_product_is_named_after_all(operators):
    model = _text("1,2,8")
    for node, name in zip(model.graph, "qkv", strict=False):
        node.name = f"/layers.0/attention/{name}_proj/MatMul"
    fusions = fuse(model, "onnx_cpu")
    assert fusions.fused[0].nodes == ("/layers.0/attention/q_proj+k_proj+v_proj/MatMul",)
    assert operators(model) == ["MatMul", "Split", "Attention"]
