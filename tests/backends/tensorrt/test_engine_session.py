"""Engines on a GPU, without one: libcuda.c for the driver, and an exact stand-in for TensorRT-RTX.

The stand-in has the API of the bindings that are installed, recorded from them (api/), keeps the rules of their
documentation, and executes an engine by running its graph in ONNX Runtime between the addresses that it was given.
"""

import ctypes
import gc
import importlib.util
import json
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from random_models import save_random

from edgec.backends.backend import Job, get_backend
from edgec.backends.tensorrt import cuda
from edgec.backends.tensorrt.compile import write_graph
from edgec.backends.tensorrt.engine import Engine, Engines
from edgec.backends.tensorrt.engine_session import EngineSession
from edgec.backends.tensorrt.profiles import profiles
from edgec.backends.tensorrt.session import SESSION_ENTRIES, GraphSession
from edgec.checkpoint.open import open_checkpoint
from edgec.cli.build import command as build_command
from edgec.errors import BundleError, EdgecError, MissingRuntimeError, UsageError
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe
from edgec.graph.store import Store
from edgec.quantize.scheme import Scheme
from edgec.quantize.weights import quantize_weights
from edgec.spec.load import load_profile, load_target
from edgec.spec.plan import resolve

trt = pytest.importorskip("tensorrt_rtx_bindings")
COMPILER = shutil.which("cc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="libcuda.c needs a C compiler")

HERE = Path(__file__).parent
BACKEND = get_backend("tensorrt")
CLASSES = (
    *("DataType", "ExecutionContextAllocationStrategy", "ICudaEngine", "IExecutionContext", "ILogger"),
    *("ILogger.Severity", "IRuntimeConfig", "Runtime"),
)
CONTENT = b"what TensorRT-RTX would run"
LIMIT = 1024
PREFILL, DECODE = 0, 1
ALIGNMENT = 256
OUT_OF_MEMORY, ILLEGAL_ADDRESS = 2, 700


def load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Hardware:
    """The driver and TensorRT-RTX of a machine with an RTX 4060, and what they were asked to do.

    Attributes:
        runs: (profile, new tokens, past tokens) of each execution.
        broken: name of a TensorRT function -> what it logs when it fails.
    """

    def __init__(self, driver, folder, root):
        self.driver, self.root = ctypes.CDLL(str(driver)), root
        self.driver.stub_host.restype = ctypes.c_void_p
        self.driver.stub_host.argtypes = (ctypes.c_uint64, ctypes.c_size_t)
        self.driver.stub_enqueue.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
        self.runs, self.errors, self.broken, self.callbacks = [], [], {}, []
        self.bindings = self._record(folder)
        for owner, name in (
            *(("Runtime", name) for name in ("__init__", "deserialize_cuda_engine")),
            *(("ICudaEngine", name) for name in ("create_execution_context", "get_tensor_name", "get_tensor_dtype")),
            *(("ICudaEngine", name) for name in ("get_tensor_shape", "get_tensor_profile_shape")),
            *(("IExecutionContext", name) for name in ("set_optimization_profile_async", "set_input_shape")),
            *(("IExecutionContext", name) for name in ("set_tensor_address", "get_tensor_shape", "execute_async_v3")),
        ):
            self.bindings.ACTS[f"{owner}.{name}"] = getattr(self, f"{owner}_{name}")

    def _record(self, folder):
        folder.mkdir()
        record = load(HERE / "api" / "record.py", "record_of_rtx")
        record.CLASSES = CLASSES
        (folder / "api.json").write_text(json.dumps(record.describe(trt)))
        (folder / "behaviour.json").write_text("{}")
        shutil.copy(HERE / "api" / "stand_in.py", folder / "__init__.py")
        return load(folder / "__init__.py", "tensorrt_rtx_bindings")

    def works(self, owner, function):
        """Say whether a function works; where it is broken, log why not."""
        if function in self.broken:
            owner._state["logger"].log(self.bindings.ILogger.ERROR, self.broken[function])
        return function not in self.broken

    def Runtime___init__(self, runtime, logger):
        runtime._state = {"logger": logger, **logger._state}

    def Runtime_deserialize_cuda_engine(self, runtime, serialized_engine):
        if not self.works(runtime, "deserialize_cuda_engine"):
            return None
        assert self.driver.stub_current() == 1  # the RTX 4060
        models = [path for path in self.root.rglob("model.onnx") if _engine(path) == bytes(serialized_engine)]
        model = models[0]
        io = _inputs_and_outputs(model)
        context = json.loads((model.parent / "config.json").read_text())["max_position_embeddings"]
        state = {"logger": runtime._state["logger"], "model": model, "io": io, "num_io_tensors": len(io)}
        shapes = [profile.shapes for profile in profiles(ir.load(model), context)]
        return self.bindings._new("ICudaEngine", profiles=shapes, **state)

    def ICudaEngine_create_execution_context(self, engine):
        if not self.works(engine, "create_execution_context"):
            return None
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        for key, value in SESSION_ENTRIES.items():
            options.add_session_config_entry(key, value)
        graph = ort.InferenceSession(engine._state["model"], options, ["CPUExecutionProvider"])
        state = {"shapes": {}, "addresses": {}, "profile": 0, "graph": graph}
        return self.bindings._new("IExecutionContext", **{**engine._state, **state})

    def ICudaEngine_get_tensor_name(self, engine, index):
        return list(engine._state["io"])[index]

    def ICudaEngine_get_tensor_dtype(self, engine, name):
        return getattr(self.bindings.DataType, engine._state["io"][name][1].name)

    def ICudaEngine_get_tensor_shape(self, engine, name):
        return trt.Dims(engine._state["io"][name][2])

    def ICudaEngine_get_tensor_profile_shape(self, engine, name, profile_index):
        shapes = engine._state["profiles"][profile_index][name]
        return [trt.Dims(shape) for shape in (shapes.min, shapes.opt, shapes.max)]

    def IExecutionContext_set_optimization_profile_async(self, context, profile_index, stream_handle):
        assert stream_handle
        context._state.update(profile=profile_index, shapes={})
        return self.works(context, "set_optimization_profile_async") and profile_index in (PREFILL, DECODE)

    def IExecutionContext_set_input_shape(self, context, name, shape):
        limits = context._state["profiles"][context._state["profile"]][name]
        context._state["shapes"][name] = shape
        inside = all(a <= n <= b for a, n, b in zip(limits.min, shape, limits.max, strict=True))
        return inside and self.works(context, "set_input_shape")

    def IExecutionContext_set_tensor_address(self, context, name, memory):
        assert name in context._state["io"]
        context._state["addresses"][name] = memory
        return memory > 0 and memory % ALIGNMENT == 0

    def IExecutionContext_get_tensor_shape(self, context, name):
        shapes = context._state["shapes"]
        if name in shapes or len(shapes) < sum(is_input for is_input, _, _ in context._state["io"].values()):
            return trt.Dims(shapes.get(name, (-1, -1, -1)))
        batch, new = shapes["input_ids"]
        if name == "logits":
            return trt.Dims((batch, 1, context._state["io"][name][2][2]))
        _, heads, past, head_dim = shapes[name.replace("present", "past_key_values")]
        return trt.Dims((batch, heads, past + new, head_dim))

    def IExecutionContext_execute_async_v3(self, context, stream_handle):
        if not self.works(context, "execute_async_v3"):
            return False
        assert self.driver.stub_current() == 1
        state = context._state
        shapes = {name: tuple(self.IExecutionContext_get_tensor_shape(context, name)) for name in state["io"]}
        places = dict(state["addresses"])
        assert set(places) == set(state["io"])
        assert -1 not in {size for shape in shapes.values() for size in shape}
        past = next(shape[2] for name, shape in shapes.items() if name.startswith("past"))
        self.runs.append((state["profile"], shapes["input_ids"][1], past))

        def run():
            try:
                self._run(state, shapes, places)
            except Exception as error:  # noqa: BLE001  # C does not hand it on
                self.errors.append(error)

        self.callbacks.append(ctypes.CFUNCTYPE(None)(run))
        return self.driver.stub_enqueue(stream_handle, ctypes.cast(self.callbacks[-1], ctypes.c_void_p)) == 0

    def _run(self, state, shapes, places):
        arrays = {}
        for name, (_, dtype, _) in state["io"].items():
            wanted = np.dtype({"HALF": np.float16, "FLOAT": np.float32, "INT64": np.int64}[dtype.name])
            size = int(np.prod(shapes[name])) * wanted.itemsize
            host = self.driver.stub_host(places[name], size)
            assert host
            arrays[name] = np.frombuffer((ctypes.c_char * size).from_address(host), wanted).reshape(shapes[name])
        inputs = {name: arrays[name] for name, (is_input, _, _) in state["io"].items() if is_input}
        outputs = [name for name in arrays if name not in inputs]
        for a in outputs:
            for b in (name for name in arrays if name != a):
                assert not np.shares_memory(arrays[a], arrays[b])
        found = state["graph"].run(outputs, inputs)
        for name, value in zip(outputs, found, strict=True):
            assert arrays[name].dtype == value.dtype
            arrays[name][...] = value


def _engine(model):
    path = model.with_name("model.sm89.engine")
    return path.read_bytes() if path.is_file() else None


def _inputs_and_outputs(model):
    """Return name -> (is input, type, shape), as TensorRT-RTX's own parser sees them."""
    logger = trt.Logger(trt.ILogger.ERROR)
    network = trt.Builder(logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, logger).parse_from_file(str(model))
    tensors = [(True, network.get_input(i)) for i in range(network.num_inputs)]
    tensors += [(False, network.get_output(i)) for i in range(network.num_outputs)]
    assert not any(tensor.is_shape_tensor for _, tensor in tensors)  # they would be in the host's memory
    return {tensor.name: (is_input, tensor.dtype, tuple(tensor.shape)) for is_input, tensor in tensors}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    command = [COMPILER, "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-O1", "-o", path, HERE / "libcuda.c"]
    subprocess.run(command, check=True)
    return path


@pytest.fixture
def machine(library, tmp_path_factory, monkeypatch):
    """A machine with a GPU; afterwards everything was given back, and nothing was done wrong."""
    root = tmp_path_factory.getbasetemp()
    hardware = Hardware(library, tmp_path_factory.mktemp("bindings") / "package", root)
    monkeypatch.setattr(cuda, "_LIBRARY", str(library))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", hardware.bindings)
    yield hardware
    driver = hardware.driver
    if driver.stub_blocks():  # an exception that was caught holds the frames that it went through
        gc.collect()
    assert hardware.errors == []
    assert (driver.stub_blocks(), driver.stub_streams()) == (0, 0)
    assert ctypes.c_int.in_dll(driver, "stub_mistakes").value == 0


def write_artifact(source, folder, storage, content=CONTENT):
    """Write an artifact with an engine for SM89 that only the stand-in can run."""
    checkpoint = open_checkpoint(source)
    decoder, target = describe(checkpoint), load_target("rtx-4060")
    plan = resolve(checkpoint, decoder, target, load_profile("fp32" if storage == "fp32" else "fp16"), "tensorrt")
    model = emit(decoder, checkpoint, checkpoint.read, plan.context_length)
    artifact = folder / "artifact"
    artifact.mkdir(parents=True)
    with Store(folder / "weights.bin") as store:
        quantize_weights(model, lambda *_: storage, store, lambda _: None)
    write_graph(Job(model, decoder, plan, target, checkpoint.config, {}), artifact, lambda _: None, old=False)
    (artifact / "model.sm89.engine").write_bytes(content)
    engine = Engine(89, "TensorRT-RTX 1.7.1.116", len(content), {}, 0, "model.sm89.engine")
    write_engines(artifact, Engines(89, on_device=False, engine=engine))
    return artifact


def write_engines(artifact, engines):
    (artifact / "tensorrt.json").write_bytes(msgspec.json.encode(engines))


@pytest.fixture(scope="module")
def artifact(make_llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    source = make_llama(folder / "source", max_position_embeddings=LIMIT)
    return write_artifact(source, folder, Scheme("int4", 32))


@pytest.fixture
def copy(artifact, tmp_path):
    return Path(shutil.copytree(artifact, tmp_path / "copy"))


def texts(count, seed=0):
    return np.random.default_rng(seed).integers(3, 90, (1, count))


def both(artifact, mode="generate", **options):
    session = BACKEND.open_session(artifact, mode, **options)
    assert isinstance(session, EngineSession)
    return session, GraphSession(artifact, mode, threads=1, **options)


def same_step(ours, reference, ids):
    found, expected = ours.step(ids), reference.step(ids)
    assert (found.shape, found.dtype) == (expected.shape, np.float32)
    np.testing.assert_array_equal(found, expected)
    assert ours.length == reference.length


def test_prompt_decoding_and_rewinding(machine, artifact):
    ours, reference = both(artifact)
    for count in (20, 1, 1, 3, 1):
        same_step(ours, reference, texts(count))
    expected = [(PREFILL, 20, 0), (DECODE, 1, 20), (DECODE, 1, 21), (PREFILL, 3, 22), (DECODE, 1, 25)]
    assert machine.runs == expected
    for length in (26, 7, 7, 1, 0):
        ours.rewind(length)
        reference.rewind(length)
        same_step(ours, reference, texts(4, seed=length))
    ours.reset()
    reference.reset()
    same_step(ours, reference, texts(20))
    ours.reorder(np.array([0]))
    same_step(ours, reference, texts(1))


@pytest.mark.parametrize(
    ("count", "runs"),
    [
        (512, [(PREFILL, 512, 0)]),
        (513, [(PREFILL, 512, 0), (DECODE, 1, 512)]),
        (1024, [(PREFILL, 512, 0), (PREFILL, 512, 512)]),
    ],
)
def test_long_prompts_go_in_pieces(machine, artifact, count, runs):
    ours, reference = both(artifact)
    ids = texts(count)
    found, expected = ours.step(ids), reference.step(ids)
    assert machine.runs == runs
    assert np.abs(found - expected).max() < 0.01 * expected.std()


def test_evaluation_gives_all_logits(machine, artifact):
    ours, reference = both(artifact, "evaluate", max_length=40)
    ids = texts(30)
    found, expected = ours.step(ids), reference.step(ids)
    assert found.shape == (1, 30, ours.vocab_size)
    assert np.abs(found - expected).max() < 0.01 * expected.std()
    assert machine.runs == [(DECODE, 1, past) for past in range(30)]


def test_a_cache_that_is_full(machine, artifact):
    ours, reference = both(artifact, max_length=12)
    same_step(ours, reference, texts(11))
    same_step(ours, reference, texts(1))
    with pytest.raises(UsageError, match="13 tokens do not fit the cache of 12"):
        ours.step(texts(1))
    with pytest.raises(UsageError, match="cannot go back to 13"):
        ours.rewind(13)
    ours.reset()
    with pytest.raises(UsageError, match="token 9999 is not in the vocabulary"):
        ours.step(np.array([[9999]]))


@pytest.mark.parametrize(("kind", "storage"), [("gemma3_text", "fp16"), ("gpt2", "fp32")])
def test_other_families_and_types(kind, storage, machine, tmp_path):
    save_random(kind, tmp_path / "source")
    artifact = write_artifact(tmp_path / "source", tmp_path, storage, f"{kind} {storage}".encode())
    ours, reference = both(artifact)
    for count in (20, 1, 3, 1):
        same_step(ours, reference, texts(count))
    ours.rewind(11)
    reference.rewind(11)
    same_step(ours, reference, texts(1))


def test_one_row_only(machine, artifact):
    session, _ = both(artifact)
    session.step(texts(3))
    with pytest.raises(UsageError, match="takes one row, not 2 rows"):
        session.reset(2)
    for rows in ([0, 0], [1], []):
        with pytest.raises(UsageError, match="takes one row, not rows"):
            session.reorder(np.array(rows, np.int64))
    assert session.length == 3


def test_another_thread(machine, artifact):
    ours, reference = both(artifact)
    thread = threading.Thread(target=same_step, args=(ours, reference, texts(5)))
    thread.start()
    thread.join()
    same_step(ours, reference, texts(1))
    assert [run[2] for run in machine.runs] == [0, 5]


def test_memory_is_given_back(machine, artifact):
    first, reference = both(artifact, max_length=16)
    count = machine.driver.stub_blocks()
    second = BACKEND.open_session(artifact, "generate", max_length=16)
    assert machine.driver.stub_blocks() == 2 * count == 2 * (4 + 2 * 6)
    second.step(texts(9))
    del second
    assert (machine.driver.stub_blocks(), machine.driver.stub_streams()) == (count, 1)
    same_step(first, reference, texts(5))
    del first
    assert (machine.driver.stub_blocks(), machine.driver.stub_streams()) == (0, 0)


@pytest.mark.parametrize("function", ["cuMemAlloc_v2", "cuStreamCreate", "cuMemcpyHtoDAsync_v2", "cuCtxSetCurrent"])
def test_no_room_on_the_gpu(function, machine, artifact):
    BACKEND.open_session(artifact, "generate", max_length=8)  # the context is kept from now on
    machine.driver.stub_fail(function.encode(), OUT_OF_MEMORY)
    with pytest.raises(UsageError, match=r"out of memory, CUDA_ERROR_OUT_OF_MEMORY \(2\)") as caught:
        BACKEND.open_session(artifact, "generate", max_length=8)
    assert caught.value.where == function
    assert "nvidia-smi" in caught.value.hint


def test_a_cache_larger_than_the_gpu(machine, artifact):
    limit = ctypes.c_size_t.in_dll(machine.driver, "stub_limit")
    usual, limit.value = limit.value, 8 << 10
    try:
        with pytest.raises(UsageError, match="out of memory"):
            BACKEND.open_session(artifact, "generate")
    finally:
        limit.value = usual


def test_a_fault_while_it_runs(machine, artifact):
    session, _ = both(artifact)
    machine.driver.stub_fail(b"cuStreamSynchronize", ILLEGAL_ADDRESS)
    with pytest.raises(EdgecError, match="an illegal memory access was encountered") as caught:
        session.step(texts(3))
    assert caught.value.exit_code == 70
    assert session.length == 0
    machine.driver.stub_fail(b"cuStreamSynchronize", 12345)
    with pytest.raises(EdgecError, match=r"an unknown error \(12345\)"):
        session.step(texts(3))


@pytest.mark.parametrize(
    ("function", "log", "error"),
    [
        ("deserialize_cuda_engine", "Serialization assertion header.magicTag failed", BundleError),
        (
            "deserialize_cuda_engine",
            "CUDA driver version is insufficient for CUDA runtime version",
            MissingRuntimeError,
        ),
        ("create_execution_context", "Error Code 2: OutOfMemory (Requested size was 1 bytes.)", UsageError),
        ("create_execution_context", "no kernel image", EdgecError),
    ],
)
def test_an_engine_that_cannot_be_loaded(function, log, error, machine, artifact):
    machine.broken[function] = log
    with pytest.raises(error) as caught:
        BACKEND.open_session(artifact, "generate")
    assert type(caught.value) is error
    assert log in caught.value.what
    assert "TensorRT-RTX 1.7.1.116 made the engine" in caught.value.where


@pytest.mark.parametrize("function", ["set_optimization_profile_async", "set_input_shape", "execute_async_v3"])
def test_an_engine_that_cannot_run(function, machine, artifact):
    session, reference = both(artifact)
    machine.broken[function] = "Error Code 7: Internal Error"
    with pytest.raises(EdgecError, match=r"TensorRT-RTX cannot .*: Error Code 7"):
        session.step(texts(3))
    machine.broken.clear()
    session.reset()
    same_step(session, reference, texts(3))


def test_a_driver_that_real_tensorrt_does_not_take(machine, artifact, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", trt)
    with pytest.raises(MissingRuntimeError, match="driver version is insufficient") as caught:
        BACKEND.open_session(artifact, "generate")
    assert "580" in caught.value.hint


def test_no_tensorrt(machine, artifact, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    with pytest.raises(MissingRuntimeError) as caught:
        BACKEND.open_session(artifact, "generate")
    assert caught.value.hint == 'pip install "edgec[tensorrt]"'


@pytest.mark.parametrize("name", ["../model.sm89.engine", "a/b.engine", "/tmp/b.engine", "a\\b", "a\0b", "..", ""])
def test_an_engine_from_elsewhere_is_refused(name, machine, copy):
    shutil.copy(copy / "model.sm89.engine", copy.parent)
    write_engines(copy, Engines(89, False, Engine(89, "", len(CONTENT), {}, 0, name)))
    with pytest.raises(BundleError, match="is no file in the artifact's own folder"):
        BACKEND.open_session(copy, "generate")


def test_an_engine_that_is_not_the_one_built(machine, copy):
    path = copy / "model.sm89.engine"
    path.write_bytes(CONTENT + b"!")
    with pytest.raises(BundleError, match=f"the engine has {len(CONTENT) + 1} bytes"):
        BACKEND.open_session(copy, "generate")
    path.unlink()
    with pytest.raises(BundleError, match="the engine cannot be read"):
        BACKEND.open_session(copy, "generate")
    (copy.parent / "elsewhere").write_bytes(CONTENT)
    path.symlink_to(copy.parent / "elsewhere")
    with pytest.raises(BundleError, match="own folder"):
        BACKEND.open_session(copy, "generate")


def test_settings_of_another_model(machine, copy):
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**settings, "vocab_size": 7}))
    with pytest.raises(BundleError, match="logits for 7 tokens"):
        BACKEND.open_session(copy, "generate")


def test_what_runs_where(machine, copy):
    assert BACKEND.not_run(copy) is None
    assert isinstance(BACKEND.open_session(copy, "exact"), GraphSession)
    for engines in (
        Engines(120, False, Engine(120, "TensorRT-RTX", len(CONTENT), {}, 0, "model.sm89.engine")),
        Engines(87, True, Engine(89, "TensorRT-RTX", len(CONTENT), {}, 0, None)),
        Engines(87, True, None, "no compiler"),
    ):
        write_engines(copy, engines)
        assert isinstance(BACKEND.open_session(copy, "generate"), GraphSession)
        assert BACKEND.not_run(copy)


def test_gpus(machine):
    gpus = cuda.gpus()
    assert [(gpu.handle, gpu.name, gpu.sm) for gpu in gpus] == [
        (10, "NVIDIA T4", 75),
        (11, "NVIDIA GeForce RTX 4060", 89),
    ]
    assert {gpu.memory_bytes for gpu in gpus} == {8 << 30}
    machine.driver.stub_fail(b"cuInit", 100)
    assert cuda.gpus() == ()


@pytest.mark.parametrize("name", ["libcuda.so.no.such", "libm.so.6"])
def test_no_driver_or_none_that_is_known(name, artifact, monkeypatch):
    monkeypatch.setattr(cuda, "_LIBRARY", name)
    assert cuda.gpus() == ()
    assert BACKEND.not_run(artifact).startswith("compiled, not run: TensorRT-RTX 1.7.1.116")
    assert isinstance(BACKEND.open_session(artifact, "generate"), GraphSession)


def test_a_machine_without_a_driver_is_told_nothing(artifact):
    with suppress(OSError):
        ctypes.CDLL("libcuda.so.1")
        pytest.skip("this machine has a driver")
    code = "from edgec.backends.tensorrt.cuda import gpus; assert gpus() == ()"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
    assert BACKEND.not_run(artifact).startswith("compiled, not run")


def test_a_build_runs_verifies_and_measures_its_engine(machine, tiny_llama, story_text, tmp_path):
    profile = tmp_path / "profile.toml"
    bounds = "max_perplexity_ratio = 1e9\nmax_mean_kl = 1e9\nmin_top1_agreement = 0.0\ntokens = 128\nwindow = 32\n"
    profile.write_text(f'title = "int4"\n[weights]\ndtype = "int4"\ngroup_size = 32\n[verify]\n{bounds}')
    out = tmp_path / "bundle"
    options = ["--target", "rtx-4060", "--profile", profile, "--eval-text", story_text, "--out", out]
    done = CliRunner().invoke(build_command, [str(tiny_llama), *map(str, options)], catch_exceptions=False)
    assert done.exit_code == 0
    report = json.loads((out / "report.json").read_text())
    assert report["not_run"] is None
    assert report["verification"]["failures"] == []
    assert report["verification"]["shipped"]["top1_agreement"] > 0.2
    assert report["latency"]["new_tokens"] == 32
    evaluated = [(DECODE, 1, past) for _ in range(4) for past in range(32)]
    text = [(PREFILL, 64, 0), *((DECODE, 1, past) for past in range(64, 96))]
    assert machine.runs == evaluated + 4 * text


def test_the_stand_in_takes_only_what_the_bindings_take(machine):
    engine = machine.bindings._new("ICudaEngine", io={})
    context = machine.bindings._new("IExecutionContext", io={})
    with pytest.raises(AttributeError):
        _ = context.set_binding_shape
    with pytest.raises(TypeError):
        context.set_input_shape("input_ids", np.array([1, 2]))
    with pytest.raises(TypeError):
        engine.get_tensor_profile_shape(0, "input_ids")
    with pytest.raises(TypeError):
        machine.bindings.Runtime()
