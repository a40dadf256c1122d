"""Every command, on models that are no decoder language models."""

import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from commands import fails, invoke
from tiny_networks import NETWORKS, Tiny, weights

from edgec.cli._network import load
from edgec.errors import EdgecError

TARGET = "x86-avx512-vnni"
PROFILE = """title = "mine"
[weights]
dtype = "int8"
group_size = "channel"
[verify]
max_perplexity_ratio = 1.5
max_mean_kl = 0.5
min_top1_agreement = 0.5
[network]
weights = "int8"
SETTING
[network.verify]
min_cosine = 0.9
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a folder of models and samples."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(3)
    for name in ("cnn", "mlp", "encoder"):
        NETWORKS[name].save(folder / f"{name}.onnx")
        inputs = NETWORKS[name].inputs(rng, 24)
        np.savez(folder / f"{name}.npz", **inputs)
        np.savez(folder / f"{name}-labels.npz", **inputs, label=rng.integers(0, 5, 24))
    return folder


@pytest.fixture(scope="module")
def build(files):
    """Return a function that builds the bundle of a model, whose samples are of the same name."""

    def run(name, out, *options):
        data = ("--calibration-data", files / f"{name}.npz", "--eval-data", files / f"{name}.npz")
        # Not this machine, on which what is slow as integers stays in float: what is fast is chance here.
        return invoke("build", files / f"{name}.onnx", "--target", TARGET, *data, "-o", out, *options)

    return run


@pytest.fixture(scope="module")
def bundle(build, files, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / "cnn"
    done = build("cnn", out, "--eval-data", files / "cnn-labels.npz", "--metric", "top1")
    assert done.exit_code == 0
    return out


@pytest.fixture
def profile(tmp_path):
    def write(setting, **changes):
        path = tmp_path / "mine.toml"
        text = PROFILE.replace("SETTING", setting)
        for old, new in changes.items():
            text = text.replace(old, new)
        path.write_text(text)
        return path

    return write


class TestPlan:
    def test_as_a_table(self, files):
        shown = invoke("plan", files / "cnn.onnx", "--calibration-data", files / "cnn.npz").stdout
        for text in ("x: float32[N, 3, 12, 12]", "24 samples of cnn.npz", "GlobalAveragePool", "computes in"):
            assert text in shown

    def test_as_json(self, files):
        data = ("--calibration-data", files / "cnn.npz", "--json")
        plan = json.loads(invoke("plan", files / "cnn.onnx", *data).stdout)["plan"]
        assert plan["kind"] == "network"
        assert plan["int8"] == ["c1", "c2", "c3", "sum", "c4", "pool", "flat", "y"]
        assert plan["calibration"]["samples"] == 24
        assert json.loads(invoke("plan", files / "cnn.onnx", *data).stdout)["plan"] == plan

    def test_what_is_inside_an_if_is_listed(self, tmp_path):
        path = NETWORKS["branch"].save(tmp_path / "branch.onnx")
        np.savez(tmp_path / "x.npz", **NETWORKS["branch"].inputs(np.random.default_rng(0), 4))
        data = tmp_path / "x.npz"
        options = ("--calibration-data", data, "--target", TARGET)
        assert "inside If: stays float" in " ".join(invoke("plan", path, *options).stdout.split())
        done = invoke("build", path, *options, "--eval-data", data, "-o", tmp_path / "b")
        text = " ".join(done.stdout.split())
        assert "int8 2 nodes; 1 more might be, and stay in float (1: inside If: stays float)" in text
        assert "inside If: stays float" in (tmp_path / "b" / "report.md").read_text()

    def test_profiles_that_need_no_samples(self, files):
        for name in ("fp32", "fp16", "int8-dynamic", "int8-weights"):
            assert invoke("plan", files / "encoder.onnx", "--profile", name).exit_code == 0

    @pytest.mark.parametrize(
        ("options", "code", "message"),
        [
            ((), 2, "none are given"),
            (("--profile", "int4"), 2, "decoder language models only"),
            (("--profile", "nothing"), 2, "no profile"),
            (("--target", "nothing"), 2, "no target"),
            (("--backend", "nothing"), 4, "no backend"),
            (("--calibration-data", "none.npz"), 2, "no such file"),
            (("--calibration-data", "mlp.npz"), 2, "takes"),
            (("--calibration-data", "cnn.onnx"), 2, "reads no samples"),
            (("--calibration-data", "cnn.npz", "--fix", "z=1"), 2, "no input 'z'"),
            (("--calibration-data", "cnn.npz", "--fix", "x=1"), 2, "open sizes"),
        ],
    )
    def test_refusals(self, files, options, code, message, monkeypatch):
        monkeypatch.chdir(files)
        error = fails("plan", "cnn.onnx", *options)
        assert (error.exit_code, message in str(error)) == (code, True), error

    @pytest.mark.parametrize(
        ("setting", "code", "message"),
        [
            ('skip = ["nothing*"]', 2, "no node is called"),
            ('range = "max"', 2, "network.range"),
            ("keep_flot = 0.5", 2, "did you mean 'keep_float'?"),
            ('algorithm = "rtm"', 2, "did you mean 'rtn'?"),
        ],
    )
    def test_mistakes_in_profiles(self, files, profile, setting, code, message):
        path = profile(setting)
        error = fails("plan", files / "cnn.onnx", "--calibration-data", files / "cnn.npz", "--profile", path)
        assert (error.exit_code, message in str(error)) == (code, True), error

    @pytest.mark.parametrize(("name", "content", "code"), [
        ("broken.onnx", b"garbage", 3), ("empty.onnx", b"", 3), ("none.onnx", None, 2),
    ])  # fmt: skip
    def test_files_that_are_no_models(self, tmp_path, name, content, code):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        for command in ("plan", "build", "inspect"):
            assert fails(command, tmp_path / name).exit_code == code

    def test_directories_that_are_no_models(self, tmp_path):
        (tmp_path / "config.json").write_text('{"model_type": ["bert"]}')
        assert fails("plan", tmp_path).exit_code == 3

    def test_models_that_are_quantized_already(self, files, tmp_path):
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.calibrate import CalibrationDataReader

        class Reader(CalibrationDataReader):
            feeds = iter([{"x": np.zeros((1, 24), np.float32)}])

            def get_next(self):
                return next(self.feeds, None)

        path = tmp_path / "quantized.onnx"
        options = {"quant_format": QuantFormat.QDQ, "weight_type": QuantType.QInt8}
        quantize_static(files / "mlp.onnx", path, Reader(), **options)
        error = fails("plan", path, "--profile", "fp32")
        assert error.exit_code == 4
        assert "quantized already" in str(error)


class TestBuild:
    def test_the_report_holds_the_evidence(self, bundle):
        report = json.loads((bundle / "report.json").read_text())
        found = report["verification"]
        assert found["failures"] == []
        assert found["integers"] == {"weights": 5, "different": [], "activations": 8}
        assert found["exact"]["relative_error"] < 1e-3
        assert found["quality"]["outputs"][0]["cosine"] > 0.999
        assert found["quality"]["metrics"][0]["name"] == "top1"
        assert report["speed"]["ratio_low"] <= report["speed"]["ratio"] <= report["speed"]["ratio_high"]
        assert report["speed"]["shapes"] == {"x": [1, 3, 12, 12]}
        assert "24 samples of cnn-labels.npz" in report["evaluation"]
        page = (bundle / "report.md").read_text()
        for text in ("passed", "bit for bit", "top1", "What changed most"):
            assert text in page

    def test_stock_runtimes_load_what_it_makes(self, bundle):
        import onnxruntime as ort

        model = bundle / "artifact" / "model.onnx"
        onnx.checker.check_model(model)
        session = ort.InferenceSession(model)
        assert session.run(None, {"x": np.zeros((2, 3, 12, 12), np.float32)})[0].shape == (2, 5)

    @pytest.mark.parametrize("backend", ["onnx_cpu", "openvino"])
    def test_the_same_inputs_give_the_same_content(self, build, tmp_path, backend):
        hashes = set()
        for name in ("a", "b"):
            assert build("cnn", tmp_path / name, "--backend", backend).exit_code == 0
            hashes.add(json.loads((tmp_path / name / "manifest.json").read_text())["content_sha256"])
            invoke("inspect", tmp_path / name)  # all files agree with the manifest
        assert len(hashes) == 1

    @pytest.mark.parametrize("profile", ["fp32", "fp16", "int8-dynamic", "int8-weights"])
    def test_other_profiles(self, build, tmp_path, profile):
        done = build("encoder", tmp_path / "out", "--profile", profile, "--json")
        assert done.exit_code == 0
        report = json.loads(done.stdout)["report"]
        assert (report["verification"]["integers"]["weights"] > 0) == profile.startswith("int8")
        page = (tmp_path / "out" / "report.md").read_text()
        assert ("bit for bit" in page) == profile.startswith("int8")
        assert ("| int8 |" in page) == profile.startswith("int8")

    def test_what_follows_nodes_that_are_float_is_not_counted(self, build, tmp_path, profile):
        """All that multiplies is left in float: the pooling between has no integers either."""
        keep = ("c1", "c2", "c3", "c4", "y")
        path = profile(f"skip = {json.dumps(keep)}")
        done = build("cnn", tmp_path / "out", "--profile", path)
        assert "int8 0 nodes; 5 more might be, and stay in float (5: asked for)" in " ".join(done.stdout.split())

    def test_without_verification(self, files, tmp_path):
        done = invoke(
            "build", files / "cnn.onnx", "--calibration-data", files / "cnn.npz", "--no-verify", "-o", tmp_path / "out"
        )
        assert done.exit_code == 0
        assert "skipped" in done.stdout
        assert "not verified" in (tmp_path / "out" / "report.md").read_text()

    def test_outside_of_its_bounds_it_is_built_and_says_so(self, build, tmp_path, profile):
        path = profile("correct_bias = true\nkeep_float = 0.0", **{"0.9": "1.0"})
        with pytest.raises(EdgecError, match="outside its profile's bounds") as caught:
            build("cnn", tmp_path / "out", "--profile", path)
        assert caught.value.exit_code == 1
        assert "FAILED: the cosine of y" in (tmp_path / "out" / "report.md").read_text()
        assert invoke("inspect", tmp_path / "out").exit_code == 0

    @pytest.mark.parametrize("setting", ['algorithm = "gptq"', 'algorithm = "hqq"', 'range = "mse"', "equalize = true"])
    def test_other_settings(self, build, tmp_path, profile, setting):
        assert build("cnn", tmp_path / "out", "--profile", profile(setting), "--no-verify").exit_code == 0

    @pytest.mark.parametrize(
        ("options", "code", "message"),
        [
            (("--eval-data", "cnn.npz", "--metric", "bogus"), 2, "no metric 'bogus'"),
            (("--eval-data", "cnn.npz", "--metric", "top1"), 2, "needs labels"),
            (("--eval-data", "cnn.npz", "--metric", "cosine@none"), 2, "no output 'none'"),
            (("--eval-data", "mlp.npz"), 2, "takes"),
            ((), 2, "nothing says what to measure"),
        ],
    )
    def test_refusals_leave_nothing(self, files, tmp_path, options, code, message, monkeypatch):
        monkeypatch.chdir(files)
        error = fails("build", "cnn.onnx", "--calibration-data", "cnn.npz", "-o", tmp_path / "out", *options)
        assert (error.exit_code, message in str(error)) == (code, True), error
        assert list(tmp_path.iterdir()) == []

    def test_what_exists_is_kept(self, build, tmp_path):
        (tmp_path / "mine").mkdir()
        with pytest.raises(EdgecError, match="exists already") as caught:
            build("cnn", tmp_path / "mine")
        assert caught.value.exit_code == 2
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]

    def test_samples_that_are_not_numbers(self, build, files, tmp_path):
        data = tmp_path / "nan.npz"
        np.savez(data, x=np.full((4, 3, 12, 12), np.nan, np.float32))
        error = fails(
            "build", files / "cnn.onnx", "--calibration-data", data, "--eval-data", data, "-o", tmp_path / "out"
        )
        assert error.exit_code == 2
        assert [path.name for path in tmp_path.iterdir()] == ["nan.npz"]

    def test_recurrent_states_have_their_samples_on_another_axis(self, tmp_path):
        """A network that is run with the states of its last step, in batches, on every backend."""
        graph = """<ir_version: 10, opset_import: ["": 23]> g (float[batch, 5, 4] x, float[1, batch, 6] state)
            => (float[batch, 6] y, float[1, batch, 6] last) <int64[1] first = {0}> {
            steps = Transpose <perm=[1, 0, 2]> (x)
            all, last = GRU <hidden_size=6> (steps, w, r, , , state)
            s = Squeeze (last, first)
            y = MatMul (s, v)
        }"""
        proto = onnx.parser.parse_model(graph)
        rng = np.random.default_rng(0)
        for name, shape in (("w", (1, 18, 4)), ("r", (1, 18, 6)), ("v", (6, 6))):
            proto.graph.initializer.append(
                onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
            )
        onnx.save(proto, tmp_path / "gru.onnx")
        np.savez(tmp_path / "gru.npz", x=rng.standard_normal((20, 5, 4)).astype(np.float32))
        for backend in ("onnx_cpu", "openvino"):
            data = ("--calibration-data", tmp_path / "gru.npz", "--eval-data", tmp_path / "gru.npz")
            options = ("--target", TARGET, "--backend", backend, "-o", tmp_path / backend, "--json")
            done = invoke("build", tmp_path / "gru.onnx", *data, *options)
            report = json.loads(done.stdout)["report"]
            assert report["verification"]["failures"] == []
            assert report["speed"]["shapes"] == {"x": [1, 5, 4], "state": [1, 1, 6]}


class TestInspect:
    def test_a_bundle(self, bundle):
        shown = invoke("inspect", bundle).stdout
        assert "all files agree with the manifest" in shown
        assert "x: float32[N, 3, 12, 12]" in shown
        document = json.loads(invoke("inspect", bundle, "--json").stdout)
        assert set(document) == {"manifest", "plan", "report"}

    def test_damage(self, bundle, tmp_path):
        broken = tmp_path / "broken"
        shutil.copytree(bundle, broken)
        path = broken / "artifact" / "network.json"
        path.write_bytes(path.read_bytes() + b" ")
        assert fails("inspect", broken).exit_code == 3

    def test_a_model(self, files):
        assert "Clip 2" in invoke("inspect", files / "cnn.onnx").stdout
        assert "GlobalAveragePool" in invoke("inspect", files / "cnn.onnx", "--nodes").stdout
        assert invoke("inspect", files / "mlp.onnx", "--fusions").exit_code == 0
        document = json.loads(invoke("inspect", files / "mlp.onnx", "--nodes", "--fusions", "--json").stdout)
        assert document["operators"]["Gemm"] == 2
        assert len(document["nodes"]) == sum(document["operators"].values())
        assert [stage["stage"] for stage in document["fusions"]] == ["canonical", "onnx_cpu"]


class TestEval:
    def test_pictures_as_the_build_had_them(self, files, tmp_path):
        """A bundle knows what its model's preprocessor says; where there is none, it is told what pictures become."""
        image = pytest.importorskip("PIL.Image")
        (tmp_path / "model").mkdir()
        (tmp_path / "pictures" / "0").mkdir(parents=True)  # their class
        path = tmp_path / "model" / "cnn.onnx"
        shutil.copy(files / "cnn.onnx", path)
        rng = np.random.default_rng(0)
        for number in range(9):
            pixels = rng.integers(0, 255, (16, 16, 3), np.uint8)
            image.fromarray(pixels).save(tmp_path / "pictures" / "0" / f"{number}.png")
        data, found, told = ("--eval-data", tmp_path / "pictures", "--metric", "top1"), {}, {}
        for name in ("plain", "own"):
            invoke("build", path, "--target", TARGET, "--profile", "fp32", "-o", tmp_path / name, *data)
            done = invoke("eval", tmp_path / name, *data, "--json")
            found[name], told[name] = json.loads(done.stdout), "pictures were resized to 12 x 12" in done.stderr
            (path.parent / "preprocessor_config.json").write_text('{"image_mean": 9, "image_std": 0.01}')
        assert told == {"plain": True, "own": False}
        assert found["plain"]["data_sha256"] != found["own"]["data_sha256"]
        for name in ("plain", "own"):
            report = json.loads((tmp_path / name / "report.json").read_text())
            (top1,) = report["verification"]["quality"]["metrics"]
            assert found[name]["top1"] == top1["test"]
            remarks = [remark for remark in report["remarks"] if "pictures were" in remark]
            assert bool(remarks) == (name == "plain")

    def test_alone_and_against_its_source(self, bundle, files):
        data = ("--eval-data", files / "cnn-labels.npz", "--metric", "top1", "--json")
        alone = json.loads(invoke("eval", bundle, *data).stdout)
        both = json.loads(invoke("eval", bundle, *data, "--source", files / "cnn.onnx").stdout)["quality"]
        report = json.loads((bundle / "report.json").read_text())["verification"]["quality"]
        assert alone["top1"] == both["metrics"][0]["test"] == report["metrics"][0]["test"]
        assert both["outputs"][0]["cosine"] == pytest.approx(report["outputs"][0]["cosine"], abs=1e-6)
        assert alone["samples"] == 24
        fewer = json.loads(invoke("eval", bundle, *data, "--samples", 5).stdout)
        assert fewer["samples"] == 5
        assert "top1" in invoke("eval", bundle, *data[:-1]).stdout
        assert "cosine" in invoke("eval", bundle, *data[:-1], "--source", files / "cnn.onnx").stdout

    @pytest.mark.parametrize(
        ("options", "code"),
        [
            ((), 2), (("--eval-data", "cnn.npz"), 2), (("--metric", "top1"), 2),
            (("--eval-data", "cnn.npz", "--metric", "top1"), 2), (("--eval-data", "none.npz", "--metric", "top1"), 2),
            (("--eval-data", "cnn-labels.npz", "--metric", "bogus"), 2),
            (("--eval-data", "cnn.npz", "--source", "none.onnx"), 2),
            (("--eval-data", "cnn.npz", "--source", "mlp.onnx"), 2),
        ],
    )  # fmt: skip
    def test_refusals(self, bundle, files, options, code, monkeypatch):
        monkeypatch.chdir(files)
        assert fails("eval", bundle, *options).exit_code == code

    def test_outputs_that_tell_no_samples_apart_get_one_at_a_time(self, build, files, tmp_path):
        """What such an output gives for eight samples is no mean of what it gives for each."""
        tiny = Tiny(
            """(float[N, 24] x) => (float[N, 8] y, float[8] most) <int64[1] first = {0}> {
                h = MatMul (x, w1)
                a = Relu (h)
                y = MatMul (a, w2)
                most = ReduceMax <keepdims=0> (y, first)
            }""",
            weights(w1=(24, 16), w2=(16, 8)),
            NETWORKS["mlp"].inputs,
        )
        tiny.save(files / "most.onnx")
        np.savez(files / "most.npz", **tiny.inputs(np.random.default_rng(3), 12))
        network, _ = tiny.open(tmp_path)
        assert load(str(files / "most.npz"), network, 12, 0, "evaluation").batch == 1
        whole, _ = NETWORKS["mlp"].open(tmp_path)
        assert load(str(files / "mlp.npz"), whole, 12, 0, "evaluation").batch == 8

        assert build("most", tmp_path / "out").exit_code == 0
        quality = json.loads((tmp_path / "out/report.json").read_text())["verification"]["quality"]
        assert [output["output"] for output in quality["outputs"]] == ["y", "most"]
        options = ("--eval-data", files / "most.npz", "--metric", "cosine@most", "--json")
        found = json.loads(invoke("eval", tmp_path / "out", *options, "--source", files / "most.onnx").stdout)
        assert found["quality"]["samples"] == 12
        assert found["quality"]["metrics"][0]["test"] > 0.99
        assert found["quality"]["outputs"] == quality["outputs"]
        assert "--source" in fails("eval", tmp_path / "out", *options).hint

    def test_a_bare_artifact_has_no_plan(self, bundle, files):
        error = fails("eval", bundle / "artifact", "--eval-data", files / "cnn-labels.npz", "--metric", "top1")
        assert error.exit_code == 3


class TestBench:
    def test_a_bundle_and_its_artifact(self, bundle):
        for path in (bundle, bundle / "artifact"):
            found = json.loads(invoke("bench", path, "--runs", 3, "--json").stdout)
            assert found["latency"]["shapes"] == {"x": [1, 3, 12, 12]}  # one sample
            assert found["latency"]["runs"] == 3
            assert found["size_bytes"] > 0
        assert "in a second" in invoke("bench", bundle, "--runs", 3, "--size", "N=4").stdout

    @pytest.mark.parametrize("size", ["N", "N=", "N=0", "N=-1", "N=x", "other=4"])
    def test_refusals(self, bundle, size):
        assert fails("bench", bundle, "--size", size).exit_code == 2

    def test_what_is_no_bundle(self, tmp_path):
        assert fails("bench", tmp_path).exit_code == 3


def test_run_is_for_language_models(bundle):
    error = fails("run", bundle, "--prompt", "hi")
    assert error.exit_code == 2
    assert "edgec eval" in error.hint


def test_errors_are_told_in_a_sentence(files, tmp_path):
    command = [sys.executable, "-m", "edgec", "build", str(files / "cnn.onnx"), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: profile 'int8' takes the scales of activations from samples")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
