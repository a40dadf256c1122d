"""What `edgec plan` says of kernels and memory, and whether it is true."""

from collections import Counter

import msgspec
import numpy as np
import openvino as ov
import pytest
from random_models import save_random

from edgec.backends.backend import Job, get_backend
from edgec.backends.onnx_cpu.lower import lower
from edgec.backends.tensorrt.engine import read_engines
from edgec.checkpoint.open import open_checkpoint
from edgec.errors import PlanError
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe, families
from edgec.graph.store import Store
from edgec.graph.weights import matrix_name
from edgec.quantize.scheme import Scheme
from edgec.quantize.weights import quantize_weights
from edgec.spec.load import list_targets, load_profile, load_target
from edgec.spec.memory import storage_bytes
from edgec.spec.plan import resolve
from edgec.spec.preflight import preflight, refuse_fallbacks
from edgec.spec.profile import LayerWeights

WIDENED = "widened to float16 in a kernel of its own"


class Planned:
    """A checkpoint with a plan for it; `weights` changes the profile's, `layers` some matrices."""

    def __init__(self, source, target="x86-avx512-vnni", backend=None, profile="int4", layers=(), **weights):
        self.checkpoint = open_checkpoint(source)
        self.decoder = describe(self.checkpoint)
        self.target = load_target(target) if isinstance(target, str) else target
        wishes = load_profile(profile)
        weights = {"algorithm": "rtn", **weights}
        wishes = msgspec.structs.replace(
            wishes, weights=msgspec.structs.replace(wishes.weights, **weights), layers=tuple(layers)
        )
        self.plan = resolve(self.checkpoint, self.decoder, self.target, wishes, backend)
        self.kernels = preflight(self.decoder, self.plan, self.target)

    def canonical(self, folder):
        model = emit(self.decoder, self.checkpoint, self.checkpoint.read, self.plan.context_length)
        with Store(folder / "weights.bin") as store:
            quantize_weights(model, lambda value, _: self.plan.storage_of(matrix_name(value)), store, lambda _: None)
        return model


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    save_random("llama", folder, hidden_size=128, intermediate_size=256)
    return folder


@pytest.mark.parametrize("target", [t.name for t in list_targets()])
def test_every_target_and_backend_has_a_kernel_for_every_operation(target, llama):
    for backend in load_target(target).backends:
        for profile in ("int4", "int8", "fp16", "fp32"):
            planned = Planned(llama, target, backend, profile)
            rows = planned.kernels.rows
            assert len(rows) == 1 + 2 * (2 + 4 + 1 + 3) + 2
            assert all(row.kernel for row in rows)
            floor = planned.kernels.memory_ms_per_token
            assert (floor is None) == (planned.target.memory_bandwidth_gbps is None)


@pytest.mark.parametrize("kind", sorted(families()))
def test_onnx_runtime_gets_the_kernels_that_the_plan_names(kind, tmp_path):
    save_random(kind, tmp_path / "source")
    planned = Planned(tmp_path / "source", backend="onnx_cpu")
    found = Counter(node.op_type for node in lower(planned.canonical(tmp_path), planned.plan.accuracy_level).graph)
    named = {row.kernel.split(",")[0] for row in planned.kernels.rows}
    assert named <= set(found)
    assert found["MatMul"] == found["Attention"] == 0
    assert found["GroupQueryAttention"] == sum(row.operation == "attention" for row in planned.kernels.rows)


@pytest.mark.parametrize(("kind", "fused"), [("llama", 2), ("gpt2", 2), ("gemma2", 0)])
def test_openvino_fuses_the_attention_that_the_plan_says(kind, fused, tmp_path):
    save_random(kind, tmp_path / "source")
    planned = Planned(tmp_path / "source", backend="openvino")
    fallbacks = [row for row in planned.kernels.rows if row.operation == "attention" and row.fallback]
    assert len(fallbacks) == 2 - fused
    (tmp_path / "artifact").mkdir()
    job = Job(planned.canonical(tmp_path), planned.decoder, planned.plan, planned.target, planned.checkpoint.config, {})
    get_backend("openvino").compile_decoder(job, tmp_path / "artifact", lambda _: None)
    runtime = ov.Core().compile_model(tmp_path / "artifact" / "openvino_model.xml", "CPU").get_runtime_model()
    types = Counter(str(op.get_rt_info()["layerType"].astype(str)) for op in runtime.get_ops())
    assert types["ScaledDotProductAttention"] == fused
    assert types["FullyConnected"] > 0


@pytest.mark.parametrize(
    ("kind", "target", "profile", "widened"),
    [
        ("llama", "rtx-4060", "fp16", 0),
        ("llama", "rtx-4060", "int4", 0),
        ("llama", "rtx-4060", "int8", 1),  # the output matrix
        ("llama", "rtx-5090", "fp8", 6),  # also Q, K, V, gate and up
        ("llama", "rtx-5090", "nvfp4", 8),  # all
        ("llama", "jetson-orin-nano", "int4", 0),  # as the proxy fuses
        ("gpt2", "rtx-4060", "fp8", 4),  # not the matrix of an MLP without a gate
        ("gemma2", "rtx-4060", "int8", 1),  # not the matrix behind an attention of matmuls
    ],
)
def test_tensorrt_widens_the_weights_that_the_plan_says(kind, target, profile, widened, tmp_path):
    _check_widened(kind, target, profile, widened, tmp_path)


@pytest.mark.parametrize(
    ("target", "profile", "layers", "widened"),
    [
        ("rtx-4060", "int4", {"q": "int8", "k": "fp16", "gate": "int8"}, 1),  # Q, beside K
        ("rtx-4060", "int4", {"q": "int8", "k": "int4 128"}, 2),  # K and V
        ("rtx-5090", "fp16", {"q": "fp8", "k": "int8", "up": "fp8", "down": "fp8"}, 3),  # all but down
    ],
)
def test_tensorrt_widens_what_it_joins_with_others(target, profile, layers, widened, tmp_path):
    overrides = [
        LayerWeights(match=f"*.{name}", dtype=storage.split()[0], group_size=128 if "128" in storage else "channel")
        for name, storage in layers.items()
    ]
    _check_widened("llama", target, profile, widened, tmp_path, overrides)


def _check_widened(kind, target, profile, widened, tmp_path, layers=()):
    pytest.importorskip("tensorrt_rtx_bindings")
    # In smaller ones more fuses than in models that people run.
    sizes = {"num_hidden_layers": 1, "hidden_size": 512, "intermediate_size": 1024, "vocab_size": 2048}
    save_random(kind, tmp_path / "source", **sizes)
    planned = Planned(tmp_path / "source", target, "tensorrt", profile, layers)
    assert sum(WIDENED in (row.fallback or "") for row in planned.kernels.rows) == widened
    (tmp_path / "artifact").mkdir()
    parts = planned.decoder, planned.plan, planned.target, planned.checkpoint.config, {}
    job = Job(planned.canonical(tmp_path), *parts)
    get_backend("tensorrt").compile_decoder(job, tmp_path / "artifact", lambda _: None)
    assert read_engines(tmp_path / "artifact").engine.widened == widened


def test_weights_read_for_a_token_are_those_in_the_file(llama, tmp_path):
    for backend in ("onnx_cpu", "openvino"):
        planned = Planned(llama, backend=backend)
        folder = tmp_path / backend
        (folder / "artifact").mkdir(parents=True)
        parts = planned.decoder, planned.plan, planned.target, planned.checkpoint.config, {}
        get_backend(backend).compile_decoder(
            Job(planned.canonical(folder), *parts), folder / "artifact", lambda _: None
        )
        found = get_backend(backend).weight_bytes_per_token(folder / "artifact")
        assert np.isclose(planned.kernels.bytes_per_token, found, rtol=0.02)


@pytest.mark.parametrize(
    ("target", "backend", "weights", "reason"),
    [
        ("rtx-4060", None, {"dtype": "int8", "group_size": 32}, "INT8 in groups does not fuse"),
        ("x86-avx2", "openvino", {}, "need VNNI"),
        ("x86-avx512-vnni", "openvino", {"group_size": 16}, "groups of whole 32s"),
        ("raspberry-pi-5", None, {"dtype": "fp16"}, "CPU kernels compute in float32"),
    ],
)
def test_a_fallback_is_told_and_can_be_refused(target, backend, weights, reason, llama):
    planned = Planned(llama, target, backend, **weights)
    assert reason in planned.kernels.fallbacks[0].fallback
    with pytest.raises(PlanError, match="would fall back") as error:
        refuse_fallbacks(planned.kernels)
    assert error.value.exit_code == 4
    refuse_fallbacks(Planned(llama, "rtx-4060").kernels)


def test_a_group_that_does_not_divide_is_smaller_blocks_or_a_fallback(llama, tmp_path):
    assert Planned(llama, "rtx-4060", group_size=256).kernels.fallbacks == ()  # blocks of 128, scales repeated
    save_random("llama", tmp_path / "odd", hidden_size=128, intermediate_size=200)
    fallbacks = Planned(tmp_path / "odd", "rtx-4060").kernels.fallbacks
    assert {row.operation for row in fallbacks} == {"down 200 x 128"}
    assert "groups of 32 do not divide 200 inputs" in fallbacks[0].fallback


def test_a_fallback_costs_what_it_reads_more(llama):
    fused = Planned(llama, "rtx-4060", dtype="int8", group_size="channel")
    widened = Planned(llama, "rtx-4060", dtype="int8", group_size=32)
    extra = sum(row.fallback_bytes for row in widened.kernels.fallbacks)
    assert extra > 0
    assert widened.kernels.bytes_per_token > fused.kernels.bytes_per_token
    assert widened.kernels.memory_ms_per_token > fused.kernels.memory_ms_per_token


def small(memory_mib):
    return msgspec.structs.replace(load_target("raspberry-pi-5"), memory_gib=memory_mib / 1024, name="small")


def test_too_little_memory_names_the_profiles_that_fit(llama):
    need = {name: Planned(llama, profile=name).plan.estimate.total_bytes for name in ("fp32", "int8", "int4")}
    between = (need["int8"] + need["fp32"]) / 2 / 0.75 / 2**20
    with pytest.raises(PlanError, match="can use") as error:
        Planned(llama, small(between), profile="fp32")
    assert error.value.exit_code == 4
    assert "int8" in error.value.hint
    assert "int4" in error.value.hint
    assert "fp32" not in error.value.hint
    with pytest.raises(PlanError) as error:
        Planned(llama, small(0.01), profile="int4")
    assert "no shipped profile fits" in error.value.hint


def test_the_estimate_is_the_sum_of_its_parts(llama):
    plan = Planned(llama, backend="openvino").plan
    cache = Planned(llama, backend="onnx_cpu").plan.estimate.kv_cache_bytes
    assert cache == plan.estimate.kv_cache_bytes == 2 * 2 * 2 * 32 * 64 * 4  # OpenVINO: float16, twice
    assert plan.estimate.total_bytes == sum(msgspec.structs.astuple(plan.estimate))


@pytest.mark.parametrize(
    ("storage", "size"),
    [
        ("fp32", 4 * 600), ("fp16", 2 * 600), (Scheme("int8", None), 600 + 2 * 6), (Scheme("int4", 32), 300 + 2 * 24),
        (Scheme("int4", 32, symmetric=False), 300 + 2 * 24 + 12), (Scheme("fp8", None), 600 + 2 * 6),
        (Scheme("nvfp4", 16), 300 + 42 + 4),
    ],
    ids=str,
)  # fmt: skip
def test_size_of_a_weight(storage, size):
    assert storage_bytes(storage, 6, 100, scale_bytes=2) == size


@pytest.mark.parametrize(
    ("target", "backend", "change", "message"),
    [
        ("jetson-thor", "onnx_cpu", {"dtype": "fp8", "group_size": "channel"}, "onnx_cpu backend takes no fp8"),
        ("rtx-4060", None, {"symmetric": False}, "symmetric integers only"),
        ("raspberry-pi-5", None, {"dtype": "nvfp4", "group_size": 16}, "no kernels for nvfp4"),
    ],
)
def test_what_a_backend_cannot_store_is_refused(target, backend, change, message, llama):
    with pytest.raises(PlanError, match=message):
        Planned(llama, target, backend, **change)


def test_an_int8_cache_is_refused_where_there_is_none(llama):
    wishes = load_profile("int4")
    wishes = msgspec.structs.replace(wishes, runtime=msgspec.structs.replace(wishes.runtime, kv_cache="int8"))
    checkpoint = open_checkpoint(llama)
    decoder = describe(checkpoint)
    for target, backend in (("x86-avx2", "openvino"), ("x86-avx2", "onnx_cpu"), ("rtx-4060", "tensorrt")):
        assert resolve(checkpoint, decoder, load_target(target), wishes, backend).kv_cache == "int8"
    with pytest.raises(PlanError, match="builds its own engine"):
        resolve(checkpoint, decoder, load_target("jetson-thor"), wishes, "tensorrt")


@pytest.mark.parametrize(
    ("target", "backend", "spills", "number"), [("x86-avx2", "openvino", 3, 4), ("rtx-4060", None, 2, 2)]
)
def test_scores_that_are_written_to_memory_cost(target, backend, spills, number, tmp_path):
    save_random("gemma2", tmp_path)
    planned = Planned(tmp_path, target, backend)
    rows = [row for row in planned.kernels.rows if row.operation == "attention"]
    heads, context = 4, 64
    assert {row.fallback_bytes for row in rows} == {2 * spills * heads * context * number}
    assert planned.kernels.bytes_per_token == sum(row.bytes_per_token for row in planned.kernels.rows)


def test_openvino_may_compute_in_bfloat16_where_a_cpu_can(llama):
    for target, may in (("x86-avx512-vnni", True), ("cpu", True), ("intel-nuc", False)):
        caveats = {row.caveat for row in Planned(llama, target, "openvino").kernels.rows if row.caveat}
        assert any("bfloat16" in caveat for caveat in caveats) == may
