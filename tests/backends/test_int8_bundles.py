"""`edgec build` with static activations and an int8 cache: the kernels of the artifact, and stock runtimes."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import onnxruntime_genai as genai
import openvino as ov
import pytest

from edgec.backends.backend import get_backend
from edgec.generate.loop import generate
from edgec.report.model import Report

STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller"
LAYERS = 6
PROFILE = """
title = "int8 throughout"
weights.dtype = "int8"
runtime.kv_cache = "int8"
[activations]
mode = "static"
[calibration]
tokens = 1024
[verify]
max_perplexity_ratio = 1.05
max_mean_kl = 0.02
min_top1_agreement = 0.85
tokens = 1024
"""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Build the storyteller for both CPU backends; return the bundles by the backend's name."""
    folder = tmp_path_factory.mktemp("bundles")
    (folder / "profile.toml").write_text(PROFILE)
    text = STORYTELLER / "data" / "heldout.txt"
    for backend in ("onnx_cpu", "openvino"):
        command = ["build", STORYTELLER / "checkpoint", "--profile", folder / "profile.toml", "--eval-text", text]
        command = [sys.executable, "-m", "edgec", *map(str, command), "--backend", backend, "--out", folder / backend]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    return {backend: folder / backend for backend in ("onnx_cpu", "openvino")}


def test_the_report_says_what_was_proved(bundles):
    reports = {name: msgspec.json.decode((b / "report.json").read_bytes(), type=Report) for name, b in bundles.items()}
    for name, report in reports.items():
        integers, exact = report.verification.integers, report.verification.exact
        assert (integers.weights, integers.different) == (1 + 7 * LAYERS, ())
        assert integers.activations == (4 * LAYERS if name == "openvino" else (4 + 2) * LAYERS)
        assert exact.relative_error < 1e-4
        assert "find ranges" in [stage.name for stage in report.stages]
        page = (bundles[name] / "report.md").read_text()
        assert "int8, calibrated scales (mse): attention.q 0-5" in page
        assert f"and the scales of all {integers.activations} static activations" in page


def test_both_backends_hold_the_same_scales(bundles):
    scales = {name: get_backend(name).read_scales(bundle / "artifact") for name, bundle in bundles.items()}
    cache = {f"layers.{i}.attention.{part}" for i in range(LAYERS) for part in ("key", "value")}
    assert scales["onnx_cpu"].keys() - scales["openvino"].keys() == cache  # OpenVINO finds those as it runs
    assert scales["openvino"].items() <= scales["onnx_cpu"].items()
    assert all(
        len(numbers) == 2 * 32 and len(set(numbers)) == 2
        for name, numbers in scales["onnx_cpu"].items()
        if name in cache
    )


def test_onnx_runtime_multiplies_integers(bundles):
    graph = ir.load(bundles["onnx_cpu"] / "artifact" / "model.onnx").graph
    found = Counter(node.op_type for node in graph)
    assert found["MatMulIntegerToFloat"] == found["QuantizeLinear"] == 4 * LAYERS  # q, k and v, and gate and up are one
    assert found["MatMulNBits"] == 1
    assert found["MatMul"] == found["DequantizeLinear"] == 0
    caches = [value for value in graph.inputs if value.name.startswith("past_key_values")]
    assert {value.dtype for value in caches} == {ir.DataType.INT8}


def test_openvino_multiplies_integers(bundles):
    model = ov.Core().compile_model(bundles["openvino"] / "artifact" / "openvino_model.xml", "CPU")
    nodes = [node.get_rt_info() for node in model.get_runtime_model().get_ops()]
    kinds = [tuple(node[key].astype(str) for key in ("layerType", "runtimePrecision")) for node in nodes]
    assert Counter(kinds)["FullyConnected", "i8"] == 4 * LAYERS


def test_onnxruntime_genai_generates_the_same_tokens(bundles):
    artifact = bundles["onnx_cpu"] / "artifact"
    model = genai.Model(str(artifact))
    prompt = genai.Tokenizer(model).encode("Once upon a time")
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=64, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    stock = generator.get_sequence(0).tolist()
    session = get_backend("onnx_cpu").open_session(artifact, "generate")
    ours = list(generate(session, prompt.tolist(), max_new_tokens=64 - len(prompt), eos_ids=frozenset()))
    assert [*prompt.tolist(), *ours][: len(stock)] == stock


def test_rows_are_reordered_and_rewound_with_an_int8_cache(bundles):
    session = get_backend("onnx_cpu").open_session(bundles["onnx_cpu"] / "artifact", "generate", threads=1)
    ids = np.random.default_rng(0).integers(3, 500, (2, 9))

    def last(tokens):
        session.reset(len(tokens))
        return session.step(tokens)

    expected = last(ids[[1, 0, 1]])
    session.reset(2)
    session.step(ids[:, :8])
    session.reorder(np.array([1, 0, 1]))
    np.testing.assert_allclose(session.step(ids[[1, 0, 1], 8:]), expected, atol=0.05 * expected.std())
    expected = last(ids[:1])
    session.rewind(5)
    np.testing.assert_allclose(session.step(ids[:1, 5:]), expected, atol=0.05 * expected.std())
