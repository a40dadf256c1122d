"""What the tokens of one text say about a candidate beside its baseline."""

import math
from functools import partial

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from edgec.evaluate.paired import score_limit
from edgec.evaluate.statistics import ClusteredMean, clustered_mean
from edgec.gate.bounds import Bounds, wider
from edgec.gate.result import Finding

METRICS = ("perplexity_ratio", "mean_kl", "top1_disagreement")

# With fewer degrees of freedom an interval is wide, and its error rates are rough.
_FEW = 8


def judge_text(
    tokens: NDArray[np.float64],
    documents: NDArray[np.int64],
    windows: NDArray[np.int64],
    bounds: Bounds,
    *,
    where: str,
    chance: float = math.inf,
) -> tuple[Finding, ...]:
    """Return the findings of one text.

    Args:
        tokens: of `edgec.gate.quality.compare_sessions`, (4, n).
        documents: the number of the document of each, (n,).
        windows: the number of the window of each, (n,), which stands in for a single document's.
        bounds: what they may lose.
        where: the text's name.
        chance: the negative log-likelihood of a guess. Of a text that the baseline predicts worse no loss can be told.
    """
    baseline, candidate, kl, agrees = tokens
    if broken := int((~np.isfinite(candidate) | ~np.isfinite(kl)).sum()):
        note = f"the candidate computes NaN or infinite numbers for {broken} of {len(kl)} tokens"
        return tuple(Finding(group="quality", metric=name, where=where, verdict="fail", note=note) for name in METRICS)
    single = bool((documents == documents[0]).all())
    clusters = windows if single else documents
    ratio, divergence, disagreement = (
        clustered_mean(values, clusters) for values in (candidate - baseline, kl, 1 - agrees)
    )
    # Few tokens without a difference prove little, however they cluster.
    share_limit = wider(disagreement.limit, partial(score_limit, int((agrees == 0).sum()), 0, len(agrees)))
    found = partial(Finding, group="quality", where=where, note=_note(ratio, single=single))
    with np.errstate(over="ignore"):  # a wide interval
        findings = (
            bounds.decide(
                found(
                    metric="perplexity_ratio",
                    baseline=float(np.exp(baseline.mean())),
                    candidate=float(np.exp(candidate.mean())),
                    estimate=float(np.exp(ratio.mean)),
                ),
                lambda level: float(np.exp(ratio.limit(level))),
            ),
            bounds.decide(
                found(metric="mean_kl", scale="value", unit="nats", estimate=divergence.mean),
                lambda level: max(0.0, divergence.limit(level)),
            ),
            bounds.decide(
                found(metric="top1_disagreement", scale="value", estimate=disagreement.mean),
                lambda level: min(1.0, max(0.0, share_limit(level))),
            ),
        )
    if baseline.mean() <= chance:
        return findings
    note = "the baseline predicts this text worse than chance: it says nothing about quality"
    return tuple(
        replace(each, note=note, verdict="reported" if each.verdict == "reported" else "inconclusive")
        for each in findings
    )


def _note(found: ClusteredMean, *, single: bool) -> str | None:
    if single:
        return f"one document: its {found.clusters} windows are taken as independent of each other"
    if found.freedom < _FEW:
        return (
            f"{found.clusters} documents say as much as {found.freedom + 1:.1f} of one size: "
            "a longer text would narrow the interval"
        )
    return None
