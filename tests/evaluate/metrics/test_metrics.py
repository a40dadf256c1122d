"""Metrics, by numbers that can be checked by hand; and what they refuse."""

import json
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from edgec.errors import BundleError, CheckpointError, UsageError
from edgec.evaluate.metrics import Counting, Finishing, Part, Setting, judges, metric_of, names, parse
from edgec.evaluate.metrics._texts import decoder_of


def part(values, labels=None, expected=None, mask=None, name="x"):
    expected = values if expected is None else expected
    return Part({name: np.asarray(values)}, {name: np.asarray(expected)}, name, labels, mask)


def value(name, given, weights=None, **setting):
    metric = metric_of(name)
    stats = metric.per_sample(given, Setting(**setting))
    if isinstance(metric, Finishing):
        stats = metric.finish(stats, Setting(**setting))
    assert stats.dtype == np.float64
    assert stats.ndim == 2
    return metric.total(stats, np.ones((1, len(stats))) if weights is None else np.array(weights, float)).tolist()


def test_the_folder_is_the_registry():
    assert set(names()) == {
        *("top1", "top5", "precision", "recall", "f1", "mae", "rmse", "r2"),
        *("cosine", "retrieval", "agreement", "snr_db", "bleu", "chrf", "wer"),
    }


@pytest.mark.parametrize("name", names())
def test_every_file_has_what_a_metric_has(name):
    metric = metric_of(name)
    assert {type(metric.NEEDS_LABELS), type(metric.HIGHER_IS_BETTER), type(metric.IS_FLAG)} == {bool}
    if metric.NEEDS_LABELS:
        with pytest.raises(UsageError, match=r"label|texts"):
            metric.per_sample(part(np.zeros((2, 3), np.float32)), Setting())


SCORES = np.array([[3, 1, 2], [1, 3, 2], [1, 2, 3], [3, 2, 1]], np.float32)


def test_classes_by_hand():
    truth = np.array([0, 1, 0, 2])  # predicted 0 1 2 0
    assert value("top1", part(SCORES, truth)) == [0.5]
    assert value("top1", part(SCORES[..., None, None], truth)) == [0.5]
    # Right of predicted: 1/2, 1/1, 0/1. Right of there: 1/2, 1/1, 0/1.
    assert value("precision", part(SCORES, truth)) == pytest.approx([0.5])
    assert value("recall", part(SCORES, truth)) == pytest.approx([0.5])
    # Drawn twice: sample 0 and sample 1: each class that occurs is right.
    assert value("f1", part(SCORES, truth), [[2, 2, 0, 0], [0, 0, 0, 4]]) == [1, 0]


def test_of_equal_scores_the_first_counts():
    equal = np.zeros((3, 7), np.float32)
    assert value("top1", part(equal, np.array([0, 1, 6]))) == pytest.approx([1 / 3])
    assert value("top5", part(equal, np.array([4, 5, 6]))) == pytest.approx([1 / 3])


def test_labels_of_positions():
    scores = np.stack([SCORES, SCORES[::-1]])  # predicted 0 1 2 0 and 0 2 1 0
    truth = np.array([[0, 1, -100, 1], [0, 0, 1, 0]])
    assert value("top1", part(scores, truth)) == [5 / 7]
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool)
    assert value("top1", part(scores, truth, mask=mask)) == [5 / 6]
    assert np.isnan(value("top1", part(scores, np.full((2, 4), -100))))
    with pytest.raises(UsageError, match="one class for each sample"):
        value("f1", part(scores, truth))


def test_a_single_score_takes_a_threshold():
    scores, truth = np.array([[0.4], [0.6], [0.5], [0.9]], np.float32), np.array([0, 1, 1, 0])
    assert value("top1", part(scores, truth), threshold=0.5) == [0.5]
    assert value("precision", part(scores[:, 0], truth), threshold=0.5) == [0.5]
    assert value("agreement", part(scores, expected=1 - scores), threshold=0.5) == [0.25]
    with pytest.raises(UsageError, match="threshold") as error:
        value("top1", part(scores, truth))
    assert "NAME:0.5" in error.value.hint
    with pytest.raises(UsageError, match="scores 3 classes: a threshold is for a single score"):
        value("top1", part(SCORES, truth), threshold=0.5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1, 2, 3]), "label 3 is outside of the model's 3 classes"),
        (np.array([0, -1, 2, 1]), "label -1 is outside"),
        (np.array([0, 1, 2]), "do not fit"),
        (np.array([0.0, 1, 2, 1]), "needs the class"),
        (["a", "b", "c", "d"], "needs the class"),
    ],
)
def test_labels_that_are_no_classes(labels, message):
    for name in ("top1", "precision"):
        with pytest.raises(UsageError, match=message):
            value(name, part(SCORES, labels))


def test_outputs_that_are_no_scores():
    with pytest.raises(UsageError, match="all 3 classes"):
        value("top5", part(SCORES, np.zeros(4, int)))
    with pytest.raises(UsageError, match="no scores"):
        value("top1", part(np.zeros((4, 3), int), np.zeros(4, int)))
    with pytest.raises(UsageError, match=r"\(4, 3, 1\), has no scores"):
        value("top1", part(np.zeros((4, 3, 1)), np.zeros(4, int)))


def test_numbers_by_hand():
    truth, values = np.array([1.0, 2, 3, 6]), np.array([2.0, 2, 1, 6])
    assert value("mae", part(values, truth)) == [0.75]
    assert value("rmse", part(values, truth)) == [np.sqrt(5 / 4)]
    assert value("r2", part(values, truth)) == pytest.approx([1 - 5 / 14])
    assert value("mae", part(values[:, None], truth.astype(int)), [[1, 0, 1, 0]]) == [1.5]
    with pytest.raises(UsageError, match="at least two"):
        value("r2", part(values[:1], truth[:1]))
    with pytest.raises(UsageError, match="do not fit"):
        value("mae", part(values, np.zeros((4, 2))))
    with pytest.raises(UsageError, match="not finite"):
        value("mae", part(values, np.array([1, np.nan, 1, 1])))
    with pytest.raises(UsageError, match="numbers as labels"):
        value("rmse", part(values, ["a"] * 4))


@pytest.mark.parametrize("name", ["mae", "rmse", "r2"])
def test_infinite_numbers_have_no_error(name):
    given = Part({"x": np.array([1.0, np.inf])}, None, "x", np.array([1.0, 2]), places=["a[0]", "a[1]"])
    with pytest.raises(CheckpointError, match="an output is not finite") as error:
        value(name, given)
    assert error.value.where == "a[1]"


def test_what_is_wrong_with_a_label_is_told_with_its_place_and_what_to_do():
    given = Part({"x": SCORES}, None, "x", np.array([0, 1, 9, 2]), places=[f"a.npz[{i}]" for i in range(4)])
    for name in ("top1", "f1"):
        with pytest.raises(UsageError, match="label 9") as error:
            value(name, given)
        assert error.value.where == "a.npz[2]"
        assert "0 to 2" in error.value.hint
    for name, labels in (("top1", np.zeros(4)), ("mae", ["a"] * 4), ("wer", np.zeros(4, int))):
        with pytest.raises(UsageError) as error:
            value(name, part(SCORES, labels), decode=str)
        assert error.value.hint


def test_cosines_of_embeddings():
    a, b = np.array([[1.0, 0], [0, 0], [0, 0], [1, 1]]), np.array([[1.0, 1], [0, 0], [1, 0], [2, 2]])
    assert value("cosine", part(a, expected=b)) == pytest.approx([(np.sqrt(0.5) + 1 + 0 + 1) / 4])


def test_padding_of_sequences_does_not_count():
    rng = np.random.default_rng(0)
    expected = rng.standard_normal((3, 4, 5))
    values, mask = expected.copy(), np.ones((3, 4), bool)
    values[1, 2:] *= -9
    mask[1, 2:] = False
    for name, perfect in (("cosine", 1), ("agreement", 1), ("snr_db", np.inf)):
        assert value(name, part(values, expected=expected, mask=mask)) == pytest.approx([perfect])
        assert value(name, part(values, expected=expected))[0] < perfect
    assert value("cosine", part(values, expected=expected), pooling="first") == pytest.approx([1])
    # The mean is that of what is no padding, and nothing is masked in vectors as long as the sequence.
    alone = part(values[1:2, :2], expected=values[1:2, :2] * 2)
    assert value("cosine", alone) == pytest.approx([1])
    assert part(values[:, :, 0], mask=mask).valid is None
    assert part(np.zeros((3, 4), int), mask=mask).valid is mask


def test_neighbours_are_found_again():
    rng = np.random.default_rng(0)
    expected = rng.standard_normal((600, 8))  # more than are looked for at once
    values = expected + 0.3 * rng.standard_normal(expected.shape)
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (values, expected)]
    likeness = [rows @ rows.T - 9 * np.eye(600) for rows in units]
    near = [[set(np.argsort(-row)[:3].tolist()) for row in rows] for rows in likeness]
    wanted = np.mean([len(a & b) / 3 for a, b in zip(*near, strict=True)])
    assert 0.2 < wanted < 0.9
    assert value("retrieval", part(values, expected=expected), neighbours=3) == pytest.approx([wanted])
    assert value("retrieval", part(expected * 3, expected=expected)) == [1]
    with pytest.raises(UsageError, match="at least 12 samples, not 11"):
        value("retrieval", part(expected[:11]))


def test_agreement_and_noise():
    values = np.array([[1.0, 2], [2, 1], [0, 5]])
    expected = np.array([[0.0, 2], [1, 2], [0, 5]])
    assert value("agreement", part(values, expected=expected)) == [2 / 3]
    assert value("agreement", part(np.array([[1, 2], [3, 4]]), expected=np.array([[1, 2], [3, 5]]))) == [0.75]
    assert value("snr_db", part(values, expected=expected)) == pytest.approx([10 * np.log10(34 / 3)])
    assert value("snr_db", part(values)) == [np.inf]
    assert value("snr_db", part(values, expected=0 * values)) == [-np.inf]


def one_hot(rows, size):
    return np.eye(size, dtype=np.float32)[np.array(rows)]


def test_ctc_is_decoded_greedily():
    vocabulary = {"<pad>": 0, "c": 1, "a": 2, "b": 3, "|": 4}
    decode, size, blank = decoder_of({"vocab.json": json.dumps(vocabulary).encode()}, ctc=True)
    assert (size, blank) == (5, 0)
    # c c - a - b b | | - a a  and  a - a, where the repetition across a blank is kept.
    scores = one_hot([[1, 1, 0, 2, 0, 3, 3, 4, 4, 0, 2, 2], [2, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0]], 5)
    given = part(scores, ["cab b", "aa"])
    assert value("wer", given, decode=decode, blank=blank) == [1 / 3]
    assert value("wer", part(scores, ["cab a", "aa"]), decode=decode, blank=blank) == [0]
    assert np.isnan(value("wer", part(scores, ["", ""]), decode=decode, blank=blank))
    with pytest.raises(UsageError, match="no tokenizer"):
        value("wer", given)
    with pytest.raises(UsageError, match="texts as labels"):
        value("wer", part(scores, np.zeros(2, int)), decode=decode, blank=blank)
    with pytest.raises(UsageError, match="is no text"):
        value("chrf", part(np.zeros((2, 3)), ["a", "b"]), decode=decode)
    with pytest.raises(UsageError, match="12 numbers for each position, the tokenizer 30 tokens") as error:
        value("wer", part(np.zeros((2, 4, 12)), ["a", "b"]), decode=decode, vocabulary=30)
    assert "@OUTPUT" in error.value.hint


def test_vocabulary_from_files():
    vocab = {"<pad>": 0, "<unk>": 1, "|": 2, "H": 3, "I": 4}
    files = {"vocab.json": json.dumps(vocab).encode(), "tokenizer_config.json": b'{"pad_token": "<pad>"}'}
    decode, size, blank = decoder_of(files, ctc=True)
    assert (decode([3, 4, 2, 2, 1, 4, 0]), size, blank) == ("HI I", 5, 0)
    engine = Tokenizer(models.WordLevel({"<pad>": 0, "a": 1, "b": 2}, unk_token="<pad>"))
    words = {"tokenizer.json": engine.to_str().encode()}
    decode, size, blank = decoder_of(words, ctc=False)
    assert (decode([2, 1]), size, blank) == ("b a", 3, None)
    assert decoder_of(words, ctc=True).blank == 0
    assert decoder_of(words | files, ctc=True).vocabulary == 5  # characters are in vocab.json
    assert decoder_of(words | files, ctc=False).vocabulary == 3
    with pytest.raises(BundleError, match="neither"):
        decoder_of({}, ctc=False)
    for broken in (b"[]", b"{", b'{"a": "b"}'):
        with pytest.raises(BundleError, match="cannot be read"):
            decoder_of({"vocab.json": broken}, ctc=True)
    with pytest.raises(BundleError, match="no token '<pad>', the blank") as error:
        decoder_of({"vocab.json": b'{"a": 0}'}, ctc=True)
    assert "pad_token" in error.value.hint


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_metric.py").write_text(
        "def error(outputs, labels, reference_outputs):\n"
        "    return abs(outputs['x'] - reference_outputs['x']).max(axis=1) + labels\n"
        "error.higher_is_better = False\n"
        "def fails(outputs, labels, reference_outputs):\n"
        "    raise KeyError('y')\n"
        "def odd(outputs, labels, reference_outputs):\n"
        "    return labels[:-1]\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    yield
    sys.modules.pop("own_metric", None)


@pytest.mark.usefixtures("own")
def test_the_users_own():
    given = part(np.array([[1.0, 2], [3, 4]]), np.array([0, 1]), np.array([[1.0, 0], [3, 5]]))
    assert not metric_of("own_metric:error").HIGHER_IS_BETTER
    assert value("own_metric:error", given) == [2]
    for name, message in (("fails", "KeyError: 'y'"), ("odd", r"gave \(1,\) numbers for 2 samples")):
        with pytest.raises(UsageError, match=message) as error:
            value(f"own_metric:{name}", given)
        assert error.value.where == f"own_metric:{name}"
        assert error.value.hint
    alone = Part(given.outputs, None, "x", given.labels)
    with pytest.raises(UsageError, match="the metric failed: TypeError") as error:
        value("own_metric:error", alone)
    assert "--source" in error.value.hint
    for name, message in (("number", "no function"), ("none", "cannot be imported")):
        with pytest.raises(UsageError, match=message):
            metric_of(f"own_metric:{name}")


def test_names():
    with pytest.raises(UsageError, match="no metric 'accuracy'") as error:
        metric_of("accuracy")
    assert "top1" in error.value.hint
    with pytest.raises(UsageError, match="no metric '_scores'"):
        metric_of("_scores")
    assert parse("cosine@pooled") == ("cosine", None, "pooled")
    assert parse("top1") == ("top1", None, None)
    assert parse("f1:0.5@voice") == ("f1", 0.5, "voice")
    assert parse("agreement:-2") == ("agreement", -2, None)
    assert parse("mine:f1@voice") == ("mine:f1", None, "voice")
    for name, message in (
        ("f1:high", "is no number"),
        ("f1:nan", "is no number"),
        ("cosine:0.5", "takes no threshold"),
    ):
        with pytest.raises(UsageError, match=message) as error:
            parse(name)
        assert (error.value.where, bool(error.value.hint)) == (name, True)


def test_who_judges():
    """Those that know what is right; others say only how far both models are apart."""
    apart = {"agreement", "cosine", "retrieval", "snr_db"}
    assert {name for name in names() if not judges(name)} == apart
    assert judges("top1@scores")
    assert not judges("cosine@top1")
    assert judges("no_such_module:top")  # not imported to be asked
    assert judges("module:cosine@pooled")
    with pytest.raises(UsageError, match="no metric"):
        judges("nothing")


def test_metrics_that_count_know_what_is_wholly_wrong():
    truth = np.array([0, 1, 1, 2])
    for name in ("top1", "f1", "precision", "recall"):
        metric = metric_of(name)
        lost = metric.lost(metric.per_sample(part(SCORES, truth), Setting()))
        assert metric.total(lost, np.ones((1, 4))).tolist() == [0]
    counting = {name for name in names() if isinstance(metric_of(name), Counting)}
    assert set(names()) - counting == {"mae", "rmse", "r2", "cosine", "snr_db"}
    assert metric_of("agreement").lost(np.array([[3.0, 4]])).tolist() == [[0, 4]]
    assert metric_of("wer").lost(np.array([[1.0, 4], [9, 4]])).tolist() == [[4, 4], [4, 4]]
    assert metric_of("bleu").lost(np.arange(10.0)[None]).tolist() == [[0, 0, 0, 0, 4, 5, 6, 7, 8, 9]]
    assert metric_of("chrf").lost(np.ones((1, 18))).tolist() == [[1, 1, 0] * 6]
    assert metric_of("retrieval").lost(np.ones((2, 1))).tolist() == [[0], [0]]


@pytest.mark.usefixtures("own")
def test_flags_of_the_users_own_count():
    error = metric_of("own_metric:error")
    assert error.lost(np.array([[0.0], [1]])).tolist() == [[1], [1]]
    assert error.lost(np.array([[0.0], [0.5]])) is None
