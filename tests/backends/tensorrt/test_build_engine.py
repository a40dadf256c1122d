"""The script that builds engines on a Jetson, against the recorded API of each TensorRT that a JetPack brings."""

import ast
import hashlib
import importlib.util
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from edgec.backends.tensorrt import device
from edgec.backends.tensorrt.recipe import Dla, Profile, Settings, Shapes, write_recipe

API = Path(__file__).parent / "api"
SCRIPT = Path(device.__file__).with_name("build_engine.py")
VERSIONS = ("10.3", "10.16", "11.4")
R36 = (
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025"
)
SETTINGS: dict[str, Any] = {
    "name": "tiny",
    "precision": "fp16, int4 weights",
    "profiles": (
        Profile("prefill", {"input_ids": Shapes((1, 2), (1, 64), (1, 128))}),
        Profile("decode", {"input_ids": Shapes((1, 1), (1, 1), (1, 1))}),
    ),
    "tensorrt_min": "10.3",
    "tensorrt_below": "12",
    "sm": (87,),
    "workspace_bytes": 1 << 28,
}


class Jetson:
    """A bundle's artifact folder, a cache, and a device with one version of TensorRT."""

    def __init__(self, root: Path, version: str) -> None:
        self.folder, self.cache, self.site, self.log = (root / n for n in ("artifact", "cache/tiny", "site", "log"))
        (self.site / "tensorrt").mkdir(parents=True)
        shutil.copy(API / "sitecustomize.py", self.site)
        shutil.copy(API / "stand_in.py", self.site / "tensorrt" / "__init__.py")
        shutil.copy(API / f"tensorrt-{version}.json", self.site / "tensorrt" / "api.json")
        self.behave()
        self.facts(sm=87, l4t=R36)
        self.folder.mkdir()
        (self.folder / "model.onnx").write_bytes(b"a graph")
        (self.folder / "model.onnx.data").write_bytes(b"its weights")
        self.bundle()

    def behave(self, **behaviour: Any) -> None:
        content = {"log": str(self.log), **behaviour}
        (self.site / "tensorrt" / "behaviour.json").write_text(json.dumps(content))

    def facts(self, **facts: Any) -> None:
        (self.site / "facts.json").write_text(json.dumps(facts))

    def bundle(self, **changes: Any) -> None:
        write_recipe(self.folder, Settings(**{**SETTINGS, **changes}))

    def start(self, *options: str, python: str = sys.executable, **settings: Any) -> subprocess.Popen[str]:
        command = [python, "-B", "-W", "error", str(self.folder / "build_engine.py"), "--cache", str(self.cache.parent)]
        environment = {**os.environ, "PYTHONPATH": str(self.site)}
        pipe = subprocess.PIPE
        return subprocess.Popen([*command, *options], env=environment, stdout=pipe, stderr=pipe, text=True, **settings)

    def run(self, *options: str, **settings: Any) -> tuple[int, str, str]:
        """Return exit code, stdout and stderr."""
        with self.start(*options, **settings) as process:
            out, err = process.communicate(timeout=30)
        assert "Traceback" not in err
        return process.returncode, out, err

    def build(self, *options: str) -> Path:
        """Run the script and return the engine that it promises, after checking that it serves."""
        code, out, err = self.run(*options)
        assert code == 0, err
        engine = Path(out.removesuffix("\n"))
        assert engine == self.cache / self.current()["engine"]
        assert hashlib.sha256(engine.read_bytes()).hexdigest() == self.current()["sha256"]
        return engine

    def fail(self, code: int, *words: str, serving: Path | None, **settings: Any) -> None:
        """Run the script, which must fail with these words and leave the engine that serves as it is."""
        before = serving.read_bytes() if serving else None
        found, out, err = self.run("--rebuild", **settings)
        assert (found, out) == (code, ""), err
        assert all(word in err for word in words), err
        if serving:
            assert f"keeps serving: {serving}" in err or "were not touched" in err
            assert serving.read_bytes() == before
            assert self.current()["engine"] == serving.name
        else:
            assert "no engine was there before" in err or "were not touched" in err
            assert not list(self.cache.glob("*.plan"))
        assert not list(self.cache.glob("*.tmp"))

    def current(self) -> dict[str, Any]:
        return json.loads((self.cache / "current.json").read_text())

    def builds(self) -> list[dict[str, Any]]:
        """What TensorRT was asked for, build by build."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.fixture(params=VERSIONS)
def jetson(request: pytest.FixtureRequest, tmp_path: Path) -> Jetson:
    return Jetson(tmp_path, request.param)


@pytest.fixture
def orin(tmp_path: Path) -> Jetson:
    return Jetson(tmp_path, "10.3")


def test_builds_what_the_recipe_says(jetson: Jetson) -> None:
    engine = jetson.build()
    built = jetson.builds()[0]
    assert built["model"] == hashlib.sha256(b"a graph").hexdigest()
    assert built["pools"] == {"WORKSPACE": 1 << 28}
    assert built["builder_optimization_level"] == 3
    prefill, decode = built["profiles"]
    assert prefill == {"input_ids": [[1, 2], [1, 64], [1, 128]]}
    assert decode == {"input_ids": [[1, 1], [1, 1], [1, 1]]}
    assert (built["device"], built["flags"], built["timing"]) == (None, [], "")
    current = jetson.current()
    assert (current["sm"], current["l4t"], current["previous"]) == (87, "36.4.3", None)
    recipe = (jetson.folder / "recipe.json").read_bytes()
    assert current["bundle"] == hashlib.sha256(recipe).hexdigest()
    assert (jetson.cache.stat().st_mode & 0o777, engine.parent) == (0o700, jetson.cache)


def test_second_run_builds_nothing(jetson: Jetson) -> None:
    engine = jetson.build()
    code, out, err = jetson.run()
    assert (code, out) == (0, f"{engine}\n")
    assert "up to date" in err
    assert len(jetson.builds()) == 1
    jetson.build("--rebuild")
    assert len(jetson.builds()) == 2
    assert jetson.builds()[1]["timing"] == "timings of earlier builds"


def test_damaged_engine_is_built_again(orin: Jetson) -> None:
    engine = orin.build()
    content = engine.read_bytes()
    engine.write_bytes(content[:-1])
    assert orin.build().read_bytes() == content
    (orin.cache / "current.json").write_text('{"engine": 5')
    assert orin.build().read_bytes() == content
    assert len(orin.builds()) == 3


def test_engine_is_rebuilt_for_another_tensorrt_l4t_or_bundle(jetson: Jetson) -> None:
    engines = [jetson.build()]
    jetson.facts(sm=87, l4t=R36.replace("REVISION: 4.3", "REVISION: 4.7"))
    engines.append(jetson.build())
    jetson.behave(version=jetson.current()["tensorrt"] + ".1")
    engines.append(jetson.build())
    (jetson.folder / "model.onnx.data").write_bytes(b"other weights")
    jetson.bundle()
    engines.append(jetson.build())
    jetson.bundle(optimization_level=4)
    engines.append(jetson.build())
    assert len(set(engines)) == len(jetson.builds()) == 5
    assert set(jetson.cache.glob("*.plan")) == set(engines[-2:])
    assert jetson.current()["previous"]["engine"] == engines[-2].name
    assert jetson.build("--rebuild") == engines[-1]
    assert jetson.current()["previous"]["engine"] == engines[-2].name


def test_engine_before_takes_over_again_without_a_build(orin: Jetson) -> None:
    first = orin.build()
    orin.bundle(optimization_level=5)
    second = orin.build()
    orin.bundle()
    assert orin.build() == first
    assert orin.current()["previous"]["engine"] == second.name
    assert len(orin.builds()) == 2


def test_failed_build_leaves_the_old_engine_serving(jetson: Jetson) -> None:
    jetson.behave(build_fails=True)
    jetson.fail(4, "no implementation for node /layers.0/MatMul", serving=None)
    jetson.behave()
    engine = jetson.build()
    jetson.behave(build_fails=True)
    jetson.fail(4, "no implementation for node /layers.0/MatMul", serving=engine)


def test_refused_node_is_named(jetson: Jetson) -> None:
    engine = jetson.build()
    node = {"node_name": "layers.0.attention", "node_operator": "Attention", "desc": "no importer"}
    jetson.behave(parser_errors=[node, {**node, "node_name": "layers.1.attention"}])
    nodes = ("node 'layers.0.attention' (Attention): no importer", "node 'layers.1.attention'")
    jetson.fail(4, "does not take the model", *nodes, serving=engine)


def test_profile_that_tensorrt_refuses_is_named(orin: Jetson) -> None:
    recipe = json.loads((orin.folder / "recipe.json").read_text())
    recipe["build"]["profiles"][1]["shapes"]["input_ids"]["max"] = [1, 0]
    (orin.folder / "recipe.json").write_text(json.dumps(recipe))
    orin.fail(4, "does not take the optimization profile 'decode'", serving=None)


def test_gpu_that_tensorrt_cannot_start_on(jetson: Jetson) -> None:
    jetson.behave(no_gpu=True)
    jetson.fail(4, "TensorRT cannot use this GPU: CUDA initialization failure with error: 35", serving=None)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "build_engine.py"])
def test_changed_or_missing_file_is_refused(orin: Jetson, name: str) -> None:
    engine = orin.build()
    path = orin.folder / name
    path.write_bytes(path.read_bytes() + b"\n")
    orin.fail(3, f"{path} is not the file", "copy the bundle", serving=engine)
    if name != "build_engine.py":
        path.unlink()
        orin.fail(3, f"cannot read {path}", "copy the bundle", serving=engine)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is damaged"),
        ('{"format": 1', "is damaged"),
        ("[]", "is damaged"),
        ('{"format": 1, "files": {}}', "is damaged"),
        ('{"format": 1, "files": ["model.onnx"], "build": {"name": "x"}}', "is damaged"),
        ('{"format": 1, "files": {}, "build": {"name": "x"}}', "KeyError: 'precision'"),
        ('{"format": 2}', "has format 2, this script reads format 1"),
    ],
)
def test_damaged_recipe_is_refused(orin: Jetson, content: str, message: str) -> None:
    (orin.folder / "recipe.json").write_text(content)
    orin.fail(3, message, serving=None)


def test_device_that_the_bundle_is_not_made_for(orin: Jetson) -> None:
    engine = orin.build()
    orin.facts(sm=110, l4t=R36)
    orin.fail(4, "SM 110", "[87]", serving=engine)
    orin.facts(sm=87, l4t=R36)
    for version in ("10.2.9", "12.0.0"):
        orin.behave(version=version)
        orin.fail(4, f"TensorRT {version}", "from 10.3 to below 12", serving=engine)


def test_missing_runtimes(orin: Jetson) -> None:
    engine = orin.build()
    orin.facts(sm=None, l4t=R36)
    orin.fail(6, "the CUDA driver is missing", serving=engine)
    orin.facts(sm=87, l4t=R36, cuda_error=100)
    orin.fail(6, "no GPU that it can use (error 100)", serving=engine)
    (orin.site / "tensorrt" / "__init__.py").write_text("import libnvinfer_is_not_here")
    orin.fail(6, "no working 'tensorrt'", "python3-libnvinfer", serving=engine)


def test_unknown_l4t_is_said_and_part_of_the_key(orin: Jetson) -> None:
    first = orin.build()
    orin.facts(sm=87, l4t=None)
    code, out, err = orin.run()
    assert code == 0
    assert "warning: /etc/nv_tegra_release" in err
    assert orin.current()["l4t"] == "unknown"
    assert out != f"{first}\n"


def test_full_disk_leaves_nothing_half_written(orin: Jetson) -> None:
    engine = orin.build()
    orin.behave(engine_bytes=1 << 20)
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18))}
    orin.fail(2, f"cannot use the folder {orin.cache}", "File too large", serving=engine, **limit)


def test_cache_that_cannot_be_made(orin: Jetson) -> None:
    orin.cache.parent.mkdir()
    orin.cache.write_text("a file")
    code, _, err = orin.run()
    assert code == 2
    assert f"cannot use the folder {orin.cache}: File exists" in err


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_build_leaves_the_old_engine_serving(jetson: Jetson, signal_number: int) -> None:
    engine = jetson.build()
    content = engine.read_bytes()
    jetson.behave(build_s=60)
    with jetson.start("--rebuild") as process:
        _wait(lambda: len(jetson.builds()) == 2)
        process.send_signal(signal_number)
        process.communicate()
    assert process.returncode == -signal_number
    assert engine.read_bytes() == content
    assert jetson.current()["engine"] == engine.name
    (jetson.cache / "half.plan.tmp").write_bytes(b"what a kill in the middle of writing leaves")
    jetson.behave()
    assert jetson.build("--rebuild") == engine
    assert not list(jetson.cache.glob("*.tmp"))


def test_interrupted_build_says_so(orin: Jetson) -> None:
    orin.behave(build_s=60)
    with orin.start() as process:
        _wait(lambda: len(orin.builds()) == 1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    assert "interrupted" in err


def test_two_runs_at_once_build_once(orin: Jetson) -> None:
    orin.behave(build_s=0.3)
    with orin.start() as first:
        _wait(lambda: len(orin.builds()) == 1)
        with orin.start() as second:
            results = [first.communicate(timeout=30), second.communicate(timeout=30)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert results[0][0] == results[1][0] != ""
    assert "waiting for another build" in results[1][1]
    assert len(orin.builds()) == 1


def test_damaged_timing_cache_is_not_used(jetson: Jetson) -> None:
    jetson.build()
    (timing,) = jetson.cache.glob("timing-*-sm87.bin")
    timing.write_bytes(b"damaged")
    jetson.build("--rebuild")
    assert jetson.builds()[1]["timing"] == ""
    assert timing.read_bytes() == b"timings of earlier builds"
    jetson.bundle(timing_cache=False)
    jetson.build()
    assert jetson.builds()[2]["timing"] is None


def test_dla(tmp_path: Path) -> None:
    jetson = Jetson(tmp_path, "11.4")
    image = (Profile("image", {"image": Shapes((1, 3, 8, 8), (1, 3, 8, 8), (1, 3, 8, 8))}),)
    jetson.bundle(profiles=image, dla=Dla(1, gpu_fallback=True), tensorrt_min="11.4.1")
    jetson.behave(version="11.4.1", dla_cores=1)
    jetson.fail(4, "wants DLA core 1, TensorRT finds 1 cores", serving=None)
    jetson.behave(version="11.4.1", dla_cores=2)
    jetson.build()
    built = jetson.builds()[0]
    assert (built["device"], built["DLA_core"], built["flags"]) == ("DLA", 1, ["GPU_FALLBACK"])


def test_sparse_kernels_are_tried_where_the_recipe_says(tmp_path: Path) -> None:
    jetson = Jetson(tmp_path, "10.3")
    jetson.bundle(sparse_weights=True)
    jetson.build()
    assert jetson.builds()[0]["flags"] == ["SPARSE_WEIGHTS"]


def test_default_cache_is_named_after_the_model(orin: Jetson, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(orin.site), "HOME": str(tmp_path)}
    command = [sys.executable, "-B", str(orin.folder / "build_engine.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert Path(done.stdout).parent == tmp_path / ".cache" / "edgec" / "tiny"


def test_verbose_shows_where_an_unexpected_error_came_from(orin: Jetson) -> None:
    api = json.loads((orin.site / "tensorrt" / "api.json").read_text())
    del api["classes"]["OnnxParser"]["methods"]["parse_from_file"]
    (orin.site / "tensorrt" / "api.json").write_text(json.dumps(api))
    orin.fail(70, "AttributeError", "parse_from_file", "--verbose", serving=None)
    with orin.start("--verbose") as process:
        assert "Traceback" in process.communicate()[1]


# TensorRT-RTX compiles for a GPU that is not there when it is told which; the script, rightly, knows nothing of that.
RTX = """
from tensorrt_rtx_bindings import *
from tensorrt_rtx_bindings import __version__, Builder as _Builder

class Builder(_Builder):
    def create_builder_config(self):
        config = super().create_builder_config()
        config.num_compute_capabilities = 1
        assert config.set_compute_capability(ComputeCapability.SM86, 0)
        return config
"""


@pytest.mark.parametrize("operator", ["MatMul", "Unheard"])
def test_with_real_bindings(orin: Jetson, operator: str) -> None:
    version = pytest.importorskip("tensorrt_rtx_bindings").__version__
    (orin.site / "tensorrt" / "__init__.py").write_text(RTX)
    orin.facts(sm=86, l4t=R36)
    _write_product(orin.folder / "model.onnx", operator)
    profiles = tuple(Profile(name, {"x": Shapes((1, 32), (n, 32), (n, 32))}) for name, n in (("many", 64), ("one", 1)))
    orin.bundle(profiles=profiles, tensorrt_min="1.7", tensorrt_below="2", sm=(86,))
    if operator == "Unheard":
        orin.fail(4, f"TensorRT {version} does not take the model", "node 'product' (Unheard)", serving=None)
        return
    engine = orin.build()
    assert engine.stat().st_size > 32 * 16 * 2
    assert orin.build() == engine


def _write_product(path: Path, operator: str) -> None:
    weight = onnx.numpy_helper.from_array(np.ones((32, 16), np.float16), "weight")
    node = onnx.helper.make_node(operator, ["x", "weight"], ["y"], name="product")
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT16, ["rows", 32])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT16, ["rows", 16])
    graph = onnx.helper.make_graph([node], "product", [x], [y], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    (path.parent / "model.onnx.data").unlink()
    onnx.save(model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)


def test_script_is_python_3_8_and_needs_nothing_but_the_standard_library() -> None:
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 8))
    imports = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imports |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imports} <= sys.stdlib_module_names


@pytest.mark.parametrize("minor", [8, 10, 12])
def test_runs_on_the_python_of_each_jetpack(orin: Jetson, minor: int) -> None:
    python = _python(minor)
    if python is None:
        pytest.skip(f"no Python 3.{minor} here")
    assert orin.run(python=python)[0] == 0
    assert len(orin.builds()) == 1


def _python(minor: int) -> str | None:
    """Return a Python 3.`minor` that really starts: a version manager's name for an inactive one does not."""
    candidates = [shutil.which(f"python3.{minor}"), *Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python")]
    for python in filter(None, candidates):
        if subprocess.run([python, "--version"], capture_output=True, check=False).returncode == 0:
            return str(python)
    return None


def _wait(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_stand_ins_differ_as_the_versions_do(tmp_path: Path) -> None:
    old, new = (
        _stand_in(tmp_path / name, json.loads((API / f"tensorrt-{name}.json").read_text())) for name in VERSIONS[::2]
    )
    assert int(old.BuilderFlag.FP16) == 0
    assert int(old.NetworkDefinitionCreationFlag.EXPLICIT_BATCH) == 0
    for missing in ("new.BuilderFlag.FP16", "new.NetworkDefinitionCreationFlag.EXPLICIT_BATCH"):
        with pytest.raises(AttributeError):
            eval(missing, {"new": new})
    assert hasattr(old.Builder, "platform_has_fast_fp16")
    assert not hasattr(new.Builder, "platform_has_fast_fp16")
    assert not hasattr(old.OnnxParser, "set_builder_config")
    assert hasattr(new.OnnxParser, "set_builder_config")


# Each is tried on bindings that are installed here and on a stand-in recorded from them.
CALLS = (
    "trt.Builder(logger)",
    "trt.Builder()",
    "trt.Builder('logger')",
    "trt.Builder(logger, 1)",
    "trt.IBuilderConfig()",
    "trt.BuilderFlag.FP16",
    "trt.BuilderFlag.GPU_FALLBACK",
    "trt.MemoryPoolType.TMP",
    "builder.create_network(1)",
    "builder.create_network(flags=1)",
    "builder.create_network(flag=1)",
    "builder.create_network('1')",
    "builder.create_network(1, 2)",
    "builder.max_batch_size",
    "builder.build_engine(network, config)",
    "builder.build_serialized_network(network)",
    "builder.build_serialized_network(config, network)",
    "setattr(builder, 'max_batch_size', 1)",
    "setattr(builder, 'num_DLA_cores', 1)",
    "trt.OnnxParser(builder, logger)",
    "parser.parse_from_file(pathlib.Path('model.onnx'))",
    "parser.parse_from_file(b'model.onnx', 1)",
    "parser.parse_file('model.onnx')",
    "parser.num_errors()",
    "config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 20)",
    "config.set_memory_pool_limit('WORKSPACE', 1 << 20)",
    "config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE)",
    "config.max_workspace_size",
    "setattr(config, 'max_workspace_size', 1 << 20)",
    "setattr(config, 'builder_optimization_level', 3)",
    "setattr(config, 'builder_optimization_level', 'high')",
    "setattr(config, 'default_device_type', 1)",
    "config.set_flag(trt.BuilderFlag.GPU_FALLBACK)",
    "config.set_flag(3)",
    "config.create_timing_cache(b'')",
    "config.create_timing_cache('')",
    "config.set_timing_cache(config.create_timing_cache(b''))",
    "config.set_timing_cache(config.create_timing_cache(b''), ignore_mismatch=False)",
    "profile.set_shape('x', (1, 2), (1, 2), (1, 2))",
    "profile.set_shape('x', (1, 2), (1, 2))",
    "profile.set_shape('x', 1, 2, 3)",
    "profile.set_shape('x', min=(1, 2), opt=(1, 2), max=(1, 2))",
)


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_stand_in_takes_and_refuses_what_real_bindings_do(tmp_path: Path) -> None:
    real = pytest.importorskip("tensorrt_rtx_bindings")
    stand_in = _stand_in(tmp_path / "rtx", _module(API / "record.py", "record").describe(real))
    outcomes = {call: (_outcome(real, call), _outcome(stand_in, call)) for call in CALLS}
    assert {call: both for call, both in outcomes.items() if both[0] != both[1]} == {}
    assert {both[0] for both in outcomes.values()} == {"taken", "TypeError", "AttributeError"}


def _outcome(trt: ModuleType, call: str) -> str:
    class Logger(trt.ILogger):
        def log(self, severity: Any, msg: str) -> None: ...

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(1)
    config = builder.create_builder_config()
    parser = trt.OnnxParser(network, logger)
    profile = builder.create_optimization_profile()
    names = {
        "config": config,
        "parser": parser,
        "profile": profile,
        "network": network,
        "pathlib": sys.modules["pathlib"],
    }
    try:
        eval(call, {"trt": trt, "logger": logger, "builder": builder, **names})
    except (TypeError, AttributeError) as error:
        return type(error).__name__
    return "taken"


def _stand_in(folder: Path, api: dict[str, Any]) -> ModuleType:
    folder.mkdir()
    shutil.copy(API / "stand_in.py", folder)
    (folder / "api.json").write_text(json.dumps(api))
    (folder / "behaviour.json").write_text("{}")
    return _module(folder / "stand_in.py", f"stand_in_{folder.name}")


def _module(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
