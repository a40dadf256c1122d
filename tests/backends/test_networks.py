"""One test body over every backend that runs here, several tiny networks, and every way to store them."""

from dataclasses import replace
from functools import partial

import msgspec
import numpy as np
import onnx
import pytest
from tiny_networks import NETWORKS, Tiny, opener, weights

from edgec.backends.backend import NetworkJob, backend_of, get_backend
from edgec.backends.network import NETWORK_FILE
from edgec.build_network import _check_exact, check_network_integers
from edgec.calibrate.run import run
from edgec.errors import BundleError, PlanError, UsageError
from edgec.graph.integers import without_rounding
from edgec.graph.store import Store
from edgec.quantize.network import Rounding, quantize_static
from edgec.quantize.qdq import halve_weights, quantize_network
from edgec.spec.load import load_target
from edgec.spec.network_plan import Data
from edgec.spec.network_profile import NetworkBounds, NetworkProfile, NetworkWishes
from edgec.spec.network_resolve import placement_of, resolve_network

BACKENDS = ("onnx_cpu", "openvino")
MODES = {
    "static": {"weights": "int8", "correct_bias": True},
    "dynamic": {"weights": "int8", "activations": "dynamic"},
    "weights": {"weights": "int8", "activations": "float"},
    "fp16": {"weights": "fp16"},
    "fp32": {"weights": "fp32"},
}
CASES = [
    *((name, "static") for name in NETWORKS),
    *((name, mode) for name in ("mlp", "encoder", "shared", "odd") for mode in ("dynamic", "weights")),
    *((name, mode) for name in ("cnn", "encoder", "sound", "pruned") for mode in ("fp16", "fp32")),
]
# OpenVINO computes in bfloat16 where the CPU can.
COSINE = {"static": 0.997, "dynamic": 0.997, "weights": 0.999, "fp16": 0.9995, "fp32": 0.9995}
DATA = Data("tiny", "0" * 64, 16, 0)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Return a function that gives each network once, as the frontend and fusion make it."""
    return opener(tmp_path_factory)


def plan_of(network, backend, mode, target="x86-avx512-vnni", **wishes):
    wanted = NetworkWishes(**{**MODES[mode], **wishes}, verify=NetworkBounds(min_cosine=0.5))
    return resolve_network(network, load_target(target), NetworkProfile("test", "", wanted), backend, DATA)


def quantized(model, outputs, plan, samples, scratch):
    """Return the canonical graph as the plan stores it."""
    wishes = plan.wishes
    if wishes.weights == "fp32":
        return model
    if wishes.is_static:
        rounding = Rounding(wishes.range, wishes.algorithm, plan.grids, wishes.correct_bias, 0.5, 0.0)
        place = partial(placement_of, model, plan)
        return quantize_static(model, outputs, place, rounding, samples, scratch, lambda _: None).model
    with Store(scratch / "weights.bin") as store:
        if wishes.weights == "fp16":
            return halve_weights(model, store)
        return quantize_network(model, placement_of(model, plan), {}, store)


def compiled(network, plan, samples, folder):
    """Return the canonical graph that was made, and the artifact of it."""
    scratch, artifact = folder / "scratch", folder / "artifact"
    scratch.mkdir(parents=True)
    artifact.mkdir()
    made = quantized(network.model, network.outputs, plan, samples, scratch)
    get_backend(plan.backend).compile_network(NetworkJob(made, network, plan, load_target(plan.target)), artifact)
    return made, artifact


def outputs(artifact, batches, mode):
    session = backend_of(artifact).open_network(artifact, mode, threads=1)
    return [session.run(batch) for batch in batches]


def batches_of(samples):
    return [batch for batch, _ in samples.batches()]


def cosine(a, b):
    a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def operators(artifact):
    return [node.op_type for node in onnx.load(artifact / "model.onnx", load_external_data=False).graph.node]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "mode"), CASES)
def test_artifacts_compute_what_the_canonical_graph_says(opened, backend, name, mode, tmp_path):
    network, samples = opened(name), NETWORKS[name].samples()
    plan = plan_of(network, backend, mode)
    made, artifact = compiled(network, plan, samples, tmp_path)

    integers = check_network_integers(made, backend_of(artifact).read_integers(artifact))
    assert integers.different == ()
    assert (integers.weights > 0) == (mode not in ("fp16", "fp32"))
    assert (integers.activations > 0) == (mode == "static")

    inputs = batches_of(NETWORKS[name].samples(16, seed=2))
    exact = made.clone()
    without_rounding(exact.graph)
    for expected, found in zip(run(exact, inputs), outputs(artifact, inputs, "exact"), strict=True):
        for output, array in expected.items():
            assert found[output].dtype == array.dtype
            np.testing.assert_allclose(found[output], array, atol=1e-4 * array.std(), rtol=0, err_msg=output)

    shipped = outputs(artifact, inputs, "shipped")
    for expected, found in zip(run(network.model, inputs), shipped, strict=True):
        assert list(found) == [port.name for port in network.outputs]
        for output, array in expected.items():
            assert cosine(found[output], array) > COSINE[mode], output
    if mode == "static":  # the runtimes round where the graph does, or hardly elsewhere
        for expected, found in zip(run(made, inputs), shipped, strict=True):
            for output, array in expected.items():
                assert cosine(found[output], array) > 0.9995, output


@pytest.mark.parametrize("mode", ["fp32", "fp16", "static"])
def test_files_for_onnx_runtime_leave_zeros_out(opened, mode, tmp_path):
    network, samples = opened("pruned"), NETWORKS["pruned"].samples()
    _, artifact = compiled(network, plan_of(network, "onnx_cpu", mode), samples, tmp_path)
    graph = onnx.load(artifact / "model.onnx", load_external_data=False).graph
    assert len(graph.sparse_initializer) == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_and_sequence_stay_open(opened, backend, tmp_path):
    network, tiny = opened("encoder"), NETWORKS["encoder"]
    _, artifact = compiled(network, plan_of(network, backend, "static"), tiny.samples(), tmp_path)
    session = backend_of(artifact).open_network(artifact, "shipped")
    ids = np.random.default_rng(5).integers(0, 1100, (3, 14))
    whole = session.run({"ids": ids, "mask": np.ones_like(ids)})
    assert whole["hidden"].shape == (3, 14, 32)
    alone = session.run({"ids": ids[:1, :5], "mask": np.ones((1, 5), np.int64)})
    padded = session.run({"ids": ids[:1], "mask": (np.arange(14) < 5).astype(np.int64)[None]})
    assert alone["hidden"].shape == (1, 5, 32)
    assert cosine(alone["hidden"], padded["hidden"][:, :5]) > 0.999  # the mask holds


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_network_gives_the_same_bytes(opened, backend, tmp_path):
    network, samples = opened("readers"), NETWORKS["readers"].samples()
    plan = plan_of(network, backend, "static")
    files = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        _, artifact = compiled(network, plan, samples, folder)
        files.append({path.name: path.read_bytes() for path in sorted(artifact.iterdir())})
    assert files[0] == files[1]


@pytest.mark.parametrize("name", ["cnn", "encoder", "shared"])
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_weights_are_moved_for_cpus_without_vnni_and_mean_the_same(opened, name, mode, tmp_path):
    network, samples = opened(name), NETWORKS[name].samples()
    found = {}
    for target in ("x86-avx512-vnni", "x86-avx2"):
        plan = plan_of(network, "onnx_cpu", mode, target)
        made, artifact = compiled(network, plan, samples, tmp_path / target)
        codes = get_backend("onnx_cpu").read_integers(artifact)
        assert check_network_integers(made, codes).different == ()
        model = onnx.load(artifact / "model.onnx")
        kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        of_products = {kinds[n.input[1]] for n in model.graph.node if n.op_type == "MatMulIntegerToFloat"}
        assert of_products == {onnx.TensorProto.INT8 if "vnni" in target else onnx.TensorProto.UINT8}
        found[target] = [outputs(artifact, batches_of(samples), kind) for kind in ("exact", "shipped")]
    for signed, moved in zip(*found.values(), strict=True):
        for a, b in zip(signed, moved, strict=True):
            for output in a:
                np.testing.assert_allclose(a[output], b[output], atol=1e-5, err_msg=output)


def test_products_compute_as_the_profile_says(opened, tmp_path):
    """A Gemm is a product, too: left as it is, ONNX Runtime would round what it reads where that is to stay float."""
    network, samples = opened("mlp"), NETWORKS["mlp"].samples()
    assert {node.op_type for node in network.model.graph} >= {"Gemm", "MatMul"}
    kinds = {"static": "MatMulIntegerToFloat", "dynamic": "MatMulIntegerToFloat", "weights": "MatMulNBits"}
    for mode, kind in kinds.items():
        made, artifact = compiled(network, plan_of(network, "onnx_cpu", mode), samples, tmp_path / mode)
        assert operators(artifact).count(kind) == 3
        assert not {"Gemm", "MatMul", "Add"} & set(operators(artifact))
        if mode == "weights":
            inputs = batches_of(samples)
            for expected, found in zip(run(made, inputs), outputs(artifact, inputs, "shipped"), strict=True):
                np.testing.assert_allclose(found["z"], expected["z"], atol=1e-5)


def test_what_reads_a_value_twice_rounds_it_once(opened, tmp_path):
    network, samples = opened("encoder"), NETWORKS["encoder"].samples()
    for mode, kind in (("static", "QuantizeLinear"), ("dynamic", "DynamicQuantizeLinear")):
        _, artifact = compiled(network, plan_of(network, "onnx_cpu", mode), samples, tmp_path / mode)
        assert operators(artifact).count(kind) == 4  # q, k and v read one value; o, u and d one each


def test_nodes_that_stay_in_float_may_read_what_others_read_as_integers(opened, tmp_path):
    network, samples = opened("readers"), NETWORKS["readers"].samples()
    for backend in BACKENDS:
        plan = plan_of(network, backend, "static", skip=("c2",))
        assert "c2" not in plan.int8
        assert plan.floats["c2"] == "asked for"
        made, artifact = compiled(network, plan, samples, tmp_path / backend)
        assert check_network_integers(made, get_backend(backend).read_integers(artifact)).different == ()
        for expected, found in zip(
            run(made, batches_of(samples)), outputs(artifact, batches_of(samples), "shipped"), strict=True
        ):
            assert cosine(found["y"], expected["y"]) > 0.9995


def test_a_product_that_stays_in_float_reads_rounded_values(tmp_path):
    """Two heads behind the same convolutions, one of them in float."""
    tiny = Tiny(
        """(float[N, 3, 6, 6] x) => (float[N, 4] y, float[N, 5] z) {
            c = Conv (x, w1, b1)
            a = Relu (c)
            pool = GlobalAveragePool (a)
            flat = Flatten (pool)
            y = Gemm <transB=1> (flat, w2, b2)
            z = MatMul (flat, w3)
        }""",
        weights(w1=(8, 3, 1, 1), b1=(8,), w2=(4, 8), b2=(4,), w3=(8, 5)),
        NETWORKS["readers"].inputs,
    )
    network, _ = tiny.open(tmp_path)
    for backend in BACKENDS:
        for skip in ("y", "z"):
            plan = plan_of(network, backend, "static", skip=(skip,))
            made, artifact = compiled(network, plan, tiny.samples(), tmp_path / backend / skip)
            assert check_network_integers(made, get_backend(backend).read_integers(artifact)).different == ()
            batches = batches_of(tiny.samples())
            for expected, found in zip(run(made, batches), outputs(artifact, batches, "shipped"), strict=True):
                assert cosine(found[skip], expected[skip]) > 0.9995


class TestEvidence:
    """What is wrong with an artifact is found."""

    @staticmethod
    def spoil(artifact, before, after):
        """Replace bytes that are somewhere in the artifact, once."""
        for path in artifact.iterdir():
            data = path.read_bytes()
            if before in data:
                assert data.count(before) == 1
                path.write_bytes(data.replace(before, after))
                return
        pytest.fail("the artifact does not hold them")

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_an_integer_that_differs(self, opened, backend, tmp_path):
        network, samples = opened("cnn"), NETWORKS["cnn"].samples()
        made, artifact = compiled(network, plan_of(network, backend, "static"), samples, tmp_path)
        codes = made.graph.initializers["w3.codes"].const_value.numpy()
        other = codes.copy()
        other[3, 4] += 1 if other[3, 4] < 0 else -1
        self.spoil(artifact, codes.tobytes(), other.tobytes())
        assert check_network_integers(made, backend_of(artifact).read_integers(artifact)).different == ("w3",)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_scales_that_differ(self, opened, backend, tmp_path):
        network, samples = opened("cnn"), NETWORKS["cnn"].samples()
        made, artifact = compiled(network, plan_of(network, backend, "static"), samples, tmp_path)
        found = backend_of(artifact).read_integers(artifact)
        scale, zero = found.grids["sum"]
        grids = {**found.grids, "sum": (float(np.nextafter(np.float32(scale), np.float32(1))), zero)}
        assert check_network_integers(made, replace(found, grids=grids)).different == ("sum",)
        grids = {**found.grids, "sum": (scale, zero + 1)}
        assert check_network_integers(made, replace(found, grids=grids)).different == ("sum",)
        del grids["sum"]
        assert check_network_integers(made, replace(found, grids={**grids, "new": (1.0, 0)})).different == (
            "new",
            "sum",
        )
        weights = {name: each for name, each in found.weights.items() if name != "w2"}
        assert check_network_integers(made, replace(found, weights=weights)).different == ("w2",)

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("value", [np.nan, np.inf, 0.5])
    def test_outputs_that_differ(self, opened, backend, value, tmp_path):
        network, samples = opened("cnn"), NETWORKS["cnn"].samples()
        made, artifact = compiled(network, plan_of(network, backend, "fp32"), samples, tmp_path)
        assert _check_exact(made, network, get_backend(backend), artifact, samples).passed
        bias = NETWORKS["cnn"].weights["b5"]
        spoilt = bias.copy()
        spoilt[2] = value
        self.spoil(artifact, bias.tobytes(), spoilt.tobytes())
        found = _check_exact(made, network, get_backend(backend), artifact, samples)
        assert not found.passed
        assert found.samples == 8


@pytest.mark.parametrize("backend", BACKENDS)
class TestSessions:
    @pytest.fixture
    def artifact(self, opened, backend, tmp_path):
        network = opened("mlp")
        return compiled(network, plan_of(network, backend, "weights"), None, tmp_path)[1]

    def test_inputs_are_checked(self, artifact, backend):
        session = backend_of(artifact).open_network(artifact, "shipped")
        x = np.zeros((2, 24), np.float32)
        assert session.run({"x": x, "other": x})["z"].shape == (2, 16)
        assert session.run({"x": x.T.copy().T})["z"].shape == (2, 16)  # not contiguous
        for wrong in ({}, {"x": x.astype(np.float64)}, {"x": x[:, :5]}, {"x": x[0]}):
            with pytest.raises(UsageError, match=r"x") as caught:
                session.run(wrong)
            assert "float32[N, 24]" in str(caught.value)

    def test_damage_is_told(self, artifact, backend):
        settings = artifact / NETWORK_FILE
        good = settings.read_bytes()
        settings.write_bytes(good[:-9])
        with pytest.raises(BundleError, match="settings"):
            backend_of(artifact)
        settings.write_bytes(good)
        for file in artifact.iterdir():
            if file.suffix in (".onnx", ".xml"):
                file.write_bytes(file.read_bytes()[:100])
        for mode in ("shipped", "exact"):
            with pytest.raises(BundleError):
                get_backend(backend).open_network(artifact, mode)
        for file in artifact.glob("*.onnx"):
            file.unlink()
        for file in artifact.glob("*.xml"):
            file.unlink()
        with pytest.raises(BundleError):
            get_backend(backend).open_network(artifact, "shipped")

    def test_settings_name_the_ports(self, artifact, backend):
        settings = msgspec.json.decode((artifact / NETWORK_FILE).read_bytes())
        assert settings["backend"] == backend
        assert settings["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["N", 24]}]
        assert [port["name"] for port in settings["outputs"]] == ["z", "y"]


def test_openvino_says_what_it_does_not_take(opened, tmp_path):
    network = opened("mlp")
    plan = plan_of(network, "openvino", "fp32")
    broken = network.model.clone()
    next(node for node in broken.graph if node.op_type == "Tanh").op_type = "NoSuchOperator"
    with pytest.raises(PlanError, match="OpenVINO does not take the graph"):
        get_backend("openvino").compile_network(NetworkJob(broken, network, plan, load_target(plan.target)), tmp_path)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float16_takes_half_the_space(opened, backend, tmp_path):
    network, samples = opened("encoder"), NETWORKS["encoder"].samples()
    sizes = {}
    for mode in ("fp16", "fp32"):
        made, _ = compiled(network, plan_of(network, backend, mode), samples, tmp_path / mode)
        halved = [v for v in made.graph.initializers.values() if v.name.endswith(".half")]
        files = (tmp_path / mode / "artifact").glob("*.bin" if backend == "openvino" else "*.data")
        sizes[mode] = sum(file.stat().st_size for file in files), 2 * sum(v.const_value.size for v in halved)
    assert sizes["fp16"][1]
    assert sizes["fp32"][0] - sizes["fp16"][0] >= 0.9 * sizes["fp16"][1]
