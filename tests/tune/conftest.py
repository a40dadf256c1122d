"""What tests of tuning share: a base profile on stories, and the command on small models."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgec.build import build
from edgec.checkpoint.open import open_checkpoint
from edgec.cli.tune import command
from edgec.frontends.families import describe
from edgec.spec.load import load_profile, load_target
from edgec.spec.plan import resolve

STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def base(story_text, tmp_path):
    """A profile that calibrates and measures on stories."""
    path = tmp_path / "base.toml"
    path.write_text(
        f'title = "stories"\n[weights]\ndtype = "int4"\ngroup_size = 32\nalgorithm = "mse"\n[calibration]\n'
        f'text = "{story_text}"\nwindow = 32\n[verify]\nmax_perplexity_ratio = 1e9\nmax_mean_kl = 1e9\n'
        "min_top1_agreement = 0.0\ntokens = 256\nwindow = 64\n"
    )
    return path


@pytest.fixture
def tune(base, tiny_llama, tmp_path):
    def run(*options, source=tiny_llama, profile=base, text=STORYTELLER / "data" / "validation.txt", out="out.toml"):
        fixed = ["--profile", profile, "--eval-text", text, "--tokens", 64, "--out", tmp_path / out, "--json"]
        done = CliRunner().invoke(command, [str(source), *map(str, (*fixed, *options))], catch_exceptions=True)
        if done.exception is not None:
            raise done.exception
        return json.loads(done.stdout), tmp_path / out

    return run


@pytest.fixture
def compiled_size():
    """Return what builds a profile, unverified, and says how large its artifact is."""

    def size(source, profile, target, folder):
        return sum(built(source, profile, target, folder).size_bytes.values())

    return size


@pytest.fixture
def compiled():
    """Return what builds a profile, unverified, and returns the report."""
    return built


def built(source, profile, target, folder):
    checkpoint, device = open_checkpoint(source), load_target(target)
    decoder = describe(checkpoint)
    plan = resolve(checkpoint, decoder, device, load_profile(str(profile)))
    return build(checkpoint, decoder, device, plan, folder, corpus=None, say=lambda *_: lambda _: None)


@pytest.fixture
def changed():
    """Return what writes a profile with some text in place of other."""

    def write(base, path, *pairs):
        text = base.read_text()
        for old, new in pairs:
            assert old in text
            text = text.replace(old, new)
        path.write_text(text)
        return path

    return write
