"""`edgec tune` as a whole, on small models."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from edgec.backends.backend import get_backend
from edgec.calibrate.cache import cache_dir
from edgec.checkpoint.open import open_checkpoint
from edgec.cli.tune import command
from edgec.errors import OutputError, PlanError, RegressionError, UsageError
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe
from edgec.spec.load import load_profile, load_target
from edgec.tune.cost import unit_sizes
from edgec.tune.pareto import _label
from edgec.tune.problem import Problem, measure_kl
from edgec.tune.search import search
from edgec.tune.units import candidates_of, units_of

STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller"


def test_the_written_profile_builds_inside_its_size(tune, tiny_llama, compiled_size, tmp_path):
    result, profile = tune("--max-size", "190KB")
    assert len(set(result["choice"].values())) > 1
    assert result["chosen"]["fits"]
    size = compiled_size(tiny_llama, profile, "cpu", tmp_path / "bundle")
    assert size == pytest.approx(result["chosen"]["measured"], rel=1e-3)
    assert 0.95 * 190e3 < size <= 190e3
    page = profile.with_suffix(".md").read_text()
    for word in ("int4", "nats/MiB", "out.png", "layers.2.mlp.down"):
        assert word in page
    assert profile.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert result["mixtures"][0]["cost"] < size
    reasons = [matrix.reason for matrix in load_profile(str(profile)).layers]
    assert all("nats" in reason for reason in reasons)


def test_an_impossible_size_says_the_smallest(tune):
    with pytest.raises(PlanError, match=r"none is smaller than [\d.]+ KB") as caught:
        tune("--max-size", "60KB")
    assert caught.value.exit_code == 4
    smallest = float(caught.value.what.rpartition("than ")[2].split()[0])
    result, _ = tune("--max-size", f"{smallest + 0.1:.1f}KB", out="second.toml")
    assert result["chosen"]["fits"]


def test_a_bound_on_perplexity_gives_a_small_artifact_inside_it(tune, base, tmp_path):
    profile = tmp_path / "story.toml"
    stories = f'text = "{STORYTELLER / "data" / "heldout.txt"}" #'
    profile.write_text(base.read_text().replace('text = "', stories).replace("window = 32", "window = 128"))
    options = ("--max-ppl-increase", "0.5%", "--candidates", "int4/32,int8")
    result, written = tune(*options, source=STORYTELLER / "checkpoint", profile=profile)
    assert result["chosen"]["divergence"]["perplexity_ratio"] <= 1.005
    narrow, wide = (point["cost"] for point in result["alike"])
    assert narrow < result["chosen"]["size_bytes"] < wide
    assert load_profile(str(written)).verify.max_perplexity_ratio == pytest.approx(1.005)


def test_a_latency_is_modelled_for_other_machines_and_measured_here(tune):
    result, _ = tune("--max-latency", "0.006ms", "--target", "raspberry-pi-5")
    assert result["chosen"]["latency_ms"] is None
    assert 0 < result["chosen"]["measured"] <= 0.006
    assert any("memory bandwidth" in remark for remark in result["remarks"])
    result, _ = tune("--max-latency", "2s", out="here.toml")
    assert 0 < result["chosen"]["latency_ms"] < 2000
    assert any("timed on this machine" in remark for remark in result["remarks"])
    with pytest.raises(PlanError, match="none is faster than"):
        tune("--max-latency", "0.0001ms", "--target", "raspberry-pi-5", out="third.toml")


@pytest.mark.parametrize("method", ["grid", "bayes"])
def test_a_search_goes_on_where_it_was(method, tmp_path):
    seen = []

    def evaluate(setting):
        seen.append(setting)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return {"a": 0.5, "b": float("inf"), "c": 0.25}[setting["letter"]] + float(setting["number"])

    space = {"letter": ["a", "b", "c"], "number": ["0", "1"]}
    with pytest.raises(KeyboardInterrupt):
        search(method, space, evaluate, tmp_path / "journal", trials=6)
    found = search(method, space, evaluate, tmp_path / "journal", trials=6)
    assert len(found) == 6
    assert len(seen) == 7
    assert found == sorted(found, key=lambda pair: pair[0])
    if method == "grid":
        assert found[0] == (0.25, {"letter": "c", "number": "0"})


def test_searching_settings_is_never_worse(tune):
    without, _ = tune("--max-size", "190KB")
    result, _ = tune("--max-size", "190KB", "--search", "bayes", "--trials", 4, out="searched.toml")
    assert result["chosen"]["divergence"]["mean_kl"] <= without["chosen"]["divergence"]["mean_kl"]
    assert any(remark.startswith("4 trials") for remark in result["remarks"])


def test_what_was_measured_is_not_measured_again(tiny_llama):
    checkpoint = open_checkpoint(tiny_llama)
    decoder, ids = describe(checkpoint), np.random.default_rng(0).integers(0, 300, (2, 32))
    limits = get_backend("onnx_cpu").LIMITS
    offered = candidates_of(["int4/32", "fp16"], load_profile("int4"), load_target("cpu"), limits)
    units = units_of(decoder)
    size = unit_sizes(decoder, units, offered, limits)
    problem = Problem(units, offered, np.zeros(size.shape), size, 0.0)

    def measured(tick):
        return measure_kl(emit(decoder, checkpoint, checkpoint.read, 32), "dense", ids, problem, tick)

    def stop(name):
        if name == "layers.1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(stop)
    written = {path: path.stat().st_mtime_ns for path in cache_dir().rglob("*.npz")}
    assert len(written) == 1 + 2 * 4
    first, stats = measured(lambda _: None)
    after = {path: path.stat().st_mtime_ns for path in cache_dir().rglob("*.npz")}
    assert len(after) == len(units)
    assert after.items() >= written.items()
    again, _ = measured(lambda _: None)
    assert (first.kl == again.kl).all()
    assert (first.kl[:, 0] > 0).all()
    assert (first.kl[:, 1] == 0).all()
    assert len(stats) == 1 + 3 * 7


def test_mistakes(tune, tmp_path):
    with pytest.raises(UsageError, match="give one budget"):
        tune()
    with pytest.raises(UsageError, match="give one budget"):
        tune("--max-size", "1MB", "--max-latency", "1ms")
    with pytest.raises(UsageError, match=r"no \.toml file"):
        tune("--max-size", "1MB", out="out.json")
    (tmp_path / "out.md").touch()
    with pytest.raises(OutputError, match="exists already"):
        tune("--max-size", "1MB")


def test_a_rotated_model_is_measured_rotated(tune, base, tiny_llama, compiled_size, changed, tmp_path):
    rotated = changed(base, tmp_path / "rotated.toml", ('title = "stories"', 'title = "t"\ntransforms = ["quarot"]'))
    result, profile = tune("--max-size", "200KB", profile=rotated)
    size = compiled_size(tiny_llama, profile, "cpu", tmp_path / "bundle")
    assert size == pytest.approx(result["chosen"]["measured"], rel=1e-3)
    assert size <= 200e3
    plain, _ = tune("--max-size", "200KB", out="plain.toml")
    assert [p["kl"] for p in plain["alike"]] != pytest.approx([p["kl"] for p in result["alike"]], rel=1e-3)


def test_a_search_leaves_an_algorithm_alone_that_it_cannot_measure(tune, base, changed, tmp_path):
    gptq = changed(base, tmp_path / "gptq.toml", ('"mse"', '"gptq"'))
    result, profile = tune("--max-size", "160KB", "--search", "grid", "--trials", 3, profile=gptq)
    assert any("the algorithm stays gptq" in remark for remark in result["remarks"])
    loaded = load_profile(str(profile))
    narrow = [weights for weights in (loaded.weights, loaded.embedding, *loaded.layers) if weights.dtype == "int4"]
    assert narrow
    assert {weights.algorithm for weights in narrow} == {"gptq"}


def test_text_and_bounds_of_the_written_profile_are_those_used(tune, base, tmp_path):
    text = base.read_text()
    bare = tmp_path / "bare.toml"
    bare.write_text(text[: text.index("[calibration]")] + text[text.index("[verify]") :].replace("1e9", "1.001"))
    result, profile = tune("--max-size", "190KB", profile=bare)
    written = load_profile(str(profile))
    assert (written.calibration.text, written.calibration.tokens) == ("python-docs", 64)
    assert written.verify == load_profile(str(bare)).verify
    (told,) = [remark for remark in result["remarks"] if "outside the bounds" in remark]
    assert "perplexity ratio is 1." in told
    assert "validation.txt" in told


def test_growth_on_other_text_ends_with_1(tune, tmp_path):
    odd = tmp_path / "odd.txt"
    odd.write_text(" ".join(map(str, range(3000))))
    with pytest.raises(RegressionError, match=r"the profile was written, but on odd\.txt perplexity grows") as caught:
        tune("--max-ppl-increase", "3%", "--candidates", "int4/32,int8,fp16", text=odd)
    assert caught.value.exit_code == 1
    assert (tmp_path / "out.toml").exists()


def test_text_of_calibration_is_not_for_evaluation(tune, story_text):
    with pytest.raises(UsageError, match="the text of calibration is the one that quality is measured on"):
        tune("--max-size", "190KB", text=story_text)
    assert not cache_dir().exists()


def test_static_activations_go_where_no_matrix_takes_them(tune):
    result, profile = tune("--max-size", "165KB", "--candidates", "int4/32,int4/64", profile="int8-static")
    assert load_profile(str(profile)).activations is None
    assert any("stay dynamic" in remark for remark in result["remarks"])


@pytest.mark.parametrize(
    "garbage", [b"no json\n{}\n", b"\xff\xfe\n\n", b"[1]\n", b'{"op_code": 99}\n', b'{"op_code": 4}\n']
)
def test_a_journal_that_cannot_be_read_begins_anew(garbage, tmp_path):
    journal = tmp_path / "journal"
    journal.write_bytes(garbage)
    found = search("grid", {"letter": ["a", "b"]}, lambda setting: float(ord(setting["letter"])), journal, trials=2)
    assert [setting for _, setting in found] == [{"letter": "a"}, {"letter": "b"}]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="Linux has a folder that nobody can write to")
def test_a_folder_that_cannot_be_written_is_refused_first(tune):
    with pytest.raises(OutputError, match=r"cannot write ./proc/u\.toml."):
        tune("--max-size", "190KB", out="/proc/u.toml")
    assert not cache_dir().exists()


def test_a_choice_that_loses_nothing_is_told_without_nan(tune, tmp_path):
    result, profile = tune("--max-size", "10MB", "--candidates", "fp16")
    page = profile.with_suffix(".md").read_text()
    assert result["chosen"]["predicted_kl"] == 0
    assert "nan" not in page
    assert "1 round " in page
    assert not any("best single one" in remark for remark in result["remarks"])


def test_labels_of_points_that_lie_together_can_be_read():
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    labels = [(f"int4/{size}", 1 + size / 1e6, 1.0) for size in (16, 32, 64, 128, 256)] + [("fp16", 2.0, 0.5)]
    axes.plot([x for _, x, _ in labels], [y for _, _, y in labels])
    figure.draw_without_rendering()
    _label(axes, labels, [])
    boxes = [text.get_window_extent() for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == [label for label, _, _ in labels]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_without_a_profile_it_is_that_of_build(tmp_path):
    options = ["--max-size", "1MB", "--candidates", "int4/32,int8", "--out", str(tmp_path / "t.toml")]
    done = CliRunner().invoke(command, [str(STORYTELLER / "checkpoint"), *options])
    assert isinstance(done.exception, PlanError)
    assert "no mixture of these candidates is inside 1.00 MB" in done.exception.what


def test_other_models_are_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    done = CliRunner().invoke(command, [str(tmp_path / "model.onnx"), "--max-size", "1MB", "--out", "t.toml"])
    assert isinstance(done.exception, UsageError)
    assert "decoder language models" in done.exception.what
