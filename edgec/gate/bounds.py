"""What quality may lose, and the verdict on an interval of a loss.

Verdicts are one-sided, each at the level of one side of the interval that is shown: (1 - confidence) / 2. A gate passes
only if every gated finding does: an intersection-union test, which at the plain level of each finding wrongly passes a
bad candidate no more often than that (Berger, "Multiparameter hypothesis testing and acceptance sampling",
Technometrics 24, 1982). It fails if any of them does, and so would wrongly fail more often the more there are: that
side shares the level among them (Bonferroni), so that a false FAIL of all of quality is no more frequent either.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from edgec.gate.result import Finding, judge
from edgec.gate.settings import QualityBound

Limit = Callable[[float], float]
"""What the true loss is below with a chance of `level`, 0 to 1."""


@dataclass(frozen=True)
class Bounds:
    """What quality may lose.

    Args:
        metrics: metric -> what it may lose; others are reported.
        confidence: of intervals, two-sided; (1 - confidence) / 2 is how often either verdict of all of quality may be
            wrong.
        gated: how many findings with a bound there are in all.
    """

    metrics: Mapping[str, QualityBound]
    confidence: float
    gated: int

    @property
    def level(self) -> float:
        """One-sided, at which any of them fails."""
        return (1 - self.confidence) / 2 / max(1, self.gated)

    def decide(self, finding: Finding, limit: Limit) -> Finding:
        """Return a finding with its interval and its verdict."""
        wrong = (1 - self.confidence) / 2
        low, high = limit(wrong), limit(1 - wrong)
        found = replace(finding, low=low, high=high)
        bound = self.metrics.get(finding.metric)
        if bound is None:
            return found
        low = limit(self.level)
        return replace(
            found,
            decided_low=low,
            decided_high=high,
            allowed=allowed(bound),
            margin=bound.margin,
            verdict=judge(low, high, allowed(bound), bound.margin),
        )

    def undecided(self, finding: Finding) -> Finding:
        """Return a finding that has no interval."""
        bound = self.metrics.get(finding.metric)
        if bound is None:
            return finding
        return replace(finding, allowed=allowed(bound), margin=bound.margin, verdict="inconclusive")


def wider(one: Limit, other: Limit) -> Limit:
    """Return the limit of the interval that holds both."""
    return lambda level: (min if level < 0.5 else max)(one(level), other(level))


def allowed(bound: QualityBound) -> float:
    """Return the loss above which the gate fails: the margin, unless the gate file says less."""
    return bound.margin if bound.allowed is None else bound.allowed
