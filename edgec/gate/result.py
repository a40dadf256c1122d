"""What a gate found: the one struct that every format is written from, and edgec's own JSON."""

from typing import Literal

import msgspec

SCHEMA_VERSION = 1
"""Of `GateResult` as JSON: raised when a field changes its meaning or goes away, not when one is added."""

Verdict = Literal["pass", "fail", "inconclusive"]
Judged = Literal["pass", "fail", "inconclusive", "reported"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of the candidate beside that of the baseline; for `estimate`, `low` and `high` more is always worse.

    Args:
        group: "performance" or "quality".
        metric: such as `token_ms` or `perplexity_ratio`.
        where: the workload, or the data, it was measured on; "" where there is but one way.
        unit: of `baseline` and `candidate`; "" for numbers without one.
        higher_is_better: of `baseline` and `candidate`.
        baseline: the baseline's value, typical for the run; None where the metric is of both (KL divergence).
        candidate: the candidate's.
        scale: what `estimate` is: "ratio" (how many times as bad as the baseline), "difference" (how much worse, in
            `unit`) or "value" (the candidate's distance from the baseline).
        estimate: None where it could not be measured; `note` says why.
        low: where the interval around it begins, at the result's confidence.
        high: where it ends.
        decided_low: the same at the level that decides: wider where there are several looks, or several metrics.
        decided_high: alike.
        allowed: the gate fails where `decided_low` is above it; None for what is only reported.
        margin: the gate passes where `decided_high` is below it; None for what is only reported.
        verdict: "reported" for what no bound is on.
        note: what else is to say.
    """

    group: Literal["performance", "quality"]
    metric: str
    where: str = ""
    unit: str = ""
    higher_is_better: bool = False
    baseline: float | None = None
    candidate: float | None = None
    scale: Literal["ratio", "difference", "value"] = "ratio"
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    decided_low: float | None = None
    decided_high: float | None = None
    allowed: float | None = None
    margin: float | None = None
    verdict: Judged = "reported"
    note: str | None = None

    @property
    def name(self) -> str:
        """The metric and where it was measured: unique in a result."""
        return f"{self.metric} ({self.where})" if self.where else self.metric


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle, as it was given.

    Args:
        path: on the command line.
        model: its source, as the plan says; "" for a bare artifact.
        target: of its plan, or "".
        backend: that runs it.
        profile: of its plan, or "".
        sha256: of its manifest, or "".
    """

    path: str
    model: str = ""
    target: str = ""
    backend: str = ""
    profile: str = ""
    sha256: str = ""


class GateResult(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate beside a baseline.

    Args:
        verdict: "fail" if one finding that counts fails, else "inconclusive" if the race is void or one is undecided,
            else "pass".
        candidate: the bundle that is judged.
        baseline: the one it is compared with.
        findings: all that was measured.
        sentinel: the baseline beside itself, measured with the same statistics: the proof that the machine was fit.
        void: why nothing in this race counts, or None; quality was measured without it.
        rounds: of fresh processes.
        confidence: of the intervals, such as 0.95.
        elapsed_s: of the whole gate.
        started: UTC, as in ISO 8601.
        environment: the machine and the versions.
        remarks: what the user should know.
        edgec: version.
        schema_version: of this struct.
    """

    verdict: Verdict
    candidate: Subject
    baseline: Subject
    findings: tuple[Finding, ...]
    sentinel: tuple[Finding, ...] = ()
    void: str | None = None
    rounds: int = 0
    confidence: float = 0.95
    elapsed_s: float = 0.0
    started: str = ""
    environment: dict[str, str] = {}
    remarks: tuple[str, ...] = ()
    edgec: str = ""
    schema_version: int = SCHEMA_VERSION

    def counts(self, finding: Finding) -> bool:
        """Say whether a finding counts for the verdict: in a void race nothing does but quality."""
        return self.void is None or finding.group == "quality"


def judge(low: float, high: float, allowed: float, margin: float) -> Verdict:
    """Return the verdict on an interval: surely worse than allowed, surely better than the margin, or neither.

    NaN is neither.
    """
    if low > allowed:
        return "fail"
    return "pass" if high < margin else "inconclusive"


def overall(findings: tuple[Finding, ...], void: str | None = None) -> Verdict:
    """Return the verdict on all findings together; a void race decides nothing, but quality was found without it."""
    verdicts = {finding.verdict for finding in findings if void is None or finding.group == "quality"}
    if "fail" in verdicts:
        return "fail"
    return "inconclusive" if void is not None or "inconclusive" in verdicts else "pass"
