"""Metrics have the definitions of scikit-learn, sacrebleu and jiwer."""

import jiwer
import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from edgec.evaluate.metrics import Part, Setting, metric_of

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", ",", ".", "Hut"]


def value(name, values, labels, weights=None, **setting):
    metric, setting = metric_of(name), Setting(**setting)
    stats = metric.per_sample(Part({"x": values}, {"x": values}, "x", labels), setting)
    once = np.ones((1, len(values))) if weights is None else weights
    return metric.total(stats, once).tolist()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 7), count=st.integers(1, 30))
def test_classes(seed, classes, count):
    rng = np.random.default_rng(seed)
    scores, truth = rng.standard_normal((count, classes)), rng.integers(0, classes, count)
    kind = {"average": "binary" if classes == 2 else "macro", "zero_division": 0}
    predicted = scores.argmax(axis=1)
    assert value("top1", scores, truth) == pytest.approx([sklearn.accuracy_score(truth, predicted)])
    for name in ("precision", "recall", "f1"):
        expected = getattr(sklearn, f"{name}_score")(truth, predicted, **kind)
        assert value(name, scores, truth) == pytest.approx([expected])
    if classes > 5:
        expected = sklearn.top_k_accuracy_score(truth, scores, k=5, labels=range(classes))
        assert value("top5", scores, truth) == pytest.approx([expected])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), numbers=st.integers(1, 4), count=st.integers(2, 30))
def test_numbers(seed, numbers, count):
    rng = np.random.default_rng(seed)
    truth = 1000 + rng.standard_normal((count, numbers))
    values = truth + rng.standard_normal((count, numbers))
    assert value("mae", values, truth) == pytest.approx([sklearn.mean_absolute_error(truth, values)])
    assert value("rmse", values, truth) == pytest.approx([sklearn.root_mean_squared_error(truth, values)])
    assert value("r2", values, truth) == pytest.approx([sklearn.r2_score(truth, values)])


@pytest.mark.parametrize("error", [0, 1])
def test_r2_of_equal_labels(error):
    truth, values = np.full(4, 0.1), np.full(4, 0.1) + error
    assert value("r2", values, truth) == [sklearn.r2_score(truth, values)]


def test_draws_count_as_often_as_they_are_drawn():
    rng = np.random.default_rng(0)
    scores, truth = rng.standard_normal((20, 4)), rng.integers(0, 4, 20)
    drawn = rng.integers(0, 20, (5, 20))
    weights = np.array([np.bincount(row, minlength=20) for row in drawn], float)
    for name in ("top1", "precision", "recall", "f1"):
        apart = [value(name, scores[row], truth[row])[0] for row in drawn]
        assert value(name, scores, truth, weights) == pytest.approx(apart)
    numbers, wanted = rng.standard_normal((20, 2)), rng.standard_normal((20, 2))
    for name in ("mae", "rmse", "r2"):
        apart = [value(name, numbers[row], wanted[row])[0] for row in drawn]
        assert value(name, numbers, wanted, weights) == pytest.approx(apart)


def decode(ids):
    return " ".join(WORDS[index] for index in ids)


sentences = st.lists(st.lists(st.integers(0, len(WORDS) - 1), max_size=9), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(sentences, st.integers(0, 2**32 - 1))
def test_texts(rows, seed):
    rng = np.random.default_rng(seed)
    length = max(map(len, rows))
    ids = np.zeros((len(rows), length), np.int64)
    mask = np.zeros(ids.shape, bool)
    for row, sentence in enumerate(rows):
        ids[row, : len(sentence)] = sentence
        mask[row, : len(sentence)] = True
    texts = [decode(row) for row in rows]
    right = [" ".join([*rng.permutation(text.split())[: rng.integers(0, 9)], "cat"]) for text in texts]
    part = Part({"ids": ids}, {"ids": ids}, "ids", right, mask)
    once = np.ones((1, len(rows)))

    def total(name):
        metric = metric_of(name)
        return metric.total(metric.per_sample(part, Setting(decode=decode)), once)[0]

    assert total("bleu") == pytest.approx(sacrebleu.corpus_bleu(texts, [right]).score)
    assert total("chrf") == pytest.approx(sacrebleu.corpus_chrf(texts, [right]).score)
    assert total("wer") == pytest.approx(jiwer.wer(right, texts))
