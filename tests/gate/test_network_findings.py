"""What samples say about a network: how often verdicts are wrong, and what decides nothing."""

import sys

import numpy as np
import pytest

from edgec.evaluate.metrics import metric_of
from edgec.evaluate.paired import draws
from edgec.evaluate.wanted import Wanted
from edgec.gate.bounds import Bounds
from edgec.gate.network_findings import judge_samples
from edgec.gate.settings import QualityBound

CENT = 0.01


def judge(name, before, after, margin=CENT, **more):
    bounds = Bounds({name: QualityBound(margin=margin)}, 0.95, 1)
    wanted = Wanted(name, metric_of(name), "y", None)
    before, after = np.asarray(before, float), np.asarray(after, float)
    return judge_samples(wanted, before, after, bounds, where="", seed=0, **more)


def agreement(rng, count, loss):
    before = np.ones((count, 2))
    return before, np.stack([rng.random(count) >= loss, before[:, 1]], axis=1)


def ignored(rng, count, loss):
    """A fifth of the samples counts for nothing; as many again are lost and won as are lost in all."""
    before = np.stack([rng.random(count) < 0.8, np.ones(count)], axis=1).astype(float)
    kind = rng.random(count)
    right = np.where(before[:, 0] == 1, kind >= 2 * loss / 0.8, kind < loss / 0.2)
    after = np.stack([right, before[:, 1]], axis=1)
    counts = (rng.random(count) < 0.8)[:, None]
    return before * counts, after * counts


def sentences(rng, count, loss):
    """Whole sentences of twenty words are lost, and single words won."""
    before = np.tile([18.0, 20.0], (count, 1))
    won, lost = rng.random(count) < 0.04, rng.random(count) < (loss + 0.002) / 0.9
    return before, before + np.stack([np.where(lost, -18, won), np.zeros(count)], axis=1)


def f1(rng, count, loss, positives=0.5):
    """Positives of an F1 of 0.9 are no longer found."""
    truth = rng.random(count) < positives
    found = np.where(truth, rng.random(count) < 0.9, rng.random(count) < 0.1 * positives / (1 - positives))
    kept = 1.1 * (0.9 - loss) / (1.1 + loss) / 0.9
    worse = found & ~(truth & (rng.random(count) >= kept))
    return tuple(np.stack([truth, each, np.full(count, 2)], axis=1).astype(float) for each in (found, worse))


def rare(rng, count, loss):
    return f1(rng, count, loss, positives=0.1)


@pytest.mark.parametrize(
    ("name", "made", "runs"),
    [("agreement", agreement, 300), ("top1", ignored, 300), ("top1", sentences, 100), ("f1", f1, 60), ("f1", rare, 60)],
)
@pytest.mark.parametrize("count", [100, 512])
def test_a_loss_of_the_margin_seldom_passes(name, made, runs, count):
    rng = np.random.default_rng(0)
    for margin in (0.01, 0.03) if count == 100 else (0.01,):
        verdicts = [judge(name, *made(rng, count, margin), margin).verdict for _ in range(runs)]
        assert verdicts.count("pass") <= 0.07 * runs  # 0.025, and noise
        assert verdicts.count("fail") <= 0.07 * runs


@pytest.mark.parametrize(("name", "made"), [("agreement", agreement), ("top1", ignored), ("f1", f1)])
def test_the_same_passes_where_there_are_enough_samples(name, made):
    rng = np.random.default_rng(1)
    many, few = (made(rng, count, 0)[0] for count in (640, 40))
    assert judge(name, many, many).verdict == "pass"
    found = judge(name, few, few)
    assert (found.verdict, found.estimate, found.note) == ("inconclusive", 0, None)
    assert found.low < 0 < found.high


def test_512_samples_tell_one_percent():
    same = np.ones((512, 2))
    assert judge("agreement", same, same).verdict == "pass"
    assert judge("agreement", same[:380], same[:380]).verdict == "inconclusive"


def test_samples_that_count_for_nothing_make_no_interval_narrower():
    before = np.ones((100, 2))
    padded = np.vstack([before, np.zeros((900, 2))])
    assert judge("top1", padded, padded) == judge("top1", before, before)


def test_it_fails_by_what_it_loses():
    before = np.tile([20.0, 20.0], (200, 1))
    after = before.copy()
    after[:9, 0] = 0  # 4.5 %, by few samples
    found = judge("top1", before, after)
    assert found.estimate == pytest.approx(0.045)
    assert CENT < found.low < found.estimate < found.high
    assert found.verdict == "fail"
    after[:] = before
    after[:3, 0] = 0  # 1.5 %
    assert judge("top1", before, after).verdict == "inconclusive"


def test_few_differences_of_measured_numbers_decide_nothing():
    before = np.random.default_rng(0).random((200, 1))
    after = before.copy()
    assert judge("mae", before, after).verdict == "pass"
    for differ, verdict in ((1, "inconclusive"), (9, "inconclusive"), (10, "pass")):
        after[:differ] += 1e-6
        found = judge("mae", before, after)
        assert found.verdict == verdict
    assert found.note is None
    after = before.copy()
    after[:9] += 9
    found = judge("mae", before, after)
    assert (found.verdict, found.note) == ("inconclusive", "9 of 200 samples differ: too few for a verdict")


def test_what_is_not_defined_decides_nothing():
    same = np.tile([1.0, 0.0], (50, 1))
    found = judge("snr_db", same, same, 1.0)
    assert (found.estimate, found.verdict, found.margin) == (None, "inconclusive", 1.0)
    assert "not defined" in found.note


def test_all_of_a_few_samples_may_be_lost_by_chance():
    lost = judge("agreement", np.ones((4, 2)), np.tile([0.0, 1.0], (4, 1)))
    assert lost.low > CENT
    assert lost.verdict == "inconclusive"


def test_many_findings_are_drawn_more_often():
    """The end of an interval at a small level is not the largest of all draws."""
    rng = np.random.default_rng(3)
    before = rng.random((100, 1))
    after = before + rng.normal(0, 0.1, before.shape)
    bounds = [Bounds({"mae": QualityBound(margin=CENT)}, 0.95, gated) for gated in (1, 100)]
    wanted = Wanted("mae", metric_of("mae"), "y", None)
    one, many = (judge_samples(wanted, before, after, each, where="", seed=0) for each in bounds)
    assert many.decided_low < one.decided_low
    drawn = draws(before, after, wanted.metric.total)
    assert many.decided_low != pytest.approx(np.quantile(drawn, 0.025 / 100), rel=1e-6)


def test_flags_of_the_users_own_are_shares(tmp_path, monkeypatch):
    (tmp_path / "flag_metric.py").write_text(
        "def right(outputs, labels, reference_outputs): ...\n"
        "def wrong(outputs, labels, reference_outputs): ...\n"
        "wrong.higher_is_better = False\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = np.repeat([1.0, 0.0], [60, 40])[:, None]
    after = before.copy()
    after[:5] = 0
    right, wrong = judge("flag_metric:right", before, after), judge("flag_metric:wrong", 1 - before, 1 - after)
    tops = judge("top1", np.hstack([before, np.ones((100, 1))]), np.hstack([after, np.ones((100, 1))]))
    for found in (right, wrong):
        assert (found.low, found.high, found.estimate) == pytest.approx((tops.low, tops.high, 0.05))
    measured = before + 0.25
    assert judge("flag_metric:right", measured, measured).high == 0
    sys.modules.pop("flag_metric")
