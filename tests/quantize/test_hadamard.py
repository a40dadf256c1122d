"""Hadamard matrices and the rotations made of them."""

from functools import reduce

import numpy as np
import pytest

from edgec.quantize.hadamard import random_rotation

# Powers of two; both constructions of Paley, alone (12, 20, 28, 36, 60) and with Sylvester.
EXIST = [1, 2, 4, 8, 64, 128, 12, 20, 24, 28, 36, 40, 60, 192, 576, 896, 960]
# Odd, twice an odd number, and 4 * 23 = 92, whose matrix is none of Paley's over a prime.
MISSING = [3, 7, 2 * 9, 92]


def rotation(n, seed=0):
    return random_rotation(n, np.random.default_rng(seed))


def dense(turn):
    return turn.signs[:, None] * reduce(np.kron, turn.factors, np.ones((1, 1)))


@pytest.mark.parametrize("n", EXIST)
def test_entries_are_even_and_rows_orthonormal(n):
    matrix = dense(rotation(n))
    assert matrix.dtype == np.float64
    np.testing.assert_allclose(np.abs(matrix), n**-0.5, rtol=1e-12)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(n), atol=1e-12)


@pytest.mark.parametrize("n", [1152, 1536, 2304, 2560, 3072, 3584, 4096, 5120, 8192, 18432])
def test_hidden_sizes_of_models_turn_each_input_into_even_numbers(n):
    for index in (0, 1, n // 3, n - 1):
        unit = np.zeros(n)
        unit[index] = 1
        np.testing.assert_allclose(np.abs(rotation(n).turn(unit)), n**-0.5, rtol=1e-12)


@pytest.mark.parametrize("n", MISSING)
def test_where_there_is_none_the_odd_part_is_a_random_orthogonal_matrix(n):
    matrix = dense(rotation(n))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(n), atol=1e-12)
    assert np.abs(matrix).max() < 1
    assert (np.abs(dense(rotation(n, seed=1))) != np.abs(matrix)).any()


@pytest.mark.parametrize("n", [1, 12, 64, 92, 128, 576, 768])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_turning_is_multiplying_by_signs_and_the_matrix(n, dtype):
    turn = rotation(n)
    assert set(np.unique(turn.signs)) <= {-1.0, 1.0}
    rows = np.random.default_rng(1).standard_normal((2, 3, n)).astype(dtype)
    turned = turn.turn(rows)
    assert turned.dtype == dtype
    np.testing.assert_allclose(turned, rows @ dense(turn), atol=1e-5 if dtype == np.float32 else 1e-12)
    np.testing.assert_allclose(np.square(turned).sum(-1), np.square(rows).sum(-1), rtol=1e-5)


@pytest.mark.parametrize("n", [64, 92, 576])
def test_a_generator_decides_everything(n):
    rows = np.random.default_rng(1).standard_normal((4, n))
    assert (rotation(n).turn(rows) == rotation(n).turn(rows)).all()
    assert (rotation(n, seed=1).turn(rows) != rotation(n).turn(rows)).any()


@pytest.mark.parametrize("n", [64, 92, 576, 2 * 49])
def test_outliers_are_spread(n):
    matrix = np.random.default_rng(1).standard_normal((128, n))
    matrix[:, 5] *= 40
    matrix[7, 11] = 300

    def peak(weights):
        return np.abs(weights).max() / np.sqrt(np.square(weights).mean())

    assert peak(matrix) > 20
    assert peak(rotation(n).turn(matrix)) < peak(matrix) / 2
