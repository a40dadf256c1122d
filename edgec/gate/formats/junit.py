"""JUnit XML: a test for each metric, for Jenkins, GitLab and the viewers of test reports.

A regression is a failure. What is undecided is an error, which all viewers show as not passed: to JUnit, a test that
could not give its answer. What no bound is on is skipped, since a pass would say that somebody judged it. The run is a
test, too, so that a report is never empty; where its race is void it is an error, and what does not count is skipped.
The sentinel's are errors, never failures: they blame the machine, not the candidate. Where it is undecided, and yet the
run counts, nothing hangs on it, and it is skipped.
"""

import xml.etree.ElementTree as ET
from collections.abc import Iterable

from edgec.gate.formats._text import VOID, headline, problems, sentence
from edgec.gate.result import Finding, GateResult

DEFAULT_PATH = "edgec-gate.junit.xml"

_OUTCOMES = {"fail": "failure", "inconclusive": "error", "reported": "skipped"}
_SENTINEL = {"fail": "error", "inconclusive": "skipped"}


def render(result: GateResult) -> str:
    """Return a result as JUnit XML."""
    root = ET.Element("testsuites", name="edgec gate", time=_seconds(result))
    root.append(_run(result))
    for group in ("performance", "quality"):
        _add_suite(root, group, (each for each in result.findings if each.group == group), _OUTCOMES, result)
    _add_suite(root, "sentinel", result.sentinel, _SENTINEL, result)
    for suite in root:
        _count(suite)
    for name in ("tests", "failures", "errors"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _run(result: GateResult) -> ET.Element:
    """Return the test of the run itself, with the machine and the versions as properties."""
    suite = ET.Element("testsuite", name="run", time=_seconds(result))
    if result.started:
        suite.set("timestamp", result.started)
    properties = ET.SubElement(suite, "properties")
    for name, value in _facts(result).items():
        ET.SubElement(properties, "property", name=name, value=value)
    case = ET.SubElement(suite, "testcase", classname="run", name="the run counts", time=_seconds(result))
    for problem in problems(result):
        if problem.metric == VOID:
            _add_outcome(case, "failure" if problem.is_regression else "error", problem.text)
    ET.SubElement(case, "system-out").text = "\n".join([headline(result), *result.remarks])
    return suite


def _facts(result: GateResult) -> dict[str, str]:
    named = {
        "edgec": result.edgec,
        "candidate": result.candidate.path,
        "baseline": result.baseline.path,
        "verdict": result.verdict,
        "rounds": str(result.rounds),
        "confidence": f"{result.confidence:g}",
    }
    return {**result.environment, **named}


def _add_suite(
    root: ET.Element, name: str, findings: Iterable[Finding], outcomes: dict[str, str], result: GateResult
) -> None:
    suite = ET.Element("testsuite", name=name)
    for finding in findings:
        # GitLab takes tests of one class and name for one.
        case = ET.SubElement(suite, "testcase", classname=name, name=finding.name)
        text = sentence(finding, result.confidence)
        counts = result.counts(finding) or outcomes is _SENTINEL
        if outcome := outcomes.get(finding.verdict if counts else "reported"):
            _add_outcome(case, outcome, text)
        else:
            ET.SubElement(case, "system-out").text = text
    if len(suite):
        root.append(suite)


def _add_outcome(case: ET.Element, outcome: str, text: str) -> None:
    """Say the text twice: GitLab shows what is inside an element, others its message."""
    kind = {"failure": "regression", "error": "inconclusive", "skipped": "not judged"}[outcome]
    ET.SubElement(case, outcome, type=kind, message=text).text = text


def _count(suite: ET.Element) -> None:
    suite.set("tests", str(len(suite.findall("testcase"))))
    for name, outcome in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(name, str(len(suite.findall(f"testcase/{outcome}"))))


def _seconds(result: GateResult) -> str:
    return f"{result.elapsed_s:.3f}"
