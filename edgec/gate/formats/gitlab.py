"""GitLab code quality: a JSON list of what keeps the gate from passing, for `artifacts: reports: codequality`.

Source: GitLab's documentation, "Code Quality report format": GitLab shows paths from the root of the repository, and
takes issues with one fingerprint for one; one that the target branch has, too, is not shown as new.
"""

import msgspec

from edgec.gate.formats._text import in_repository, problems
from edgec.gate.result import GateResult

DEFAULT_PATH = "gl-code-quality-report.json"


def render(result: GateResult) -> str:
    """Return a result as a code quality report."""
    path = in_repository(result.candidate.path)
    issues = [
        {
            "description": each.text,
            "check_name": f"edgec-gate/{each.metric}",
            "fingerprint": each.fingerprint,
            "severity": "critical" if each.is_regression else "minor",
            "location": {"path": path, "lines": {"begin": 1}},
        }
        for each in problems(result)
    ]
    return msgspec.json.format(msgspec.json.encode(issues), indent=2).decode() + "\n"
