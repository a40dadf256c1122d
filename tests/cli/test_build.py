"""`edgec build` from the command line: what it writes, what it says, and what it leaves behind."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import onnxruntime_genai as genai
import pytest
from safetensors.numpy import load_file, save_file

from edgec.backends.onnx_cpu.session import OnnxCpuSession
from edgec.generate.loop import generate

EDGEC = [sys.executable, "-m", "edgec"]


def run(*arguments, cwd=None, **options):
    command = [*EDGEC, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, check=False, **options)


@pytest.fixture(scope="module")
def loose(tmp_path_factory):
    """The int4 profile with bounds that a random model cannot break."""
    path = tmp_path_factory.mktemp("profiles") / "loose.toml"
    path.write_text(
        'title = "int4, any quality"\n[weights]\ndtype = "int4"\ngroup_size = 32\n'
        "[verify]\nmax_perplexity_ratio = 1e9\nmax_mean_kl = 1e9\nmin_top1_agreement = 0.0\ntokens = 512\nwindow = 64\n"
    )
    return path


@pytest.fixture(scope="module")
def bundle(tiny_llama, loose, story_text, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    done = run("build", tiny_llama, "--profile", loose, "--eval-text", story_text, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def test_a_bundle_holds_everything(bundle):
    names = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert names >= {
        "manifest.json", "plan.json", "report.json", "report.md",
        "artifact/model.onnx", "artifact/model.onnx.data", "artifact/genai_config.json", "artifact/tokenizer.json",
    }  # fmt: skip
    report = json.loads((bundle / "report.json").read_text())
    assert report["verification"]["failures"] == []
    assert report["verification"]["exact"]["relative_error"] < 1e-4
    assert report["verification"]["shipped"]["mean_kl"] > 0
    assert report["latency"]["decode_tokens_per_s"] > 0
    assert [s["name"] for s in report["stages"]] == ["open", "quantize", "compile", "verify", "measure"]
    page = (bundle / "report.md").read_text()
    assert "| verification | passed |" in page
    assert "mean KL divergence" in page


def test_two_builds_are_equal_to_the_byte(bundle, tiny_llama, loose, story_text, tmp_path):
    out = tmp_path / "again"
    assert run("build", tiny_llama, "--profile", loose, "--eval-text", story_text, "--out", out).returncode == 0
    for path in sorted(bundle.rglob("*")):
        name = path.relative_to(bundle).as_posix()
        if path.is_file() and name not in ("report.json", "report.md", "manifest.json"):
            assert path.read_bytes() == (out / name).read_bytes(), name
    first, second = (json.loads((folder / "manifest.json").read_text()) for folder in (bundle, out))
    first.pop("evidence"), second.pop("evidence")
    assert first == second


def test_onnxruntime_genai_generates_the_same_tokens(bundle):
    model = genai.Model(str(bundle / "artifact"))
    prompt = genai.Tokenizer(model).encode("The fox ran over")
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=48, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    stock = generator.get_sequence(0)[len(prompt) :].tolist()
    session = OnnxCpuSession(bundle / "artifact", "generate")
    prompt_ids = [int(token) for token in prompt]
    ours = list(generate(session, prompt_ids, max_new_tokens=48 - len(prompt), eos_ids={1}))
    assert ours == (stock[: stock.index(1)] if 1 in stock else stock)
    assert ours


@pytest.mark.parametrize("profile", ["fp32", "fp16", "int8"])
def test_profiles_that_hardly_change_a_model_pass_their_own_bounds(tiny_llama, story_text, tmp_path, profile):
    out = tmp_path / profile
    done = run("build", tiny_llama, "--profile", profile, "--eval-text", story_text, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["report"]["verification"]["failures"] == []
    assert result["plan"]["profile"] == profile


def test_a_build_outside_its_bounds_exits_1_and_names_the_guilty(tiny_llama, story_text, tmp_path):
    strict = tmp_path / "strict.toml"
    strict.write_text(
        'title = "int4 as if it were lossless"\n[weights]\ndtype = "int4"\ngroup_size = "channel"\n'
        "[verify]\nmax_perplexity_ratio = 1.0001\nmax_mean_kl = 1e-6\nmin_top1_agreement = 0.9999\n"
        "tokens = 512\nwindow = 64\n"
    )
    out = tmp_path / "out"
    done = run("build", tiny_llama, "--profile", strict, "--eval-text", story_text, "--out", out)
    assert done.returncode == 1
    assert "mean KL divergence is" in done.stderr
    assert "hurts most" in done.stderr
    blame = json.loads((out / "report.json").read_text())["verification"]["blame"]
    assert blame == sorted(blame, key=lambda b: -b["mean_kl"])
    assert {b["group"] for b in blame} >= {"embedding", "output matrix", "attention of layer 0", "mlp of layer 2"}
    assert "FAILED" in (out / "report.md").read_text()


def test_weights_are_not_blamed_for_what_the_runtime_costs(tiny_llama, story_text, tmp_path):
    strict = tmp_path / "strict.toml"
    strict.write_text(
        'title = "float32 to the bit"\n[weights]\ndtype = "fp32"\n'
        "[verify]\nmax_perplexity_ratio = 1.1\nmax_mean_kl = 1e-15\nmin_top1_agreement = 0.9\n"
        "tokens = 512\nwindow = 64\n"
    )
    options = ["--profile", strict, "--backend", "openvino", "--eval-text", story_text]
    done = run("build", tiny_llama, *options, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "no weights explain it" in done.stderr


def test_no_verify_says_so(tiny_llama, tmp_path):
    done = run("build", tiny_llama, "--out", tmp_path / "out", "--no-verify")
    assert done.returncode == 0
    assert "skipped" in done.stdout
    assert "Not measured" in (tmp_path / "out" / "report.md").read_text()


def test_an_existing_output_is_refused_before_any_work(tiny_llama, tmp_path):
    (tmp_path / "out").mkdir()
    done = run("build", tiny_llama, "--out", tmp_path / "out", "--no-verify")
    assert done.returncode == 2
    assert "exists already" in done.stderr


def test_nan_weights_are_refused_by_name(tiny_llama, tmp_path):
    source = tmp_path / "nan"
    source.mkdir()
    for path in tiny_llama.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    weights = load_file(source / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    save_file(weights, source / "model.safetensors")
    done = run("build", source, "--out", tmp_path / "out", "--no-verify")
    assert done.returncode == 3
    assert "model.layers.1.mlp.up_proj.weight" in done.stderr
    assert "(3, 5)" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["nan"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"model_type": "lama"}, "lama"),
        ({"model_type": None}, "model_type"),
        ({"new_attention_trick": 3}, "new_attention_trick"),
        ({"hidden_act": "mish"}, "mish"),
        ({"num_hidden_layers": 4}, "model.layers.3"),
        ({"intermediate_size": 128}, "gate_proj"),
    ],
    ids=str,
)
def test_configs_that_do_not_fit_are_refused(make_llama, tmp_path, change, message):
    source = make_llama(tmp_path / "source")
    config = {**json.loads((source / "config.json").read_text()), **change}
    (source / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    done = run("build", source, "--out", tmp_path / "out", "--no-verify")
    assert done.returncode == 3
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_harmless_key_can_be_declared(make_llama, tmp_path):
    source = make_llama(tmp_path / "source", favourite_colour="red")
    assert run("plan", source).returncode == 3
    assert run("plan", source, "--ignore-config", "favourite_colour").returncode == 0


def test_a_missing_tokenizer_is_refused(make_llama, tmp_path):
    source = make_llama(tmp_path / "source")
    (source / "tokenizer.json").unlink()
    done = run("build", source, "--out", tmp_path / "out", "--no-verify")
    assert done.returncode == 3
    assert "tokenizer.json" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing(tiny_llama, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    # Rounded to nearest: there is no calibration, whose result would be the first thing that cannot be written.
    build = ("build", tiny_llama, "--profile", "int8", "--out", tmp_path / "out", "--no-verify")
    done = run(*build, preexec_fn=limit)
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "terminate"])
def test_an_interrupted_build_leaves_nothing(make_llama, tmp_path, how, story_text):
    source = make_llama(tmp_path / "source", num_hidden_layers=40)
    work = tmp_path / "work"
    work.mkdir()
    command = [*EDGEC, "build", source, "--out", work / "out", "--eval-text", story_text]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as build:
        deadline = time.monotonic() + 60
        while not any(work.glob(".out.*/scratch/weights.bin")) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert any(work.iterdir()), "the build has not begun"
        os.kill(build.pid, how)
        try:
            _, stderr = build.communicate(timeout=60)
        finally:
            build.kill()
    assert build.returncode == 130
    assert "interrupted" in stderr
    assert list(work.iterdir()) == []
