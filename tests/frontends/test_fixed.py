"""Inputs that are always the same number."""

import numpy as np
import onnx.parser
import pytest

from edgec.calibrate.run import run
from edgec.errors import UsageError
from edgec.frontends.fixed import fix_inputs, fix_sizes
from edgec.frontends.onnx_file import read_onnx
from edgec.frontends.source import NetworkOptions, open_network

GRAPH = """<ir_version: 10, opset_import: ["": 23]> g (float[N, 4] x, int64 rate, float[2] gain, int8[1] small, bool on)
=> (float[N, 4] y) <int64 wide = {16000}, int64[1] first = {0}> {
    is_wide = Equal (rate, wide)
    y = If (is_wide) <
        then_branch = t () => (float[N, 4] a) {g0 = Gather (gain, first) a = Mul (x, g0)},
        else_branch = e () => (float[N, 4] b) {
            s = Cast <to=1> (small) o = Cast <to=1> (on) p = Mul (s, o) b = Add (x, p)
        }
    >
}"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "rates.onnx"
    onnx.save(onnx.parser.parse_model(GRAPH), path)
    return path


def test_what_they_decide_is_folded(path):
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    settings = ("gain=3", "small=-2", "on=1")
    for rate, expected in ((16000, 3 * x), (8000, x - 2)):
        network, _ = open_network(str(path), NetworkOptions(fixed=(f"rate={rate}", *settings)))
        assert [port.name for port in network.inputs] == ["x"]
        assert [str(value.name) for value in network.model.graph.inputs] == ["x"]
        assert "If" not in {node.op_type for node in network.model.graph.all_nodes()}
        assert f"rate={rate}" in network.remarks[-1]
        (found,) = run(network.model, [{"x": x}])
        np.testing.assert_allclose(found["y"], expected)


def test_the_others_stay_as_they_are(path):
    network = fix_inputs(read_onnx(path), ["gain=0.5"])
    assert [port.name for port in network.inputs] == ["x", "rate", "small", "on"]
    np.testing.assert_array_equal(network.model.graph.initializers["gain"].const_value.numpy(), np.float32([0.5, 0.5]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["volume=1"], "no input 'volume'"),
        (["rate=1", "rate=2"], "no input 'rate'"),
        (["rate"], "--fix rate says no number"),
        (["x"], "--fix x says no number"),
        (["rate=fast"], "'fast' is no number"),
        (["x=1"], "open sizes"),
        (["rate=1.5"], r"1\.5 is no int64"),
        (["rate=nan"], "nan is no int64"),
        (["small=300"], "300 is no int8"),
        (["on=2"], "2 is no bool"),
        (["gain=inf"], "inf is no float32"),
        (["gain=1e39"], "1e39 is no float32"),
    ],
)
def test_what_cannot_be_fixed(path, settings, message):
    with pytest.raises(UsageError, match=message) as error:
        fix_inputs(read_onnx(path), settings)
    assert error.value.hint


def test_open_sizes_become_numbers_everywhere(path):
    fixed = fix_sizes(read_onnx(path), ["x:float32[3,4]"])
    assert {port.name: port.shape for port in (*fixed.inputs, *fixed.outputs)}["y"] == (3, 4)
    assert [str(value.shape) for value in (fixed.model.graph.inputs[0], fixed.model.graph.outputs[0])] == ["[3,4]"] * 2
    assert fixed.fixed == ("N=3",)
    with pytest.raises(UsageError, match="no input 'z'"):
        fix_sizes(fixed, ["z:float32[1]"])
    with pytest.raises(UsageError, match=r"'x' is float32\[3, 4\] in the model") as error:
        fix_sizes(fixed, ["x:float32[2,4]"])
    assert "open sizes" in str(error.value.hint)


def test_sizes_without_a_name_are_numbers_too(tmp_path):
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 23]> g (float[N, 4] x) => (float[N, 4] y)
        <int64[1] zero = {0}> { s = Shape (x) n = Gather (s, zero) one = Equal (n, zero) y = If (one) <
            then_branch = t () => (float[N, 4] a) { a = Neg (x) },
            else_branch = e () => (float[N, 4] b) { b = Exp (x) }
        > }""")
    model.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    onnx.save(model, tmp_path / "open.onnx")
    network, _ = open_network(str(tmp_path / "open.onnx"), NetworkOptions(inputs=("x:float32[2,4]",)))
    assert [node.op_type for node in network.model.graph] == ["Exp"]


def test_sizes_that_a_branch_does_not_take(tmp_path):
    """The branch that never runs has to load, too: the hint is the option that takes it out."""
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 23]> g (float[N, K] x, int64 rate)
        => (float[A, B] y) <int64 wide = {16000}, int64[2] four = {-1, 4}, int64[2] three = {-1, 3}> {
            c = Equal (rate, wide) y = If (c) <
                then_branch = t () => (float[C, D] a) { a = Reshape (x, four) },
                else_branch = e () => (float[E, F] b) { b = Reshape (x, three) }
            >
        }""")
    onnx.save(model, tmp_path / "rates.onnx")
    sizes = ("x:float32[2,4]",)
    with pytest.raises(UsageError, match=r"does not take the sizes of --input x:float32\[2,4\]") as error:
        open_network(str(tmp_path / "rates.onnx"), NetworkOptions(inputs=sizes))
    assert error.value.hint == "say which branch runs: --fix rate=16000"
    network, _ = open_network(str(tmp_path / "rates.onnx"), NetworkOptions(inputs=sizes, fixed=("rate=16000",)))
    assert "If" not in {node.op_type for node in network.model.graph}
