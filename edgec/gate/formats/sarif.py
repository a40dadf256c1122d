"""SARIF 2.1.0, for code scanning: a rule for each metric, a result for each problem.

What passes gives no result: GitHub looks at no result's `kind`, and would show a pass as an alert. Paths are given from
the root of the repository, which is all that GitHub takes; alerts of runs are matched by `partialFingerprints`, and
runs for several targets are told apart by `automationDetails`.

Source: OASIS, "Static Analysis Results Interchange Format (SARIF) Version 2.1.0"; GitHub's documentation, "SARIF
support for code scanning", for what it reads of it.
"""

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import msgspec

from edgec.gate.formats._text import VOID, Problem, headline, in_repository, problems
from edgec.gate.result import GateResult

DEFAULT_PATH = "edgec-gate.sarif"

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def render(result: GateResult) -> str:
    """Return a result as SARIF."""
    groups = {each.metric: each.group for each in result.findings} | {VOID: "run"}
    rules = list(groups)
    uri = quote(in_repository(result.candidate.path))
    driver = {"name": "edgec", "rules": [_rule(name, group) for name, group in groups.items()]}
    run = {
        "tool": {"driver": driver | ({"version": result.edgec} if result.edgec else {})},
        "automationDetails": {"id": f"edgec-gate/{quote(result.candidate.target, safe='') or 'any'}/"},
        "invocations": [_invocation(result)],
        "results": [_result(each, rules.index(each.metric), uri) for each in problems(result)],
        "properties": {"verdict": result.verdict, "environment": result.environment},
    }
    document = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


def _rule(metric: str, group: str) -> dict[str, Any]:
    is_run = metric == VOID
    short = "The run counts" if is_run else f"{metric} is no worse than the baseline's"
    full = (
        "A run on a machine that was not fit to measure decides nothing. Run the gate again, on a quieter one."
        if is_run
        else f"Candidate and baseline are measured side by side. An error says that {metric} is surely worse than "
        "allowed, a warning that this run cannot say."
    )
    return {
        "id": f"edgec-gate/{metric}",
        "shortDescription": {"text": short},
        "fullDescription": {"text": full},
        "help": {"text": full},
        "defaultConfiguration": {"level": "warning" if is_run else "error"},
        "properties": {"tags": [group]},
    }


def _result(problem: Problem, index: int, uri: str) -> dict[str, Any]:
    place = {"artifactLocation": {"uri": uri, "uriBaseId": "%SRCROOT%"}, "region": {"startLine": 1}}
    return {
        "ruleId": f"edgec-gate/{problem.metric}",
        "ruleIndex": index,
        "level": "error" if problem.is_regression else "warning",
        "message": {"text": problem.text},
        "locations": [{"physicalLocation": place}],
        "partialFingerprints": {"primaryLocationLineHash": f"{problem.fingerprint}:1"},
    }


def _invocation(result: GateResult) -> dict[str, Any]:
    """Return how the run went; it went well, whatever the verdict."""
    told = [headline(result), *result.remarks]
    found: dict[str, Any] = {
        "executionSuccessful": True,
        "toolExecutionNotifications": [{"level": "note", "message": {"text": each}} for each in told],
    }
    with suppress(ValueError):  # the time is a text, and may be missing
        started = datetime.fromisoformat(result.started)
        utc = started.replace(tzinfo=UTC) if started.tzinfo is None else started.astimezone(UTC)
        found["startTimeUtc"] = utc.strftime("%Y-%m-%dT%H:%M:%SZ")
    return found
