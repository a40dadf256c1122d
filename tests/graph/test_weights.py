"""What the canonical graph says about a weight is what the algorithm made of it, and ONNX Runtime agrees."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from edgec.checkpoint.open import open_checkpoint
from edgec.evaluate.streamed import stream
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe
from edgec.graph.emit import Emitter
from edgec.graph.nvfp4 import expand_nvfp4
from edgec.graph.store import Store
from edgec.graph.weights import float_weights, load, stored_codes, weight_nodes
from edgec.quantize.algorithms.rtn import quantize
from edgec.quantize.scheme import Scheme
from edgec.quantize.weights import quantize_weights

FLOATS = [Scheme("fp8", None), Scheme("nvfp4", 16)]
SCHEMES = [*FLOATS, Scheme("int4", 32), Scheme("int4", 16, symmetric=False), Scheme("int8", None)]
VOCAB, HIDDEN = 70, 48
by_name = pytest.mark.parametrize("scheme", FLOATS, ids=lambda s: s.dtype)


def small_graph():
    """Return (batch, sequence) ids -> a table -> a matrix, with weights of very different sizes, and the weights."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((VOCAB, HIDDEN)).astype(np.float32)
    matrix = (rng.standard_normal((HIDDEN, 33)) * 10.0 ** rng.uniform(-3, 1, 33)).astype(np.float32)
    emitter = Emitter()
    emitter.block = "all"
    ids = ir.Value(name="input_ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch", "sequence"]))
    rows = emitter.op("Gather", emitter.weight("table", table.shape, lambda: table), ids, name="rows", axis=0)
    out = emitter.op("MatMul", rows, emitter.weight("matrix", matrix.shape, lambda: matrix), name="out")
    out.shape = ir.Shape(["batch", "sequence", 33])
    return emitter.model("small", [ids], [out]), {"table": table, "matrix": matrix.T}


def quantized(model, scheme, folder):
    with Store(folder / "weights.bin") as store:
        return quantize_weights(model, lambda *_: scheme, store, lambda _: None)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_stored_codes_are_those_of_the_algorithm(scheme, tmp_path):
    model, weights = small_graph()
    quantized(model, scheme, tmp_path)
    ir.save(model, tmp_path / "model.onnx")
    for graph in (model.graph, ir.load(tmp_path / "model.onnx").graph):
        found = {stored.name: stored for stored in map(stored_codes, weight_nodes(graph))}
        assert set(found) == {"table", "matrix"}
        for name, stored in found.items():
            expected = quantize(torch.from_numpy(np.ascontiguousarray(weights[name])), None, scheme)
            assert stored.scheme == scheme
            np.testing.assert_array_equal(stored.codes(), expected.codes.numpy())
            np.testing.assert_array_equal(stored.scales(), expected.scales.numpy())
            assert stored.global_scale() == expected.global_scale
            np.testing.assert_array_equal(stored.floats(), expected.dequantize().numpy())


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_onnx_runtime_computes_with_the_same_numbers(scheme, tmp_path):
    model, _ = small_graph()
    quantized(model, scheme, tmp_path)
    table, matrix = (stored.floats() for stored in map(stored_codes, weight_nodes(model.graph)))
    ir.save(expand_nvfp4(model), tmp_path / "model.onnx")
    options = ort.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = ort.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    ids = np.arange(VOCAB)[None]
    (found,) = session.run(None, {"input_ids": ids})
    np.testing.assert_allclose(found, (table @ matrix.T)[None], rtol=1e-5, atol=1e-5)


@by_name
def test_floats_are_standard_onnx(scheme, tmp_path):
    model, _ = small_graph()
    quantized(model, scheme, tmp_path)
    ir.save(model, tmp_path / "model.onnx")
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)
    types = {node.inputs[0].dtype for node in weight_nodes(model.graph)}
    assert types == {ir.DataType.FLOAT8E4M3FN if scheme.dtype == "fp8" else ir.DataType.FLOAT4E2M1}
    assert {node.domain for node in model.graph} == {""}


def test_nvfp4_is_dequantized_as_onnx_defines_it(tmp_path):
    model, _ = small_graph()
    quantized(model, FLOATS[1], tmp_path)
    for node in weight_nodes(model.graph):
        codes, scales = node.inputs[0].const_value.numpy(), node.inputs[1].producer().inputs
        assert codes.dtype == ml_dtypes.float4_e2m1fn
        factors = scales[0].const_value.numpy().astype(np.float32) * scales[1].const_value.numpy()
        axis = node.attributes["axis"].as_int()
        expected = codes.astype(np.float32) * np.repeat(factors, 16, axis=axis).take(range(codes.shape[axis]), axis)
        stored = stored_codes(node)
        np.testing.assert_array_equal(stored.floats(), expected.T if stored.transposed else expected)


def test_expanding_leaves_its_argument_and_other_types_alone(tmp_path):
    model, _ = small_graph()
    quantized(model, FLOATS[1], tmp_path)
    before = [node.name for node in model.graph]
    assert not weight_nodes(expand_nvfp4(model).graph)
    assert [node.name for node in model.graph] == before
    other, _ = small_graph()
    assert expand_nvfp4(quantized(other, FLOATS[0], tmp_path)) is other


@by_name
@pytest.mark.parametrize("tied", [True, False])
def test_streamed_evaluation_is_that_of_the_dequantized_weights(scheme, tied, make_llama, tmp_path):
    checkpoint = open_checkpoint(make_llama(tmp_path / "llama", tie_word_embeddings=tied))
    decoder = describe(checkpoint)
    model = quantized(emit(decoder, checkpoint, checkpoint.read, 64), scheme, tmp_path)
    plain = emit(decoder, checkpoint, checkpoint.read, 64)
    for value, kind in list(float_weights(plain.graph)):
        floats = quantize(torch.from_numpy(load(value, kind)), None, scheme).dequantize().numpy()
        value.const_value = ir.tensor(floats if kind == "table" else np.ascontiguousarray(floats.T), name=value.name)
    ids = np.random.default_rng(0).integers(0, 300, (2, 20))
    found, expected = (
        np.concatenate(list(runner.logits(runner.hidden(ids))))
        for runner in (stream(model, tmp_path), stream(plain, tmp_path))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
