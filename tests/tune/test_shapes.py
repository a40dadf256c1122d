"""Slimmer shapes are tried beside the dense one, and all of them are measured beside the dense float model."""

from pathlib import Path

import pytest

from edgec.calibrate.cache import cache_dir
from edgec.errors import PlanError, UsageError
from edgec.spec.load import load_profile
from edgec.spec.prune import Slim
from edgec.tune.shapes import Shape, parse_slim

STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller" / "checkpoint"


def measured():
    """Return the files of the cache with the KL of units, by the folder of their shape."""
    folders = sorted((cache_dir() / "sensitivity").iterdir())
    return {folder.name: {path: path.stat().st_mtime_ns for path in folder.iterdir()} for folder in folders}


def test_a_size_that_no_dense_mixture_has_takes_a_slimmer_shape(tune, tiny_llama, compiled, tmp_path):
    with pytest.raises(PlanError, match="none is smaller than") as caught:
        tune("--max-size", "60KB")
    smallest = float(caught.value.what.rpartition("than ")[2].split()[0])
    limit = 0.93 * smallest
    options = ("--max-size", f"{limit:.1f}KB", "--slim", "25%:layers", "--slim", "10%:mlp")
    result, written = tune(*options, out="slim.toml")
    rows = {row["shape"]: row for row in result["shapes"]}
    assert [*rows] == ["dense", "25%:layers", "10%:mlp"]
    assert "its matrices alone take" in rows["dense"]["outcome"] or "none is smaller" in rows["dense"]["outcome"]
    (chosen,) = [row for row in result["shapes"] if row["outcome"] == "chosen"]
    others = [row["kl"] for row in result["shapes"] if row["kl"] is not None]
    assert chosen["kl"] == min(others) == result["chosen"]["divergence"]["mean_kl"]
    profile = load_profile(str(written))
    assert Shape(profile.slim, profile, None).label == chosen["shape"]
    report = compiled(tiny_llama, written, "cpu", tmp_path / "bundle")
    size = sum(report.size_bytes.values())
    assert size == pytest.approx(result["chosen"]["measured"], rel=1e-3)
    assert size <= 1e3 * limit
    assert report.pruning.predicted.pruned.parameters == chosen["parameters"]
    page = written.with_suffix(".md").read_text()
    for word in ("## Shapes", "| 25%:layers |", "| 10%:mlp |", "| chosen |", "before rounding"):
        assert word in page


def test_a_loose_budget_leaves_the_model_whole(tune):
    result, written = tune("--max-size", "300KB", "--slim", "25%:layers")
    assert [row["outcome"] for row in result["shapes"]] == ["chosen", "loses more"]
    assert result["shapes"][1]["kl"] > result["shapes"][0]["kl"]
    assert load_profile(str(written)).slim is None


def test_a_shape_is_measured_beside_the_dense_model(tune, base, changed, tiny_llama, tmp_path):
    slim = '[slim]\nparameters = 0.25\nparts = ["layers"]\n[calibration]'
    profile = changed(base, tmp_path / "slim.toml", ("[calibration]", slim))
    result, written = tune("--max-size", "10MB", "--candidates", "fp16", profile=profile)
    found = result["chosen"]["divergence"]["mean_kl"]
    # float16 loses next to nothing: all of this is what went.
    assert found > 1e-3
    assert result["chosen"]["predicted_kl"] == pytest.approx(found, rel=1e-2)
    assert all(point["kl"] == pytest.approx(found, rel=1e-2) for point in result["alike"])
    assert [row["shape"] for row in result["shapes"]] == ["25%:layers"]
    assert load_profile(str(written)).slim == load_profile(str(profile)).slim
    assert not any(name.startswith("layers.2.") for name in result["choice"])


def test_growth_of_perplexity_is_beside_the_dense_model(tune, base, tmp_path):
    stories = f'text = "{STORYTELLER.parent / "data" / "heldout.txt"}" #'
    text = base.read_text().replace('text = "', stories).replace("window = 32", "window = 128")
    (tmp_path / "story.toml").write_text(text)
    options = ("--max-ppl-increase", "12%", "--candidates", "int4/32,int8", "--slim", "20%:mlp", "--slim", "15%:layers")
    result, written = tune(*options, source=STORYTELLER, profile=tmp_path / "story.toml")
    dense, narrow, short = result["shapes"]
    assert (dense["outcome"], narrow["outcome"]) == ("larger", "chosen")
    assert "before any weight is rounded perplexity may grow by 20." in short["outcome"]
    assert narrow["cost"] < dense["cost"]
    assert narrow["cost"] == pytest.approx(result["chosen"]["size_bytes"], rel=1e-6)
    assert 1.02 < narrow["perplexity_ratio"] <= 1 + result["chosen"]["measured"] <= 1.12
    profile = load_profile(str(written))
    assert profile.slim == Slim(parameters=0.2, parts=("mlp",))
    assert profile.verify.max_perplexity_ratio == pytest.approx(1.12)


def test_what_was_measured_of_a_shape_is_its_own_and_is_not_measured_again(tune):
    options = ("--max-size", "300KB", "--candidates", "int4/32,fp16", "--slim", "25%:layers")
    first, _ = tune(*options)
    before = measured()
    assert sorted(len(files) for files in before.values()) == [1 + 2 * 4, 1 + 3 * 4]
    again, _ = tune(*options, out="again.toml")
    assert measured() == before
    assert again["shapes"] == first["shapes"]


def test_no_shape_inside_says_why_for_each(tune):
    with pytest.raises(PlanError, match=r"inside 20\.0 KB: dense: its .* KB; 25%:layers: its matrices") as caught:
        tune("--max-size", "20KB", "--slim", "25%:layers")
    assert caught.value.exit_code == 4
    assert not (cache_dir() / "sensitivity").exists()


def test_what_cannot_go_is_refused_before_any_work(tune):
    with pytest.raises(PlanError, match="would be left"):
        tune("--max-size", "190KB", "--slim", "90%:heads")
    assert not cache_dir().exists()


@pytest.mark.parametrize("text", ["", "25", "0.25", "0%", "100%", "25%:mpl", "25%:", "25%:mlp,mlp", "-5%", "25%mlp"])
def test_what_is_no_shape(text, tune):
    with pytest.raises(UsageError, match="is no shape") as caught:
        tune("--max-size", "1MB", "--slim", text)
    assert caught.value.exit_code == 2


def test_shapes_are_read_beside_those_of_the_base():
    assert parse_slim("25%") == Slim(parameters=0.25)
    assert parse_slim(" 12.5%: layers , mlp") == Slim(parameters=0.125, parts=("layers", "mlp"))
    base = Slim(parameters=0.5, parts=("heads",), importance="wanda", multiple=32)
    assert parse_slim("10%", base) == Slim(parameters=0.1, parts=("heads",), importance="wanda", multiple=32)
