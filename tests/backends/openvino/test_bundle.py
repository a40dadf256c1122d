"""`edgec build --backend openvino`: what the bundle holds, and that stock openvino_genai generates from it."""

import json
import shutil
import subprocess
import sys
from xml.etree import ElementTree as ET

import numpy as np
import openvino as ov
import openvino_genai
import pytest
from thinned import thinned

from edgec.backends.openvino.session import EXACT, OpenVinoSession
from edgec.errors import BundleError, UsageError
from edgec.generate.beam import beam_search
from edgec.generate.loop import generate
from edgec.generate.tokenizer import Tokenizer

PROMPTS = ["The fox ran over", "Rain fell on the old house, and the", "A child"]
PROFILE = """title = "test"
[weights]
dtype = "{dtype}"
group_size = {group}
symmetric = {symmetric}
[runtime]
accuracy_level = {level}
kv_cache = "{cache}"
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
def make_bundle(tiny_llama, story_text, tmp_path_factory):
    """Return a function that builds the tiny Llama for OpenVINO, with settings of the profile."""

    def make(*, verify=False, target="cpu", **settings):
        folder = tmp_path_factory.mktemp("openvino")
        values = {"dtype": "int4", "group": 32, "symmetric": "true", "level": 4, "cache": "float", **settings}
        (folder / "profile.toml").write_text(PROFILE.format(**values))
        options = ["--eval-text", story_text] if verify else ["--no-verify"]
        options += ["--target", target, "--backend", "openvino", "--profile", folder / "profile.toml"]
        done = edgec("build", tiny_llama, *options, "--out", folder / "bundle")
        assert done.returncode == 0, done.stderr
        return folder / "bundle"

    return make


@pytest.fixture(scope="module")
def bundle(make_bundle):
    return make_bundle(verify=True, target="intel-nuc")


def test_a_bundle_holds_what_openvino_genai_needs(bundle):
    names = {path.name for path in (bundle / "artifact").iterdir()}
    assert names >= {
        "openvino_model.xml", "openvino_model.bin", "openvino_tokenizer.xml", "openvino_tokenizer.bin",
        "openvino_detokenizer.xml", "openvino_detokenizer.bin", "config.json", "generation_config.json",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    report = json.loads((bundle / "report.json").read_text())
    assert report["verification"]["failures"] == []
    assert report["verification"]["integers"] == {"weights": 22, "different": [], "activations": 0}
    assert report["verification"]["exact"]["relative_error"] < 1e-4
    assert report["not_run"] is None
    assert report["latency"]["decode_tokens_per_s"] > 0
    assert "openvino" in json.loads((bundle / "manifest.json").read_text())["versions"]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("attention", ["PA", "SDPA"])
def test_openvino_genai_generates_the_same_tokens(bundle, prompt, attention):
    artifact = bundle / "artifact"
    # In float32, so that the order of sums cannot tip the choice between two tokens.
    pipeline = openvino_genai.LLMPipeline(str(artifact), "CPU", **EXACT, ATTENTION_BACKEND=attention)
    config = openvino_genai.GenerationConfig(max_new_tokens=24, do_sample=False, apply_chat_template=False)
    ids = Tokenizer.from_directory(artifact).encode(prompt)
    tokens = pipeline.generate(ov.Tensor(np.array([ids])), config).tokens[0]
    session = OpenVinoSession(artifact, "exact")
    assert list(generate(session, ids, max_new_tokens=24, eos_ids={1})) == [t for t in tokens if t != 1]
    assert len(tokens) > 5


def test_openvino_genai_decodes_to_the_text_of_edgec_run(bundle):
    pipeline = openvino_genai.LLMPipeline(str(bundle / "artifact"), "CPU")
    config = openvino_genai.GenerationConfig(max_new_tokens=12, do_sample=False, apply_chat_template=False)
    done = edgec("run", bundle, "--prompt", PROMPTS[0], "--max-new-tokens", 12)
    assert done.returncode == 0, done.stderr
    assert pipeline.generate(PROMPTS[0], config) == done.stdout.removesuffix("\n")


@pytest.mark.parametrize(
    ("settings", "kind", "bits"),
    [({}, "i4", 4.5), ({"symmetric": "false"}, "u4", 4.625), ({"dtype": "int8", "group": '"channel"'}, "i8", 8.25)],
)
def test_weights_are_really_stored_as_integers(make_bundle, settings, kind, bits):
    artifact = make_bundle(**settings) / "artifact"
    model = ov.Core().read_model(artifact / "openvino_model.xml")
    codes = [op for op in model.get_ops() if op.get_friendly_name().endswith(".codes")]
    assert {op.get_element_type().get_type_name() for op in codes} == {kind}
    numbers = sum(int(np.prod(list(op.shape))) for op in codes)
    assert numbers == 3 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 96) + 64 * 320
    tables_and_norms = 4 * (2 * 128 * 8 + 7 * 64)
    assert (artifact / "openvino_model.bin").stat().st_size < numbers * bits / 8 + tables_and_norms + 2048


@pytest.mark.parametrize(
    ("cache", "stored", "level", "group"), thinned([("float", "f16"), ("int8", "u8")], [(1, 0), (4, 32)], keep=2)
)
def test_runtime_options_travel_in_the_model(make_bundle, cache, stored, level, group):
    artifact = make_bundle(cache=cache, level=level) / "artifact"
    compiled = ov.Core().compile_model(artifact / "openvino_model.xml", "CPU")
    assert compiled.get_property("KV_CACHE_PRECISION").get_type_name() == stored
    assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == group


def test_two_builds_are_equal_to_the_byte(bundle, make_bundle):
    again = make_bundle(target="intel-nuc")
    for path in (bundle / "artifact").iterdir():
        assert path.read_bytes() == (again / "artifact" / path.name).read_bytes(), path.name


@pytest.fixture(scope="module")
def session(bundle):
    return OpenVinoSession(bundle / "artifact", "exact", max_length=64)


IDS = np.random.default_rng(0).integers(2, 300, (3, 20))


def test_the_cache_reorders_rewinds_and_changes_its_rows(session):
    session.reset(3)
    whole = session.step(IDS)
    session.reset(1)
    session.step(IDS[:1, :12])
    session.reorder(np.array([0, 0, 0]))
    branched = session.step(np.repeat(IDS[:1, 12:13], 3, axis=0))
    assert np.allclose(branched[2, 0], whole[0, 12], atol=1e-4)
    session.reset(3)
    session.step(IDS[:, :12])
    session.reorder(np.array([2, 0]))
    session.reorder(np.array([1, 0]))  # rows 0 and 2 of the three
    moved = session.step(IDS[[0, 2], 12:])
    assert np.allclose(moved, whole[[0, 2], 12:], atol=1e-4)
    session.rewind(5)
    assert session.length == 5
    assert np.allclose(session.step(IDS[[0, 2], 5:]), whole[[0, 2], 5:], atol=1e-4)


def test_beams_run(session, bundle):
    ids = Tokenizer.from_directory(bundle / "artifact").encode(PROMPTS[0])
    assert len(beam_search(session, ids, beams=3, max_new_tokens=6, eos_ids={1})) > 0


def test_refuses_what_does_not_fit(session, bundle):
    session.reset(1)
    with pytest.raises(UsageError, match="not in the vocabulary"):
        session.step(np.array([[5, 320]]))
    with pytest.raises(UsageError, match="do not fit the cache of 64"):
        session.step(np.ones((1, 65), np.int64))
    with pytest.raises(UsageError, match="1 to 128 tokens"):
        OpenVinoSession(bundle / "artifact", "exact", max_length=129)


@pytest.mark.parametrize("name", ["openvino_model.xml", "openvino_model.bin", "config.json"])
def test_damage_is_reported(bundle, tmp_path, name):
    artifact = shutil.copytree(bundle / "artifact", tmp_path / "artifact")
    (artifact / name).write_bytes((artifact / name).read_bytes()[:100])
    with pytest.raises(BundleError) as error:
        OpenVinoSession(artifact, "exact")
    assert str(artifact) in str(error.value)


def test_the_model_is_well_formed(bundle):
    layers = ET.parse(bundle / "artifact" / "openvino_model.xml").getroot().find("layers")
    types = [layer.get("type") for layer in layers]
    assert types.count("ScaledDotProductAttention") == 3
    assert types.count("ReadValue") == types.count("Assign") == 6
    # QKV, output, gate and up, down; and the output matrix
    assert types.count("MatMul") == 3 * 4 + 1


def test_a_tokenizer_that_would_be_converted_wrongly_is_left_out(tiny_llama, tmp_path):
    checkpoint = shutil.copytree(tiny_llama, tmp_path / "checkpoint")
    tokenizer = (checkpoint / "tokenizer.json").read_text()
    assert tokenizer.count('"</s>"') == 2  # as an added token, and in the vocabulary
    (checkpoint / "tokenizer.json").write_text(tokenizer.replace('"</s>"', '"\\n"'))  # as in the embedded storyteller
    options = ["--target", "cpu", "--backend", "openvino", "--profile", "int8", "--no-verify"]
    done = edgec("build", checkpoint, *options, "--out", tmp_path / "bundle")
    assert done.returncode == 0, done.stderr
    (remark,) = json.loads((tmp_path / "bundle" / "report.json").read_text())["remarks"]
    assert remark.startswith("no openvino_tokenizer.xml: what openvino_tokenizers makes gives other tokens for 'a\\nb'")
    assert remark in (tmp_path / "bundle" / "report.md").read_text()
    assert not list((tmp_path / "bundle" / "artifact").glob("openvino_tokenizer*"))
    assert edgec("run", tmp_path / "bundle", "--prompt", "The fox", "--max-new-tokens", 2).returncode == 0
