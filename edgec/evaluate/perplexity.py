"""Perplexity of a running decoder on windows of tokens."""

from collections.abc import Callable

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgec.backends.session import Session
from edgec.errors import BundleError
from edgec.evaluate.statistics import exp_of_mean

# Positions whose logits are in memory at once.
_AT_ONCE = 128


class Perplexity(msgspec.Struct, frozen=True):
    """exp of the mean negative log-likelihood in nats; the standard error treats tokens as independent."""

    perplexity: float
    perplexity_se: float
    tokens: int


def perplexity(
    session: Session, windows: NDArray[np.int64], tick: Callable[[str], object] = lambda _: None
) -> Perplexity:
    """Return the perplexity over windows (n, tokens); the first token of each window is given, not predicted.

    Args:
        session: one whose `step` gives the logits of every token.
        windows: token ids.
        tick: called after each window.

    Raises:
        BundleError: the session gives the logits of the last token only.
    """
    values = token_log_likelihoods(session, windows, tick)
    value, error = exp_of_mean(-values.reshape(-1))
    return Perplexity(value, error, values.size)


def token_log_likelihoods(
    session: Session, windows: NDArray[np.int64], tick: Callable[[str], object] = lambda _: None
) -> NDArray[np.float64]:
    """Return the log-likelihood in nats of every token but the first of each window: (n, tokens - 1)."""
    found = np.empty((len(windows), windows.shape[1] - 1), np.float64)
    for number, window in enumerate(windows):
        session.reset(1)
        for start in range(0, len(window) - 1, _AT_ONCE):
            piece = slice(start, min(start + _AT_ONCE, len(window) - 1))
            logits = session.step(window[None, piece])[0]
            if len(logits) != piece.stop - piece.start:
                raise BundleError("the artifact gives the logits of the last token only: it cannot be evaluated")
            found[number, piece] = _log_likelihoods(logits, window[piece.start + 1 : piece.stop + 1])
        tick(f"window {number}")
    return found


def _log_likelihoods(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    centred = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(centred).sum(axis=1, dtype=np.float64)
    chosen: NDArray[np.float64] = centred[np.arange(len(targets)), targets] - np.log(total)
    return chosen
