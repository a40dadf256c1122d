"""Builds of networks with zeros: from the profile to the integers of the artifact and the report."""

import json

import msgspec
import numpy as np
import onnx
import pytest
from commands import changed, fails, invoke
from onnx import numpy_helper
from thinned import thinned
from tiny_networks import NETWORKS, Tiny, weights

from edgec.backends.backend import get_backend
from edgec.build_network import build_network
from edgec.build_network_prune import dense_plan, make_sparse
from edgec.bundle.open import find_artifact
from edgec.cli._network import resolve
from edgec.frontends.source import NetworkOptions
from edgec.prune.network_zeros import share_of_zeros
from edgec.prune.pattern import Pattern
from edgec.report.network import summary

# `c1` reads three channels, `c2` one each; `c3` and `c4` fit whole tiles of 32, `c5` those of 16 alone.
NET = Tiny(
    """(float[N, 3, 12, 12] x) => (float[N, 8] y) {
        c1 = Conv <kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]> (x, w1, b1)
        a1 = Relu (c1)
        c2 = Conv <kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=32> (a1, w2, b2)
        a2 = Relu (c2)
        c3 = Conv (a2, w3, b3)
        sum = Add (c3, a1)
        c4 = Conv <kernel_shape=[3, 3], pads=[1, 1, 1, 1]> (sum, w4)
        a4 = Relu (c4)
        c5 = Conv <kernel_shape=[3, 3], pads=[1, 1, 1, 1]> (a4, w5, b5)
        a5 = Relu (c5)
        pool = GlobalAveragePool (a5)
        flat = Flatten (pool)
        y = Gemm <transB=1> (flat, w6, b6)
    }""",
    weights(
        w1=(32, 3, 3, 3), b1=(32,), w2=(32, 1, 3, 3), b2=(32,), w3=(32, 32, 1, 1), b3=(32,),
        w4=(64, 32, 3, 3), w5=(48, 64, 3, 3), b5=(48,), w6=(8, 48), b6=(8,),
    ),
    lambda rng, count: {"x": (rng.standard_normal((count, 3, 12, 12)) + 0.3).astype(np.float32)},
)  # fmt: skip
# A channel that is far larger than others, which smoothing is for.
OUTLIER = Tiny(
    """(float[N, 8] x) => (float[N, 16] y) {
        m1 = MatMul (x, w1)
        n1 = LayerNormalization <axis=-1> (m1, g1)
        y = MatMul (n1, w2)
    }""",
    {**weights(w1=(8, 24), w2=(24, 16)), "g1": np.array([100] + 23 * [1], np.float32)},
    lambda rng, count: {"x": rng.standard_normal((count, 8)).astype(np.float32)},
)
NETS = {"net": NET, "outlier": OUTLIER, "encoder": NETWORKS["encoder"], "unbiased": NETWORKS["unbiased"]}
SPARSE = {"w3": 32, "w4": 32, "w5": 64, "w6": 48}  # weight -> its input channels
PROFILE = """title = "mine"
[network]
weights = "int8"
keep_float = 0.0
MORE
[network.sparse]
pattern = "2:4"
method = "wanda"
SPARSE
[network.calibration]
samples = 16
[network.verify]
min_cosine = 0.2
min_snr_db = -20
max_drop = 1.0
"""
TARGETS = {"onnx_cpu": "x86-avx512-vnni", "openvino": "x86-avx512-vnni", "tensorrt": "jetson-orin-nano"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(3)
    for name, net in NETS.items():
        net.save(folder / f"{name}.onnx")
        np.savez(folder / f"{name}.npz", **net.inputs(rng, 24))
    return folder


@pytest.fixture
def profile(tmp_path):
    def write(sparse="", **changes):
        return changed(tmp_path / "mine.toml", PROFILE, {"SPARSE": sparse, "MORE": "", **changes})

    return write


@pytest.fixture
def make(files, profile, tmp_path):
    """Return a function that builds a bundle: what went in, the report, and the artifact."""

    def build(name="bundle", backend="onnx_cpu", source="net", *, evaluate=True, **changes):
        if backend != "onnx_cpu":
            pytest.importorskip({"openvino": "openvino", "tensorrt": "tensorrt_rtx_bindings"}[backend])
        given = (str(files / f"{source}.onnx"), TARGETS[backend], str(profile(**changes)), backend)
        found = resolve(*given, NetworkOptions(), str(files / f"{source}.npz"))
        evaluation = NETS[source].samples(16, seed=5) if evaluate else None
        report = build_network(
            found.network, found.fusions, found.target, found.plan, tmp_path / name,
            calibration=found.calibration, evaluation=evaluation, metrics=(),
            say=lambda *_: lambda _: None,
        )  # fmt: skip
        return found, report, find_artifact(tmp_path / name)

    return build


def most_of_four(codes, inputs):
    """Return how many of four channels that one place of a kernel reads are not 0, at most."""
    return int(np.count_nonzero(codes.reshape(len(codes), inputs // 4, 4, -1), axis=2).max())


@pytest.mark.parametrize(("backend", "method"), thinned(list(TARGETS), ["magnitude", "wanda", "sparsegpt"], keep=2))
def test_integers_of_artifacts_have_the_pattern(make, backend, method):
    more = {"MORE": "equalize = true\nsmooth = true\ncorrect_bias = true", '"wanda"': f'"{method}"'}
    found, report, artifact = make(backend=backend, **more)
    assert found.plan.sparse.layers == ("c3", "c4", "c5", "y")
    assert any("were equalized" in remark for remark in report.remarks)
    codes = {name: each[0] for name, each in get_backend(backend).read_integers(artifact).weights.items()}
    assert {name: most_of_four(codes[name], inputs) for name, inputs in SPARSE.items()} == dict.fromkeys(SPARSE, 2)
    assert np.count_nonzero(codes["w2"]) > 0.95 * codes["w2"].size
    zeros = report.pruning.zeros
    assert zeros.matrices == 4
    assert 0.5 <= zeros.share < 0.53  # rounding makes some more
    assert report.verification.exact.passed
    assert report.verification.integers.different == ()
    assert report.verification.failures == ()
    assert (report.pruning.measured is None) == (report.not_run is not None)


@pytest.mark.parametrize(
    ("stored", "pattern", "kernels"),
    [
        ('weights = "int8"', "2:4", ("c3", "c4")),
        ('weights = "int8"\nskip = ["c4"]', "2:4", ("c3", "c4")),  # in float16
        ('weights = "int8"\nactivations = "float"', "2:4", ()),
        ('weights = "fp16"', "2:4", ("c3", "c4", "c5")),
        ('weights = "fp32"', "2:4", ()),
        ('weights = "int8"', "4:8", ()),
        ('weights = "int8"', "50%", ()),
    ],
)
def test_a_jetson_tries_sparse_kernels(make, stored, pattern, kernels):
    changes = {'weights = "int8"': stored, '"2:4"': f'"{pattern}"'}
    found, report, artifact = make(backend="tensorrt", evaluate=False, **changes)
    assert found.plan.sparse.kernels == kernels
    assert json.loads((artifact / "recipe.json").read_text())["build"]["sparse_weights"] == bool(kernels)
    assert ("sparse kernels, where those are faster" in report.pruning.zeros.runtime) == bool(kernels)


def test_what_other_targets_make_of_zeros(files, profile):
    def plan(target):
        given = (str(files / "net.onnx"), target, str(profile()), None, NetworkOptions(), str(files / "net.npz"))
        return resolve(*given).plan

    assert plan("jetson-orin-nano").sparse.kernels == ("c3", "c4")
    assert plan("rtx-4060").sparse.kernels == ()  # what TensorRT-RTX does is not known
    assert plan("x86-avx512-vnni").sparse.kernels == ()


@pytest.mark.parametrize("stored", ["fp32", "fp16"])
def test_floats_keep_their_zeros_and_files_leave_many_out(make, stored):
    changes = {'weights = "int8"': f'weights = "{stored}"', '"2:4"': '"95%"'}
    _, report, artifact = make(**changes)
    pruning = report.pruning
    assert pruning.zeros.share == pytest.approx(0.95, abs=0.005)
    assert pruning.predicted is None
    assert any("left out of the file" in remark for remark in report.remarks)
    assert pruning.measured.size_bytes < 0.4 * pruning.measured.dense_size_bytes
    assert sum(path.stat().st_size for path in artifact.iterdir()) == pruning.measured.size_bytes


def test_products_of_networks_with_open_sizes(make):
    found, report, artifact = make(source="encoder")
    assert set(found.plan.sparse.layers) == {"q", "k", "v", "o", "u", "d"}
    assert report.pruning.multiply_adds is None
    found_codes = get_backend("onnx_cpu").read_integers(artifact).weights
    products = [codes for codes, _ in found_codes.values() if codes.shape[0] in (32, 64)]
    assert len(products) == 6
    assert all(most_of_four(codes, codes.shape[1]) == 2 for codes in products)


def test_smoothing_leaves_zeros(make):
    _, report, artifact = make(source="outlier", MORE="smooth = true")
    assert any("scaled in front of 1 product" in remark for remark in report.remarks)
    ((codes, _),) = (
        each for each in get_backend("onnx_cpu").read_integers(artifact).weights.values() if len(each[0]) == 16
    )
    assert most_of_four(codes, 24) == 2
    assert report.pruning.zeros.share >= 0.5


def test_channels_go_first(make):
    more = "[network.channels]\nshare = 0.25\nmultiple = 4\n"
    found, report, artifact = make(**{"MORE": more, '"wanda"': '"sparsegpt"'})
    plan = found.plan
    assert plan.channels.predicted.pruned.parameters == report.pruning.parameters
    assert report.pruning.predicted == plan.channels.predicted
    assert report.pruning.zeros.share >= 0.5
    codes = get_backend("onnx_cpu").read_integers(artifact).weights["w5"][0]
    inputs = plan.channels.sizes["c4"]
    assert inputs < 64
    assert codes.shape == (plan.channels.sizes["c5"], 9 * inputs)
    assert most_of_four(codes, inputs) == 2
    rows = dict(summary(plan, report))
    assert {"channels", "weights that stay", "zeros", "speed"} <= rows.keys()


def test_layers_that_are_skipped_stay_dense(make):
    found, _, artifact = make(sparse='skip = ["c[45]"]', evaluate=False)
    assert found.plan.sparse.layers == ("c3", "y")
    assert found.plan.wishes.sparse.skip == ("c4", "c5")
    assert {found.plan.sparse.dense[name] for name in ("c4", "c5")} == {"asked for"}
    codes = get_backend("onnx_cpu").read_integers(artifact).weights
    assert [most_of_four(codes[name][0], SPARSE[name]) for name in SPARSE] == [2, 4, 4, 2]


@pytest.mark.parametrize("backend", ["onnx_cpu", "openvino"])
def test_builds_repeat(make, backend):
    made = [make(name, backend, evaluate=False, **{'"wanda"': '"sparsegpt"'}) for name in ("one", "two")]
    assert made[0][0].plan.sha256() == made[1][0].plan.sha256()
    for path in made[0][2].iterdir():
        assert path.read_bytes() == (made[1][2] / path.name).read_bytes()


def test_a_plan_is_read_back_and_its_dense_one_has_no_zeros(make):
    plan = make(evaluate=False)[0].plan
    assert msgspec.json.decode(msgspec.json.encode(plan), type=type(plan)) == plan
    dense = dense_plan(plan, frozenset())
    assert (dense.sparse, dense.wishes.sparse) == (None, None)
    others = [make(name, evaluate=False, **{'"wanda"': f'"{name}"'})[0].plan for name in ("magnitude", "sparsegpt")]
    assert len({each.sha256() for each in (plan, *others)}) == 3


def test_the_float_network_is_not_touched(make, tmp_path):
    found, *_ = make(evaluate=False)
    before = {name: value.const_value.numpy().copy() for name, value in found.network.model.graph.initializers.items()}
    left, remarks = make_sparse(found.network, found.plan, found.calibration, tmp_path / "zeros", lambda _: None)
    assert remarks == ()
    assert share_of_zeros(left.model, left.model, found.plan.sparse.layers, Pattern.parse("2:4")) == 0.5
    for name, value in found.network.model.graph.initializers.items():
        assert np.array_equal(value.const_value.numpy(), before[name])


class TestCommands:
    def test_plan_lists_layers(self, files, profile):
        given = (files / "net.onnx", "--profile", profile(), "--calibration-data", files / "net.npz")
        text = " ".join(invoke("plan", *given, "--target", "jetson-orin-nano").stdout.split())
        for words in (
            "2:4 by wanda, in 4 of 6 layers",
            "2 matrices may get TensorRT's sparse kernels",
            "c3 2:4 sparse kernels",
            "c5 2:4",
            "c1 dense stays: 2:4 takes blocks of 4 input channels, it has 3",
            "c2 dense stays: depthwise",
        ):
            assert words in text
        plan = json.loads(invoke("plan", *given, "--target", "x86-avx512-vnni", "--json").stdout)["plan"]["sparse"]
        assert plan["layers"] == ["c3", "c4", "c5", "y"]
        assert plan["dense"].keys() == {"c1", "c2"}

    def test_build_says_what_came(self, files, profile, tmp_path):
        data = ("--calibration-data", files / "net.npz", "--eval-data", files / "net.npz")
        where = ("--target", "x86-avx512-vnni", "-o", tmp_path / "b")
        text = " ".join(invoke("build", files / "net.onnx", "--profile", profile(), *data, *where).stdout.split())
        assert "beside the dense network" in text
        assert "of 4 matrices; this runtime has no kernels that skip zeros" in text
        assert "## Zeros" in (tmp_path / "b" / "report.md").read_text()
        zeros = json.loads((tmp_path / "b" / "report.json").read_text())["pruning"]["zeros"]
        assert zeros["matrices"] == 4

    def test_prune_writes_zeros_that_a_build_finds_again(self, files, profile, tmp_path):
        data = ("--calibration-data", files / "net.npz")
        done = invoke("prune", files / "net.onnx", "--profile", profile(), *data, "--out", tmp_path / "p")
        assert "with its zeros held at zero" in done.stderr
        tensors = {
            t.name: numpy_helper.to_array(t, tmp_path / "p") for t in _initializers(tmp_path / "p" / "model.onnx")
        }
        for name, inputs in SPARSE.items():
            assert most_of_four(tensors[name].reshape(len(tensors[name]), -1), inputs) == 2
        again = invoke("prune", tmp_path / "p" / "model.onnx", "--profile", profile(), *data, "--out", tmp_path / "q")
        assert again.exit_code == 0
        for tensor in _initializers(tmp_path / "q" / "model.onnx"):
            assert np.array_equal(numpy_helper.to_array(tensor), tensors[tensor.name])
        found = json.loads(
            invoke("prune", files / "net.onnx", "--profile", profile(), *data, "--out", tmp_path / "r", "--json").stdout
        )
        assert found["pruning"]["zeros"]["share"] == 0.5

    @pytest.mark.parametrize(
        ("source", "changes", "data", "code", "words"),
        [
            ("net", {}, False, 2, "chooses weights by what samples make of them"),
            ("net", {"SPARSE": 'skip = ["nothing*"]'}, True, 2, "network.sparse.skip"),
            ("net", {'"2:4"': '"2-4"'}, True, 2, "is no pattern"),
            ("net", {'"wanda"': '"owl"'}, True, 2, "one of magnitude, wanda, sparsegpt"),
            ("net", {"SPARSE": 'skip = ["*"]'}, True, 4, "no layer of this network can have zeros"),
            ("unbiased", {}, True, 4, "takes blocks of 4 input channels"),
        ],
    )
    def test_what_cannot_be_is_said_by_plan(self, files, profile, source, changes, data, code, words):
        changes = dict(changes)
        path = profile(changes.pop("SPARSE", ""), MORE='activations = "float"', **changes)
        given = ("--calibration-data", files / f"{source}.npz") if data else ()
        error = fails("plan", files / f"{source}.onnx", "--profile", path, *given)
        assert error.exit_code == code
        assert words in str(error)
        assert error.hint

    def test_magnitudes_need_no_samples(self, files, profile):
        path = profile(MORE='activations = "float"', **{'"wanda"': '"magnitude"'})
        assert "2:4 by magnitude" in " ".join(invoke("plan", files / "net.onnx", "--profile", path).stdout.split())


def _initializers(path):
    return onnx.load(path).graph.initializer
