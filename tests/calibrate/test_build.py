"""Builds with calibration."""

import pytest

from edgec.build import build
from edgec.checkpoint.open import open_checkpoint
from edgec.errors import UsageError
from edgec.evaluate.corpus import load_corpus
from edgec.frontends.families import describe
from edgec.generate.tokenizer import Tokenizer
from edgec.quantize import weights
from edgec.spec.load import load_profile, load_target
from edgec.spec.plan import resolve

PROFILE = """
title = "int4 with calibration"
[weights]
dtype = "int4"
group_size = 32
algorithm = "{algorithm}"
[calibration]
text = "{text}"
tokens = 256
[verify]
max_perplexity_ratio = 1e9
max_mean_kl = 1e9
min_top1_agreement = 0.0
"""


@pytest.fixture
def make(tiny_llama, tmp_path):
    """Return a function that builds the tiny Llama and returns the report and the bundle."""

    def run(algorithm, text, name="bundle", corpus=None):
        profile = tmp_path / "profile.toml"
        profile.write_text(PROFILE.format(algorithm=algorithm, text=text))
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


def test_every_matrix_is_quantized_with_its_statistics(make, story_text, monkeypatch):
    seen = []
    algorithm = weights._algorithm

    class Spy:
        NEEDS = "importance"

        def __init__(self, scheme):
            self.module = algorithm(scheme)

        def quantize(self, weight, stats, scheme):
            seen.append((weight.shape[1], None if stats is None else len(stats.importance)))
            return self.module.quantize(weight, stats, scheme)

    monkeypatch.setattr(weights, "_algorithm", Spy)
    make("mse", story_text)
    assert len(seen) == 3 * 7 + 1
    assert all(cols == known for cols, known in seen)


def test_quality_is_not_measured_on_the_text_of_calibration(make, tiny_llama, story_text, tmp_path):
    corpus = load_corpus(story_text, Tokenizer.from_directory(tiny_llama), tokens=128, window=64)
    with pytest.raises(UsageError, match="the one that quality is measured on"):
        make("mse", story_text, corpus=corpus)
    assert not (tmp_path / "bundle").exists()
