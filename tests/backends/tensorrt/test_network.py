"""Networks in the TensorRT backend: artifacts compute what the canonical graph does, on its integers."""

from functools import cache, partial

import msgspec
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx_ir.passes.common import ShapeInferencePass
from thinned import thinned

from edgec.backends import tensorrt
from edgec.backends.backend import NetworkJob, backend_of
from edgec.backends.network import read_network_settings
from edgec.backends.tensorrt.engine import read_engines
from edgec.backends.tensorrt.network import lower_network
from edgec.backends.tensorrt.recipe import read_recipe
from edgec.errors import BundleError, PlanError, UsageError
from edgec.frontends.network import Network, Port
from edgec.graph.emit import Emitter
from edgec.graph.integers import grids_of, network_codes, without_rounding
from edgec.graph.store import Store
from edgec.graph.write import write_weights
from edgec.quantize.placement import place, rounded_values
from edgec.quantize.qdq import Grid, halve_weights, quantize_network
from edgec.spec.load import load_target
from edgec.spec.network_plan import NetworkPlan
from edgec.spec.network_profile import NetworkBounds, NetworkWishes
from edgec.spec.plan import Source

pytest.importorskip("tensorrt_rtx_bindings")

RTX, JETSON = "rtx-4060", "jetson-orin-nano"
HIDDEN, HEADS, VOCABULARY = 64, 4, 2000
DTYPES = {ir.DataType.FLOAT: "float32", ir.DataType.INT64: "int64"}


def value(name, shape, dtype=ir.DataType.FLOAT):
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def normal(rng, *shape, scale=1.0):
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def inferred(model):
    ShapeInferencePass()(model)
    return model


@cache
def cnn():
    """Convolutions, one of them depthwise, a residual addition, pooling and a classifier, as BatchNorm leaves them."""
    rng, emitter, channels = np.random.default_rng(0), Emitter(), 32

    def conv(name, x, inputs, outputs, kernel, group=1):
        weight = normal(rng, outputs, inputs // group, kernel, kernel, scale=(inputs // group * kernel**2) ** -0.5)
        constants = (
            emitter.constant(f"{name}.weight", weight),
            emitter.constant(f"{name}.bias", normal(rng, outputs)),
        )
        return emitter.op("Conv", x, *constants, name=name, pads=[kernel // 2] * 4, group=group)

    x = value("image", ["batch", 3, 16, 16])
    stem = emitter.op("Relu", conv("stem", x, 3, channels, 3), name="stem.relu")
    wide = emitter.op("Relu", conv("depthwise", stem, channels, channels, 3, channels), name="depthwise.relu")
    added = emitter.op("Add", conv("pointwise", wide, channels, channels, 1), stem, name="added")
    pooled = emitter.op("MaxPool", emitter.op("Relu", added, name="added.relu"), name="pooled", kernel_shape=[2, 2])
    last = emitter.op("Relu", conv("last", pooled, channels, channels, 3), name="last.relu")
    flat = emitter.op("Flatten", emitter.op("GlobalAveragePool", last, name="average"), name="flat")
    matrix = emitter.constant("classifier.weight", normal(rng, 10, channels, scale=channels**-0.5))
    logits = emitter.op(
        "Gemm", flat, matrix, emitter.constant("classifier.bias", normal(rng, 10)), name="logits", transB=1
    )
    return inferred(emitter.model("cnn", [x], [logits]))


@cache
def encoder():
    """Two layers of BERT, one with its queries, keys and values in one matrix, as ModernBERT has them."""
    rng, emitter = np.random.default_rng(1), Emitter()

    def linear(name, x, inputs, outputs, *, bias=True):
        weight = emitter.constant(f"{name}.weight", normal(rng, inputs, outputs, scale=inputs**-0.5))
        y = emitter.op("MatMul", x, weight, name=name)
        if not bias:
            return y
        return emitter.op("Add", y, emitter.constant(f"{name}.bias", normal(rng, outputs, scale=0.1)), name=f"{name}.b")

    def norm(name, x):
        scale, bias = (
            emitter.constant(f"{name}.{part}", normal(rng, HIDDEN, scale=0.1) + one)
            for part, one in (("g", 1), ("b", 0))
        )
        return emitter.op("LayerNormalization", x, scale, bias, name=name, epsilon=1e-12)

    def heads(name, x):
        shape = emitter.constant("heads", np.array([0, 0, HEADS, HIDDEN // HEADS]))
        return emitter.op("Transpose", emitter.op("Reshape", x, shape, name=f"{name}.4d"), name=name, perm=[0, 2, 1, 3])

    def attention(name, qkv):
        mixed = emitter.op("Attention", *qkv, mask, name=f"{name}.attention")
        rows = emitter.op("Transpose", mixed, name=f"{name}.rows", perm=[0, 2, 1, 3])
        joined = emitter.op(
            "Reshape", rows, emitter.constant("joined", np.array([0, 0, HIDDEN])), name=f"{name}.joined"
        )
        return linear(f"{name}.out", joined, HIDDEN, HIDDEN)

    def mlp(name, x):
        up = emitter.op("Gelu", linear(f"{name}.up", x, HIDDEN, 2 * HIDDEN), name=f"{name}.gelu")
        return linear(f"{name}.down", up, 2 * HIDDEN, HIDDEN)

    ids, given = (value(name, ["batch", "sequence"], ir.DataType.INT64) for name in ("input_ids", "attention_mask"))
    seen = emitter.op("Cast", given, name="seen", to=ir.DataType.BOOL, dtype=ir.DataType.BOOL)
    keys = emitter.op(
        "Unsqueeze", seen, emitter.constant("axes", np.array([1, 2])), name="keys", dtype=ir.DataType.BOOL
    )
    one, queries = (
        emitter.constant("one", np.array([1])),
        emitter.op("Shape", ids, name="queries", start=1, dtype=ir.DataType.INT64),
    )
    each = emitter.op("Concat", one, one, queries, one, name="each", axis=0, dtype=ir.DataType.INT64)
    mask = emitter.op("Expand", keys, each, name="mask", dtype=ir.DataType.BOOL)  # ONNX Runtime wants all its rows
    table = emitter.constant("table", normal(rng, VOCABULARY, HIDDEN))
    x = norm("embedded", emitter.op("Gather", table, ids, name="embedding"))
    qkv = [heads(f"0.{part}.heads", linear(f"0.{part}", x, HIDDEN, HIDDEN)) for part in "qkv"]
    x = norm("0.norm", emitter.op("Add", attention("0", qkv), x, name="0.residual"))
    x = norm("0.last", emitter.op("Add", mlp("0", x), x, name="0.sum"))
    joint = linear("1.qkv", x, HIDDEN, 3 * HIDDEN, bias=False)
    cut = emitter.op(
        "Reshape", joint, emitter.constant("cut", np.array([0, 0, 3, HEADS, HIDDEN // HEADS])), name="1.cut"
    )
    parts = [emitter.op("Gather", cut, emitter.constant(f"{i}", np.array(i)), name=f"1.{i}", axis=2) for i in range(3)]
    qkv = [emitter.op("Transpose", part, name=f"{part.name}.heads", perm=[0, 2, 1, 3]) for part in parts]
    x = norm("1.norm", emitter.op("Add", attention("1", qkv), x, name="1.residual"))
    y = norm("states", emitter.op("Add", mlp("1", x), x, name="1.sum"))
    y.shape = ir.Shape(["batch", "sequence", HIDDEN])
    return inferred(emitter.model("encoder", [ids, given], [y]))


def feed_of(model, count=3):
    rng = np.random.default_rng(7)
    if model.graph.inputs[0].name != "input_ids":
        return {
            v.name: normal(rng, *(count if i == 0 else int(d) for i, d in enumerate(v.shape)))
            for v in model.graph.inputs
        }
    mask = np.ones((count, 12), np.int64)
    mask[-1, 5:] = 0
    return {"input_ids": rng.integers(0, VOCABULARY, mask.shape), "attention_mask": mask}


def run(model, feed, folder, *, more=()):
    """Return the outputs of a graph, and other values of it, as they stand."""
    folder.mkdir()
    copy = model.clone()
    values = {v.name: v for node in copy.graph for v in node.outputs}
    outputs = list(dict.fromkeys([*(v.name for v in copy.graph.outputs), *(name for name in more if name in values)]))
    copy.graph.outputs[:] = [values[name] for name in outputs]
    write_weights(copy, folder, lambda _: None)
    ir.save(copy, folder / "model.onnx")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(folder / "model.onnx", options, ["CPUExecutionProvider"])
    return feed | dict(zip(outputs, session.run(outputs, feed), strict=True))


def quantized(model, storage, folder):
    """Return the canonical graph of one storage: fp32, fp16, static or float (int8 weights alone)."""
    folder.mkdir()
    if storage == "fp32":
        return model
    with Store(folder / "weights.bin") as store:
        if storage == "fp16":
            return halve_weights(model, store)
        placement = place(model, tensorrt.NETWORKS.follow if storage == "static" else ())
        grids = {}
        if storage == "static":
            names = list(rounded_values(placement))
            seen = run(model, feed_of(model), folder / "seen", more=names)
            grids = {name: Grid.over(seen[name].min(), seen[name].max(), symmetric=True) for name in names}
        return quantize_network(model, placement, grids, store)


def job_of(model, canonical, storage, target, tokenizer_files=None):
    ports = [
        tuple(
            Port(v.name, DTYPES[v.dtype], tuple(d if isinstance(d, int) else d.value for d in v.shape)) for v in values
        )
        for values in (model.graph.inputs, model.graph.outputs)
    ]
    weights, activations = (storage, "float") if storage.startswith("fp") else ("int8", storage)
    wishes = NetworkWishes(weights=weights, activations=activations, verify=NetworkBounds(min_cosine=0.9))
    network = Network("a net", "onnx", "test", model, *ports, files={}, tokenizer_files=tokenizer_files or {})
    plan = NetworkPlan(
        edgec="0",
        source=Source("onnx", "test", 1, {}),
        task="feature-extraction",
        inputs=ports[0],
        outputs=ports[1],
        target=target,
        backend="tensorrt",
        profile="test",
        wishes=wishes,
        grids="signed",
    )
    return NetworkJob(canonical, network, plan, load_target(target))


@pytest.fixture
def compiled(tmp_path):
    """Return a function that quantizes a network and compiles it: (canonical graph, artifact)."""

    def compile_it(model, storage, target=RTX, **files):
        canonical = quantized(model, storage, tmp_path / "canonical")
        artifact = tmp_path / "artifact"
        artifact.mkdir()
        tensorrt.compile_network(job_of(model, canonical, storage, target, **files), artifact)
        return canonical, artifact

    return compile_it


STORED = [("fp32", RTX), ("fp16", RTX), ("float", RTX), ("static", RTX), ("fp16", JETSON), ("static", JETSON)]
MODELS = [(cnn, 5), (encoder, 3 + 1 + 1 + 3)]


@pytest.mark.parametrize(("storage", "target", "make", "kernels"), thinned(STORED, MODELS, keep=2))
def test_an_artifact_is_the_canonical_graph(make, kernels, storage, target, compiled, tmp_path):
    model = make()
    canonical, artifact = compiled(model, storage, target)
    feed = feed_of(model)
    name = model.graph.outputs[0].name
    # The engine's kernels: queries, keys and values of a layer are one product.
    engine = read_engines(artifact).engine
    assert engine.integer_matmuls == (kernels if storage == "static" else 0)
    assert engine.widened == 0 or storage == "float"
    # The integers, bit for bit.
    found = tensorrt.read_integers(artifact)
    weights = {name: (codes, scales) for name, codes, scales in network_codes(canonical.graph)}
    assert found.weights.keys() == weights.keys()
    for key, arrays in weights.items():
        for expected, read in zip(arrays, found.weights[key], strict=True):
            np.testing.assert_array_equal(read, expected, strict=True)
    assert found.grids == grids_of(canonical.graph)
    assert bool(weights) == (storage in ("float", "static"))
    assert bool(found.grids) == (storage == "static")
    # As it ships: float16 where the network may.
    shipped = tensorrt.open_network(artifact, "shipped", threads=1).run(feed)[name]
    rounded = run(canonical, feed, tmp_path / "rounded")[name]
    exactly = storage == "fp32" or (storage == "static" and make is cnn)  # what is between integers is float32
    np.testing.assert_allclose(shipped, rounded, atol=1e-6 if exactly else 0.3 if storage == "static" else 0.02)
    # The proof.
    reference = canonical.clone()
    without_rounding(reference.graph)
    exact = tensorrt.open_network(artifact, "exact", threads=1).run(feed)[name]
    np.testing.assert_allclose(exact, run(reference, feed, tmp_path / "exact")[name], atol=2e-5)


@pytest.mark.parametrize("target", [RTX, JETSON])
def test_what_an_artifact_says_about_itself(target, compiled):
    words = {"tokenizer_config.json": b'{"model_max_length": 64}'}
    _, artifact = compiled(encoder(), "static", target, tokenizer_files=words)
    assert backend_of(artifact).MARKER == tensorrt.MARKER
    engines, settings = read_engines(artifact), read_network_settings(artifact)
    (profile,) = engines.engine.profiles
    assert msgspec.to_builtins(profile.shapes["input_ids"]) == {"min": (1, 1), "opt": (1, 64), "max": (8, 64)}
    said = tensorrt.not_run(artifact)
    assert "8 kernels multiply int8 by int8" in said
    assert settings.backend == "tensorrt"
    if target == RTX:
        assert settings.file == engines.engine.file == "model.sm89.engine"
        assert (artifact / settings.file).stat().st_size == engines.engine.size_bytes
        assert said.startswith("compiled, not run")
    else:
        recipe = read_recipe(artifact).build
        assert recipe.profiles == engines.engine.profiles
        assert recipe.name.startswith("a-net-")
        assert recipe.precision == "weights int8, activations static int8 and fp16"
        assert settings.file == "model.onnx"
        assert ir.load(artifact / "model.onnx").graph.opset_imports[""] == 21
        assert "as a proxy for SM87" in said


def test_a_net_of_fixed_sizes_needs_no_profile(compiled):
    model = cnn().clone()
    model.graph.inputs[0].shape = ir.Shape([2, 3, 16, 16])
    _, artifact = compiled(inferred(model), "fp16", JETSON)
    assert read_engines(artifact).engine.profiles[0].shapes == {}
    assert read_recipe(artifact).build.profiles[0].shapes == {}


def test_an_operator_that_the_parser_refuses_is_named(compiled):
    emitter = Emitter()
    x = value("x", ["batch", 4, 4])
    y = emitter.op("Det", x, name="determinant")
    with pytest.raises(PlanError, match="refuses Det node 'determinant' for SM89 while it parses") as caught:
        compiled(inferred(emitter.model("net", [x], [y])), "fp16")
    assert caught.value.where == "determinant"


def test_a_number_beyond_float16_is_refused_in_exact_mode(compiled):
    rng, emitter = np.random.default_rng(0), Emitter()
    x = value("x", ["batch", 16])
    up = emitter.op("MatMul", x, emitter.constant("up", normal(rng, 16, 64, scale=10000)), name="wide")
    down = emitter.constant("down", normal(rng, 64, 8, scale=1e-3))
    y = emitter.op("MatMul", emitter.op("Relu", up, name="relu"), down, name="y")
    _, artifact = compiled(inferred(emitter.model("net", [x], [y])), "fp16")
    session = tensorrt.open_network(artifact, "exact", threads=1)
    with pytest.raises(PlanError, match=r"'wide' reaches .* engines compute it in float16"):
        session.run({"x": np.ones((1, 16), np.float32)})


def test_a_feed_that_does_not_fit_and_a_graph_that_is_damaged(compiled):
    _, artifact = compiled(cnn(), "fp16")
    with pytest.raises(UsageError, match="image: float32"):
        tensorrt.open_network(artifact, "shipped").run({"image": np.zeros((1, 3, 8, 8), np.float32)})
    (artifact / "model.onnx").write_bytes(b"nothing")
    for mode in ("shipped", "exact"):
        with pytest.raises(BundleError, match=r"graph cannot be read|cannot load the graph"):
            tensorrt.open_network(artifact, mode)


def test_lowering_changes_nothing_of_the_canonical_graph(tmp_path):
    canonical = quantized(encoder(), "static", tmp_path / "canonical")
    before = ir.to_proto(canonical).SerializeToString()
    for lower in (partial(lower_network, half=True), partial(lower_network, half=False)):
        lower(canonical, old=True)
    assert ir.to_proto(canonical).SerializeToString() == before
