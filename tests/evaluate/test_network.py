"""A network against its float model, on samples."""

import msgspec
import numpy as np
import pytest

from edgec.calibrate.samples import load_samples
from edgec.errors import CheckpointError, RegressionError, UsageError
from edgec.evaluate.fidelity import Fidelity, broken_bounds, loss
from edgec.evaluate.metrics import Setting
from edgec.evaluate.network import NetworkQuality, check_metrics, compare, measure
from edgec.frontends.network import Port

PORTS = (Port("x", "float32", ("batch", 3)),)
OUTPUTS = (Port("logits", "float32", ("batch", 4)), Port("state", "float32", (2, "batch", 5)))
CLASSES = Setting(classes=("ant", "bee", "cat", "dog"))


@pytest.fixture
def samples(tmp_path):
    def make(count=11, ports=PORTS, batch=4, **arrays):
        rng = np.random.default_rng(0)
        np.savez(tmp_path / "a.npz", **({"x": rng.standard_normal((count, 3), np.float32)} | arrays))
        return load_samples(str(tmp_path / "a.npz"), ports, samples=99, batch=batch)

    return make


def model(x, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    logits = x @ np.random.default_rng(9).standard_normal((3, 4)).astype(np.float32)
    state = np.stack([np.pad(x, ((0, 0), (0, 2))), np.pad(-x, ((0, 0), (2, 0)))])
    made = {"logits": logits, "state": state}
    return {name: (v + noise * rng.standard_normal(v.shape)).astype(np.float32) for name, v in made.items()}


def run(samples, noise=0.0):
    return [model(feed["x"], noise, seed) for seed, (feed, _) in enumerate(samples.batches())]


def joined(made, name, axis):
    return np.concatenate([part[name] for part in made], axis=axis)


def test_everything_is_that_of_all_samples_at_once(samples):
    label = np.random.default_rng(3).integers(0, 4, 40)
    data = samples(40, label=label)
    reference, test = run(data), run(data, 0.7)
    found = compare(
        iter(reference), iter(test), data, ["top1", "agreement", "retrieval@logits", "snr_db@state"],
        ports=OUTPUTS, setting=Setting(classes=CLASSES.classes, neighbours=5),
    )  # fmt: skip
    assert found.samples == 40
    (a, b), (c, d) = [[joined(made, n, at) for made in (reference, test)] for n, at in (("logits", 0), ("state", 1))]
    top1, agreement, retrieval, snr = found.metrics
    right = [(scores.argmax(axis=1) == label) for scores in (a, b)]
    assert (top1.name, top1.output, top1.samples) == ("top1", "logits", 40)
    assert [top1.reference, top1.test] == pytest.approx([r.mean() for r in right])
    assert top1.difference == pytest.approx(right[1].mean() - right[0].mean())
    assert top1.low <= top1.difference <= top1.high
    assert 0 < top1.p_value <= 1
    same = (a.argmax(axis=1) == b.argmax(axis=1)).mean()
    assert same < 1
    assert (agreement.reference, agreement.test, agreement.p_value) == (1, same, None)
    assert agreement.low < agreement.difference == same - 1 < agreement.high <= 0
    assert 0 < retrieval.test < retrieval.reference == 1
    expected_db = 10 * np.log10((c.astype(float) ** 2).sum() / ((c.astype(float) - d) ** 2).sum())
    assert snr.test == pytest.approx(expected_db)
    assert (snr.reference, snr.difference, snr.low) == (None, None, None)  # the float model has no noise
    logits, state = found.outputs
    assert (logits.output, logits.agreement) == ("logits", same)
    assert state.agreement is None
    assert state.snr_db == pytest.approx(expected_db)
    assert state.max_abs_error == pytest.approx(np.abs(c.astype(float) - d).max())
    rows = [np.moveaxis(v, 1, 0).reshape(40, -1) for v in (c, d)]
    cosine = (rows[0] * rows[1]).sum(1) / np.linalg.norm(rows[0], axis=1) / np.linalg.norm(rows[1], axis=1)
    assert state.cosine == pytest.approx(cosine.mean())
    distance = np.linalg.norm(a - b, axis=1) / (np.linalg.norm(a, axis=1) + np.linalg.norm(b, axis=1))
    order = sorted(range(40), key=lambda i: (a[i].argmax() == b[i].argmax(), -distance[i]))[:10]
    assert [each.index for each in found.changed] == order
    first = found.changed[0]
    assert first.place == f"a.npz[{order[0]}]"
    assert first.reference == CLASSES.classes[a[order[0]].argmax()]
    assert first.test == CLASSES.classes[b[order[0]].argmax()] != first.reference
    assert first.distance == pytest.approx(distance[order[0]], rel=1e-5)
    assert msgspec.json.decode(msgspec.json.encode(found), type=NetworkQuality) == found


def test_batches_change_nothing(samples):
    def quality(batch):
        data = samples(label=np.arange(11) % 4, batch=batch)
        noise = [{n: v * np.float32(1.1) + 0.1 for n, v in made.items()} for made in run(data)]
        return compare(run(data), noise, data, ["top1", "f1", "cosine"], ports=OUTPUTS, setting=CLASSES)

    one, many = msgspec.to_builtins(quality(1)), msgspec.to_builtins(quality(8))

    def numbers(value):
        match value:
            case dict():
                return [n for part in value.values() for n in numbers(part)]
            case list() | tuple():
                return [n for part in value for n in numbers(part)]
            case _:
                return [value] if isinstance(value, float) else []

    assert len(numbers(one)) > 20
    assert numbers(one) == pytest.approx(numbers(many), rel=1e-6)


def test_models_that_are_the_same(samples):
    data = samples()
    found = compare(run(data), run(data), data, [], ports=OUTPUTS)
    assert (found.metrics, found.changed) == ((), ())
    assert [(o.cosine, o.snr_db, o.max_abs_error) for o in found.outputs] == [(pytest.approx(1), None, 0)] * 2


def test_a_single_sample_has_no_interval(samples):
    data = samples(1, label=np.array([2]))
    found = compare(run(data), run(data, 0.1), data, ["top1", "f1"], ports=OUTPUTS, setting=CLASSES)
    assert [(m.samples, m.low, m.high) for m in found.metrics] == [(1, None, None)] * 2
    assert found.metrics[0].p_value == 1


def test_one_class_alone(samples):
    data = samples(label=np.zeros(11, int))
    found = compare(run(data), run(data), data, ["precision", "recall"], ports=OUTPUTS)
    assert all(0 <= m.test == m.reference <= 1 for m in found.metrics)


@pytest.mark.parametrize(
    ("whose", "number", "error", "message"),
    [
        (0, np.nan, CheckpointError, "float model computes NaN for 1 of 4 samples, first a.npz\\[5\\]"),
        (
            1,
            np.nan,
            RegressionError,
            "infinite numbers elsewhere than the float model, for 1 of 4 samples, first a.npz\\[5\\]",
        ),
        (1, np.inf, RegressionError, "first a.npz\\[5\\]"),
        (0, np.inf, RegressionError, "first a.npz\\[5\\]"),
    ],
)
def test_what_is_no_number_is_a_failure(samples, whose, number, error, message):
    data = samples()
    both = run(data), run(data)
    both[whose][1]["state"][1, 1, 3] = number
    with pytest.raises(error, match=message) as raised:
        compare(*both, data, ["cosine"], ports=OUTPUTS)
    assert raised.value.where == "state"


def test_infinite_numbers_that_both_have_are_masks(samples):
    data = samples()
    both = run(data), run(data, 0.01)
    for made in both:
        made[0]["logits"][0, 0] = -np.inf
    found = compare(*both, data, ["agreement", "snr_db"], ports=OUTPUTS)
    assert found.outputs[0].snr_db > 30
    assert found.metrics[1].test == found.outputs[0].snr_db


def test_padding_does_not_count(tmp_path):
    ports = (Port("input_ids", "int64", ("batch", "tokens")), Port("attention_mask", "int64", ("batch", "tokens")))
    mask = np.array([[1, 1, 0], [1, 1, 1]])
    np.savez(tmp_path / "a.npz", input_ids=np.ones((2, 3), int), attention_mask=mask)
    data = load_samples(str(tmp_path / "a.npz"), ports, samples=2)
    reference = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    test = reference.copy()
    test[0, 2] += 9
    port = Port("hidden", "float32", ("batch", "tokens", 4))
    found = compare([{"hidden": reference}], [{"hidden": test}], data, ["cosine"], ports=[port])
    assert (found.outputs[0].max_abs_error, found.outputs[0].snr_db, found.changed) == (0, None, ())
    test[1, 2] += 9
    assert compare([{"hidden": reference}], [{"hidden": test}], data, [], ports=[port]).outputs[0].max_abs_error > 8


def test_networks_without_an_axis_of_samples(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(12, dtype=np.float32).reshape(4, 3), label=np.array([2, 2, 2, 0]))
    data = load_samples(str(tmp_path / "a.npz"), [Port("x", "float32", (3,))], samples=9)
    made = [{"scores": feed["x"]} for feed, _ in data.batches()]
    found = compare(made, made, data, ["top1"], ports=[Port("scores", "float32", (3,))])
    assert (found.metrics[0].test, found.outputs[0].agreement) == (0.75, 1)


def test_what_looks_like_scores(samples):
    data = samples(4)

    def agreement(name, shape, setting=CLASSES):
        made = [{name: np.random.default_rng(0).standard_normal(shape)}]
        return (
            compare(made, made, data, [], ports=[Port(name, "float64", ("n",))], setting=setting).outputs[0].agreement
        )

    assert agreement("out", (4, 4)) == agreement("out", (4, 4, 1, 1)) == agreement("logits", (4, 9, 7)) == 1
    assert agreement("out", (4, 9)) is agreement("probs", (4, 9, 1)) is agreement("probs", (4, 1)) is None
    assert agreement("probs", (4, 1), Setting(threshold=0.5)) == 1


def test_texts_are_named_in_what_changed(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 3), np.float32))
    data = load_samples(str(tmp_path / "a.npz"), PORTS, samples=9)
    reference = np.eye(4, dtype=np.float32)[np.array([[1, 0, 2], [3, 3, 0]])]
    test = np.eye(4, dtype=np.float32)[np.array([[1, 0, 2], [3, 2, 0]])]
    setting = Setting(decode=lambda ids: "-abc"[ids[0]] if len(ids) == 1 else "".join("-abc"[i] for i in ids), blank=0)
    port = Port("out", "float32", ("batch", 3, 4))
    found = compare([{"out": reference}], [{"out": test}], data, [], ports=[port], setting=setting)
    assert [(c.index, c.reference, c.test) for c in found.changed] == [(1, "c", "cb")]


def test_what_is_refused(samples):
    data = samples()
    with pytest.raises(UsageError, match="'top1' needs labels"):
        compare(run(data), run(data), data, ["top1"], ports=OUTPUTS)
    with pytest.raises(UsageError, match="no output 'pooled': it has logits, state"):
        compare(run(data), run(data), data, ["cosine@pooled"], ports=OUTPUTS)
    with pytest.raises(UsageError, match=r"shape \(4, 3\), that of the float model \(4, 4\)"):
        cut = [made | {"logits": made["logits"][:, :3]} for made in run(data)]
        compare(run(data), cut, data, [], ports=OUTPUTS)
    with pytest.raises(UsageError, match="for 4 samples"):
        flat = [{"logits": made["logits"].reshape(-1)} for made in run(data)]
        compare(flat, flat, data, [], ports=OUTPUTS[:1])


def test_without_the_float_model(samples):
    data = samples(20, label=np.random.default_rng(3).integers(0, 4, 20))
    made = run(data)
    both = compare(made, made, data, ["top1", "f1"], ports=OUTPUTS)
    assert measure(made, data, ["top1", "f1"], ports=OUTPUTS) == {each.name: each.test for each in both.metrics}
    for name in ("cosine", "agreement", "retrieval@state", "snr_db"):
        with pytest.raises(UsageError, match="compares with the float model, which is not given") as error:
            measure(made, data, ["top1", name], ports=OUTPUTS)
        assert "--source" in error.value.hint
    odd = [{name: array * np.float32(np.nan) for name, array in each.items()} for each in made]
    with pytest.raises(RegressionError, match="NaN"):
        measure(odd, data, ["top1"], ports=OUTPUTS)


def test_a_threshold_is_that_of_its_output(samples):
    port = (Port("p", "float32", ("batch", 1)), Port("q", "float32", ("batch", 1)))
    data = samples(4, label=np.array([0, 1, 1, 0]))
    made = [{"p": np.array([[0.2], [0.7], [0.4], [0.6]], np.float32), "q": np.ones((4, 1), np.float32)}]
    found = compare(made, made, data, ["top1:0.5", "top1:0.3@p"], ports=port)
    assert [(metric.name, metric.test) for metric in found.metrics] == [("top1:0.5", 0.5), ("top1:0.3@p", 0.75)]
    assert [output.agreement for output in found.outputs] == [1, None]


class TestBeforeTheWork:
    """What fails after the work would fail before it."""

    @pytest.fixture
    def check(self):
        def check(data, *metrics, setting=CLASSES, ports=OUTPUTS):
            runs = []

            def count(feeds):
                for feed in feeds:
                    runs.append(feed)
                    yield model(feed["x"])

            check_metrics(count, data, metrics, ports=ports, setting=setting)
            return len(runs)

        return check

    def test_one_run_is_enough(self, samples, check):
        data = samples(40, label=np.arange(40) % 4)
        assert check(data, "top1", "f1", "retrieval", "cosine@state", "snr_db") == 1
        assert check(data) == 0

    @pytest.mark.parametrize(
        ("metric", "message"),
        [
            ("bogus", "no metric 'bogus'"), ("cosine@none", "no output 'none'"), ("wer", "texts as labels"),
            ("mae", "do not fit"), ("top1:0.5", "a threshold is for a single score"), ("top1@state", "do not fit"),
            ("retrieval", "at least 12 samples, not 11"), ("none:f", "cannot be imported"),
        ],
    )  # fmt: skip
    def test_what_does_not_fit(self, samples, check, metric, message):
        with pytest.raises(UsageError, match=message) as error:
            check(samples(11, label=np.arange(11) % 4), metric)
        assert metric in str(error.value)
        assert error.value.hint

    @pytest.mark.parametrize("metric", ["top1", "recall"])
    def test_the_last_label_is_looked_at(self, samples, check, metric):
        label = np.zeros(11, int)
        label[-1] = 100
        with pytest.raises(UsageError, match="label 100 is outside of the model's 4 classes") as error:
            check(samples(11, label=label), metric)
        assert error.value.where == "a.npz[10]"

    def test_no_labels(self, samples, check):
        with pytest.raises(UsageError, match="needs labels"):
            check(samples(11), "top1")


def test_infinite_numbers_are_no_distance(samples):
    data = samples()
    masked, lost = run(data), run(data)
    for made in masked:
        made["logits"][:, 0] = -np.inf
    assert compare(masked, masked, data, [], ports=OUTPUTS).outputs[0].cosine == 1
    lost[1]["logits"][2] = np.inf
    with pytest.raises(
        CheckpointError, match=r"nothing but infinite numbers for 1 of 4 samples, first a.npz\[6\]"
    ) as error:
        compare(lost, lost, data, [], ports=OUTPUTS)
    assert (error.value.where, bool(error.value.hint)) == ("logits", True)


class TestBounds:
    def fidelity(self, cosine=1.0, snr_db=30.0):
        return Fidelity("y", cosine, snr_db, 0.1, None)

    def test_noise_is_seen_where_a_cosine_sees_nothing(self, samples):
        """A single positive number, of which half is lost."""
        data = samples(4)
        reference, test = ([{"p": np.full((4, 1), size, np.float32)}] for size in (1, 0.5))
        found = compare(reference, test, data, [], ports=[Port("p", "float32", ("batch", 1))]).outputs
        assert found[0].cosine == 1
        assert broken_bounds(found, 0.999, 6.0) == []
        (sentence,) = broken_bounds(found, 0.999, 10.0)
        assert sentence == "the SNR of p against the float model's is 6.0 dB (allowed at least 10 dB)"
        assert loss(found) == pytest.approx(0.125)

    def test_each_bound_has_a_sentence(self):
        assert len(broken_bounds([self.fidelity(0.5, 1.0), self.fidelity()], 0.9, 10.0)) == 2
        assert broken_bounds([self.fidelity(1.0, None)], 1.0, 300.0) == []
        assert len(broken_bounds([self.fidelity(float("nan"), float("nan"))], 0.0, 0.0)) == 2

    def test_a_cosine_is_never_said_to_be_what_is_allowed(self):
        assert "is 1 - 2.0e-06 (allowed at least 1)" in broken_bounds([self.fidelity(1 - 2e-6)], 1.0, 0.0)[0]
        assert "is 0.9300 (allowed at least 0.98)" in broken_bounds([self.fidelity(0.93)], 0.98, 0.0)[0]

    def test_the_farthest_output_counts(self):
        assert loss([self.fidelity(0.9), self.fidelity(1.0, 3.0), self.fidelity()]) == pytest.approx(0.25, rel=0.01)
        assert loss([self.fidelity(1.0, None)]) == 0
        assert loss([]) == float("inf")
