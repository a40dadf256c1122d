"""Files of every opset and every defect: the same outputs in canonical form, or a refusal that says why."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

# A plain import, as tests have no package: the helper lies next to this file.
from onnx_models import CASES, parse, recurrent, save

from edgec.checkpoint.files import sha256_file
from edgec.errors import CheckpointError
from edgec.frontends import onnx_upgrade
from edgec.frontends.network import Network, Port
from edgec.frontends.onnx_file import read_onnx
from edgec.frontends.onnx_inputs import feeds

ADD = "g (float[N, 4] x) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}> {y = Add (x, w)}"
INT_RANGE = {"n": 3}


def run(path: Path, feed: dict[str, Any]) -> list[Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(path, options).run(None, feed)


def run_network(network: Network, folder: Path, feed: dict[str, Any]) -> list[Any]:
    path = folder / "canonical.onnx"
    ir.save(network.model, path)
    onnx.checker.check_model(path, full_check=True)
    return run(path, feed)


def make_feed(path: Path, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    feed: dict[str, Any] = {}
    for value in ort.InferenceSession(path).get_inputs():
        shape = [size if isinstance(size, int) else {"C": 6}.get(size, 4) for size in value.shape]
        if value.type == "tensor(float)":
            feed[value.name] = rng.uniform(-1, 1, shape).astype(np.float32)
        elif value.type == "tensor(bool)":
            feed[value.name] = np.full(shape, seed % 2 == 0)
        else:
            feed[value.name] = np.full(shape, INT_RANGE[value.name], np.int64)
    return feed


def assert_same(path: Path, network: Network, folder: Path) -> None:
    for seed in (0, 1):
        feed = make_feed(path, seed)
        for wanted, got in zip(run(path, feed), run_network(network, folder, feed), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6, strict=True)


def graph(text: str, **more: Any) -> onnx.ModelProto:
    return parse(17, text, **more)


def external(folder: Path, **entries: str) -> Path:
    """A model whose weight is said to be where `entries` say; there are 40 bytes in w.bin."""
    model = graph("g (float[N, 2] x) => (float[N, 3] y) <float[2, 3] w = {1, 2, 3, 4, 5, 6}> {y = MatMul (x, w)}")
    weight = model.graph.initializer[0]
    array = onnx.numpy_helper.to_array(weight)
    (folder / "w.bin").write_bytes(b"\0" * 8 + array.tobytes() + b"\0" * 8)
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in ({"location": "w.bin", "offset": "8", "length": "24"} | entries).items():
        if value:
            weight.external_data.add(key=key, value=value)
    return save(model, folder)


@pytest.mark.parametrize("name", [name for name, (opset, _) in CASES.items() if not name.startswith("RoiAlign")])
def test_changed_operators_compute_the_same(name: str, tmp_path: Path) -> None:
    path = save(parse(*CASES[name]), tmp_path)
    network = read_onnx(path)
    assert network.model.opset_imports == {"": 23}
    assert any("on 4 made-up inputs" in remark for remark in network.remarks)
    assert_same(path, network, tmp_path)


@pytest.mark.parametrize("opset", [13, 14, 21])
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_recurrent_layers_keep_omitted_outputs_omitted(kind: str, opset: int, tmp_path: Path) -> None:
    path = save(recurrent(kind, opset), tmp_path)
    network = read_onnx(path)
    assert [value.name for value in network.model.graph[0].outputs] == ["", "y"]
    assert_same(path, network, tmp_path)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("RoiAlign")])
def test_an_operator_without_a_kernel_at_the_canonical_opset_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"implementation for RoiAlign\(22\)"):
        read_onnx(save(parse(*CASES[name]), tmp_path))


def test_a_wrong_conversion_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = onnx.version_converter.convert_version

    def wrong(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        converted = convert(model, opset)
        (node,) = [node for node in converted.graph.node if node.op_type == "DFT"]
        del node.input[2:]  # leaves the default axis, which is another one since opset 20
        return converted

    monkeypatch.setattr(onnx_upgrade.onnx.version_converter, "convert_version", wrong)
    text = "g (float[2, 4, 4, 1] x) => (float[2, 4, 4, 2] y) {f = DFT <axis=1> (x) y = Identity (f)}"
    with pytest.raises(CheckpointError, match=r"output 'y' of the graph in canonical form is .* away"):
        read_onnx(save(graph(text), tmp_path))


def test_the_description_of_a_file(tmp_path: Path) -> None:
    model = graph(ADD)
    model.producer_name = "someone"
    path = save(model, tmp_path)
    network = read_onnx(path)
    assert (network.name, network.format, network.family) == ("model.onnx", "onnx", "someone")
    assert network.inputs == (Port("x", "float32", ("N", 4)),)
    assert network.outputs == (Port("y", "float32", ("N", 4)),)
    assert network.files == {"model.onnx": sha256_file(path)}
    assert read_onnx(save(graph(ADD), tmp_path)).family == "onnx"


def test_every_node_and_value_is_named_typed_and_its_own(tmp_path: Path) -> None:
    model = parse(*CASES["If-captures-13"])
    model.graph.node[0].name = "If_0"  # what the If would be called
    network = read_onnx(save(model, tmp_path))
    nodes = list(network.model.graph.all_nodes())
    values = [value for node in nodes for value in node.outputs] + list(network.model.graph.initializers.values())
    assert len({node.name for node in nodes}) == len(nodes)
    assert [node.name for node in nodes if node.op_type in {"MatMul", "If"}] == ["If_0", "If_1"]
    assert len({value.name for value in values}) == len(values)
    assert all(value.name and value.type and value.shape is not None for value in values)
    again = read_onnx(save(model, tmp_path))
    assert [node.name for node in again.model.graph.all_nodes()] == [node.name for node in nodes]


def test_constants_everywhere_become_initializers_of_the_graph(tmp_path: Path) -> None:
    text = """g (bool c, float[2] x) => (float[2] y) {
      k = Constant <value = float[2] {1, 2}> ()
      y = If (c) <
        then_branch = t () => (float[2] a) {k1 = Constant <value_floats=[3.0, 4.0]> () a = Add (x, k1)},
        else_branch = e () => (float[2] b) {k1 = Constant <value_float=5.0> () h = Mul (x, k1) b = Add (h, k)}>}"""
    path = save(graph(text), tmp_path)
    network = read_onnx(path)
    assert "Constant" not in {node.op_type for node in network.model.graph.all_nodes()}
    assert sorted(network.model.graph.initializers) == ["k", "k1", "k1_0"]
    assert_same(path, network, tmp_path)


def test_shared_weights_stay_shared(tmp_path: Path) -> None:
    text = "g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1,2,3,4}> {h = MatMul (x, w) y = MatMul (h, w)}"
    (weight,) = read_onnx(save(graph(text), tmp_path)).model.graph.initializers.values()
    assert len(weight.uses()) == 2


def test_functions_are_inlined(tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17, "f": 1]>
      g (float[2, 4] x) => (float[2, 1] y) {h = f.twice (x) y = f.mean <along = [1]> (h)}
      <domain: "f", opset_import: ["": 17]> mean <along> (x) => (y) {y = ReduceMean <axes: ints = @along> (x)}
      <domain: "f", opset_import: ["": 17, "f": 1]> twice (x) => (y) {h = f.double (x) y = f.double (h)}
      <domain: "f", opset_import: ["": 17]> double (x) => (y) {y = Add (x, x)}""")
    path = save(model, tmp_path)
    network = read_onnx(path)
    assert [node.op_type for node in network.model.graph] == ["Add", "Add", "ReduceMean"]
    assert not network.model.functions
    assert network.model.opset_imports == {"": 23}
    assert_same(path, network, tmp_path)


def test_initializers_that_are_inputs_too_are_weights(tmp_path: Path) -> None:
    model = graph(ADD, ir_version=3)
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]))
    network = read_onnx(save(model, tmp_path))
    assert [port.name for port in network.inputs] == ["x"]
    assert list(network.model.graph.initializers) == ["w"]


def test_outputs_that_nothing_computes_get_a_node(tmp_path: Path) -> None:
    model = graph("g (float[2] x) => (float[2] y, float[2] w) <float[2] w = {1, 2}> {y = Relu (x)}")
    network = read_onnx(save(model, tmp_path))
    assert [port.name for port in network.outputs] == ["y", "w"]
    assert [value.producer().op_type for value in network.model.graph.outputs] == ["Relu", "Identity"]


@pytest.mark.parametrize("opset", [17, 23])
def test_shapes_that_contradict_the_operators_are_inferred_anew(opset: int, tmp_path: Path) -> None:
    model = parse(opset, "g (float[2, 4] x) => (float[7] y) {h = Relu (x) y = Relu (h)}")
    model.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [3, 5]))
    network = read_onnx(save(model, tmp_path))
    assert network.model.graph[0].outputs[0].shape == (2, 4)
    assert network.outputs[0].shape == (2, 4)


def test_what_the_file_says_in_words_is_forgotten(tmp_path: Path) -> None:
    model = graph(ADD)
    for holder in (model, model.graph, model.graph.node[0]):
        holder.metadata_props.add(key="edgec.block", value="layers.0.mlp")
        holder.doc_string = "/home/someone"
    read = read_onnx(save(model, tmp_path)).model
    assert b"edgec" not in ir.to_proto(read).SerializeToString()
    assert b"someone" not in ir.to_proto(read).SerializeToString()


def test_integers_that_are_looked_up_stay_inside_the_table(tmp_path: Path) -> None:
    text = """g (int64[B, S] ids) => (float[B, S, 2] y) <float[3, 2] t = {1, 2, 3, 4, 5, 6}, int64 one = {1}> {
      k = Sub (ids, one) i = Cast <to=6> (ids) e = Gather (t, i) f = Gather (t, k) y = Add (e, f)}"""
    assert any("on 4 made-up inputs" in remark for remark in read_onnx(save(graph(text), tmp_path)).remarks)


def test_both_ways_of_a_comparison_are_run(tmp_path: Path) -> None:
    text = """g (int64 rate, float[2] x) => (float[2] y) <int64 wide = {16000}> {
      c = Equal (rate, wide)
      y = If (c) <
        then_branch = t () => (float[2] a) {a = Relu (x)}, else_branch = e () => (float[2] b) {b = Neg (x)}>}"""
    model = ir.from_proto(graph(text))
    inputs: list[tuple[str, str, list[int | str | None]]] = [("rate", "tensor(int64)", []), ("x", "tensor(float)", [2])]
    rates = [int(feed["rate"]) for feed, _ in zip(feeds(inputs, model), range(4), strict=False)]
    assert rates == [16000, 16001, 16000, 16001]


def test_a_file_that_does_not_run_is_read_with_a_remark(tmp_path: Path) -> None:
    text = """g (int64[N] x) => (float[N] y) <float[3] t = {1, 2, 3}, int64 five = {5}>
      {i = Add (x, five) y = Gather (t, i)}"""
    (remark,) = read_onnx(save(graph(text), tmp_path)).remarks
    assert "not proven" in remark
    assert "Gather" in remark


def test_chance_is_not_compared(tmp_path: Path) -> None:
    text = """g (float[2, 64] x) => (float[2, 64] y, float[2, 64] z) <float half = {0.5}, bool training = {1}>
      {y = Dropout (x, half, training) z = Neg (x)}"""
    assert any("not compared: 'y'" in remark for remark in read_onnx(save(graph(text), tmp_path)).remarks)


def test_foreign_and_quantized_operators_are_named(tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 13, "com.microsoft": 1, "my.ops": 1]>
      g (float[2, 4] x) => (float[2, 4] y)
      <float s = {0.1}, uint8 z = {128}, uint8[4, 4] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}> {
        q = QuantizeLinear (x, s, z) m = QLinearMatMul (q, s, z, w, s, z, s, z) d = DequantizeLinear (m, s, z)
        y = com.microsoft.Gelu (d)}""")
    network = read_onnx(save(model, tmp_path))
    assert network.model.opset_imports == {"": 23, "com.microsoft": 1}
    assert network.remarks[1:] == (
        "not of the ONNX standard, and known to some backends only: com.microsoft::Gelu",
        "quantized already: DequantizeLinear, QLinearMatMul, QuantizeLinear",
    )
    model.graph.node[3].domain = "my.ops"
    assert "not proven" in read_onnx(save(model, tmp_path)).remarks[0]


def test_newer_operators_are_refused(tmp_path: Path) -> None:
    model = parse(24, "g (float[2] x) => (float[2] y) {y = Swish (x)}", ir_version=10)
    with pytest.raises(CheckpointError, match="opset 24 cannot be turned into 23"):
        read_onnx(save(model, tmp_path))


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_halves_become_float32(kind: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = helper.make_tensor("w", kind, [8, 8], rng.standard_normal(64))
    bias = helper.make_tensor("b", kind, [1], [0.5])
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=kind),
        helper.make_node("MatMul", ["h", "w"], ["m"]),
        helper.make_node("Shape", ["m"], ["n"]),
        helper.make_node("ConstantOfShape", ["n"], ["o"], value=bias),
        helper.make_node("Add", ["m", "o"], ["a"]),
        helper.make_node("Cast", ["a"], ["y"], to=TensorProto.FLOAT),
    ]
    info = helper.make_tensor_value_info
    proto = helper.make_graph(
        nodes, "g", [info("x", TensorProto.FLOAT, ["N", 8])], [info("y", TensorProto.FLOAT, ["N", 8])], [weight]
    )
    model = helper.make_model(proto, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    path = save(model, tmp_path)
    network = read_onnx(path)
    assert [node.op_type for node in network.model.graph] == ["MatMul", "Shape", "ConstantOfShape", "Add", "Cast"]
    assert network.model.graph.initializers["w"].dtype == ir.DataType.FLOAT
    assert any("became float32" in remark for remark in network.remarks)
    x = rng.standard_normal((3, 8)).astype(np.float32)
    wide = onnx.numpy_helper.to_array(weight).astype(np.float32)
    np.testing.assert_allclose(run_network(network, tmp_path, {"x": x})[0], x @ wide + 0.5, rtol=1e-5, atol=1e-5)


def test_half_inputs_become_float32(tmp_path: Path) -> None:
    network = read_onnx(save(graph("g (float16[N, 4] x) => (float16[N, 4] y) {y = Sigmoid (x)}"), tmp_path))
    assert [port.dtype for port in (*network.inputs, *network.outputs)] == ["float32", "float32"]


def test_halves_in_foreign_operators_stay(tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17, "my.ops": 1]>
      g (float16[2] x) => (float16[2] y) {h = my.ops.Odd (x) y = Relu (h)}""")
    network = read_onnx(save(model, tmp_path))
    assert network.inputs[0].dtype == "float16"
    assert any("float16 stayed" in remark and "my.ops::Odd" in remark for remark in network.remarks)


def test_external_data_stays_outside(tmp_path: Path) -> None:
    path = external(tmp_path)
    network = read_onnx(path)
    weight = network.model.graph.initializers["w"].const_value
    assert isinstance(weight, ir.ExternalTensor)
    assert weight.raw is None  # not mapped either
    np.testing.assert_array_equal(weight.numpy(), [[1, 2, 3], [4, 5, 6]])
    assert network.files == {name: sha256_file(tmp_path / name) for name in ("model.onnx", "w.bin")}


def test_external_data_of_constants_in_functions_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "k.bin").write_bytes(np.float32([5, 6]).tobytes())
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17, "f": 1]>
      g (float[2] x) => (float[2] y) {y = f.add (x)}
      <domain: "f", opset_import: ["": 17]> add (x) => (y) {
        k = Constant <value = float[2] {0, 0}> () y = Add (x, k)}""")
    tensor = model.functions[0].node[0].attribute[0].t
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="data/k.bin")
    save(model, tmp_path)
    monkeypatch.chdir(tmp_path)
    network = read_onnx(Path("model.onnx"))
    assert sorted(network.files) == ["data/k.bin", "model.onnx"]
    (constant,) = network.model.graph.initializers.values()
    monkeypatch.chdir("/")
    assert constant.const_value is not None
    np.testing.assert_array_equal(constant.const_value.numpy(), [5, 6])


def test_a_weight_larger_than_a_protobuf_is_never_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the limit of a protobuf set to 1 MB, a weight of 4 MB must pass by all of them."""
    weight = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32)
    model = graph("g (float[N, 1024] x) => (float[N, 1] y) {h = MatMul (x, w) y = ReduceMean <axes=[1]> (h)}")
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin")
    sizes: list[int] = []
    to_proto = ir.to_proto

    def measured(value: Any) -> Any:
        proto = to_proto(value)
        sizes.append(proto.ByteSize())
        return proto

    monkeypatch.setattr(ir, "to_proto", measured)
    network = read_onnx(path)
    assert sizes
    assert max(sizes) < 1 << 20
    assert "on 4 made-up inputs" in network.remarks[0]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "/etc/hostname"}, "outside the model's directory"),
        ({"location": "../w.bin"}, "outside the model's directory"),
        ({"location": "a/../../w.bin"}, "outside the model's directory"),
        ({"location": ""}, "outside the model's directory"),
        ({"location": "missing.bin"}, "missing.bin' is missing"),
        ({"location": "."}, "no regular file"),
        ({"offset": "24"}, "ends at byte 48 of 'w.bin', which has only 40"),
        ({"offset": "-8"}, "wants 24"),
        ({"offset": "eight"}, "no number"),
        ({"length": "20"}, "fill 20 bytes"),
        ({"length": "99999999999999999999"}, "wants 24"),
    ],
)
def test_external_data_that_is_not_to_be_trusted_is_refused(
    entries: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read_onnx(external(tmp_path, **entries))
    assert "tensor 'w'" in str(caught.value)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_external_data_behind_links_is_refused(link: Callable[[Path, Path], None], tmp_path: Path) -> None:
    path = external(tmp_path)
    outside = tmp_path / "outside"
    (tmp_path / "w.bin").rename(outside)
    link(outside, tmp_path / "w.bin")
    with pytest.raises(CheckpointError, match="is a link"):
        read_onnx(path)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    whole = graph(ADD).SerializeToString()
    damaged = (b"", b"hello, world", whole[: len(whole) // 2], os.urandom(64), whole + b"\xff", b"\0" * 100)
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            read_onnx(path)
    with pytest.raises(CheckpointError, match="is missing"):
        read_onnx(tmp_path / "absent.onnx")


def test_any_flipped_byte_is_read_or_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = parse(*CASES["If-captures-13"]).SerializeToString()
    refused = 0
    for _ in range(150):
        content = bytearray(whole)
        content[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        (tmp_path / "model.onnx").write_bytes(content)
        try:
            read_onnx(tmp_path / "model.onnx")
        except CheckpointError:
            refused += 1
    assert refused > 50


def _duplicate(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["x"], ["y"]))


def _dangle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[1] = "nowhere"


def _cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "z"
    model.graph.node.append(helper.make_node("Relu", ["y"], ["z"]))


def _shorten(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = b"abc"
    model.graph.initializer[0].ClearField("float_data")


def _lengthen(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].float_data.append(1)


def _mistype(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 99


def _mismatch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64


def _empty(model: onnx.ModelProto) -> None:
    del model.graph.node[:]


def _without_inputs(model: onnx.ModelProto) -> None:
    del model.graph.input[:]
    model.graph.node[0].input[0] = "w"


def _without_rank(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.ClearField("shape")


def _without_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].domain = "com.microsoft"


def _sparse(model: onnx.ModelProto) -> None:
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [1])
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [1], [0]), [4])
    )


def _sequence(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("SequenceConstruct", ["y"], ["s"]))
    model.graph.output.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None))


def _set_opset(version: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = version

    return change


def _newer_ir(model: onnx.ModelProto) -> None:
    model.ir_version = 99


def _unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Ad"


def _deprecated(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 18
    model.graph.node[0].CopyFrom(helper.make_node("GroupNormalization", ["x", "w", "w"], ["y"], num_groups=4))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_duplicate, "SSA"),
        (_dangle, "nowhere"),
        (_cycle, "topologically sorted"),
        (_shorten, r"'w' holds 3 bytes, its shape \[4\] wants 16"),
        (_lengthen, r"'w' holds 5 numbers, its shape \[4\] wants 4"),
        (_mistype, "data type 99"),
        (_mismatch, "Type Error"),
        (_empty, "no graph"),
        (_without_inputs, "takes no inputs"),
        (_without_rank, "input 'x' is no tensor with a known number"),
        (_without_opset, "does not say which version"),
        (_sparse, "'s' is sparse"),
        (_sequence, "output 's' is no tensor with a known number"),
        (_set_opset(12), "uses opset 12, the oldest that is read is 13"),
        (_set_opset(99), "this onnx knows up to"),
        (_newer_ir, "IR version 99"),
        (_unknown_operator, "No Op registered for Ad"),
        (_deprecated, "GroupNormalization is deprecated"),
    ],
)
def test_graphs_that_make_no_sense_are_refused(
    damage: Callable[[onnx.ModelProto], None], message: str, tmp_path: Path
) -> None:
    model = graph(ADD)
    damage(model)
    with pytest.raises(CheckpointError, match=message):
        read_onnx(save(model, tmp_path))


def test_training_mode_is_refused(tmp_path: Path) -> None:
    text = """g (float[2, 3, 4] x, float[3] s) => (float[2, 3, 4] y, float[3] m)
      {y, m, v, a, b = BatchNormalization (x, s, s, s, s)}"""
    with pytest.raises(CheckpointError, match="BatchNormalization"):
        read_onnx(save(parse(13, text), tmp_path))


@pytest.mark.parametrize(
    ("operator", "number", "message"),
    [
        ("MatMul", np.nan, r"'w' holds 1 of 6 values that are NaN or infinite, the first at \(1, 0\)"),
        ("MatMul", np.inf, "NaN or infinite"),
        ("Add", np.nan, "values that are NaN, the first"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(operator: str, number: float, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_onnx(_with_weight(operator, number, tmp_path))


def test_infinities_in_masks_are_meant(tmp_path: Path) -> None:
    assert read_onnx(_with_weight("Add", -np.inf, tmp_path)).model.graph.initializers["w"].shape == (3, 2)


def _with_weight(operator: str, number: float, folder: Path) -> Path:
    """A graph with a weight of (3, 2), of which one element is `number`."""
    columns = {"MatMul": 3, "Add": 2}[operator]
    model = graph(f"g (float[3, {columns}] x) => (float[3, 2] y) {{y = {operator} (x, w)}}")
    weight = np.ones((3, 2), np.float32)
    weight[1, 0] = number
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return save(model, folder)
