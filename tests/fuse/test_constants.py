import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from edgec.fuse import fuse

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 12)).astype(np.float32)


class _Computed(nn.Module):
    """A shape, a range and a weight that do not depend on the input."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(9, 12))
        self.scale = nn.Parameter(torch.rand(9))

    def forward(self, x):
        positions = torch.arange(9, dtype=torch.float32).sin()
        return x @ self.matrix.t() + positions * torch.exp(self.scale).expand(2, 9)


def _computed():
    return _Computed(), torch.randn(2, 12)


def test_what_exporters_compute_from_constants_is_computed_once(export, fused, operators):
    model, inputs = export(_computed)
    fused(model, inputs)
    assert operators(model) == ["MatMul", "Add"]


def test_a_moved_weight_keeps_its_name_and_stays_lazy(parse, fused):
    model = parse(
        "agraph (float[2,12] x) => (float[2,9] y) { t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t) }",
        w=RNG.standard_normal((9, 12)).astype(np.float32),
    )
    fused(model, (X,))
    weight = model.graph.initializers["w"]
    assert isinstance(weight.const_value, ir.LazyTensor)
    assert weight.shape == [12, 9]


def test_a_shape_does_not_become_a_giant_tensor(parse, fused, operators, reasons):
    model = parse(
        "agraph (float[1] x) => (float[1] y) { b = Expand(v, s) m = ReduceMax<keepdims = 0>(b) y = Add(x, m) }",
        v=np.ones(1, np.float32),
        s=np.array([1000, 100]),
    )
    fusions = fused(model, (X[0, :1].copy(),))
    assert "Expand" in operators(model)
    assert reasons(fusions, "constants") == ["constant, but 100000 elements would be stored for 3"]


def test_quantized_weights_are_left_alone(parse, fused, operators):
    model = parse(
        "agraph (float[2,12] x) => (float[2,12] y) { w = DequantizeLinear(q, s) y = Mul(x, w) }",
        q=np.arange(12, dtype=np.int8),
        s=np.array(0.5, np.float32),
    )
    fused(model, (X,))
    assert operators(model) == ["DequantizeLinear", "Mul"]


IF = """agraph (float[2,12] x) => (float[2,12] y) {
    y = If(c) <
        then_branch = g1 () => (float[2,12] a) { t = Tanh(x) a = Neg(t) },
        else_branch = g2 () => (float[2,12] b) { b = Relu(x) }>
}"""


def test_the_branch_of_a_constant_condition_is_inlined(parse, fused, operators):
    model = parse(IF, c=np.array(True))
    fused(model, (X,))
    assert operators(model) == ["Tanh", "Neg"]


def test_rules_work_inside_branches(parse, fused, operators):
    text = IF.replace("x) =>", "x, bool c) =>", 1).replace(
        "t = Tanh(x)", "k = Add(one, one) r = Mul(x, k) t = Identity(r)"
    )
    model = parse(text, one=np.array(1, np.float32))
    fused(model, (X, np.array(True)))
    assert operators(model) == ["If", "Mul", "Neg", "Relu"]


def test_the_data_of_a_graph_input_is_not_a_constant(parse, fused, operators):
    model = parse("agraph (float[2,12] x) => (float[2,12] y) { w = Neg(v) y = Mul(x, w) }", v=X)
    model.graph.inputs.append(model.graph.initializers["v"])
    fused(model, (X,))
    assert operators(model) == ["Neg", "Mul"]


def test_outputs_that_are_constant_or_inputs_keep_their_names(parse, fused):
    model = parse(
        """agraph (float[2,12] x) => (float[2,12] y, float[2] z, float[2] w) {
            a = Transpose<perm = [1, 0]>(x)
            y = Transpose<perm = [1, 0]>(a)
            z = Add(k, k)
            w = Add(k, k)
        }""",
        k=np.array([1, 2], np.float32),
    )
    fused(model, (X,))


LOOP = """agraph (float[2,12] x) => (float[2,12] y) {
    n = Constant<value = int64 {3}>()
    y = Loop(n, , x) <body = b (int64 i, bool c, float[2,12] v) => (bool d, float[2,12] u) {
        d = Identity(c)
        k = Add(one, one)
        t = Transpose<perm = [1, 0]>(v)
        r = Tanh(t)
        s = Transpose<perm = [1, 0]>(r)
        m = Mul(s, k)
        p = Identity(m)
        u = Add(p, e)
    }>
}"""


def test_the_body_of_a_loop(parse, fused, operators):
    model = parse(LOOP.replace("n = ", "e0 = Exp(x) e = Identity(e0) n = "), one=np.array(1, np.float32))
    fused(model, (X,))
    assert operators(model) == ["Exp", "Loop", "Identity", "Tanh", "Mul", "Add"]


def test_a_branch_that_is_not_taken_leaves_no_weights(parse):
    model = parse(
        """agraph (float[2,3] x) => (float[2,3] y) {
            y = If (taken) <
                then_branch = one () => (float[2,3] a) { a = Mul(x, v) },
                else_branch = other () => (float[2,3] b) { b = Mul(x, w) }
            >
        }""",
        taken=np.array(True),
        v=np.ones((2, 3), np.float32),
        w=np.full((2, 3), 2, np.float32),
    )
    fuse(model, "canonical")
    assert [node.op_type for node in model.graph] == ["Mul"]
    assert set(model.graph.initializers) == {"v"}
