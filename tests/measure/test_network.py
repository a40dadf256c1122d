"""Times of a network, and inputs made up for it."""

import numpy as np
import pytest

from edgec.errors import UsageError
from edgec.frontends.network import Port
from edgec.measure.network import made_up, measure_network

IMAGE = Port("image", "float32", ("batch", 3, 8, 8))
IDS = Port("input_ids", "int64", ("batch", "sequence"))
MASK = Port("attention_mask", "int64", ("batch", "sequence"))


class Session:
    def __init__(self):
        self.fed = []

    def run(self, feed):
        self.fed.append(feed)
        return {}


def test_runs_are_counted_after_the_warmup():
    session, feed = Session(), {"x": np.zeros((2, 3), np.float32)}
    found = measure_network(session, feed, runs=7, warmup=3)
    assert len(session.fed) == 10
    assert all(given is feed for given in session.fed)
    assert (found.runs, len(found.samples_ms), found.shapes) == (7, 7, {"x": (2, 3)})
    assert found.p50_ms == np.median(found.samples_ms)
    assert (found.p90_ms, found.p99_ms) == (None, None)
    assert found.runs_per_s == pytest.approx(7e3 / sum(found.samples_ms))


def test_nothing_to_run():
    for wrong in ({"runs": 0}, {"warmup": -1}):
        with pytest.raises(UsageError):
            measure_network(Session(), {}, **wrong)


def test_inputs_fit_the_ports():
    feed = made_up((IMAGE, IDS, MASK), {"sequence": 5})
    assert [(a.shape, a.dtype.name) for a in feed.values()] == [
        ((1, 3, 8, 8), "float32"), ((1, 5), "int64"), ((1, 5), "int64"),
    ]  # fmt: skip
    assert feed["image"].std() == pytest.approx(1, abs=0.2)
    assert (feed["input_ids"] == 0).all()
    assert (feed["attention_mask"] == 1).all()
    np.testing.assert_array_equal(made_up((IMAGE,), {})["image"], feed["image"])


def test_open_sizes():
    assert made_up((IDS,), {})["input_ids"].shape == (1, 128)
    assert made_up((IDS,), {}, default=16)["input_ids"].shape == (1, 16)
    assert made_up((IDS,), {"batch": 4, "sequence": 2})["input_ids"].shape == (4, 2)
    flag = made_up((Port("mask", "bool", ("batch", 2)),), {})["mask"]
    assert flag.dtype == bool
    assert flag.all()


@pytest.mark.parametrize(
    ("ports", "shapes"),
    [
        ([("x", ("N", 3))], [(1, 3)]),
        ([("x", ("N", "T")), ("y", ("N",))], [(1, 128), (1,)]),
        ([("x", ("T", "batch_size"))], [(128, 1)]),
        ([("x", ("batch", "T")), ("state", (2, "batch", 64))], [(1, 128), (2, 1, 64)]),
        ([("rate", ())], [()]),
    ],
)
def test_a_batch_is_one_sample_whatever_it_is_called(ports, shapes):
    feed = made_up(tuple(Port(name, "float32", shape) for name, shape in ports), {})
    assert [array.shape for array in feed.values()] == shapes
