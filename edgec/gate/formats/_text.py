"""What formats share: findings in words, and the problems that CI systems list."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgec.gate.quantity import number, quantity
from edgec.gate.result import Finding, GateResult, Judged

VOID = "void"
"""In place of a metric's name: what is said of the run as a whole."""

_WORDS = {"pass": "passed", "fail": "failed", "inconclusive": "inconclusive"}


@dataclass(frozen=True)
class Problem:
    """What keeps a gate from passing.

    Args:
        group: "performance" or "quality"; "run" for the run as a whole.
        metric: its name, or `VOID`.
        name: the metric and where it was measured.
        text: what is wrong, in a sentence.
        is_regression: surely; else nobody can say.
        fingerprint: equal for the same problem of other runs, whatever its numbers are.
    """

    group: str
    metric: str
    name: str
    text: str
    is_regression: bool
    fingerprint: str


def problems(result: GateResult) -> list[Problem]:
    """Return what keeps the gate from passing, regressions first; of a void race that alone, since all else is moot."""
    found = []
    for wanted in ("fail", "inconclusive"):
        for finding in result.findings:
            if result.counts(finding) and finding.verdict == wanted:
                text = sentence(finding, result.confidence)
                found.append(_problem(result, finding.group, finding.metric, finding.name, text, wanted == "fail"))
    if result.void is not None or (not found and result.verdict != "pass"):
        text = f"nothing in this race counts: {result.void or 'no metric says why'}"
        is_regression = result.void is None and result.verdict == "fail"
        found.append(_problem(result, "run", VOID, "the race", text, is_regression))
    return found


def _problem(result: GateResult, group: str, metric: str, name: str, text: str, is_regression: bool) -> Problem:
    subject = result.candidate
    key = msgspec.json.encode([subject.target, subject.backend, group, name])
    return Problem(group, metric, name, text, is_regression, hashlib.sha256(key).hexdigest())


def judged(result: GateResult, finding: Finding) -> Judged:
    """Return what a finding counts for: in a void race nothing is decided."""
    return finding.verdict if result.counts(finding) or finding.verdict == "reported" else "inconclusive"


def headline(result: GateResult) -> str:
    """Return the verdict in words, and what it is made of."""
    if result.void is not None and result.verdict != "fail":
        return "inconclusive: this race is void, and nothing in it counts"
    counting = [each.verdict for each in result.findings if result.counts(each)]
    counts = {word: counting.count(word) for word in ("fail", "inconclusive", "pass")}
    words = {"fail": "surely worse than allowed", "inconclusive": "undecided", "pass": "fine"}
    told = ", ".join(f"{count} {words[word]}" for word, count in counts.items() if count)
    return f"{_WORDS[result.verdict]}: {told or 'nothing has a bound'}"


def sentence(finding: Finding, confidence: float) -> str:
    """Return a finding in words."""
    if finding.estimate is None:
        told = f"{finding.name} could not be measured"
    else:
        what = {
            "ratio": "is {} as bad as the baseline",
            "difference": "is worse by {}",
            "value": "is {} away from the baseline",
        }[finding.scale]
        told = f"{finding.name} {what.format(change(finding))}, at confidence {confidence:g}"
    parts = [told, bounds(finding) or "no bound is on it"]
    values = (("baseline", finding.baseline), ("candidate", finding.candidate))
    parts += [f"{name} {quantity(value, finding.unit)}" for name, value in values if value is not None]
    return "; ".join([*parts, finding.note] if finding.note else parts)


def change(finding: Finding) -> str:
    """Return how much worse a finding is, with its interval, and the one that decides where that is another."""
    if finding.estimate is None:
        return "not measured"
    mark = {"ratio": "x", "difference": f" {finding.unit}", "value": f" {finding.unit}"}[finding.scale].rstrip()
    inside = [_interval(finding.low, finding.high)]
    if (finding.decided_low, finding.decided_high) not in {(None, None), (finding.low, finding.high)}:
        inside.append(f"deciding {_interval(finding.decided_low, finding.decided_high)}")
    told = ", ".join(each for each in inside if each)
    return f"{number(finding.estimate)}{mark}" + (f" ({told})" if told else "")


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None and high is None else f"{number(low)} to {number(high)}"


def bounds(finding: Finding) -> str:
    """Return when a finding fails and passes, or nothing."""
    told = (("fails above", finding.allowed), ("passes below", finding.margin))
    return ", ".join(f"{word} {number(value)}" for word, value in told if value is not None)


def in_repository(path: str) -> str:
    """Return a path as CI systems show it: from the root of the repository; of one outside of it only the name."""
    root = os.environ.get("GITHUB_WORKSPACE") or os.environ.get("CI_PROJECT_DIR") or "."
    inside = Path(os.path.relpath(path or ".", root))
    outside = os.pardir in inside.parts
    return (Path(path).resolve().name or "candidate") if outside else inside.as_posix()
