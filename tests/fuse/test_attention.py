import math

import numpy as np
import pytest
import torch
from torch import nn

from edgec.fuse import fuse

RNG = np.random.default_rng(0)
BATCH, LENGTH, HEADS, SIZE = 2, 5, 4, 6
HIDDEN = HEADS * SIZE


class _Projected(nn.Module):
    """Queries, keys and values (batch, heads, length, size) of one input."""

    def __init__(self, shared=HEADS):
        super().__init__()
        self.q = nn.Linear(HIDDEN, HIDDEN)
        self.k, self.v = nn.Linear(HIDDEN, shared * SIZE, bias=False), nn.Linear(HIDDEN, shared * SIZE)

    def qkv(self, x, scale=1.0):
        rows = x.shape[:2]
        return (
            (self.q(x) * scale if scale != 1 else self.q(x)).view(*rows, -1, SIZE).transpose(1, 2),
            self.k(x).view(*rows, -1, SIZE).transpose(1, 2),
            self.v(x).view(*rows, -1, SIZE).transpose(1, 2),
        )


def _joined(x):
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


class _Bert(_Projected):
    def forward(self, x, mask):
        q, k, v = self.qkv(x)
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(SIZE)
        added = (1.0 - mask[:, None, None, :]) * -10000.0
        return _joined(torch.matmul(nn.functional.dropout(torch.softmax(scores + added, -1), 0.1, self.training), v))


class _DistilBert(_Projected):
    def forward(self, x, mask):
        q, k, v = self.qkv(x)
        scores = torch.matmul(q / math.sqrt(SIZE), k.transpose(2, 3))
        hidden = (mask == 0).view(mask.shape[0], 1, 1, -1).expand_as(scores)
        return _joined(torch.matmul(scores.masked_fill(hidden, torch.finfo(torch.float32).min).softmax(-1), v))


class _Bart(_Projected):
    """Heads are joined with the batch, as in older models of speech and translation."""

    def forward(self, x, mask):
        q, k, v = (part.reshape(-1, LENGTH, SIZE) for part in self.qkv(x, scale=SIZE**-0.5))
        scores = torch.bmm(q, k.transpose(1, 2)) + (mask[0] - 1.0)[None, None, :] * 100.0
        return _joined(torch.bmm(scores.softmax(-1), v).view(-1, HEADS, LENGTH, SIZE))


class _Llama(_Projected):
    def __init__(self):
        super().__init__(shared=2)

    def forward(self, x, mask):
        q, k, v = self.qkv(x)
        k, v = (part[:, :, None].expand(-1, -1, 2, -1, -1).reshape(-1, HEADS, LENGTH, SIZE) for part in (k, v))
        added = torch.triu(torch.full((LENGTH, LENGTH), -3e38), 1)[None, None] + (mask - 1.0)[:, None, None] * 50.0
        scores = torch.matmul(q, k.transpose(2, 3)) * SIZE**-0.5 + added
        return _joined(torch.matmul(nn.functional.softmax(scores, dim=-1, dtype=torch.float32), v))


class _T5(_Projected):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(1, HEADS, LENGTH, LENGTH))

    def forward(self, x, mask):
        q, k, v = self.qkv(x)
        scores = torch.matmul(q, k.transpose(3, 2))
        scores += self.bias + (1.0 - mask)[:, None, None] * -1e9
        return _joined(torch.matmul(scores.softmax(-1), v))


class _Cached(_Projected):
    def forward(self, x, past):
        q, k, v = self.qkv(x)
        k, v = torch.cat([past, k], 2), torch.cat([past, v], 2)
        return _joined(torch.matmul((torch.matmul(q, k.transpose(2, 3)) * 0.5).softmax(-1), v)), k, v


class _Sdpa(_Projected):
    def forward(self, x, mask):
        q, k, v = self.qkv(x)
        seen = (mask[:, None, None, :] > 0).expand(-1, 1, LENGTH, LENGTH)
        return _joined(nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen))


def _inputs():
    mask = torch.ones(BATCH, LENGTH)
    mask[1, 3:] = 0
    return torch.randn(BATCH, LENGTH, HIDDEN), mask


MODULES = {module.__name__: lambda module=module: (module(), *_inputs()) for module in (_Bert, _DistilBert, _Bart)}
MODULES |= {module.__name__: lambda module=module: (module(), *_inputs()) for module in (_Llama, _T5)}


def _cached():
    return _Cached(), torch.randn(BATCH, LENGTH, HIDDEN), torch.randn(BATCH, HEADS, 3, SIZE)


class _Lowest(_Projected):
    """The lowest number of all, as older versions of transformers write it."""

    def forward(self, x, mask):
        q, k, v = self.qkv(x)
        added = (1.0 - mask[:, None, None]) * torch.finfo(torch.float32).min
        return _joined(torch.matmul((torch.matmul(q, k.transpose(3, 2)) + added).softmax(-1), v))


class _Biased(_T5):
    def forward(self, x, mask):
        q, k, v = self.qkv(x)
        hidden = torch.where(mask[:, None, None] > 0, 0.0, torch.finfo(torch.float32).min)
        return _joined(torch.matmul((torch.matmul(q, k.transpose(3, 2)) + (self.bias + hidden)).softmax(-1), v))


@pytest.mark.parametrize("module", [_Bert, _DistilBert, _Lowest, _Biased])
@pytest.mark.parametrize("export", [("legacy", 17)], indirect=True)
def test_a_query_that_sees_nothing_gives_the_mean_that_it_gave(export, canonical, fused, operators, module):
    model, (x, mask) = export(lambda: (module(), *_inputs()))
    model = canonical(model)
    blind = mask.copy()
    blind[0] = 0
    fused(model, (x, blind))
    assert operators(model).count("Attention") == 1


def _attention(model):
    (node,) = [node for node in model.graph if node.op_type == "Attention"]
    return node


@pytest.mark.parametrize("make", [*MODULES.values(), _cached], ids=[*MODULES, "_Cached"])
def test_fires_on_what_exporters_write(export, canonical, fused, operators, make):
    model, inputs = export(make)
    model = canonical(model)
    fused(model, inputs)
    kinds = operators(model)
    assert kinds.count("Attention") == 1
    assert kinds.count("MatMul") + kinds.count("Gemm") == 3
    assert "Softmax" not in kinds


def _llama_size(model):
    key = _attention(model).inputs[1]
    return key.shape[1] if len(key.shape) == 4 else key.shape[2] // SIZE


def test_shared_heads_are_not_repeated(export, canonical, fused, operators):
    model, inputs = export(MODULES["_Llama"])
    model = canonical(model)
    fused(model, inputs)
    assert _llama_size(model) == 2


@pytest.mark.parametrize("export", [("legacy", 17), ("dynamo", 18)], indirect=True)
def test_a_query_that_sees_nothing_gives_what_it_gave(export, canonical, fused, operators):
    model, (x, mask) = export(lambda: (_Sdpa(), *_inputs()))
    model = canonical(model)
    blind = mask.copy()
    blind[0] = 0
    fused(model, (x, blind))
    assert operators(model).count("Attention") == 1
    assert "IsNaN" not in operators(model)
    assert "Softmax" not in operators(model)


def test_sizes_that_are_open_stay_so(canonical, legacy_dynamic, fused, operators):
    class Plain(_Projected):
        def forward(self, x):
            q, k, v = self.qkv(x)
            return _joined(torch.matmul((torch.matmul(q, k.transpose(2, 3)) * SIZE**-0.5).softmax(-1), v))

    torch.manual_seed(0)
    model, inputs = legacy_dynamic(Plain(), torch.randn(2, 5, HIDDEN))
    model = canonical(model)
    fused(model, inputs)
    assert operators(model).count("Attention") == 1
    fused(model, (RNG.standard_normal((3, 7, HIDDEN)).astype(np.float32),))


Q = RNG.standard_normal((2, 4, 5, 6)).astype(np.float32)
M = np.where(RNG.random((2, 1, 1, 5)) > 0.3, 0, -100).astype(np.float32)
PLAIN = """agraph (float[2,4,5,6] x, float[2,1,1,5] m) => (float[2,4,5,6] y) {
    k = Transpose<perm = [0, 1, 3, 2]>(x)
    s = MatMul(x, k)
    d = Div(s, two)
    a = Add(m, d)
    p = Softmax<axis = -1>(a)
    y = MatMul(p, x)
}"""
REFUSED = {
    "the softmax is not along the last axis": PLAIN.replace("axis = -1", "axis = 2"),
    "the softmax is of no product of queries and keys, but of Tanh": PLAIN.replace("a = Add(m, d)", "a = Tanh(d)"),
    "the softmax is of a sum of several products": PLAIN.replace("a = Add(m, d)", "e = MatMul(x, k) a = Add(e, d)"),
    "p is also read by Neg_z": PLAIN.replace("y) {", "y, float[2,4,5,5] z) {").replace("y = M", "z = Neg(p) y = M"),
    "s is an output of the graph": PLAIN.replace("y) {", "y, float[2,4,5,5] s) {"),
    "Mul stands between the softmax and the values": PLAIN.replace("MatMul(p, x)", "MatMul(g, x)").replace(
        "y =", "g = Mul(p, m) y ="
    ),
    "Dropout stands between the softmax and the values": PLAIN.replace("MatMul(p, x)", "MatMul(g, x)").replace(
        "y =", "g = Dropout(p, ratio, on) y ="
    ),
    "masked scores become -10000, which is not the same as to add it": PLAIN.replace(
        "a = Add(m, d)", "b = Greater(m, two) a = Where(b, low, d)"
    ),
    "queries that see no key give 0, and the mask is not known to hide keys completely": PLAIN.replace(
        "MatMul(p, x)", "MatMul(g, x)"
    ).replace("y =", "n = IsNaN(p) g = Where(n, zero, p) y ="),
    "nothing shows that batches are the same: 2, 2, c": PLAIN.replace("MatMul(p, x)", "MatMul(p, w)").replace(
        "float[2,1,1,5] m)", "float[2,1,1,5] m, float[c,4,5,6] w)"
    ),
    "nothing shows that heads are as many: 4, 4, 1": PLAIN.replace("MatMul(p, x)", "MatMul(p, w)").replace(
        "float[2,1,1,5] m)", "float[2,1,1,5] m, float[2,1,5,6] w)"
    ),
    "the values are not known to have three or four axes": PLAIN.replace("MatMul(p, x)", "MatMul(p, w)").replace(
        "float[2,1,1,5] m)", "float[2,1,1,5] m, float[5,6] w)"
    ),
    "the mask has more elements than the scores: 2 for 1": PLAIN.replace("float[2,4,5,6] x", "float[1,4,5,6] x"),
    "queries, keys and values are not known to have as many axes": PLAIN.replace(
        "MatMul(x, k)", "MatMul(x, w)"
    ).replace("float[2,1,1,5] m)", "float[2,1,1,5] m, float[6,5] w)"),
}
NUMBERS = {
    "two": np.array(2, np.float32),
    "ratio": np.array(0.5, np.float32),
    "on": np.array(True),
    "low": np.array(-1e4, np.float32),
    "zero": np.array(0, np.float32),
}


def _parsed(parse, text):
    return parse(text, **{name: data for name, data in NUMBERS.items() if f"({name}" in text or f", {name}" in text})


@pytest.mark.parametrize("reason", REFUSED)
def test_refuses(parse, operators, reasons, reason):
    model = _parsed(parse, REFUSED[reason])
    fusions = fuse(model, "canonical")
    assert "Attention" not in operators(model)
    assert reasons(fusions, "attention") == [reason]


def test_a_mask_holds_for_each_query(parse, canonical, fused):
    model = canonical(_parsed(parse, PLAIN))
    fused(model, (Q, M))
    assert _attention(model).inputs[3].shape == [2, 1, 5, 5]
    assert _attention(model).attributes.get_float("scale") == 0.5


def test_scales_of_queries_and_keys_join_that_of_attention(canonical, parse, fused, operators):
    model = canonical(
        _parsed(
            parse,
            PLAIN.replace("MatMul(x, k)", "MatMul(q, j)").replace("    s =", "q = Mul(x, two) j = Div(k, two) s ="),
        )
    )
    fused(model, (Q, M))
    assert _attention(model).attributes.get_float("scale") == 0.5
    assert "Mul" not in operators(model)
