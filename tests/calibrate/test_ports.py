"""Samples as networks take them."""

import numpy as np
import pytest

from edgec.calibrate.ports import Shape, axis_of, fit, is_state
from edgec.errors import UsageError
from edgec.frontends.network import Port

F, INT = np.dtype(np.float32), np.dtype(np.int64)
VAD = (
    Port("input", "float32", ("batch", "sequence")),
    Port("state", "float32", (2, "batch", 4)),
    Port("sr", "int64", ()),
)


def fitted(ports, shapes, batch=3):
    return fit(ports, shapes, batch=batch, where="a.npz")


def test_a_network_with_state_and_a_scalar():
    found = fitted(VAD, {"input": Shape((6,), F), "sr": Shape((), INT)})
    assert (found.axis, found.batch, found.must_be_full) == ("batch", 3, False)
    feed = found.feed({"input": np.ones((2, 6), np.float32), "sr": np.array([16000, 16000])}, "a")
    assert {name: (x.shape, x.dtype) for name, x in feed.items()} == {
        "input": ((2, 6), F),
        "state": ((2, 2, 4), F),
        "sr": ((), INT),
    }
    assert not feed["state"].any()
    assert feed["sr"] == 16000
    assert found.remarks == ("the samples have no 'state': this state starts as zeros",)
    with pytest.raises(UsageError, match="they differ"):
        found.feed({"input": np.ones((2, 6), np.float32), "sr": np.array([16000, 8000])}, "a")


def test_samples_come_first_wherever_the_network_has_its_axis():
    found = fitted(VAD, {"state": Shape((2, 4), F), "input": Shape((6,), F), "sr": Shape((), INT)})
    state = np.arange(24, dtype=np.float32).reshape(3, 2, 4)
    feed = found.feed({"input": np.ones((3, 6), np.float32), "state": state, "sr": np.ones(3, int)}, "a")
    np.testing.assert_array_equal(feed["state"], state.transpose(1, 0, 2))


@pytest.mark.parametrize(
    ("shape", "sizes", "axis", "batch"),
    [
        (("n", 3), (3,), "n", 3),
        ((5, 3), (3,), 5, 5),
        ((1, 3), (3,), 1, 1),
        ((3,), (3,), None, 1),
        (("time", 3), (7, 3), None, 1),
    ],
)
def test_sizes_of_runs(shape, sizes, axis, batch):
    found = fitted([Port("x", "float32", shape)], {"x": Shape(sizes, F)})
    assert (found.axis, found.batch) == (axis, batch)
    expected = [{"n": batch, "time": 7}.get(size, size) for size in shape]
    assert list(found.feed({"x": np.ones((batch, *sizes), np.float32)}, "a")["x"].shape) == expected


def test_types_that_hold_the_same_numbers():
    ports = [Port("x", "float16", ("n", 2)), Port("ids", "int32", ("n",)), Port("on", "bool", ("n",))]
    shapes = {"x": Shape((2,), np.dtype(">f8")), "ids": Shape((), INT), "on": Shape((), np.dtype(bool))}
    found = fitted(ports, shapes)
    rows = {"x": np.ones((1, 2), ">f8"), "ids": np.array([7]), "on": np.array([True])}
    assert [x.dtype for x in found.feed(rows, "a").values()] == [np.float16, np.int32, bool]
    for name, value, message in (("ids", 2**40, "does not fit int32"), ("x", 1e9, "float16"), ("x", np.nan, "NaN")):
        odd = {**rows, name: np.full_like(rows[name], value)}
        with pytest.raises(UsageError, match=message) as error:
            found.feed(odd, "a")
        assert error.value.where == f"a: {name}"
    masks = {**rows, "x": np.full((1, 2), -np.inf)}
    assert (found.feed(masks, "a")["x"] == -np.inf).all()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"x": Shape((3,), F), "y": Shape((3,), F)}, r"no input 'y': it takes x float32 \(n, 3\), ids int64 \(n, t\)"),
        ({"x": Shape((3,), F)}, "the samples have no 'ids'"),
        ({}, "the samples have no 'x'"),
        ({"x": Shape((4,), F), "ids": Shape((5,), INT)}, r"'x' takes \(n, 3\), each sample has \(4\)"),
        ({"x": Shape((1, 3), F), "ids": Shape((5,), INT)}, r"each sample has \(1, 3\)"),
        ({"x": Shape((None,), F), "ids": Shape((5,), INT)}, r"each sample has \(any\)"),
        ({"x": Shape((3,), INT), "ids": Shape((5,), INT)}, "'x' takes float32, the samples are int64"),
        ({"x": Shape((3,), F), "ids": Shape((5,), F)}, "'ids' takes int64, the samples are float32"),
    ],
)
def test_what_does_not_fit(shapes, message):
    ports = [Port("x", "float32", ("n", 3)), Port("ids", "int64", ("n", "t"))]
    with pytest.raises(UsageError, match=message) as error:
        fitted(ports, shapes)
    assert error.value.where == "a.npz"


def test_states_whose_size_is_open():
    ports = [Port("x", "float32", ("n", 3)), Port("h0", "float32", ("layers", "n", 4))]
    with pytest.raises(UsageError, match=r"no 'h0', whose size \(layers, n, 4\) is open"):
        fitted(ports, {"x": Shape((3,), F)})


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        *((name, "float32", True) for name in ("state", "h", "c0", "lstm.hidden", "encoder_state", "initialState")),
        *((name, "float32", False) for name in ("input", "statement", "hidden2", "x", "chart")),
        ("state", "int64", False),
    ],
)
def test_names_of_states(name, dtype, expected):
    assert is_state(Port(name, dtype, (1,))) == expected


@pytest.mark.parametrize(
    ("shape", "axis", "expected"),
    [
        (("n", 3), "n", 0),
        ((2, "n", 3), "n", 1),
        ((2, "unk__1", 3), "n", 1),
        (("s0", "s1"), "n", 0),
        ((), "n", None),
        ((3,), "n", None),
        ((2, 1, 3), 1, 1),
        (("n", 3), 4, 0),
        (("t", 3), None, None),
    ],
)
def test_where_samples_are(shape, axis, expected):
    assert axis_of(Port("x", "float32", shape), axis) == expected
