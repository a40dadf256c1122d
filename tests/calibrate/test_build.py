"""Builds with calibration."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgec.build import build
from edgec.checkpoint.open import open_checkpoint
from edgec.cli import edgec
from edgec.errors import PlanError, UsageError
from edgec.evaluate.corpus import load_corpus
from edgec.frontends.families import describe
from edgec.generate.tokenizer import Tokenizer
from edgec.quantize import block, weights
from edgec.spec.load import load_profile, load_target
from edgec.spec.plan import resolve

STORYTELLER = Path(__file__).parents[2] / "examples/storyteller"

PROFILE = """
title = "int4 with calibration"
[weights]
dtype = "int4"
group_size = 32
algorithm = "{algorithm}"
[calibration]
text = {text}
tokens = 256
[verify]
max_perplexity_ratio = 1e9
max_mean_kl = 1e9
min_top1_agreement = 0.0
"""


@pytest.fixture
def make(tiny_llama, tmp_path):
    """Return a function that builds the tiny Llama and returns the report and the bundle."""

    def run(algorithm, text, name="bundle", corpus=None, device="cpu"):
        profile = tmp_path / "profile.toml"
        texts = text if isinstance(text, list) else str(text)
        profile.write_text(
            PROFILE.format(algorithm=algorithm, text=json.dumps(texts)).replace(
                "tokens = 256", f'tokens = 256\ndevice = "{device}"'
            )
        )
        checkpoint, target = open_checkpoint(tiny_llama), load_target("cpu")
        decoder = describe(checkpoint)
        plan = resolve(checkpoint, decoder, target, load_profile(str(profile)))
        out = tmp_path / name
        return build(checkpoint, decoder, target, plan, out, corpus=corpus, say=lambda *_: lambda _: None), out

    return run


def artifact(bundle):
    return {path.name: path.read_bytes() for path in (bundle / "artifact").iterdir()}


def test_the_text_decides_the_bytes_and_only_the_text(make, story_text):
    report, first = make("mse", story_text, "first")
    assert [stage.name for stage in report.stages] == ["open", "calibrate", "quantize", "compile"]
    _, second = make("mse", story_text, "second")
    _, other = make("mse", "python-docs", "other")
    assert artifact(first) == artifact(second)
    assert (first / "plan.json").read_bytes() == (second / "plan.json").read_bytes()
    assert artifact(first) != artifact(other)
    assert (first / "plan.json").read_bytes() != (other / "plan.json").read_bytes()


def test_rounding_to_nearest_is_not_calibrated(make, story_text):
    report, _ = make("rtn", story_text)
    assert "calibrate" not in [stage.name for stage in report.stages]


def test_every_matrix_is_quantized_with_its_statistics(make, story_text, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEC_CACHE", str(tmp_path / "cache"))
    seen = []
    algorithm = weights.algorithm_of

    class Spy:
        NEEDS = "importance"

        def __init__(self, scheme):
            self.module = algorithm(scheme)

        def quantize(self, weight, stats, scheme):
            seen.append((weight.shape[1], None if stats is None else len(stats.importance)))
            return self.module.quantize(weight, stats, scheme)

    for module in (block, weights):
        monkeypatch.setattr(module, "algorithm_of", Spy)
    make("mse", story_text)
    assert len(seen) == 3 * 7 + 1
    assert all(cols == known for cols, known in seen)


def test_a_gpu_that_is_not_there_is_said_before_anything_is_done(make, story_text, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(PlanError, match="torch finds none here"):
        make("gptq", story_text, device="cuda")
    assert not (tmp_path / "bundle").exists()


def test_quality_is_not_measured_on_the_text_of_calibration(make, tiny_llama, story_text, tmp_path):
    corpus = load_corpus(story_text, Tokenizer.from_directory(tiny_llama), tokens=128, window=64)
    with pytest.raises(UsageError, match="the one that quality is measured on"):
        make("mse", story_text, corpus=corpus)
    assert not (tmp_path / "bundle").exists()


def test_a_text_that_changes_after_the_plan_is_noticed(tiny_llama, story_text, tmp_path):
    text = tmp_path / "calibration.txt"
    text.write_bytes(story_text.read_bytes())
    (tmp_path / "profile.toml").write_text(PROFILE.format(algorithm="mse", text=json.dumps(str(text))))
    checkpoint, target = open_checkpoint(tiny_llama), load_target("cpu")
    decoder = describe(checkpoint)
    plan = resolve(checkpoint, decoder, target, load_profile(str(tmp_path / "profile.toml")))
    assert list(plan.calibration.files) == [str(text)]
    text.write_bytes(story_text.read_bytes() + b".")
    with pytest.raises(UsageError, match="not what was planned with") as error:
        build(checkpoint, decoder, target, plan, tmp_path / "out", corpus=None, say=lambda *_: lambda _: None)
    assert error.value.where == str(text)
    assert not (tmp_path / "out").exists()


def test_a_short_text_is_remarked_on(make, tmp_path):
    short = tmp_path / "short.jsonl"
    short.write_text("\n".join(json.dumps({"text": f"{n}. The fox ran over the hill."}) for n in range(20)))
    report, _ = make("mse", [str(short)])
    assert report.remarks[0] == "calibration saw 128 tokens of the 256 wanted: its text has no more"


@pytest.fixture
def storyteller(tmp_path):
    """Return a function that makes the arguments of `edgec build` for the storyteller and a text of calibration."""

    def arguments(calibration):
        profile = tmp_path / "profile.toml"
        profile.write_text(PROFILE.format(algorithm="mse", text="").replace("text = \n", f"{calibration}\n"))
        return [
            "build", str(STORYTELLER / "checkpoint"), "--profile", str(profile),
            "--eval-text", str(STORYTELLER / "data/heldout.txt"), "--out", str(tmp_path / "out"),
        ]  # fmt: skip

    return arguments


def test_a_build_on_a_copy_of_the_evaluation_text_exits_with_2(storyteller, tmp_path):
    stories = (STORYTELLER / "data/heldout.txt").read_text()[:6_000].split("\n")
    copy = tmp_path / "copy.jsonl"
    copy.write_text("\n".join(json.dumps({"text": f"{story}\r\n"}) for story in stories))
    command = storyteller(f'text = ["{copy}"]')
    done = subprocess.run(
        [sys.executable, "-m", "edgec", *command], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "share 50 tokens in a row with the text that quality is measured on, heldout.txt: " in done.stderr
    assert f"where: {copy}:" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("calibration", "message", "where"),
    [
        ('text = "heldout.txt"', "the text of calibration is the one that quality is measured on", "heldout.txt"),
        ('text = ["broken.jsonl"]', "1 line of the calibration text cannot be used: line 2: ", "broken.jsonl:2"),
        ('text = "missing.txt"', "the calibration text is missing, or is no file", "missing.txt"),
        ('text = "a.json"', "a calibration text ends in", "a.json"),
        ("text = []", "length >= 1", "calibration.text"),
        ("text = 7", "Expected", "calibration.text"),
        ("seed = -1", ">= 0", "calibration.seed"),
        ("seed = 9223372036854775808", "<= 9223372036854775807", "calibration.seed"),
    ],
)
def test_paths_are_relative_and_errors_say_where(storyteller, tmp_path, monkeypatch, calibration, message, where):
    (tmp_path / "heldout.txt").write_bytes((STORYTELLER / "data/heldout.txt").read_bytes())
    (tmp_path / "broken.jsonl").write_text('{"text": "Once upon a time"}\n{"text": \n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message) as error:
        CliRunner().invoke(edgec, storyteller(calibration), catch_exceptions=False)
    assert error.value.where.endswith(where)
    assert not (tmp_path / "out").exists()
