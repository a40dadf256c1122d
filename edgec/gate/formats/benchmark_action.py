"""JSON for github-action-benchmark, whose `tool` is then `customSmallerIsBetter`.

That action compares each number with one that it stored, maybe from another machine. So it gets what does not depend on
the machine: how many times as bad as its baseline the candidate was in this run. For rates, where more is better, that
is the baseline's rate divided by the candidate's, so that smaller is better for all. Differences and distances are left
out: the action divides a number by the one before, which says nothing of numbers around 0. A void race gives none.
"""

from typing import Any

import msgspec

from edgec.gate.quantity import quantity
from edgec.gate.result import Finding, GateResult

DEFAULT_PATH = "edgec-gate.benchmark.json"


def render(result: GateResult) -> str:
    """Return the ratios of a result."""
    findings = filter(result.counts, result.findings)
    entries = [_entry(each) for each in findings if each.scale == "ratio" and each.estimate is not None]
    return msgspec.json.format(msgspec.json.encode(entries), indent=2).decode() + "\n"


def _entry(finding: Finding) -> dict[str, Any]:
    sides = (("baseline", finding.baseline), ("candidate", finding.candidate))
    lines = [f"{name} {quantity(value, finding.unit)}" for name, value in sides if value is not None]
    if finding.higher_is_better:
        lines.append("the baseline's rate divided by the candidate's")
    entry = {"name": finding.name, "unit": "x baseline", "value": finding.estimate}
    if finding.low is not None and finding.high is not None:
        entry["range"] = f"{finding.low:.4g} to {finding.high:.4g}"
    return {**entry, "extra": "\n".join([*lines, f"verdict: {finding.verdict}"])}
