"""What is lost in samples, where a metric counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.evaluate.counted import Counted, count_losses
from edgec.evaluate.metrics import agreement, bleu, chrf, f1, recall, retrieval, top1, wer
from edgec.evaluate.paired import score_limit


def counted(metric, before, after):
    before, after = np.array(before, float), np.array(after, float)
    sign = -1 if metric.HIGHER_IS_BETTER else 1
    return count_losses(before, after, metric.lost(before), lambda *given: sign * metric.total(*given))


def test_of_single_predictions_it_counts_them():
    before = np.array([[1, 1]] * 60 + [[0, 1]] * 40)
    after = before.copy()
    after[:4, 0], after[60:63, 0] = 0, 1
    found = counted(top1, before, after)
    assert (found.lost, found.won, found.differ) == pytest.approx((4, 3, 7))
    assert (found.samples, found.worth) == (100, pytest.approx(1 / 100))
    for level in (0.025, 0.5, 0.975):
        assert found.limit(level) == pytest.approx(score_limit(4, 3, 100, level))


def test_a_part_of_a_sample_counts_as_a_part():
    before = np.array([[20, 20]] * 50)
    after = before.copy()
    after[:5, 0] = 18
    found = counted(agreement, before, after)
    assert (found.lost, found.won, found.differ) == pytest.approx((0.5, 0, 5))
    assert score_limit(0, 0, 50, 0.975) < found.limit(0.975) < score_limit(1, 0, 50, 0.975)


def test_a_long_sample_is_worth_more():
    before = np.array([[1, 1]] * 8 + [[4, 4]] * 3)
    after = before.copy()
    after[-1, 0] = 0
    found = counted(top1, before, after)
    worth = (8 * 1 + 3 * 16) / 20 / 20  # the mean over samples, weighted with what they are worth
    assert found.worth == pytest.approx(worth)
    assert found.lost * found.worth == pytest.approx(4 / 20)


def test_one_of_few_positives_is_worth_more():
    truth = np.repeat([1, 0], [10, 90])
    right = np.stack([truth, truth, np.full(100, 2)], axis=1)
    assert counted(recall, right, right)[2:] == pytest.approx((0, 100, 1 / 10))
    worse = right.copy()
    worse[0, 1] = 0
    found = counted(f1, right, worse)
    assert found.lost * found.worth == pytest.approx(1 - 18 / 19)
    # Each positive that is lost takes 1/19, each negative that is taken for one 1/21.
    assert found.worth == pytest.approx((10 / 19**2 + 90 / 21**2) / (10 / 19 + 90 / 21))


def test_metrics_of_texts_and_neighbours():
    words = counted(wer, [[0, 5], [1, 5]], [[0, 5], [3, 5]])
    assert (words.lost * words.worth, words.won) == (pytest.approx(2 / 10), 0)
    found = counted(retrieval, np.full((4, 1), 0.5), [[0.5], [0.5], [0.25], [0.75]])
    assert (found.lost, found.won, found.worth) == pytest.approx((0.5, 0.5, 0.5 / 4))
    for metric, row in ((bleu, [5, 4, 3, 2, 5, 4, 3, 2, 5, 5]), (chrf, [5, 5, 5] * 6)):
        same = counted(metric, [row] * 10, [row] * 10)
        assert (same.lost, same.differ) == (0, 0)
        assert 9 < same.worth < 12  # of 100, by ten samples


def test_a_few_large_differences_among_many_small_ones_are_few():
    before = np.array([[100, 100]] * 300)
    after = before.copy()
    after[:3, 0], after[3:103, 0] = 0, 99
    assert 3 < counted(top1, before, after).differ < 6


def test_where_nothing_is_right_there_is_nothing_to_lose():
    assert counted(top1, [[0, 1]] * 9, [[0, 1]] * 9) is None


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 40), st.floats(0, 40), st.integers(2, 40), st.floats(0.01, 0.99))
def test_limits_of_parts_are_between_those_of_whole_samples(lost, won, samples, level):
    found = Counted(lost, won, 1, samples, 1 / samples).limit(level)
    assert -1 <= found <= 1
    more = Counted(lost + 1, won, 1, samples, 1 / samples).limit(level)
    assert found <= more + 1e-9
