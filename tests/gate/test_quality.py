"""A decoder beside another on text: definitions, error rates, and real bundles."""

import hashlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import invoke

from edgec.backends.backend import backend_of
from edgec.bundle.open import find_artifact
from edgec.errors import BundleError, UsageError
from edgec.evaluate.divergence import compare_tokens
from edgec.gate.bounds import Bounds
from edgec.gate.quality import compare_decoders, compare_sessions, decoder_bounds
from edgec.gate.result import overall
from edgec.gate.settings import Quality, QualityBound
from edgec.gate.text_findings import METRICS, judge_text

STORYTELLER = Path(__file__).parents[2] / "examples/storyteller"
HELDOUT = str(STORYTELLER / "data/heldout.txt")
STORIES = Quality(texts=(HELDOUT,), tokens=4_000, window=128)
USUAL = decoder_bounds(STORIES)
LOG_MARGIN = np.log(1.02)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    for profile in ("fp32", "int8", "int4"):
        done = invoke(
            "build", STORYTELLER / "checkpoint", "--target", "cpu", "--profile", profile, "--no-verify",
            "-o", folder / profile,
        )  # fmt: skip
        assert done.exit_code == 0
    return folder


def llama_cpp(base, logits, tokens):
    """Return what llama.cpp's `kl_divergence` sums up token by token, without its 16-bit storage, in plain loops."""
    sums = dict.fromkeys(("nll", "nll_base", "kld", "kld2", "same_top"), 0.0)
    for row_base, row, token in zip(base.tolist(), logits.tolist(), tokens.tolist(), strict=True):
        log_sum = max(row) + math.log(math.fsum(math.exp(x - max(row)) for x in row))
        log_sum_base = max(row_base) + math.log(math.fsum(math.exp(x - max(row_base)) for x in row_base))
        log_p_base = [x - log_sum_base for x in row_base]
        kld = math.fsum(math.exp(b) * (b - x + log_sum) for b, x in zip(log_p_base, row, strict=True))
        sums["nll"] += log_sum - row[token]
        sums["nll_base"] -= log_p_base[token]
        sums["kld"] += kld
        sums["kld2"] += kld * kld
        sums["same_top"] += row.index(max(row)) == log_p_base.index(max(log_p_base))
    count = len(tokens)
    mean_kld = sums["kld"] / count
    return {
        "ppl": math.exp(sums["nll"] / count),
        "ppl_base": math.exp(sums["nll_base"] / count),
        "ppl_ratio": math.exp((sums["nll"] - sums["nll_base"]) / count),
        "kld": mean_kld,
        "kld_error": math.sqrt((sums["kld2"] / count - mean_kld**2) / (count - 1)),
        "same_top": sums["same_top"] / count,
    }


def test_the_definitions_are_those_of_llama_cpp():
    rng = np.random.default_rng(0)
    base = (4 * rng.standard_normal((300, 64))).astype(np.float32)
    logits = base + rng.standard_normal(base.shape).astype(np.float32)
    following = rng.integers(0, 64, 300)
    each = np.arange(300)
    findings = judge_text(compare_tokens(base, logits, following), each, each, Bounds(USUAL, 0.95, 1), where="some")
    expected = llama_cpp(base, logits, following)
    ratio, kl, top1 = findings
    assert tuple(finding.metric for finding in findings) == METRICS
    assert (ratio.baseline, ratio.candidate) == pytest.approx((expected["ppl_base"], expected["ppl"]), rel=1e-9)
    assert ratio.estimate == pytest.approx(expected["ppl_ratio"], rel=1e-9)
    assert kl.estimate == pytest.approx(expected["kld"], rel=1e-9)
    assert top1.estimate == pytest.approx(1 - expected["same_top"])
    assert 0 < top1.estimate < 1
    # A document for each token: its error is that of independent tokens.
    assert kl.high - kl.estimate == pytest.approx(1.968 * expected["kld_error"], rel=1e-3)


def made_up(rng, loss, documents=40, tokens=20_000):
    """Return tokens of documents of different sizes whose log-likelihoods differ by `loss` nats in the mean."""
    sizes = rng.dirichlet(np.full(documents, 8.0)) * tokens
    number = np.repeat(np.arange(documents), np.maximum(1, sizes.astype(int)))
    worse = loss + 0.3 * rng.standard_normal(len(number)) + 0.02 * rng.standard_normal(documents)[number]
    return np.stack([np.full(len(number), 2.0), 2 + worse, np.abs(worse), worse < 1]), number


def verdicts(loss, runs=400, gated=2):
    rng = np.random.default_rng(5)
    found, held = [], 0
    for _ in range(runs):
        tokens, documents = made_up(rng, loss)
        ratio = judge_text(tokens, documents, documents, Bounds(USUAL, 0.95, gated), where="made up")[0]
        found.append(ratio.verdict)
        held += ratio.low <= np.exp(loss) <= ratio.high
    return {each: found.count(each) / runs for each in ("pass", "fail", "inconclusive")}, held / runs


def test_a_loss_of_twice_the_margin_is_found():
    found, held = verdicts(np.log(1.04))
    assert found["fail"] >= 0.95
    assert found["pass"] == 0
    assert 0.92 <= held <= 0.98


def test_a_loss_on_one_text_is_not_hidden_by_another():
    rng = np.random.default_rng(6)
    bounds = Bounds(USUAL, 0.95, 2)
    texts = {"docs": made_up(rng, 0.0), "source": made_up(rng, np.log(1.06))}
    findings = [
        judge_text(tokens, documents, documents, bounds, where=name)[0] for name, (tokens, documents) in texts.items()
    ]
    assert [finding.verdict for finding in findings] == ["pass", "fail"]
    assert overall(findings, None) == "fail"


def test_what_is_as_good_passes():
    found, held = verdicts(0.0)
    assert found["pass"] >= 0.95
    assert found["fail"] == 0
    assert 0.92 <= held <= 0.98


def test_at_the_margin_neither_verdict_is_wrong_more_often_than_it_may():
    found, held = verdicts(LOG_MARGIN)
    assert found["pass"] <= 0.05  # 0.025, and the noise of 400 runs
    assert found["fail"] <= 0.035  # 0.0125: one of two findings
    assert found["inconclusive"] > 0.92
    assert 0.92 <= held <= 0.98


def test_more_findings_share_the_level_of_failing():
    tokens, documents = made_up(np.random.default_rng(0), 0.0)
    one, four = (judge_text(tokens, documents, documents, Bounds(USUAL, 0.9, n), where="")[0] for n in (1, 4))
    assert four.decided_low < one.decided_low
    assert four.decided_high == one.decided_high
    # What decides alone is what is shown: each side at half of what the confidence leaves.
    assert (one.decided_low, one.decided_high, four.decided_high) == (one.low, one.high, four.high)
    strict = judge_text(tokens, documents, documents, Bounds(USUAL, 0.975, 1), where="")[0]
    assert strict.low == pytest.approx(four.decided_low)


def test_what_has_no_bound_is_reported_and_shares_are_shares():
    tokens, documents = made_up(np.random.default_rng(0), 0.0, documents=12)
    tokens[3] = 1
    tokens[3, :2] = 0
    ratio, kl, top1 = judge_text(tokens, documents, documents, Bounds(USUAL, 0.95, 1), where="")
    assert (kl.verdict, kl.margin, kl.decided_low, top1.verdict) == ("reported", None, None, "reported")
    assert top1.low == 0 < top1.estimate < top1.high
    assert (ratio.allowed, ratio.margin, ratio.note) == (1.02, 1.02, None)


def test_few_tokens_without_a_difference_prove_little():
    bounds = Bounds({"top1_disagreement": QualityBound(margin=0.01)}, 0.95, 1)
    for count, verdict in ((4, "inconclusive"), (200, "inconclusive"), (600, "pass")):
        same = np.stack([np.ones(count), np.ones(count), np.zeros(count), np.ones(count)])
        each = np.arange(count) // 2
        found = judge_text(same, each, each, bounds, where="")[2]
        assert (found.estimate, found.low, found.verdict) == (0, 0, verdict)


def test_few_documents_and_one():
    tokens, documents = made_up(np.random.default_rng(0), 0.0, documents=3)
    few = judge_text(tokens, documents, documents, Bounds(USUAL, 0.95, 1), where="")[0]
    assert few.note.startswith("3 documents say as much as ")
    windows = np.arange(len(documents)) // 500
    one = judge_text(tokens, documents * 0, windows, Bounds(USUAL, 0.95, 1), where="")[0]
    assert one.note == f"one document: its {windows[-1] + 1} windows are taken as independent of each other"
    assert one.high - one.low < few.high - few.low


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_a_candidate_that_computes_no_numbers_fails(odd):
    tokens, documents = made_up(np.random.default_rng(0), 0.0)
    tokens[2, 7] = odd
    findings = judge_text(tokens, documents, documents, Bounds({}, 0.95, 0), where="")
    assert [finding.verdict for finding in findings] == ["fail"] * 3
    assert f"for 1 of {len(documents)} tokens" in findings[0].note


def test_numbers_of_real_bundles(bundles):
    """Against whole windows at once, and a softmax as it is written."""
    windows = np.random.default_rng(0).integers(2, 1500, (3, 200))
    artifacts = [find_artifact(bundles / name) for name in ("fp32", "int4")]
    sessions = [backend_of(path).open_session(path, "evaluate", max_length=200) for path in artifacts]
    seen = []
    found = compare_sessions(*sessions, windows, seen.append)
    assert len(seen) == 3
    expected = []
    for window in windows:
        logs = []
        for session in sessions:
            session.reset(1)
            logits = session.step(window[None, :-1])[0].astype(np.float64)
            logs.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
        p, q = logs
        rows = np.arange(199), window[1:]
        agrees = p.argmax(axis=1) == q.argmax(axis=1)
        expected.append(np.stack([-p[rows], -q[rows], (np.exp(p) * (p - q)).sum(axis=1), agrees]))
    assert found == pytest.approx(np.concatenate(expected, axis=1), rel=1e-3, abs=1e-4)


def test_int8_passes_by_fp32_and_int4_is_worse(bundles):
    findings, remarks, data = compare_decoders(bundles / "int8", bundles / "fp32", STORIES, bounds=USUAL)
    ratio = findings[0]
    assert (ratio.name, ratio.verdict) == ("perplexity_ratio (heldout.txt)", "pass")
    assert ratio.candidate / ratio.baseline == pytest.approx(ratio.estimate)
    assert ratio.low < ratio.estimate < ratio.decided_high == ratio.high < 1.005
    assert data == {"heldout.txt": hashlib.sha256(Path(HELDOUT).read_bytes()).hexdigest()}
    assert remarks == ("nothing in heldout.txt says where a document ends: each window counts as one",)
    tight = decoder_bounds(Quality(metrics={"mean_kl": QualityBound(margin=0.002)}))
    worse, *_ = compare_decoders(bundles / "int4", bundles / "int8", STORIES, bounds=tight)
    assert [finding.verdict for finding in worse] == ["reported", "fail", "reported"]
    assert worse[1].decided_low > worse[1].allowed == 0.002


def test_a_bundle_is_as_good_as_itself(bundles):
    quality = Quality(texts=(HELDOUT, "python-source"), tokens=1_100, window=9_999)
    findings, remarks, data = compare_decoders(bundles / "int4", find_artifact(bundles / "int4"), quality, bounds=USUAL)
    assert [finding.where for finding in findings] == ["heldout.txt"] * 3 + ["python-source"] * 3
    assert [finding.estimate for finding in findings] == [1, 0, 0] * 2
    # Stories are all that this model knows: of code it says nothing that could become worse.
    assert [finding.verdict for finding in findings[::3]] == ["pass", "inconclusive"]
    assert {finding.verdict for finding in findings[1:3] + findings[4:]} == {"reported"}
    assert all("worse than chance" in finding.note for finding in findings[3:])
    assert list(data) == ["heldout.txt", "python-source"]
    assert "windows are as long as the context: 512 tokens" in remarks


def test_texts_of_one_name_are_told_apart(bundles, tmp_path):
    shutil.copy(HELDOUT, tmp_path)
    quality = Quality(texts=(HELDOUT, str(tmp_path / "heldout.txt")), tokens=300, window=100)
    findings, _, data = compare_decoders(bundles / "int4", bundles / "int4", quality, bounds=USUAL)
    assert {finding.where for finding in findings} == set(quality.texts) == set(data)


def spoil(bundle, folder):
    """Copy an fp32 bundle with NaN in the weights of its last norm."""
    shutil.copytree(bundle, folder)
    path = folder / "artifact/model_all_logits.onnx"
    model = onnx.load(path, load_external_data=False)
    (norm,) = [each for each in model.graph.initializer if each.name.endswith("model.norm.weight")]
    norm.raw_data = np.full(norm.dims[0], np.nan, np.float32).tobytes()
    onnx.save(model, path)
    return folder


def test_bundles_that_compute_no_numbers(bundles, tmp_path):
    broken = spoil(bundles / "fp32", tmp_path / "broken")
    quality = Quality(texts=(HELDOUT,), tokens=400, window=100)
    findings, *_ = compare_decoders(broken, bundles / "fp32", quality, bounds=USUAL)
    assert {finding.verdict for finding in findings} == {"fail"}
    assert findings[0].note == "the candidate computes NaN or infinite numbers for 396 of 396 tokens"
    with pytest.raises(BundleError, match="the baseline computes NaN"):
        compare_decoders(bundles / "fp32", broken, quality, bounds=USUAL)


def test_other_tokenizers_are_refused(bundles, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(bundles / "int4", other)
    path = other / "artifact/tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="different tokenizers"):
        compare_decoders(other, bundles / "int4", STORIES, bounds=USUAL)
    # Another file that does the same is no other tokenizer.
    path.write_text(json.dumps(json.loads((bundles / "int4/artifact/tokenizer.json").read_text()), indent=3))
    small = Quality(texts=(HELDOUT,), tokens=200, window=100)
    assert compare_decoders(other, bundles / "int4", small, bounds=USUAL)[0][0].verdict == "pass"


def test_what_cannot_be_compared(bundles, tmp_path):
    int4 = bundles / "int4"
    with pytest.raises(UsageError, match="single window of 128 tokens"):
        compare_decoders(int4, int4, Quality(texts=(HELDOUT,), tokens=130, window=128), bounds=USUAL)
    with pytest.raises(UsageError, match="cannot be read"):
        compare_decoders(int4, int4, Quality(texts=(str(tmp_path / "none.txt"),)), bounds=USUAL)
    with pytest.raises(UsageError, match="nothing says what"):
        compare_decoders(int4, int4, Quality(texts=()), bounds=USUAL)
    with pytest.raises(BundleError, match="is no bundle"):
        compare_decoders(int4, tmp_path, STORIES, bounds=USUAL)


def test_bounds_come_from_the_gate_file():
    one, other = QualityBound(margin=1.05), QualityBound(margin=0.1, allowed=0.05)
    assert decoder_bounds(Quality(), {"mean_kl": other}) == {**USUAL, "mean_kl": other}
    assert decoder_bounds(Quality(metrics={"perplexity_ratio": one}), {}) == {"perplexity_ratio": one}
    assert decoder_bounds(Quality(metrics={})) == {}
    for wrong, says in (
        ({"top1": other}, "no quality metric 'top1'"),
        ({"perplexity_ratio": QualityBound(margin=0.02)}, "no ratio of perplexities"),
        ({"perplexity_ratio": QualityBound(margin=1.02, allowed=0.5)}, "no ratio of perplexities"),
    ):
        for bounds, place in (
            ((Quality(metrics=wrong),), "quality.metrics"),
            ((Quality(metrics={"mean_kl": other}), wrong, "orin"), "targets.orin.quality"),
        ):
            with pytest.raises(UsageError, match=says) as caught:
                decoder_bounds(*bounds)
            assert caught.value.where.startswith(place)
