"""Samples for other models: named arrays, and pictures."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.calibrate.arrays import load_arrays
from edgec.calibrate.images import Pictures
from edgec.errors import MissingRuntimeError, UsageError


def joined(batches):
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 40), samples=st.integers(1, 50), batch=st.integers(1, 9), seed=st.integers(0, 2**64 - 1))
def test_batches_hold_a_sample_in_order(tmp_path_factory, count, samples, batch, seed):
    path = tmp_path_factory.getbasetemp() / "inputs.npz"
    x, mask = np.random.default_rng(0).standard_normal((count, 2, 3), np.float32), np.arange(count, dtype=">i2")
    np.savez(path, x=x, mask=mask)
    batches = list(load_arrays(path, samples=samples, batch=batch, seed=seed))
    assert [len(part["mask"]) for part in batches[:-1]] == [batch] * (len(batches) - 1)
    found = joined(batches)
    taken = found["mask"].tolist()
    assert taken == sorted(set(taken))
    assert len(taken) == min(count, samples)
    np.testing.assert_array_equal(found["x"], x[taken])
    assert found["x"].dtype == np.float32


def test_the_seed_decides_the_sample(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(1000))
    zero, again, one = (
        joined(list(load_arrays(tmp_path / "a.npz", samples=10, seed=seed)))["x"].tolist() for seed in (0, 0, 1)
    )
    assert zero == again != one
    assert zero == [99, 297, 350, 403, 448, 601, 670, 704, 985, 989]


def test_memory_is_bounded(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((4000, 1000)))  # 32 MB
    tracemalloc.start()
    total = sum(len(batch["x"]) for batch in load_arrays(tmp_path / "a.npz", samples=2000, batch=10))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == 2000
    assert peak < 2e6


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "same number of samples"),
        ({"x": np.zeros((2, 3)), "y": np.zeros(3)}, r"not none: x \(2, 3\), y \(3,\)"),
        ({"x": np.zeros((0, 3))}, "same number of samples"),
        ({"x": np.array(["a"])}, "not numbers"),
        ({"x": np.array([None])}, "not numbers"),
    ],
)
def test_archives_that_hold_something_else(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UsageError, match=message) as error:
        list(load_arrays(tmp_path / "a.npz", samples=9))
    assert error.value.where.startswith(str(tmp_path / "a.npz"))


def test_what_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        list(load_arrays(tmp_path / "a.npz", samples=9))
    with pytest.raises(UsageError, match="needs the size"):
        list(load_arrays(tmp_path, samples=9))
    with pytest.raises(UsageError, match="no pictures"):
        list(load_arrays(tmp_path, samples=9, pictures=Pictures(input="x", height=4, width=4)))


def test_pictures_need_pillow(tmp_path, monkeypatch):
    monkeypatch.setattr("edgec.errors.find_spec", lambda name: None)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(MissingRuntimeError, match="PIL") as error:
        list(load_arrays(tmp_path, samples=9, pictures=Pictures(input="x", height=4, width=4)))
    assert error.value.hint == 'pip install "edgec[vision]"'
