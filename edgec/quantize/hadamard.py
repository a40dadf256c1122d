"""Hadamard matrices, and random rotations that are made of them.

A Hadamard matrix of n rows is the Kronecker product of small ones: Sylvester's of 2^k rows, and one of Paley's for the
odd part of n with as few twos as it needs. Multiplying by one factor after the other takes n * (sum of their sizes)
steps instead of n^2.

Where n has no such matrix (it is odd, or twice an odd number, or Paley's constructions miss its odd part), a random
orthogonal matrix takes the place of the odd part's. Its rows are less even, but they spread an outlier too.

Source: Sylvester 1867; Paley 1933, On orthogonal matrices (constructions I and II, over primes); random signs with a
Hadamard matrix: Tseng et al. 2024, QuIP# (arXiv:2402.04396), section 3.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
T = TypeVar("T", np.float32, np.float64)

# The largest factor of Sylvester's kind: small enough to save work, large enough for a fast matmul.
_LARGEST_POWER = 64


@dataclass(frozen=True)
class Rotation:
    """The orthogonal matrix Q = diag(signs) H, H being the Kronecker product of `factors`.

    Args:
        signs: (n,) float64, each 1 or -1.
        factors: orthonormal matrices float64.
    """

    signs: Matrix
    factors: tuple[Matrix, ...]

    def turn(self, rows: NDArray[T]) -> NDArray[T]:
        """Return rows @ Q for `rows` (..., n), in their type."""
        shape = rows.shape
        turned = (rows * self.signs.astype(rows.dtype)).reshape(-1, shape[-1])
        count = len(turned)
        for factor in self.factors:
            # The first axis of the factors becomes their last: after all of them the order is the old one.
            turned = turned.reshape(count, len(factor), -1).swapaxes(1, 2) @ factor.astype(rows.dtype)
        return turned.reshape(shape)


def random_rotation(n: int, generator: np.random.Generator) -> Rotation:
    """Return a rotation of n numbers, drawn from `generator`."""
    signs = generator.choice((-1.0, 1.0), n)
    return Rotation(signs, _factors(n, generator))


def _factors(n: int, generator: np.random.Generator) -> tuple[Matrix, ...]:
    """Return orthonormal matrices whose Kronecker product has n rows."""
    odd = n // (n & -n)
    factors = [] if odd == 1 else [_core(odd, n, generator)]
    rest = n // math.prod(map(len, factors))
    while rest > 1:
        size = min(rest, _LARGEST_POWER)
        factors.append(_sylvester(size) / math.sqrt(size))
        rest //= size
    return tuple(factors)


def _core(odd: int, n: int, generator: np.random.Generator) -> Matrix:
    """Return Paley's matrix for `odd` with the fewest twos that n has, or a random one of `odd` rows."""
    size = 4 * odd
    while n % size == 0:
        if (found := _paley(size)) is not None:
            return found / math.sqrt(size)
        size *= 2
    return _orthogonal(odd, generator)


def _sylvester(n: int) -> Matrix:
    return np.ones((1, 1)) if n == 1 else np.asarray(np.kron([[1.0, 1.0], [1.0, -1.0]], _sylvester(n // 2)))


def _paley(n: int) -> Matrix | None:
    """Return a matrix of n rows of ones and minus ones whose rows are orthogonal, or None."""
    if (n - 1) % 4 == 3 and _is_prime(n - 1):
        core = _bordered_residues(n - 1)
        core[1:, 0] = -1
        return np.eye(n) + core
    if (n // 2 - 1) % 4 == 1 and _is_prime(n // 2 - 1):
        core = _bordered_residues(n // 2 - 1)
        diagonal = np.kron(np.eye(n // 2), [[1.0, -1.0], [-1.0, -1.0]])
        return np.asarray(np.kron(core, [[1.0, 1.0], [1.0, -1.0]]) + diagonal)
    return None


def _bordered_residues(q: int) -> Matrix:
    """Return (q + 1, q + 1): whether i - j is a square modulo q (1, -1, or 0 where i = j), bordered by ones."""
    character = np.full(q, -1.0)
    character[np.arange(q) ** 2 % q] = 1
    character[0] = 0
    index = np.arange(q)
    bordered = np.ones((q + 1, q + 1))
    bordered[0, 0] = 0
    bordered[1:, 1:] = character[(index[:, None] - index) % q]
    return bordered


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % divisor for divisor in range(2, math.isqrt(n) + 1))


def _orthogonal(n: int, generator: np.random.Generator) -> Matrix:
    """Return a random orthogonal matrix, evenly distributed: the signs of QR's diagonal are fixed."""
    q, r = np.linalg.qr(generator.standard_normal((n, n)))
    return np.asarray(q * np.where(np.diag(r) < 0, -1.0, 1.0))
