"""The memory that a plan expects, beside what a process of its own really takes."""

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import msgspec
import pytest
from random_models import save_random

from edgec.backends.backend import Job, backend_names, get_backend
from edgec.backends.tensorrt.compile import write_graph
from edgec.build import build
from edgec.checkpoint.open import open_checkpoint
from edgec.errors import PlanError
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe
from edgec.graph.store import Store
from edgec.quantize.scheme import Scheme
from edgec.quantize.weights import quantize_weights
from edgec.spec.load import load_profile, load_target
from edgec.spec.memory import artifact_bytes, stored_matrices
from edgec.spec.plan import resolve

RESIDENT = Path(__file__).parents[2] / "bench" / "memory" / "resident.py"
CONTEXT = 1536


@pytest.fixture(scope="module")
def checkpoint(make_llama, tmp_path_factory):
    """15 M parameters, 62 MB in float32."""
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 5, "vocab_size": 3000}
    folder = tmp_path_factory.mktemp("medium")
    return open_checkpoint(make_llama(folder, num_attention_heads=8, max_position_embeddings=CONTEXT, **sizes))


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """A model whose attention has a soft cap."""
    folder = tmp_path_factory.mktemp("gemma")
    save_random("gemma2", folder, max_position_embeddings=CONTEXT)
    return open_checkpoint(folder)


def planned(checkpoint, backend, profile, *, context=CONTEXT, kv_cache="float", target=None, **embedding):
    wishes = load_profile(profile)
    runtime = msgspec.structs.replace(wishes.runtime, kv_cache=kv_cache)
    wishes = msgspec.structs.replace(
        wishes, runtime=runtime, context_length=context, calibration=None, embedding=None, **embedding
    )
    target = target or load_target("rtx-4060" if backend == "tensorrt" else "cpu")
    return resolve(checkpoint, describe(checkpoint), target, wishes, backend)


def need(*args, **kwargs):
    return planned(*args, **kwargs).estimate


@pytest.mark.parametrize(
    ("backend", "profile"), [("onnx_cpu", "fp16"), ("onnx_cpu", "int4"), ("openvino", "fp32"), ("openvino", "int8")]
)
def test_the_peak_lies_under_the_estimate_and_above_half_of_it(backend, profile, checkpoint, tmp_path):
    plan, target = planned(checkpoint, backend, profile), load_target("cpu")
    build(checkpoint, describe(checkpoint), target, plan, tmp_path / "b", corpus=None, say=lambda *_: lambda _: None)
    done = subprocess.run(
        [sys.executable, RESIDENT, tmp_path / "b"], capture_output=True, text=True, check=True, timeout=60
    )
    estimate, measured = map(int, done.stdout.splitlines()[-1].split("|")[5:7])
    assert estimate == plan.estimate.total_bytes >> 20
    assert estimate / 2 < measured < estimate


@pytest.fixture(scope="module")
def ragged(tmp_path_factory):
    """A model whose inputs are no whole number of groups of 128: 448 are seven blocks of 64, and 456 no blocks."""
    folder = tmp_path_factory.mktemp("ragged")
    sizes = {"hidden_size": 448, "intermediate_size": 456, "vocab_size": 1000}
    save_random("llama", folder, tie_word_embeddings=True, **sizes)
    return open_checkpoint(folder)


def written_bytes(checkpoint, backend, storage, folder):
    """Return the size of the file with the weights that a backend writes."""
    plan, target = planned(checkpoint, backend, "int4", context=64), load_target("cpu")
    model = emit(describe(checkpoint), checkpoint, checkpoint.read, 64)
    folder.mkdir()
    with Store(folder.with_suffix(".bin")) as store:
        quantize_weights(model, lambda *_: storage, store, lambda _: None)
    # TensorRT's own bytes are in engines; this is the graph that they are compiled from.
    write = partial(write_graph, old=False) if backend == "tensorrt" else get_backend(backend).compile_decoder
    write(Job(model, describe(checkpoint), plan, target, checkpoint.config, {}), folder, lambda _: None)
    return max(path.stat().st_size for path in folder.iterdir() if path.suffix in (".data", ".bin"))


INTEGERS = [
    *(Scheme("int4", group) for group in (16, 32, 64, 128, 256, None)),
    *(Scheme("int4", group, symmetric=False) for group in (64, 128, None)),
    *(Scheme("int8", group) for group in (128, None)),
]


@pytest.mark.parametrize("backend", backend_names())
def test_a_backend_writes_the_bytes_that_are_predicted(backend, ragged, tmp_path):
    limits = get_backend(backend).LIMITS

    def predicted(storage):
        matrices = stored_matrices(describe(ragged), lambda _: storage)
        return sum(artifact_bytes(storage, *operation.shape, limits) for operation in matrices)

    # What is no matrix is the same in both.
    floats = written_bytes(ragged, backend, "fp32", tmp_path / "fp32") - predicted("fp32")
    for scheme in INTEGERS:
        if scheme.symmetric or limits.zero_points:
            size = written_bytes(ragged, backend, scheme, tmp_path / str(INTEGERS.index(scheme))) - floats
            assert size == pytest.approx(predicted(scheme), rel=0.01), scheme


def test_groups_that_are_written_in_the_same_blocks_need_the_same_memory(make_llama, tmp_path):
    checkpoint = open_checkpoint(make_llama(tmp_path, hidden_size=192, intermediate_size=320))
    base = load_profile("int4").weights

    def weights(group):
        changed = msgspec.structs.replace(base, group_size=group)
        return need(checkpoint, "onnx_cpu", "int4", context=64, weights=changed).weight_bytes

    assert weights(32) > weights(64) == weights(128) == weights(256)


def test_repeated_scales_are_counted_where_they_are_written(make_llama, tmp_path):
    checkpoint = open_checkpoint(make_llama(tmp_path, hidden_size=192, intermediate_size=320))
    decoder, target = describe(checkpoint), load_target("cpu")
    blocks, once = (
        resolve(checkpoint, decoder, target, load_profile(profile), "onnx_cpu").estimate.weight_bytes
        for profile in ("int8", "int8-static")
    )
    rows = 3 * (192 + 96 + 96 + 192 + 320 + 320)  # all but down, which is not static
    assert blocks - once == 3 * 4 * rows * (192 // 64 - 1)  # float32 scales, three times in memory


def test_float16_weights_are_float32_in_memory_on_cpus(checkpoint):
    tables = 3000 * 512 * 4
    for backend, more in (("onnx_cpu", tables), ("openvino", 0)):
        wide, narrow = (need(checkpoint, backend, profile).weight_bytes for profile in ("fp32", "fp16"))
        assert narrow == wide + more
    wide, narrow = (need(checkpoint, "tensorrt", profile).weight_bytes for profile in ("fp32", "fp16"))
    assert narrow == pytest.approx(wide / 2, rel=0.01)


def test_the_largest_weight_is_there_twice_while_onnx_runtime_loads_it(checkpoint):
    estimate = need(checkpoint, "onnx_cpu", "fp32")
    assert estimate.runtime_bytes == get_backend("onnx_cpu").LIMITS.footprint.runtime_bytes + 3000 * 512 * 4


def test_a_table_that_is_only_looked_up_is_not_copied(make_llama, tmp_path):
    tied, untied = (
        need(open_checkpoint(make_llama(tmp_path / str(tie), tie_word_embeddings=tie)), "openvino", "fp32").weight_bytes
        for tie in (True, False)
    )
    vocab_size = json.loads((tmp_path / "True" / "config.json").read_text())["vocab_size"]
    assert untied - tied == vocab_size * 64 * 4


def test_float32_weights_double_tensorrt_s_cache(checkpoint):
    numbers = 2 * 2 * 64 * 5 * CONTEXT
    assert need(checkpoint, "tensorrt", "fp16").kv_cache_bytes == 2 * 2 * numbers  # past and present
    assert need(checkpoint, "tensorrt", "fp32").kv_cache_bytes == 2 * 4 * numbers


@pytest.mark.parametrize(
    ("backend", "profile", "scores"),
    [("onnx_cpu", "int8", 0), ("openvino", "int8", 4), ("tensorrt", "int8", 0), ("tensorrt", "fp32", 8)],
)
def test_attention_scores_are_those_of_a_piece_with_the_whole_context(backend, profile, scores, checkpoint):
    short, long = (need(checkpoint, backend, profile, context=n).activation_bytes for n in (1024, 1536))
    mask = get_backend(backend).LIMITS.footprint.mask_bytes
    assert long - short == 512 * 512 * (8 * scores + mask)


def test_a_soft_cap_writes_scores_where_it_is_no_part_of_the_kernel(gemma):
    growth = {}
    for backend in backend_names():
        short, long = (need(gemma, backend, "int8", context=n).activation_bytes for n in (1024, 1536))
        growth[backend] = (long - short) // (512 * 512)
    assert growth == {"onnx_cpu": 0, "openvino": 16 + 4 * 5 * 4, "tensorrt": 5 + 4 * 2 * 2}


def test_an_int8_cache_is_smaller(checkpoint):
    whole, small = (need(checkpoint, "openvino", "int8", kv_cache=kind) for kind in ("float", "int8"))
    assert small.kv_cache_bytes == whole.kv_cache_bytes * 1.125 / 2


def test_a_refusal_tells_sizes_that_differ(checkpoint):
    total = need(checkpoint, "onnx_cpu", "fp32").total_bytes
    target = load_target("raspberry-pi-5")
    target = msgspec.structs.replace(target, memory_gib=(total - 1000) / target.memory_usable_fraction / 2**30)
    with pytest.raises(PlanError, match="can use") as error:
        planned(checkpoint, "onnx_cpu", "fp32", target=target)
    asked, usable = (int(number.replace(",", "")) for number in re.findall(r"([\d,]+) MiB", error.value.what))
    assert asked > usable
    assert "int8" in error.value.hint
