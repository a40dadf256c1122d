"""`edgec run` and `edgec bench` on real artifacts."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgec.backends.onnx_cpu.session import OnnxCpuSession
from edgec.cli import edgec
from edgec.errors import BundleError, EdgecError, UsageError
from edgec.generate.loop import generate
from edgec.generate.tokenizer import Tokenizer

PROMPT = "The fox ran"


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(edgec, [str(argument) for argument in arguments])
    if isinstance(result.exception, EdgecError):
        raise result.exception
    return result


@pytest.fixture
def bundle(lowered_artifact: Path, tmp_path: Path) -> Path:
    shutil.copytree(lowered_artifact, tmp_path / "bundle" / "artifact")
    return tmp_path / "bundle"


def test_run_prints_the_text_alone_on_stdout(peer_artifact: Path):
    tokenizer = Tokenizer.from_directory(peer_artifact)
    ids = list(
        generate(OnnxCpuSession(peer_artifact, "generate"), tokenizer.encode(PROMPT), max_new_tokens=10, eos_ids={1})
    )
    result = call("run", peer_artifact, "--prompt", PROMPT, "--max-new-tokens", 10)
    assert result.exit_code == 0
    assert result.stdout == tokenizer.decode(ids) + "\n"
    assert "10 new" in result.stderr
    assert "tokens/s" in result.stderr


def test_run_as_json(bundle: Path):
    plain = call("run", bundle, "--prompt", PROMPT, "--max-new-tokens", 6).stdout
    result = json.loads(call("run", bundle, "--prompt", PROMPT, "--max-new-tokens", 6, "--json").stdout)
    assert result["text"] + "\n" == plain
    assert result["prompt_tokens"] == 3
    assert result["new_tokens"] == 6
    assert result["ttft_ms"] > 0
    assert result["decode_tokens_per_s"] > 0


def test_run_samples_repeatably(bundle: Path):
    def text(*options: object) -> str:
        return call("run", bundle, "--prompt", PROMPT, *options).stdout

    assert text("--top-p", 0.9, "--seed", 1) == text("--top-p", 0.9, "--temperature", 1, "--seed", 1)
    assert len({text("--temperature", 2, "--seed", seed) for seed in range(3)}) == 3
    assert text("--top-k", 1, "--seed", 1) == text() == text("--beams", 1)


def test_run_searches_with_beams(bundle: Path):
    result = json.loads(call("run", bundle, "--prompt", PROMPT, "--beams", 3, "--max-new-tokens", 5, "--json").stdout)
    assert result["new_tokens"] <= 5
    assert result["ttft_ms"] is None


def test_run_ends_at_the_context(bundle: Path):
    result = json.loads(call("run", bundle, "--prompt", PROMPT, "--max-new-tokens", 500, "--json").stdout)
    assert result["prompt_tokens"] + result["new_tokens"] <= 129


def test_run_chats(bundle: Path):
    with pytest.raises(BundleError, match="no chat template"):
        call("run", bundle, "--prompt", PROMPT, "--chat")
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (bundle / "artifact" / "chat_template.jinja").write_text(template)
    chat = call("run", bundle, "--prompt", PROMPT, "--chat", "--max-new-tokens", 8).stdout
    assert chat == call("run", bundle, "--prompt", f"user: {PROMPT}\n", "--max-new-tokens", 8).stdout


@pytest.mark.parametrize(
    "options",
    [
        ("--beams", 2, "--top-k", 3),
        ("--beams", 2, "--temperature", 1),
        ("--temperature", 0, "--top-p", 0.5),
        ("--temperature", -1),
        ("--top-k", 0),
        ("--top-p", 2),
    ],
)
def test_run_refuses_options_that_contradict(bundle: Path, options: tuple):
    with pytest.raises(UsageError):
        call("run", bundle, "--prompt", PROMPT, *options)


def test_run_refuses_prompts_that_do_not_fit(bundle: Path):
    with pytest.raises(UsageError, match="the model takes 128"):
        call("run", bundle, "--prompt", "fox " * 200)
    with pytest.raises(UsageError, match="prompt is empty"):
        call("run", bundle, "--prompt", "")


@pytest.mark.parametrize("name", ["genai_config.json", "model.onnx", "tokenizer.json"])
def test_run_names_what_is_missing(bundle: Path, name: str):
    (bundle / "artifact" / name).unlink()
    with pytest.raises(BundleError) as error:
        call("run", bundle, "--prompt", PROMPT)
    assert name in str(error.value)


def test_bench_measures(peer_artifact: Path):
    arguments = ("bench", peer_artifact, "--prompt-tokens", 8, "--new-tokens", 4, "--repeats", 2, "--threads", 1)
    table = call(*arguments)
    assert table.exit_code == 0
    for word in ("first token", "p50 ", "prefill", "decode", "peak memory", "size on disk", "bandwidth"):
        assert word in table.stdout
    result = json.loads(call(*arguments, "--json").stdout)
    assert result["size_bytes"] == sum(path.stat().st_size for path in peer_artifact.iterdir())
    assert 50_000 < result["weight_bytes_per_token"] < result["size_bytes"]
    assert result["peak_rss_bytes"] > 2**24
    assert 0 < result["bandwidth_share"] < 1
    assert len(result["latency"]["ttft_samples_ms"]) == 2


def test_bench_refuses_what_does_not_fit(peer_artifact: Path):
    with pytest.raises(UsageError, match="takes 1 to 128 tokens"):
        call("bench", peer_artifact, "--prompt-tokens", 100, "--new-tokens", 50)


def test_exit_codes_and_the_core_alone(bundle: Path, tmp_path: Path):
    def code(*arguments: object) -> int:
        # As on a device: what the `build` extra brings is not there.
        hide = "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'onnx', 'onnx_ir']))"
        script = f"{hide}; sys.argv[0] = 'edgec'; import runpy; runpy.run_module('edgec', run_name='__main__')"
        command = [sys.executable, "-c", script, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert "Traceback" not in done.stderr
        return done.returncode

    assert code("run", bundle, "--prompt", PROMPT, "--max-new-tokens", 2) == 0
    few = ("--prompt-tokens", 4, "--new-tokens", 2, "--repeats", 1)
    assert code("bench", bundle, *few) == 0
    assert code("run", tmp_path, "--prompt", PROMPT) == 3
    assert code("run", bundle, "--prompt", "") == 2
    assert code("run", bundle) == 2
    (bundle / "artifact" / "model.onnx").write_bytes(b"nonsense")
    assert code("bench", bundle, *few) == 3
