"""Builds of networks that lose channels: from the profile to the report."""

import json

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from commands import changed, fails, invoke
from tiny_networks import NETWORKS, Tiny, weights

from edgec.backends.backend import get_backend
from edgec.build_network import build_network
from edgec.build_network_prune import dense_plan, shrink
from edgec.bundle.open import find_artifact
from edgec.cli._network import resolve
from edgec.frontends.source import NetworkOptions
from edgec.prune.channels_cost import cost_of
from edgec.report.network import summary

# A residual sum, a depthwise convolution, a concatenation; widths of which a quarter is a multiple of four.
NET = Tiny(
    """(float[N, 3, 12, 12] x) => (float[N, 5] y) <float low = {0}, float high = {6}> {
        c1 = Conv <kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]> (x, w1, b1)
        a1 = Clip (c1, low, high)
        c2 = Conv <kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=32> (a1, w2, b2)
        a2 = Clip (c2, low, high)
        c3 = Conv (a2, w3, b3)
        sum = Add (c3, a1)
        c4 = Conv (sum, w4)
        a4 = Relu (c4)
        c5 = Conv <kernel_shape=[3, 3], pads=[1, 1, 1, 1]> (sum, w5, b5)
        a5 = Relu (c5)
        cat = Concat <axis=1> (a4, a5)
        pool = GlobalAveragePool (cat)
        flat = Flatten (pool)
        y = Gemm <transB=1> (flat, w6, b6)
    }""",
    weights(
        w1=(32, 3, 3, 3), b1=(32,), w2=(32, 1, 3, 3), b2=(32,), w3=(32, 32, 1, 1), b3=(32,),
        w4=(24, 32, 1, 1), w5=(24, 32, 3, 3), b5=(24,), w6=(5, 48), b6=(5,),
    ),
    lambda rng, count: {"x": (rng.standard_normal((count, 3, 12, 12)) + 0.3).astype(np.float32)},
)  # fmt: skip
LINE = Tiny("(float[N, 24] x) => (float[N, 8] y) { y = MatMul (x, w) }", weights(w=(24, 8)), NETWORKS["mlp"].inputs)
PROFILE = """title = "mine"
[network]
weights = "int8"
MORE
[network.channels]
share = 0.25
multiple = 4
CHANNELS
[network.calibration]
samples = 32
[network.verify]
min_cosine = 0.2
min_snr_db = -20
max_drop = 1.0
"""
TARGET = "x86-avx512-vnni"
STORED = ("fp32", "fp16", "int8-static", "int8-dynamic", "int8-float")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(3)
    for name, net in {"net": NET, "line": LINE, "mlp": NETWORKS["mlp"], "encoder": NETWORKS["encoder"]}.items():
        net.save(folder / f"{name}.onnx")
        np.savez(folder / f"{name}.npz", **net.inputs(rng, 40))
    return folder


@pytest.fixture
def profile(tmp_path):
    def write(channels="", **changes):
        return changed(tmp_path / "mine.toml", PROFILE, {"CHANNELS": channels, "MORE": "", **changes})

    return write


def stored(how):
    kind, _, activations = how.partition("-")
    return {'weights = "int8"': f'weights = "{kind}"', "MORE": f'activations = "{activations or "static"}"'}


@pytest.fixture
def make(files, profile, tmp_path):
    """Return a function that builds a bundle: what went in, the report, and the bundle."""

    def build(channels="", name="bundle", backend=None, *, evaluate=True, **changes):
        data, source = str(files / "net.npz"), str(files / "net.onnx")
        found = resolve(source, TARGET, str(profile(channels, **changes)), backend, NetworkOptions(), data)
        report = build_network(
            found.network, found.fusions, found.target, found.plan, tmp_path / name,
            calibration=found.calibration, evaluation=NET.samples(32, seed=5) if evaluate else None, metrics=(),
            say=lambda *_: lambda _: None,
        )  # fmt: skip
        return found, report, tmp_path / name

    return build


def weight_shapes(artifact):
    """Return the shapes of what an artifact's convolutions and products multiply with, without axes of size 1."""
    if (artifact / "model.onnx").exists():
        graph = onnx.load(artifact / "model.onnx", load_external_data=False).graph
        found = [tuple(tensor.dims) for tensor in graph.initializer]
    else:
        import openvino as ov

        model = ov.Core().read_model(artifact / "openvino_model.xml")
        found = [tuple(node.shape) for node in model.get_ops() if node.get_type_name() == "Constant"]
    return {tuple(sorted(size for size in shape if size > 1)) for shape in found}


@pytest.mark.parametrize("how", STORED)
@pytest.mark.parametrize("backend", ["onnx_cpu", "openvino"])
def test_shapes_shrink_and_the_rest_of_a_build_is_about_what_is_left(make, backend, how):
    pytest.importorskip("openvino")
    found, report, bundle = make(backend=backend, **stored(how))
    plan, pruning, verified = found.plan, report.pruning, report.verification
    dense, pruned = plan.channels.predicted.dense, plan.channels.predicted.pruned
    assert pruned.multiply_adds <= 0.75 * dense.multiply_adds
    assert (pruning.parameters, pruning.multiply_adds) == (pruned.parameters, pruned.multiply_adds)
    assert pruning.predicted == plan.channels.predicted
    sizes = plan.channels.sizes
    assert {layer for group in plan.channels.groups for layer in group.layers} == {"c1", "c2", "c3", "c4", "c5", "y"}
    c1, c4, c5 = sizes["c1"], sizes["c4"], sizes["c5"]
    assert (c1 < 32) + (c4 < 24) + (c5 < 24)
    assert {(3, 3, 3, c1), (3, 3, *sorted((c1, c5)))} <= {
        tuple(sorted(s)) for s in weight_shapes(find_artifact(bundle))
    }
    # The artifact computes what is left, exactly; and what is left is far from the dense network.
    assert verified.exact.passed
    assert verified.integers.different == ()
    assert (verified.integers.weights > 0) == (how.startswith("int8"))
    assert verified.failures == ()
    assert verified.quality.outputs[0].cosine < 0.9999
    measured = pruning.measured
    assert measured.low <= measured.speed <= measured.high
    assert measured.size_bytes < measured.dense_size_bytes
    saved = dense.weight_bytes - pruned.weight_bytes
    assert measured.dense_size_bytes - measured.size_bytes == pytest.approx(saved, rel=0.35)
    assert "## Channels" in (bundle / "report.md").read_text()
    rows = dict(summary(plan, report))
    assert "predicted" in rows["speed"]
    assert "measured" in rows["speed"]


@pytest.mark.parametrize("backend", ["onnx_cpu", "openvino"])
def test_builds_repeat(make, backend):
    pytest.importorskip("openvino")
    first, report, one = make(name="one", backend=backend, evaluate=False)
    second, _, two = make(name="two", backend=backend, evaluate=False)
    assert report.pruning.measured is None
    assert first.plan.sha256() == second.plan.sha256()
    names = sorted(path.name for path in (one / "artifact").iterdir())
    assert names == sorted(path.name for path in (two / "artifact").iterdir())
    for name in names:
        assert (one / "artifact" / name).read_bytes() == (two / "artifact" / name).read_bytes()


def test_it_is_the_dense_network_that_a_build_is_compared_with(make, files):
    """With float weights all that is far from the dense network is what pruning took."""
    found, report, bundle = make(**stored("fp32"))
    samples = NET.samples(32, seed=5)
    session = ort.InferenceSession(files / "net.onnx")
    dense = np.concatenate([session.run(None, feed)[0] for feed in samples.inputs()])
    artifact = get_backend(found.plan.backend).open_network(find_artifact(bundle), "shipped")
    left = np.concatenate([artifact.run(feed)["y"] for feed in samples.inputs()])
    cosines = (dense * left).sum(1) / np.linalg.norm(dense, axis=1) / np.linalg.norm(left, axis=1)
    assert report.verification.quality.outputs[0].cosine == pytest.approx(cosines.mean(), abs=1e-5)


def test_what_reads_the_channels_makes_up_for_them(make):
    errors = []
    for refit in ("true", "false"):
        _, report, _ = make(f"refit = {refit}", refit, **stored("fp32"))
        errors.append(report.verification.quality.outputs[0].snr_db)
    assert errors[0] > errors[1] + 1


@pytest.mark.parametrize("importance", ["magnitude", "activation", "wanda"])
@pytest.mark.parametrize("uniform", ["true", "false"])
def test_every_way_to_choose_gives_what_was_predicted(make, importance, uniform):
    channels = f'importance = "{importance}"\nuniform = {uniform}\nof = "parameters"'
    found, report, _ = make(channels, evaluate=False)
    predicted = found.plan.channels.predicted
    assert predicted.pruned.parameters <= 0.75 * predicted.dense.parameters
    assert report.pruning.parameters == predicted.pruned.parameters
    if uniform == "true":
        shares = [group.kept / group.channels for group in found.plan.channels.groups if not group.refused]
        assert max(shares) - min(shares) < 0.2


def test_layers_that_are_skipped_keep_their_channels(make):
    found, _, bundle = make('skip = ["c[45]"]', evaluate=False, **stored("fp32"))
    assert found.plan.wishes.channels.skip == ("c4", "c5")
    sizes = found.plan.channels.sizes
    assert (sizes["c4"], sizes["c5"]) == (24, 24)
    assert sizes["c1"] < 32
    refused = {group.name: group.refused for group in found.plan.channels.groups}
    assert (refused["c4"], refused["c1"]) == ("asked for", None)
    assert (5, 48) in weight_shapes(find_artifact(bundle))


def test_nodes_may_stay_in_float_too(make):
    found, report, _ = make(MORE='skip = ["c1", "c[4]"]')
    assert not {"c1", "c4"} & set(found.plan.int8)
    assert not report.verification.failures
    assert report.pruning.measured.dense_size_bytes > report.pruning.measured.size_bytes


def test_the_dense_network_is_stored_as_the_pruned_one_was(make):
    plan = make(evaluate=False, MORE='skip = ["c1"]\ncorrect_bias = true')[0].plan
    dense = dense_plan(plan, frozenset({"c3", "c1"}))
    assert (dense.channels, dense.wishes.channels) == (None, None)
    assert dense.wishes.skip == ("c1", "c3")
    assert (dense.wishes.weights, dense.wishes.range) == ("int8", "minmax")
    assert (dense.wishes.keep_float, dense.wishes.fast) == (0, False)  # nothing is searched for again


def test_a_plan_is_read_back_and_tells_choices_apart(files, profile):
    def plan(channels):
        name = str(profile(channels))
        return resolve(str(files / "net.onnx"), TARGET, name, None, NetworkOptions(), str(files / "net.npz")).plan

    first = plan("")
    assert msgspec.json.decode(msgspec.json.encode(first), type=type(first)) == first
    others = [
        plan("refit = false"),
        plan("uniform = true"),
        plan('importance = "magnitude"'),
        plan('of = "parameters"'),
    ]
    assert len({each.sha256() for each in (first, *others)}) == 5


def test_what_is_left_is_the_plans_however_it_is_read(make, tmp_path):
    found, *_ = make(evaluate=False)
    left = shrink(found.network, found.plan, found.calibration, tmp_path / "weights")
    cost, predicted = cost_of(left.model), found.plan.channels.predicted
    assert (cost.parameters, cost.multiply_adds) == (predicted.pruned.parameters, predicted.pruned.multiply_adds)
    dense = cost_of(found.network.model)  # which was not touched
    assert (dense.parameters, dense.multiply_adds) == (predicted.dense.parameters, predicted.dense.multiply_adds)


class TestCommands:
    def test_plan_says_what_goes_and_what_stays(self, files, profile):
        options = (files / "net.onnx", "--profile", profile(), "--calibration-data", files / "net.npz")
        text = " ".join(invoke("plan", *options).stdout.split())
        for words in ("channels", "of 4 groups of layers", "c1 and 2 more", "c4 24 -> 16", "stay: y is an output"):
            assert words in text
        assert "times that of the dense network, by the multiply-adds" in text
        plan = json.loads(invoke("plan", *options, "--json").stdout)["plan"]["channels"]
        assert plan["predicted"]["dense"]["parameters"] == sum(array.size for array in NET.weights.values()) + 2
        assert [group["refused"] for group in plan["groups"]] == [None, None, None, "y is an output"]

    def test_build_says_what_came(self, files, profile, tmp_path):
        options = ("--calibration-data", files / "net.npz", "--eval-data", files / "net.npz", "--target", TARGET)
        done = invoke("build", files / "net.onnx", "--profile", profile(), *options, "-o", tmp_path / "b")
        text = " ".join(done.stdout.split())
        assert done.exit_code == 0
        assert "times that of the dense network predicted" in text
        assert "measured with all files" in text
        again = ("eval", tmp_path / "b", "--eval-data", files / "net.npz", "--source", files / "net.onnx")
        assert "cosine" in invoke(*again).stdout

    def test_outside_of_its_bounds(self, files, profile, tmp_path):
        options = ("--calibration-data", files / "net.npz", "--eval-data", files / "net.npz", "--target", TARGET)
        path = profile("", **{"min_snr_db = -20": "min_snr_db = 40"})
        error = fails("build", files / "net.onnx", "--profile", path, *options, "-o", tmp_path / "b")
        assert error.exit_code == 1
        assert "remove less" in error.hint
        assert (tmp_path / "b" / "report.json").exists()

    @pytest.mark.parametrize(
        ("source", "channels", "data", "code", "words"),
        [
            ("net", "", False, 2, "chooses channels by what samples make of them"),
            ("net", 'importance = "magnitude"', False, 2, "chooses channels by what samples"),  # it is refitted
            ("net", 'skip = ["nothing*"]', True, 2, "network.channels.skip"),
            ("net", 'importance = "taylor"', True, 2, "one of magnitude, activation, wanda"),
            ("net", "shares = 2", True, 2, "network.channels"),
            ("encoder", "", True, 2, "sizes that are open"),
            ("net", 'skip = ["*"]', True, 4, "no channels of this network can be removed"),
            ("mlp", "", True, 4, "no channels of this network can be removed"),
            ("line", "", True, 4, "no channels of this network can be removed"),
        ],
    )
    def test_what_cannot_be_is_said_by_plan(self, files, profile, source, channels, data, code, words):
        path = profile(channels, MORE='activations = "float"')
        given = ("--calibration-data", files / f"{source}.npz") if data else ()
        error = fails("plan", files / f"{source}.onnx", "--profile", path, *given)
        assert error.exit_code == code
        assert words in str(error)
        assert error.hint

    def test_a_share_that_cannot_go(self, files, profile, tmp_path):
        path = profile("", **{"share = 0.25": "share = 0.99"})
        data = ("--calibration-data", files / "net.npz", "--no-verify", "-o", tmp_path / "b")
        error = fails("build", files / "net.onnx", "--profile", path, *data)
        assert error.exit_code == 4
        assert "at most" in str(error)
        assert not (tmp_path / "b").exists()

    @pytest.mark.parametrize(
        ("key", "old", "new"),
        [("share", "0.25", "0.0"), ("share", "0.25", "1.0"), ("share", "0.25", '"much"'), ("multiple", "4", "0")],
    )
    def test_numbers_that_mean_nothing(self, files, profile, key, old, new):
        error = fails("plan", files / "net.onnx", "--profile", profile("", **{f"{key} = {old}": f"{key} = {new}"}))
        assert error.exit_code == 2
        assert f"network.channels.{key}" in str(error)

    def test_magnitude_alone_needs_no_samples(self, files, profile):
        path = profile('importance = "magnitude"\nrefit = false', MORE='activations = "float"')
        assert invoke("plan", files / "net.onnx", "--profile", path).exit_code == 0


class TestPrune:
    def test_what_it_writes_is_what_a_build_takes(self, make, files, tmp_path):
        found, *_ = make(evaluate=False)
        options = ("--profile", tmp_path / "mine.toml", "--calibration-data", files / "net.npz")
        done = invoke("prune", files / "net.onnx", *options, "--target", TARGET, "--out", tmp_path / "p")
        assert "has no [network.channels]" in done.stderr
        assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["model.onnx", "model.onnx.data"]
        feed = NET.inputs(np.random.default_rng(0), 4)
        found_y = ort.InferenceSession(tmp_path / "p" / "model.onnx").run(None, feed)[0]
        left = shrink(found.network, found.plan, found.calibration, tmp_path / "weights")
        from edgec.calibrate.run import run

        np.testing.assert_allclose(found_y, next(run(left.model, [feed]))["y"], atol=1e-5)
        built = invoke(
            "build", tmp_path / "p" / "model.onnx", "--profile", "fp32", "--no-verify", "-o", tmp_path / "again"
        )
        assert built.exit_code == 0

    def test_it_says_which_profile_goes_on(self, files, tmp_path):
        options = ("--profile", "channels-25-int8", "--calibration-data", files / "net.npz")
        done = invoke("prune", files / "net.onnx", *options, "--out", tmp_path / "p", "--json")
        assert done.stderr.rstrip().endswith("--target cpu --profile int8`")
        assert json.loads(done.stdout)["plan"]["channels"]["groups"]

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("--profile", "int8"), "choose one of channels-25-int8"),
            (("--profile", "channels-25-int8", "--dtype", "float16"), "networks are float32"),
            (("--profile", "channels-25-int8", "--ignore-config", "x"), "decoder language models"),
            (("--profile", "channels-25-int8"), "none are given"),
        ],
    )
    def test_what_is_refused(self, files, tmp_path, options, words):
        error = fails("prune", files / "net.onnx", *options, "--out", tmp_path / "p")
        assert error.exit_code == 2
        assert words in str(error)
        assert list(tmp_path.iterdir()) == []
