"""A network beside another on samples."""

import hashlib
import json
import shutil

import numpy as np
import onnx
import pytest
from commands import invoke
from tiny_networks import Tiny, weights

from edgec.errors import BundleError, UsageError
from edgec.evaluate.paired import interval, score_limit
from edgec.gate.network_quality import compare_networks
from edgec.gate.settings import Quality, QualityBound

SEEN = 200
SHARE = QualityBound(margin=0.05)
CNN = Tiny(
    """(float[N, 3, 8, 8] x) => (float[N, 4] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w, b)
        r = Relu(a)
        g = GlobalAveragePool(r)
        f = Flatten(g)
        y = MatMul(f, v)
    }""",
    weights(w=(8, 3, 3, 3), b=(8,), v=(8, 4)),
    lambda rng, count: {
        "x": rng.standard_normal((count, 3, 8, 8), np.float32) + 2 * rng.standard_normal((count, 3, 1, 1), np.float32)
    },
)


def outputs(network, x):
    import onnxruntime as ort

    return ort.InferenceSession(network.proto().SerializeToString(), providers=["CPUExecutionProvider"]).run(
        ["y"], {"x": x}
    )[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Bundles of a network, of one whose weights are a bit, and one whose weights are much different; and samples."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(3)
    x = CNN.inputs(rng, SEEN)["x"]
    made = {}
    for name, noise in (("good", 0.0), ("near", 0.002), ("far", 1.0)):
        changed = {k: (v + noise * rng.standard_normal(v.shape)).astype(np.float32) for k, v in CNN.weights.items()}
        network = Tiny(CNN.graph, changed, CNN.inputs)
        made[name] = outputs(network, x)
        source = network.save(folder / f"{name}.onnx")
        done = invoke("build", source, "--target", "cpu", "--profile", "fp32", "--no-verify", "-o", folder / name)
        assert done.exit_code == 0
    label = made["good"].argmax(axis=1)
    label[::5] = (label[::5] + 1) % 4  # a fifth is wrong
    np.savez(folder / "labels.npz", x=x, label=label)
    np.savez(folder / "plain.npz", x=x)
    np.savez(folder / "few.npz", x=x[:20], label=label[:20])
    np.savez(folder / "outputs.npz", label=label, **made)
    return folder


def judge(files, candidate, data="labels", metrics=None, **more):
    quality = Quality(data=(str(files / f"{data}.npz"),), samples=SEEN)
    return compare_networks(files / candidate, files / "good", quality, bounds=metrics or {"top1": SHARE}, **more)


def test_a_loss_is_how_much_worse_it_is(files):
    made = np.load(files / "outputs.npz")
    (found,), remarks, data = judge(files, "far")
    right = [made[name].argmax(axis=1) == made["label"] for name in ("good", "far")]
    assert (found.name, found.scale, found.higher_is_better) == ("top1 (labels.npz)", "difference", True)
    assert (found.baseline, found.candidate) == pytest.approx([each.mean() for each in right])
    assert found.baseline == 0.8
    assert found.estimate == pytest.approx(found.baseline - found.candidate)
    lost, won = int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())
    assert (found.low, found.high) == tuple(score_limit(lost, won, SEEN, level) for level in (0.025, 0.975))
    assert (found.decided_low, found.decided_high) == (found.low, found.high)
    assert found.verdict == "fail"
    assert remarks == ()
    assert data == {"labels.npz": hashlib.sha256((files / "labels.npz").read_bytes()).hexdigest()}


def test_what_is_as_good_passes(files):
    (found,), *_ = judge(files, "near")
    assert found.verdict == "pass"
    assert 0 < found.decided_high < 0.05
    ticks = []
    (same,), *_ = judge(files, "good", tick=ticks.append)
    assert (same.estimate, len(ticks)) == (0, SEEN)
    assert same.high == pytest.approx(1.96**2 / (SEEN + 1.96**2), abs=1e-4)  # no difference seen proves no equality


def test_metrics_that_fall_and_metrics_of_the_baselines_outputs(files):
    bounds = {"cosine": QualityBound(margin=0.01), "agreement": SHARE}
    made = np.load(files / "outputs.npz")
    findings, *_ = judge(files, "far", "plain", bounds)
    cosine, agreement = findings
    assert (cosine.baseline, agreement.baseline) == (pytest.approx(1), 1)
    same = (made["good"].argmax(axis=1) == made["far"].argmax(axis=1)).mean()
    assert agreement.estimate == pytest.approx(1 - same)
    assert [finding.verdict for finding in findings] == ["fail", "fail"]
    assert agreement.low <= agreement.estimate <= agreement.high
    np.savez(files / "targets.npz", x=np.load(files / "plain.npz")["x"], label=made["good"] + 0.1)
    (mae,), *_ = judge(files, "far", "targets", {"mae": QualityBound(margin=0.2)})
    assert (mae.higher_is_better, mae.verdict) == (False, "fail")
    assert mae.baseline == pytest.approx(0.1, rel=1e-3)
    assert mae.estimate == pytest.approx(np.abs(made["far"] - made["good"] - 0.1).mean() - 0.1, rel=1e-3)


def test_bootstrap_intervals_are_those_of_paired(files):
    (found,), *_ = judge(files, "far", metrics={"f1": SHARE}, confidence=0.9, seed=4)
    from edgec.evaluate.metrics import Part, Setting, metric_of

    made, metric = np.load(files / "outputs.npz"), metric_of("f1")
    parts = [Part({"y": made[name]}, None, "y", made["label"]) for name in ("good", "far")]
    stats = [metric.per_sample(part, Setting()) for part in parts]
    if hasattr(metric, "finish"):
        stats = [metric.finish(each, Setting()) for each in stats]
    low, high = interval(*stats, metric.total, confidence=0.9, seed=4)
    assert (found.low, found.high) == pytest.approx((-high, -low))
    assert found.low == found.decided_low < found.estimate < found.decided_high == found.high


def test_several_data_and_metrics_share_the_level_of_failing(files):
    shutil.copy(files / "labels.npz", files / "again.npz")
    quality = Quality(data=tuple(str(files / f"{name}.npz") for name in ("labels", "again")), samples=SEEN)
    bounds = {"top1": SHARE, "f1": SHARE}
    findings, _, data = compare_networks(files / "far", files / "good", quality, bounds=bounds)
    assert [finding.name for finding in findings] == [
        "top1 (labels.npz)", "f1 (labels.npz)", "top1 (again.npz)", "f1 (again.npz)",
    ]  # fmt: skip
    assert list(data) == ["labels.npz", "again.npz"]
    (alone,), *_ = judge(files, "far")
    assert findings[0].decided_low < alone.decided_low
    assert findings[0].decided_low < findings[0].low
    assert findings[0].decided_high == alone.decided_high


def test_few_samples_decide_nothing(files):
    findings, *_ = judge(files, "good", "few", {"top1": SHARE, "f1": SHARE})
    top1, f1 = findings
    for each in (top1, f1):
        assert (each.verdict, each.note) == ("inconclusive", "20 samples are too few for a verdict")
    assert top1.decided_high > 0.05
    assert f1.high > 0.05


def test_what_is_infinite_of_the_baseline_itself_is_refused(files):
    with pytest.raises(UsageError, match="snr_db cannot be gated") as caught:
        judge(files, "near", "plain", {"snr_db": QualityBound(margin=1.0)})
    assert caught.value.exit_code == 2


def spoiled(files, folder, value):
    shutil.copytree(files / "good", folder)
    settings = json.loads((folder / "artifact/network.json").read_text())
    path = folder / "artifact" / settings["file"]
    model = onnx.load(path)
    for each in model.graph.initializer:
        if list(each.dims) == [8]:
            each.CopyFrom(onnx.numpy_helper.from_array(np.full(8, value, np.float32), each.name))
    onnx.save(model, path)
    return folder


def test_networks_that_compute_no_numbers(files, tmp_path):
    broken = spoiled(files, tmp_path / "broken", np.nan)
    quality = Quality(data=(str(files / "labels.npz"),), samples=40)
    (found,), *_ = compare_networks(broken, files / "good", quality, bounds={"top1": SHARE})
    assert (found.verdict, found.estimate) == ("fail", None)
    assert "y: the candidate computes NaN" in found.note
    with pytest.raises(BundleError, match="the baseline computes NaN"):
        compare_networks(files / "good", broken, quality, bounds={"top1": SHARE})


def test_nothing_to_compare_and_half_of_it(files):
    findings, (remark,), data = compare_networks(files / "near", files / "good", Quality(), bounds={})
    assert (findings, data) == ((), {})
    assert "not compared" in remark
    with pytest.raises(UsageError, match="what to measure quality on"):
        compare_networks(files / "near", files / "good", Quality(), bounds={"top1": SHARE})
    with pytest.raises(UsageError, match="nothing says what to measure"):
        compare_networks(files / "near", files / "good", Quality(data=("a.npz",)), bounds={})


def test_what_cannot_be_compared(files, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(files / "near", other)
    path = other / "artifact/network.json"
    settings = json.loads(path.read_text())
    for key, value, message in (
        ("labels", ["a", "b"], "different classes"),
        ("outputs", [{**settings["outputs"][0], "name": "z"}], "different outputs"),
    ):
        path.write_text(json.dumps({**settings, key: value}))
        with pytest.raises(UsageError, match=message):
            judge(files, other)
    with pytest.raises(UsageError, match="no metric 'perplexity_ratio'"):
        judge(files, "near", metrics={"perplexity_ratio": SHARE})
    with pytest.raises(UsageError, match="needs labels"):
        judge(files, "near", "plain")
    with pytest.raises(UsageError, match="no such file"):
        judge(files, "near", "none")
