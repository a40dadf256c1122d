"""`edgec build` for targets with TensorRT: engines compiled here, recipes for Jetson, and what is refused."""

import json
import re
import resource
import subprocess
import sys
from dataclasses import replace

import msgspec
import onnx_ir as ir
import pytest
from random_models import save_random
from thinned import thinned

from edgec.backends.backend import Job, get_backend
from edgec.backends.tensorrt.compile import _device_settings
from edgec.backends.tensorrt.decompose import decompose
from edgec.backends.tensorrt.engine import read_engines
from edgec.backends.tensorrt.profiles import profiles
from edgec.backends.tensorrt.recipe import read_recipe
from edgec.backends.tensorrt.refusal import note_nodes, refusal
from edgec.backends.tensorrt.worker import Failure, Order, compile_engine
from edgec.bundle.manifest import read_manifest
from edgec.checkpoint.open import open_checkpoint
from edgec.errors import MissingRuntimeError, PlanError
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe, families
from edgec.graph.store import Store
from edgec.quantize.scheme import Scheme
from edgec.quantize.weights import quantize_weights
from edgec.spec.load import list_targets, load_profile, load_target
from edgec.spec.plan import resolve

pytest.importorskip("tensorrt_rtx_bindings")

AHEAD = sorted(target.name for target in list_targets() if "tensorrt_rtx" in target.runtimes)
ON_DEVICE = sorted(target.name for target in list_targets() if "tensorrt" in target.runtimes)
LOOSE = """title = "int4, any quality"
[weights]
dtype = "int4"
group_size = 32
symmetric = {symmetric}
[verify]
max_perplexity_ratio = 1e9
max_mean_kl = 1e9
min_top1_agreement = 0.0
tokens = 512
window = 64
"""


def edgec(*arguments):
    command = [sys.executable, "-m", "edgec", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    path = tmp_path_factory.mktemp("profiles") / "loose.toml"
    path.write_text(LOOSE.format(symmetric="true"))
    return path


@pytest.fixture(scope="module")
def make_bundle(tiny_llama, story_text, profile, tmp_path_factory):
    """Return a function that builds the tiny Llama for a target."""

    def make(target, *, verify=False):
        out = tmp_path_factory.mktemp("bundles") / target
        options = ["--eval-text", story_text] if verify else ["--no-verify"]
        done = edgec("build", tiny_llama, "--target", target, "--profile", profile, *options, "--out", out)
        assert done.returncode == 0, done.stderr
        return out

    return make


@pytest.fixture(scope="module")
def rtx(make_bundle):
    return make_bundle("rtx-4060", verify=True)


@pytest.fixture(scope="module")
def jetson(make_bundle):
    return make_bundle("jetson", verify=True)


def test_an_engine_is_compiled_and_said_not_to_have_run(rtx):
    report = json.loads((rtx / "report.json").read_text())
    assert report["not_run"].startswith("compiled, not run: TensorRT-RTX 1.7.1")
    assert report["latency"] is None
    assert report["verification"]["failures"] == []
    assert report["verification"]["integers"] == {"weights": 22, "different": [], "activations": 0}
    assert report["verification"]["exact"]["relative_error"] < 1e-4
    engine = read_engines(rtx / "artifact").engine
    assert engine.sm == 89
    assert (rtx / "artifact" / engine.file).stat().st_size == engine.size_bytes
    # Every weight stays INT4 in the engine.
    assert engine.weights["Int4"] >= 3 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 96) + 64 * 320
    assert engine.weights["Half"] < engine.weights["Int4"] / 8
    assert [profile.name for profile in engine.profiles] == ["prefill", "decode"]
    assert engine.profiles[0].shapes["input_ids"].max == (1, 128)


@pytest.mark.parametrize("name", ["rtx", "jetson"])
def test_the_report_says_what_the_engine_did_not_do(name, request):
    bundle = request.getfixturevalue(name)
    page = (bundle / "report.md").read_text()
    assert "| verification | passed (the graph in the engine's place) |" in page
    assert "Shipped mode (the graph in the engine's place) against the source checkpoint" in page
    assert "Not measured: the engine was not run here." in page
    compiler = json.loads((bundle / "artifact" / "tensorrt.json").read_text())["engine"]["compiler"]
    assert compiler in page
    versions = read_manifest(bundle).versions
    assert f"TensorRT-RTX {versions['tensorrt-rtx-cu13-bindings']}" == compiler


def test_two_builds_are_equal_but_for_numbers_in_the_engine(rtx, make_bundle):
    again = make_bundle("rtx-4060")
    for path in (rtx / "artifact").iterdir():
        first, second = path.read_bytes(), (again / "artifact" / path.name).read_bytes()
        if path.suffix == ".engine":  # TensorRT-RTX numbers symbolic dimensions as it likes
            assert len(first) == len(second)
            assert sum(a != b for a, b in zip(first, second, strict=True)) < len(first) / 50  # seen: 200 to 7400
        else:
            assert first == second, path.name


def test_edgec_runs_the_graph_and_measures_no_engine(rtx):
    done = edgec("run", rtx, "--prompt", "The fox ran", "--max-new-tokens", 5)
    assert done.returncode == 0, done.stderr
    assert "compiled, not run" in done.stderr
    assert "5 new" in done.stderr
    assert "tokens/s" not in done.stderr
    assert "ms" not in done.stderr.splitlines()[-1]
    for options in ([], ["--beams", 2]):
        done = edgec("run", rtx, "--prompt", "The fox ran", "--max-new-tokens", 5, "--json", *options)
        result = json.loads(done.stdout)
        assert result["new_tokens"] == 5
        assert result["ttft_ms"] is result["decode_tokens_per_s"] is None


def test_a_jetson_bundle_holds_a_recipe_and_a_proxy(jetson):
    artifact = jetson / "artifact"
    names = {path.name for path in artifact.iterdir()}
    assert names >= {"model.onnx", "model.onnx.data", "recipe.json", "build_engine.py", "tensorrt.json"}
    recipe = read_recipe(artifact)
    assert recipe.build.tensorrt_min == "10.3"
    assert recipe.build.sm == (87,)
    assert [p.name for p in recipe.build.profiles] == ["prefill", "decode"]
    engines = read_engines(artifact)
    assert (engines.sm, engines.on_device, engines.engine.sm, engines.engine.file) == (87, True, 86, None)
    assert engines.engine.profiles == recipe.build.profiles
    report = json.loads((jetson / "report.json").read_text())
    assert "as a proxy for SM87" in report["not_run"]
    assert report["verification"]["exact"]["relative_error"] < 1e-4


def test_tensorrt_10_3_gets_operators_that_it_knows(jetson):
    model = ir.load(jetson / "artifact" / "model.onnx")
    assert model.opset_imports == {"": 21}
    newer = {"Attention", "RotaryEmbedding", "RMSNormalization"}
    assert not newer & {node.op_type for node in model.graph}
    assert {node.domain for node in model.graph} == {""}


def canonical(source, folder, storage, target):
    checkpoint = open_checkpoint(source)
    decoder, device = describe(checkpoint), load_target(target)
    profile = load_profile("int4" if isinstance(storage, Scheme) else storage)
    plan = resolve(checkpoint, decoder, device, profile, "tensorrt")
    model = emit(decoder, checkpoint, checkpoint.read, plan.context_length)
    with Store(folder / "weights.bin") as store:
        quantize_weights(model, lambda *_: storage, store, lambda _: None)
    return Job(model, decoder, plan, device, checkpoint.config, {})


def compiled(source, folder, storage, target):
    """Return the engine of a random model, without the rest of a build."""
    (folder / "artifact").mkdir()
    job = canonical(source, folder, storage, target)
    get_backend("tensorrt").compile_decoder(job, folder / "artifact", lambda _: None)
    return read_engines(folder / "artifact").engine


@pytest.fixture
def broken(request, tmp_path, monkeypatch):
    """A TensorRT-RTX that cannot be loaded, is killed, or has no room for its engine."""
    reason, content = request.param
    if content is None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
        yield reason
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        return
    (tmp_path / "tensorrt_rtx_bindings.py").write_text(content)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield reason


@pytest.mark.parametrize(
    "broken",
    [
        ("cannot be loaded: libnvinfer.so.10", "raise ImportError('libnvinfer.so.10')"),
        ("too little memory", "import os\nos.kill(os.getpid(), 9)"),
        ("cannot be written", None),
    ],
    indirect=True,
    ids=["import", "memory", "write"],
)
def test_a_device_that_builds_its_own_engine_needs_no_proxy(broken, tiny_llama, tmp_path):
    assert compiled(tiny_llama, tmp_path, Scheme("int4", 32), "jetson-orin-nano") is None
    no_engine = read_engines(tmp_path / "artifact").no_engine
    assert broken in no_engine
    assert f"no proxy: {no_engine}" in get_backend("tensorrt").not_run(tmp_path / "artifact")
    assert read_recipe(tmp_path / "artifact").build.sm == (87,)


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        ("fp32", "weights fp32, activations fp32"),
        ("fp16", "weights fp16, activations fp16"),
        (Scheme("int8", None), "weights int8, activations fp16"),
        (Scheme("int4", 32), "weights int4, activations fp16"),
    ],
    ids=str,
)
def test_a_recipe_has_a_safe_name_and_says_how_weights_are_stored(storage, words, tiny_llama, tmp_path):
    job = canonical(tiny_llama, tmp_path, storage, "jetson-orin-nano")
    plan = msgspec.structs.replace(job.plan, weights=storage, profile="../my profile; rm -rf $HOME")
    settings = _device_settings(replace(job, plan=plan), profiles(job.model, 64))
    assert re.fullmatch("llama-[0-9a-f]{12}", settings.name)
    assert settings.precision == words


def test_a_target_that_takes_engines_from_here_needs_the_compiler(tiny_llama, tmp_path, monkeypatch):
    (tmp_path / "tensorrt_rtx_bindings.py").write_text("raise ImportError('libnvinfer.so.10')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(MissingRuntimeError, match=r"libnvinfer\.so\.10") as caught:
        compiled(tiny_llama, tmp_path, Scheme("int4", 32), "rtx-4060")
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("target", thinned([*AHEAD, *ON_DEVICE], keep=2))
def test_every_target_gets_an_engine(target, tiny_llama, tmp_path):
    engine = compiled(tiny_llama, tmp_path, Scheme("int4", 32), target)
    gpu = load_target(target).gpu
    assert engine.sm == {87: 86, 110: 120}.get(gpu.sm, gpu.sm)
    assert engine.weights["Int4"] > 0


@pytest.mark.parametrize("kind", thinned(sorted(families()), keep=3))
def test_every_family_compiles(kind, tmp_path):
    save_random(kind, tmp_path / "source")
    assert compiled(tmp_path / "source", tmp_path, Scheme("int4", 32), "rtx-3060").weights["Int4"] > 0


@pytest.mark.parametrize(
    ("storage", "kept"), [("fp32", "Float"), ("fp16", "Half"), (Scheme("int8", None), "Int8")], ids=str
)
def test_every_storage_stays_what_it_is(storage, kept, tiny_llama, tmp_path):
    weights = compiled(tiny_llama, tmp_path, storage, "rtx-4060").weights
    assert max(weights, key=weights.get) == kept


STATIC = """title = "int8 activations"
weights.dtype = "int8"
runtime.kv_cache = "int8"
[activations]
mode = "static"
[calibration]
tokens = 128
window = 32
[verify]
max_perplexity_ratio = 1e9
max_mean_kl = 1e9
min_top1_agreement = 0.0
"""


def test_int8_activations_are_multiplied_as_int8_and_the_cache_is_int8(tiny_llama, tmp_path):
    (tmp_path / "static.toml").write_text(STATIC)
    place = ("--target", "rtx-4060", "--profile", tmp_path / "static.toml", "--out", tmp_path / "bundle")
    done = edgec("build", tiny_llama, *place, "--no-verify")
    assert done.returncode == 0, done.stderr
    engine = read_engines(tmp_path / "bundle" / "artifact").engine
    assert engine.integer_matmuls == 3 * 4  # q, k and v together; o; gate and up together; down
    report = json.loads((tmp_path / "bundle" / "report.json").read_text())
    assert "12 kernels multiply int8 by int8" in report["not_run"]
    graph = ir.load(tmp_path / "bundle" / "artifact" / "model.onnx").graph
    caches = [v for v in (*graph.inputs, *graph.outputs) if v.name.startswith(("past_key_values", "present"))]
    assert len(caches) == 4 * 3
    assert {value.dtype for value in caches} == {ir.DataType.INT8}


def test_zero_points_are_refused_before_anything_is_built(tiny_llama, tmp_path):
    (tmp_path / "profile.toml").write_text(LOOSE.format(symmetric="false"))
    out = tmp_path / "out"
    done = edgec("build", tiny_llama, "--target", "rtx-4060", "--profile", tmp_path / "profile.toml", "--out", out)
    assert done.returncode == 4
    assert "symmetric integers only" in done.stderr
    assert not out.exists()


def test_a_refused_node_is_named_with_its_tensor(tiny_llama, tmp_path):
    job = canonical(tiny_llama, tmp_path, Scheme("int4", 32, symmetric=False), "rtx-4060")
    model = job.model
    decompose(model.graph, old=True)
    notes = note_nodes(model)
    ir.save(model, tmp_path / "model.onnx")
    order = Order(str(tmp_path / "model.onnx"), str(tmp_path / "engine"), 89, profiles(model, 64))
    failure = compile_engine(order)
    assert isinstance(failure, Failure)
    text = str(refusal(failure, 89, notes))
    assert "refuses 'model.embed_tokens.weight.codes'" in text
    assert "made from model.embed_tokens.weight" in text
    assert "symmetric = true" in text
    assert not (tmp_path / "engine").exists()


def test_a_refused_operator_is_named_with_its_tensor(tiny_llama, tmp_path):
    model = canonical(tiny_llama, tmp_path, Scheme("int4", 32), "rtx-4060").model
    notes = note_nodes(model)
    ir.save(model, tmp_path / "model.onnx")  # with a cache inside Attention, which TensorRT does not take
    failure = compile_engine(Order(str(tmp_path / "model.onnx"), str(tmp_path / "engine"), 89, profiles(model, 64)))
    assert isinstance(failure, Failure)
    text = str(refusal(failure, 89, notes))
    assert "refuses Attention node 'layers.0.attention'" in text
    assert "where: layers.0.attention (layers.0.attention" in text


def test_a_gpu_that_the_compiler_does_not_know(jetson, tmp_path):
    artifact = jetson / "artifact"
    shapes = read_recipe(artifact).build.profiles
    failure = compile_engine(Order(str(artifact / "model.onnx"), str(tmp_path / "engine"), 87, shapes))
    assert isinstance(failure, Failure)
    assert "does not compile for SM87" in failure.text


def test_a_compiler_that_dies_is_reported(tmp_path):
    failure = compile_engine(Order(str(tmp_path / "none.onnx"), str(tmp_path / "engine"), 89, ()))
    assert isinstance(failure, Failure)
    error = refusal(failure, 89, {})
    assert isinstance(error, PlanError)
    assert error.exit_code == 4


def test_a_whole_family_of_shapes_is_covered(jetson):
    prefill, decode = read_recipe(jetson / "artifact").build.profiles
    assert prefill.shapes["input_ids"].max == (1, 128)
    assert prefill.shapes["attention_mask"].max == (1, 128)
    assert decode.shapes["past_key_values.0.key"].max == (1, 2, 127, 16)
    assert decode.shapes["past_key_values.0.key"].min == (1, 2, 0, 16)


def test_sources_of_weights_are_noted(tiny_llama, tmp_path):
    job = canonical(tiny_llama, tmp_path, Scheme("int4", 32), "rtx-4060")
    notes = note_nodes(job.model)
    assert notes["layers.1.mlp.down"] == "layers.1.mlp, made from model.layers.1.mlp.down_proj.weight"
