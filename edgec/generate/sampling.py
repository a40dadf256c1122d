"""Choose the next token from logits."""

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgec.errors import UsageError


class Sampling(msgspec.Struct, frozen=True):
    """How to choose: the filters apply in the order temperature, top-k, top-p.

    Args:
        temperature: divides the logits; 0 always takes the most likely token.
        top_k: how many of the most likely tokens to keep; None keeps all.
        top_p: keep the smallest set of most likely tokens whose probabilities reach this sum.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"the temperature is {self.temperature}; it must be 0 or more, and finite")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top-k is {self.top_k}; it must be 1 or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p is {self.top_p}; it must be more than 0 and at most 1")


GREEDY = Sampling()
"""Always take the most likely token."""


def choose(logits: NDArray[np.float32], sampling: Sampling, rng: np.random.Generator) -> int:
    """Return a token for logits (vocab,)."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    tokens, probabilities = distribution(logits, sampling)
    return int(rng.choice(tokens, p=probabilities))


def distribution(logits: NDArray[np.float32], sampling: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the tokens that may be chosen, most likely first, and their probabilities; the temperature is not 0.

    Of equally likely tokens the one with the smaller id comes first.
    """
    order = np.argsort(-logits, kind="stable")[: sampling.top_k]
    scaled = (logits[order].astype(np.float64) - float(logits[order[0]])) / sampling.temperature
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    before = np.cumsum(probabilities) - probabilities
    kept = before < sampling.top_p
    return order[kept], probabilities[kept] / probabilities[kept].sum()
