"""fp8 and nvfp4 in TensorRT's graphs, and in engines that are compiled without a GPU."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgec.backends.tensorrt.lower import lower
from edgec.backends.tensorrt.recipe import Profile, Shapes
from edgec.backends.tensorrt.worker import Failure, Order, compile_engine
from edgec.graph.emit import Emitter
from edgec.graph.nvfp4 import expand_nvfp4
from edgec.graph.store import Store
from edgec.graph.weights import stored_codes, weight_nodes
from edgec.graph.write import write_weights
from edgec.quantize.scheme import Scheme
from edgec.quantize.weights import quantize_weights

WIDTH, VOCAB, LAYERS = 512, 2048, 3
SCHEMES = {"fp8": Scheme("fp8", None), "nvfp4": Scheme("nvfp4", 16)}
each_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)


def canonical(scheme, folder):
    """Return a table, three matrices and the table again, as the output matrix."""
    rng = np.random.default_rng(0)
    emitter = Emitter()
    emitter.block = "all"
    ids = ir.Value(name="input_ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch", "sequence"]))
    table = emitter.weight("table", (VOCAB, WIDTH), lambda: table_data)
    table_data = rng.standard_normal((VOCAB, WIDTH)).astype(np.float32)
    matrices = (rng.standard_normal((LAYERS, WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32)
    x = emitter.op("Gather", table, ids, name="rows", axis=0)
    for layer, matrix in enumerate(matrices):
        weight = emitter.weight(f"w{layer}", matrix.shape, lambda matrix=matrix: matrix)
        x = emitter.op("Tanh", emitter.op("MatMul", x, weight, name=f"y{layer}"), name=f"x{layer}")
    turned = emitter.op("Transpose", table, name="turned", perm=[1, 0])
    logits = emitter.op("MatMul", x, turned, name="logits")
    logits.shape = ir.Shape(["batch", "sequence", VOCAB])
    model = emitter.model("stack", [ids], [logits])
    with Store(folder / "weights.bin") as store:
        return quantize_weights(model, lambda *_: scheme, store, lambda _: None)


def run(model, folder):
    ir.save(expand_nvfp4(model), folder / "run.onnx")
    session = ort.InferenceSession(folder / "run.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"input_ids": np.arange(40).reshape(2, 20)})[0]


def compiled(scheme, sm, folder):
    lowered = lower(canonical(scheme, folder))
    artifact = folder / "artifact"
    artifact.mkdir()
    write_weights(lowered, artifact, lambda _: None)
    ir.save(lowered, artifact / "model.onnx")
    shapes = {"input_ids": Shapes((1, 1), (1, 16), (1, 64))}
    engine = artifact / "engine"
    made = compile_engine(Order(str(artifact / "model.onnx"), str(engine), sm, (Profile("all", shapes),)))
    return made, engine


@each_scheme
@pytest.mark.parametrize("old", [False, True])
def test_lowering_keeps_the_codes_and_what_they_compute(scheme, old, tmp_path):
    model = canonical(scheme, tmp_path)
    expected = run(model, tmp_path)
    exact = lower(model, half=ir.DataType.FLOAT, old=old)
    before, after = ({s.name: s for s in map(stored_codes, weight_nodes(m.graph))} for m in (model, exact))
    assert set(before) == set(after)
    for name, stored in after.items():
        np.testing.assert_array_equal(stored.codes(), before[name].codes())
        np.testing.assert_array_equal(stored.floats(), before[name].floats())
    np.testing.assert_allclose(run(exact, tmp_path), expected, rtol=1e-4, atol=1e-4)
    half = run(lower(model, old=old), tmp_path)
    np.testing.assert_allclose(half, expected, atol=0.02 * np.abs(expected).max())


def test_the_scale_of_a_whole_nvfp4_weight_stays_float32(tmp_path):
    graph = lower(canonical(SCHEMES["nvfp4"], tmp_path)).graph
    scales = [value for name, value in graph.initializers.items() if name.endswith(".global_scale")]
    assert [value.dtype for value in scales] == [ir.DataType.FLOAT] * (LAYERS + 1)
    readers = {use.node.op_type for node in weight_nodes(graph) for use in node.outputs[0].uses()}
    assert readers == {"Cast"}
    assert graph.opset_imports[""] >= 23


@pytest.mark.parametrize(
    ("name", "sm", "dtype", "bits"), [("fp8", 89, "FP8", 8), ("fp8", 120, "FP8", 8), ("nvfp4", 120, "FP4E2M1", 4)]
)
def test_engines_keep_weights_as_they_are_stored(name, sm, dtype, bits, tmp_path):
    pytest.importorskip("tensorrt_rtx_bindings")
    made, engine = compiled(SCHEMES[name], sm, tmp_path)
    assert not isinstance(made, Failure), made
    weights = LAYERS * WIDTH**2 + VOCAB * WIDTH
    assert made.weights[dtype] >= weights
    assert made.weights.get("Half", 0) < weights / 16
    # The engine has its own copy of the table for the output matrix, and code.
    assert engine.stat().st_size < (weights + VOCAB * WIDTH) * bits / 8 + 500_000


def test_a_gpu_without_nvfp4_is_refused(tmp_path):
    pytest.importorskip("tensorrt_rtx_bindings")
    made, engine = compiled(SCHEMES["nvfp4"], 89, tmp_path)
    assert isinstance(made, Failure)
    assert any("fp4_e2m1" in line for line in made.log)
    assert not engine.exists()
