"""How far a model's predictions are from those of a reference, token by token, on the same text.

Source: llama.cpp, `llama-perplexity --kl-divergence` (tools/perplexity): the same quantities and standard errors; the
errors of the log-ratio and of the mean log-likelihoods are given clustered by window as well.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgec.errors import UsageError
from edgec.evaluate.statistics import clustered_error, exp_of_mean, mean

# Logits that are in float64 at once: float32 would drown a KL of 1e-6, and a whole chunk in float64 would not fit.
_AT_ONCE = 2**18


class Divergence(msgspec.Struct, frozen=True):
    """A model against its reference; `_se` is the standard error of the field before it.

    Args:
        tokens: predictions compared.
        windows: windows of text they came from.
        reference_perplexity: exp of the mean negative log-likelihood, in nats, of the reference.
        test_perplexity: the same for the model.
        perplexity_ratio: test over reference.
        perplexity_ratio_se: paired over tokens.
        perplexity_ratio_clustered_se: paired, and clustered by window: tokens of one window are not independent.
            None for a single window.
        mean_kl: mean of KL(reference || test) over tokens, in nats.
        median_kl: its median.
        p99_kl: its 99th percentile.
        top1_agreement: share of tokens for which both have the same most likely token.
    """

    tokens: int
    windows: int
    reference_perplexity: float
    reference_perplexity_se: float
    test_perplexity: float
    test_perplexity_se: float
    perplexity_ratio: float
    perplexity_ratio_se: float
    perplexity_ratio_clustered_se: float | None
    mean_kl: float
    mean_kl_se: float
    median_kl: float
    p99_kl: float
    top1_agreement: float
    top1_agreement_se: float


class Accumulator:
    """Collect logits chunk by chunk; what stays in memory is four numbers for each token."""

    def __init__(self) -> None:
        self._columns: list[NDArray[np.float64]] = []
        self._windows: list[NDArray[np.int64]] = []

    def add(
        self,
        reference: NDArray[np.float32],
        test: NDArray[np.float32],
        targets: NDArray[np.int64],
        windows: NDArray[np.int64],
    ) -> None:
        """Add n predictions.

        Args:
            reference: logits (n, vocab).
            test: logits (n, vocab).
            targets: the tokens that really follow, (n,).
            windows: number of the window of each, (n,).

        Raises:
            UsageError: the shapes do not fit.
        """
        self._columns.append(compare_tokens(reference, test, targets))
        self._windows.append(np.asarray(windows, np.int64))

    def result(self) -> Divergence:
        """Return the summary.

        Raises:
            UsageError: fewer than two predictions were added.
        """
        if sum(map(len, self._windows)) < 2:
            raise UsageError("comparing two models takes at least two predictions")
        reference, test, kl, agrees = np.concatenate(self._columns, axis=1)
        windows = np.concatenate(self._windows)
        reference_perplexity, reference_se = exp_of_mean(reference)
        test_perplexity, test_se = exp_of_mean(test)
        ratio, ratio_se = exp_of_mean(test - reference)
        mean_kl, mean_kl_se = mean(kl)
        agreement, agreement_se = mean(agrees)
        clustered = clustered_error(test - reference, windows)
        return Divergence(
            tokens=len(kl),
            windows=len(np.unique(windows)),
            reference_perplexity=reference_perplexity,
            reference_perplexity_se=reference_se,
            test_perplexity=test_perplexity,
            test_perplexity_se=test_se,
            perplexity_ratio=ratio,
            perplexity_ratio_se=ratio_se,
            perplexity_ratio_clustered_se=None if clustered is None else ratio * clustered,
            mean_kl=mean_kl,
            mean_kl_se=mean_kl_se,
            median_kl=float(np.median(kl)),
            p99_kl=float(np.quantile(kl, 0.99)),
            top1_agreement=agreement,
            top1_agreement_se=agreement_se,
        )


def compare_tokens(
    reference: NDArray[np.float32], test: NDArray[np.float32], targets: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return (4, n): both negative log-likelihoods, KL divergence, and whether the most likely tokens are the same.

    Args:
        reference: logits (n, vocab).
        test: logits (n, vocab).
        targets: the tokens that really follow, (n,).

    Raises:
        UsageError: the shapes do not fit.
    """
    if reference.shape != test.shape:
        raise UsageError(
            f"logits have shapes {reference.shape} and {test.shape}: the models have different vocabularies"
        )
    at_once = max(1, _AT_ONCE // reference.shape[1])
    pieces = [slice(start, start + at_once) for start in range(0, len(reference), at_once)]
    columns = [_compare(reference[rows], test[rows], targets[rows]) for rows in pieces]
    return np.concatenate(columns, axis=1) if columns else np.empty((4, 0))


def _compare(
    reference: NDArray[np.float32], test: NDArray[np.float32], targets: NDArray[np.int64]
) -> NDArray[np.float64]:
    a, a_sum = _centre(reference)
    b, b_sum = _centre(test)
    rows = np.arange(len(targets))
    weight = np.exp(a)
    # KL = sum p (log p - log q); a token that the reference excludes (logit -inf) adds 0.
    kl = np.subtract(a, b, out=np.zeros_like(a), where=weight > 0)
    kl *= weight
    divergence = kl.sum(axis=1) / np.exp(a_sum) - a_sum + b_sum
    agrees = reference.argmax(axis=1) == test.argmax(axis=1)
    return np.stack((a_sum - a[rows, targets], b_sum - b[rows, targets], divergence, agrees))


def _centre(logits: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the logits minus their maximum, and the logarithm of the sum of their exponentials."""
    centred = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinite logits give NaN, which breaks every bound
        centred -= centred.max(axis=1, keepdims=True)
    return centred, np.log(np.exp(centred).sum(axis=1))
