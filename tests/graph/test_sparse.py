"""Zeros that files leave out: ONNX Runtime puts them back, and so does edgec."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgec.backends.onnx_cpu.traffic import weight_bytes_per_token
from edgec.graph.sparse import load, pays, remarks, save, to_proto
from edgec.graph.write import write_weights

RNG = np.random.default_rng(0)


def with_zeros(share, dtype, shape=(48, 64)):
    numbers = RNG.integers(1, 100, shape).astype(dtype)
    numbers.reshape(-1)[RNG.permutation(numbers.size)[: round(share * numbers.size)]] = 0
    return numbers


def model_of(weight):
    """Return a model that multiplies by `weight` as float32, and by another weight."""
    text = """<ir_version: 11, opset_import: ["": 23]> g (float[N, 48] x) => (float[N, 64] y, float[N, 64] z) {
        f = Cast <to = 1> (w) y = MatMul (x, f) z = MatMul (x, v) }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    named = {value.name: value for node in model.graph for value in node.inputs}
    for name, array in {"w": weight, "v": RNG.standard_normal((48, 64), np.float32)}.items():
        named[name].const_value = ir.tensor(array, name=name)
        model.graph.register_initializer(named[name])
    return model


def run(data, folder, x):
    options = ort.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(["y"], {"x": x})[0]


@pytest.mark.parametrize(("dtype", "share"), [(np.float32, 0.7), (np.float16, 0.82), (np.int8, 0.9), (np.float32, 1.0)])
def test_the_runtime_puts_zeros_back(tmp_path, dtype, share):
    weight, x = with_zeros(share, dtype), RNG.standard_normal((3, 48), np.float32)
    model = model_of(weight)
    write_weights(model, tmp_path, lambda _: None, sparse=True)
    save(model, tmp_path / "model.onnx")
    assert [s.values.name for s in onnx.load(tmp_path / "model.onnx").graph.sparse_initializer] == ["w"]
    assert [i.name for i in onnx.load(tmp_path / "model.onnx").graph.initializer] == ["v"]
    stored = np.count_nonzero(weight) * (weight.itemsize + 8)
    assert stored + 4 * 48 * 64 <= (tmp_path / "model.onnx.data").stat().st_size < stored + 4 * 48 * 64 + 3 * 64
    np.testing.assert_allclose(run(str(tmp_path / "model.onnx"), tmp_path, x), x @ weight.astype(np.float32), rtol=1e-4)
    assert "zeros of 1 tensors" in remarks(model)[0]
    assert weight_bytes_per_token(tmp_path / "model.onnx") == weight.nbytes + 4 * 48 * 64


@pytest.mark.parametrize(("dtype", "share"), [(np.float32, 0.6), (np.float16, 0.78), (np.int8, 0.85)])
def test_where_zeros_are_few_they_stay(tmp_path, dtype, share):
    weight = with_zeros(share, dtype)
    assert not pays(weight)
    model = model_of(weight)
    write_weights(model, tmp_path, lambda _: None, sparse=True)
    assert to_proto(model) == ir.to_proto(model)
    assert not remarks(model)


def test_other_runtimes_get_them_dense(tmp_path):
    model = model_of(with_zeros(0.95, np.float32))
    write_weights(model, tmp_path, lambda _: None)
    save(model, tmp_path / "model.onnx")
    assert not onnx.load(tmp_path / "model.onnx").graph.sparse_initializer


def test_what_was_written_is_read_changed_and_written_again(tmp_path):
    weight, x = with_zeros(0.9, np.float32), RNG.standard_normal((3, 48), np.float32)
    model = model_of(weight)
    write_weights(model, tmp_path, lambda _: None, sparse=True)
    save(model, tmp_path / "model.onnx")
    found = load(tmp_path / "model.onnx")
    np.testing.assert_array_equal(found.graph.initializers["w"].const_value.numpy(), weight)
    assert to_proto(found).graph.sparse_initializer == to_proto(model).graph.sparse_initializer
    found.graph.name = "other"
    again = to_proto(found.clone()).SerializeToString()
    np.testing.assert_array_equal(run(again, tmp_path, x), run(str(tmp_path / "model.onnx"), tmp_path, x))
