"""Integers of two artifacts, as their backends give them back."""

import numpy as np
import pytest

from edgec.evaluate.integers import compare_integers
from edgec.graph.weights import Codes
from edgec.quantize.scheme import Scheme

RNG = np.random.default_rng(0)
SHAPE = (6, 40)


def weight(group, *, symmetric=True):
    groups = 1 if group is None else -(-SHAPE[1] // group)
    codes = RNG.integers(-8, 8, SHAPE).astype(np.int8) if symmetric else RNG.integers(0, 16, SHAPE).astype(np.uint8)
    zeros = None if symmetric else RNG.integers(0, 16, (SHAPE[0], groups)).astype(np.uint8)
    scales = RNG.random((SHAPE[0], groups)).astype(np.float32)
    return Codes(codes, scales, zeros, Scheme("int4", group, symmetric))


def padded(codes, group):
    """Return what a backend makes of it whose kernel wants whole blocks of `group`."""
    blocks = -(-SHAPE[1] // group)
    columns = blocks * group - SHAPE[1]

    def repeat(array):
        return None if array is None else np.repeat(array, blocks // array.shape[1], axis=1)

    return Codes(
        np.pad(codes.codes, ((0, 0), (0, columns))),
        repeat(codes.scales),
        repeat(codes.zero_points),
        Scheme("int4", group, codes.scheme.symmetric),
    )


def different(a, b):
    return compare_integers([("w", a)], [("w", b)]).different


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [None, 16])
def test_padding_and_repeated_scales_change_nothing(group, symmetric):
    codes = weight(group, symmetric=symmetric)
    assert different(codes, padded(codes, 16)) == ()
    assert different(padded(codes, 16), codes) == ()


@pytest.mark.parametrize("field", ["codes", "scales", "zero_points"])
@pytest.mark.parametrize("group", [None, 16])
def test_every_number_counts(group, field):
    codes = weight(group, symmetric=False)
    other = padded(codes, 16)
    array = getattr(other, field)
    array[5, -1 if field != "codes" else SHAPE[1] - 1] += array.dtype.type(1)
    assert different(codes, other) == ("w",)


def test_signed_and_unsigned_codes_differ():
    codes = Codes(np.ones(SHAPE, np.int8), np.ones((6, 1), np.float32), None, Scheme("int4", None))
    unsigned = Codes(codes.codes.view(np.uint8), codes.scales, None, Scheme("int4", None))
    assert different(codes, unsigned) == ("w",)


def test_names():
    a, b = weight(16), weight(16)
    result = compare_integers([("a", a), ("b", b)], [("b", b), ("c", a)])
    assert result.weights == 3
    assert result.different == ("a", "c")


def test_copies_in_one_artifact_must_agree():
    a, b = weight(16), weight(16)
    assert compare_integers([("w", a)], [("w", a), ("w", padded(a, 16))]).different == ()
    assert compare_integers([("w", a)], [("w", a), ("w", b)]).different == ("w",)
    assert compare_integers([("w", a), ("w", b)], [("w", a), ("w", b)]).different == ("w",)


def test_a_weight_of_zeros():
    codes = Codes(np.zeros(SHAPE, np.int8), np.ones((6, 1), np.float32), None, Scheme("int4", None))
    assert different(codes, padded(codes, 16)) == ()
