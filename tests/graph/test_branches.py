"""What would decide an If for good."""

import onnx.parser
import onnx_ir as ir
import pytest

from edgec.graph.branches import deciding_option, inner_nodes

BODIES = """<then_branch = t () => (float[N] a) {a = Neg (x)}, else_branch = e () => (float[N] b) {
    b = If (flag) <then_branch = u () => (float[N] c) {c = Exp (x)}, else_branch = v () => (float[N] d) {d = Abs (x)}>
}>"""


NESTED = """l = Greater (rate, wide) k = If (l) <
    then_branch = t () => (bool p) {p = Identity (flag)}, else_branch = e () => (bool q) {q = Not (flag)}
>"""


def graph_of(condition):
    text = f"""<ir_version: 10, opset_import: ["": 23]>
    g (float[N] x, int64 rate, int64[K] many, bool flag) => (float[N] y)
    <int64 wide = {{16000}}, int64[1] zero = {{0}}, int64[1] two = {{2}}> {{ {condition} y = If (c) {BODIES} }}"""
    return ir.from_proto(onnx.parser.parse_model(text)).graph


@pytest.mark.parametrize(
    ("condition", "option"),
    [
        ("c = Equal (rate, wide)", "--fix rate=16000"),
        ("e = Equal (wide, rate) c = Not (e)", "--fix rate=16000"),
        ("c = Greater (rate, wide)", "--fix rate=N"),
        ("e = Equal (rate, wide) c = And (e, flag)", "--fix flag=N --fix rate=16000"),
        ("s = Shape (x) c = Equal (s, two)", "--input with all sizes"),
        ("c = Equal (many, two)", None),  # an input whose size is open is no number
        (f"{NESTED} c = Not (k)", None),
    ],
)
def test_what_decides(condition, option):
    assert deciding_option(graph_of(condition)[-1]) == option


def test_other_nodes_are_not_decided():
    assert deciding_option(graph_of("c = Equal (rate, wide)")[0]) is None


def test_nodes_in_bodies_however_deep():
    graph = graph_of("c = Equal (rate, wide)")
    found = list(inner_nodes(graph))
    assert sorted(node.op_type for node, _ in found) == ["Abs", "Exp", "If", "Neg"]
    assert {outer for _, outer in found} == {graph[-1]}
