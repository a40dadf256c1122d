"""Every rule's file, and the machinery that applies them."""

from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxscript.rewriter.pattern import RewriteRule

import edgec.fuse
from edgec.errors import EdgecError
from edgec.fuse import Fusions, fuse, rows, rules
from edgec.fuse.result import Fused, Missed
from edgec.fuse.rule import PHASES, Fusion

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 4, 4)).astype(np.float32)
STAGES = ("canonical", "onnx_cpu", "openvino", "tensorrt")

MIXED = """agraph (float[n,3,4,4] x, bool c) => (float[n,4,4,4] y, float[n,3,4,4] z) {
    p = Pad(x, pads)
    a = Conv(p, w)
    b = BatchNormalization(a, gamma, beta, gamma, var)
    d = Mul(b, two)
    y = Relu(d)
    e = Identity(x)
    z = If(c) <
        then_branch = g1 () => (float[n,3,4,4] t) { t1 = Exp(x) t2 = Exp(x) t3 = Add(t1, t2) t = Identity(t3) },
        else_branch = g2 () => (float[n,3,4,4] u) {
            u1 = Mul(e, one)
            u2 = BatchNormalization(u1, k, k, k, k)
            u = Tanh(u2)
        }>
}"""


def _mixed(parse):
    return parse(
        MIXED,
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        w=RNG.standard_normal((4, 3, 3, 3)).astype(np.float32),
        gamma=np.array([1, 2, 3, 4], np.float32),
        beta=np.array([0, 1, 0, 1], np.float32),
        var=np.array([2, 1, 2, 1], np.float32),
        one=np.array(1, np.float32),
        two=np.array([[[2]]], np.float32),
        k=np.ones(3, np.float32),
    )


@pytest.mark.parametrize("name", rules())
def test_a_rule_says_what_it_is(name):
    module = rules()[name]
    assert module.__doc__
    assert isinstance(module.TITLE, str)
    assert module.TITLE
    assert module.STAGE in STAGES
    assert module.PHASE in PHASES
    assert hasattr(module, "RULES") != hasattr(module, "apply")
    assert all(isinstance(rule, RewriteRule) for rule in getattr(module, "RULES", ()))
    assert (Path(__file__).parent / f"test_{name}.py").is_file()


@pytest.mark.parametrize("name", rules())
def test_a_rule_alone_keeps_outputs_and_comes_to_an_end(monkeypatch, parse, fused, name):
    module = rules()[name]
    monkeypatch.setattr(edgec.fuse, "rules", lambda stage: {name: module})
    model = _mixed(parse)
    for condition in (True, False):
        again = fused(model, (X, np.array(condition)), module.STAGE)
    assert not again.fused


def test_every_file_is_a_rule_or_part_of_the_machinery():
    files = {path.stem for path in Path(edgec.fuse.__file__).parent.glob("*.py")}
    assert files == {*rules(), *edgec.fuse._FRAMEWORK, "__init__"}


def test_rules_run_by_phase_and_name():
    order = [(PHASES.index(module.PHASE), name) for name, module in rules().items()]
    assert order == sorted(order)
    assert {module.STAGE for module in rules("canonical").values()} == {"canonical"}


def test_rules_work_together_also_in_branches(parse, fused, operators):
    model = _mixed(parse)
    fusions = fused(model, (X, np.array(True)))
    assert operators(model) == ["Conv", "Relu", "If", "Exp", "Add", "BatchNormalization", "Tanh"]
    assert {entry.rule for entry in fusions.fused} >= {"batchnorm", "duplicates", "identities", "pads", "scales"}
    (miss,) = [miss for miss in fusions.missed if miss.rule == "batchnorm"]
    assert miss.node == "BatchNormalization_u2"
    assert miss.reason == "x is made outside this subgraph at BatchNormalization_u2"


def test_the_result_is_the_same_each_time_and_final(parse):
    first, second = _mixed(parse), _mixed(parse)
    second.graph.initializers["w"].const_value = first.graph.initializers["w"].const_value
    assert fuse(first, "canonical") == fuse(second, "canonical")
    assert ir.to_proto(first).SerializeToString() == ir.to_proto(second).SerializeToString()
    assert not fuse(first, "canonical").fused


def test_functions_are_inlined(parse, fused, operators):
    model = parse("agraph (float[2,3,4,4] x) => (float[2,3,4,4] y) { y = Neg(x) }")
    argument = ir.Value(name="v")
    body = [ir.node("Relu", [argument], name="r")]
    body.append(ir.node("Identity", body[0].outputs, name="i"))
    inner = ir.Graph([argument], body[1].outputs, nodes=body, opset_imports={"": 18})
    model.functions["local", "Act", ""] = ir.Function("local", "Act", "", graph=inner, attributes=[])
    model.graph.opset_imports["local"] = 1
    node = ir.node("Act", [model.graph.inputs[0]], domain="local")
    model.graph.insert_before(model.graph[0], node)
    model.graph[1].replace_input_with(0, node.outputs[0])
    fused(model, (X,))
    assert operators(model) == ["Relu", "Neg"]


def _run(model, *fusions):
    modules = {
        f"rule{number}": SimpleNamespace(TITLE="t", STAGE="canonical", PHASE="fuse", RULES=[fusion.rule()])
        for number, fusion in enumerate(fusions)
    }
    return edgec.fuse._run(model, "canonical", modules)


class _ReluToTanh(Fusion):
    def pattern(self, op, x):
        return op.Relu(x)

    def rewrite(self, op, x):
        return op.Tanh(x)


class _TanhToRelu(Fusion):
    def pattern(self, op, x):
        return op.Tanh(x)

    def rewrite(self, op, x):
        return op.Relu(x)


class _Endless(_ReluToTanh):
    def rewrite(self, op, x):
        return op.Relu(op.Relu(x))


class _Gone(Fusion):
    def pattern(self, op, x):
        return op.Neg(op.Neg(x))

    def rewrite(self, op, x):
        return x


class _Softplus(Fusion):
    def pattern(self, op, x, one):
        return op.Log(op.Add(one, op.Exp(x)))

    def rewrite(self, op, x, one):
        scaled = op.Mul(x, op.Constant(value=ir.tensor(np.float32(1))))
        return op.Softplus(op.Add(scaled, op.initializer(ir.tensor(np.float32(0)), "k")))


class _Both(Fusion):
    def pattern(self, op, x):
        return op.Sin(x), op.Cos(x)

    def rewrite(self, op, x):
        return op.Sinh(x), op.Cosh(x)


RELU = "agraph (float[2,3,4,4] x) => (float[2,3,4,4] y) { y = Relu(x) }"


def test_rules_that_undo_each_other_are_named(parse):
    with pytest.raises(EdgecError, match="undo each other: rule0, rule1"):
        _run(parse(RELU), _ReluToTanh, _TanhToRelu)


def test_a_rule_that_matches_what_it_makes_is_named(parse):
    with pytest.raises(EdgecError, match="_Endless does not come to an end"):
        _run(parse(RELU), _Endless)


@pytest.mark.parametrize("output", ["y = Neg(a)", "b = Neg(a) y = Exp(b)"])
def test_a_replacement_may_be_an_old_value(parse, operators, output):
    model = parse(f"agraph (float[2,3,4,4] x) => (float[2,3,4,4] y) {{ a = Neg(x) {output} }}")
    _run(model, _Gone)
    assert operators(model) == (["Identity"] if output.startswith("y") else ["Exp"])
    assert model.graph.outputs[0].name == "y"


def test_results_take_names_shapes_and_metadata(parse):
    model = parse(
        "agraph (float[2,3,4,4] x) => (float[2,3,4,4] y, float[2,3,4,4] z) {"
        " e = Exp(x) k = Add(one, e) s = Log(k) y = Neg(s) t = Tanh(x) z = Add(t, one) }",
        one=np.array(1, np.float32),
    )
    for node in list(model.graph)[:3]:
        node.name = f"/block/act/{node.op_type}"
        node.metadata_props[node.op_type] = "here"
    fusions = _run(model, _Softplus)
    mul, add, softplus = list(model.graph)[:3]
    assert [node.name for node in (mul, add, softplus)] == ["/block/act/Mul", "/block/act/Add", "/block/act/Softplus"]
    assert softplus.outputs[0].name == "s"
    assert softplus.outputs[0].shape == [2, 3, 4, 4]
    assert mul.metadata_props == {"Exp": "here", "Add": "here", "Log": "here"}
    assert fusions.fused == (Fused("rule0", "t", ("/block/act/Softplus",)),)
    values = [value.name for node in model.graph for value in node.outputs] + list(model.graph.initializers)
    assert len(set(values)) == len(values)
    assert "one" in model.graph.initializers


def test_a_pattern_may_have_two_outputs(parse, operators):
    model = parse(
        "agraph (float[2,3,4,4] x) => (float[2,3,4,4] y, float[2,3,4,4] z)"
        "{ z = Cos(x) k = Abs(z) a = Sin(x) y = Add(a, k) }"
    )
    _run(model, _Both)
    onnx.checker.check_model(ir.to_proto(model))
    assert sorted(operators(model)) == ["Abs", "Add", "Cosh", "Sinh"]
    assert [value.name for value in model.graph.outputs] == ["y", "z"]


def test_nearly_means_half_of_the_operators(parse):
    text = "agraph (float[2,3,4,4] x) => (float[2,3,4,4] y) {{ e = {}(x) k = Add(one, e) y = Log(k) }}"
    fusions = _run(parse(text.format("Sinh"), one=np.array(1, np.float32)), _Softplus)
    assert fusions.missed == (Missed("rule0", "Log_y", "expected Exp, found Sinh at Sinh_e"),)
    fusions = _run(parse(RELU.replace("Relu", "Log")), _Softplus)
    assert fusions.missed == ()


def test_rows_are_short():
    fusions = Fusions(
        "canonical",
        (Fused("gelu", "t", ("a", "b", "c", "d")),),
        (Missed("silu", "n1", "why"), Missed("gelu", "n2", "so"), Missed("silu", "n3", "why")),
    )
    assert rows(fusions) == [
        ("gelu", "4 fused", "a, b, c, and 1 more"),
        ("gelu", "1 nearly", "so (n2)"),
        ("silu", "2 nearly", "why (n1, n3)"),
    ]
    assert msgspec.json.decode(msgspec.json.encode(fusions), type=Fusions) == fusions
