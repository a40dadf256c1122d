"""A page in GitHub's Markdown, which GitLab's is as well as far as it is used here; printed if no file is named."""

import re
from collections.abc import Iterable, Sequence

from edgec.gate.formats._text import bounds, change, headline, judged
from edgec.gate.quantity import quantity
from edgec.gate.result import Finding, GateResult, Subject

DEFAULT_PATH = None

_COLUMNS = ("metric", "where", "baseline", "candidate", "times as bad, or worse by", "bounds", "verdict")
_SPECIAL = re.compile(r"([\\`*\[\]<>&|~#$!]|(?<![^\W_])_|_(?![^\W_]))")


def render(result: GateResult) -> str:
    """Return a result as a page: the verdict first, the machine and versions last."""
    parts = [f"## edgec gate {escape(headline(result))}"]
    if result.void is not None:
        parts.append(f"> **Nothing in this race counts**: {escape(result.void)}")
    parts.append(f"{_subject(result.candidate)} beside {_subject(result.baseline)}.")
    if result.findings:
        parts += [_findings(result, result.findings), _explanation(result)]
    parts += _notes(result.findings)
    if result.sentinel:
        parts += ["### Sentinel", "The baseline beside itself, measured in the same way: what the machine adds."]
        parts.append(_findings(result, result.sentinel))
    if result.remarks:
        parts += ["### Remarks", "\n".join(f"- {escape(remark)}" for remark in result.remarks)]
    parts += ["### Machine and versions", _table(("", ""), _facts(result))]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Return a text on one line, with nothing in it that Markdown or HTML would take for its own."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _findings(result: GateResult, findings: Sequence[Finding]) -> str:
    return _table(_COLUMNS, (_row(result, each, is_sentinel=findings is result.sentinel) for each in findings))


def _row(result: GateResult, finding: Finding, *, is_sentinel: bool) -> tuple[str, ...]:
    verdict = finding.verdict if is_sentinel else judged(result, finding)
    return (
        escape(finding.metric),
        escape(finding.where),
        escape(quantity(finding.baseline, finding.unit) if finding.baseline is not None else ""),
        escape(quantity(finding.candidate, finding.unit) if finding.candidate is not None else ""),
        escape(change(finding)),
        bounds(finding),
        f"**{verdict}**" if verdict in {"fail", "inconclusive"} else verdict,
    )


def _explanation(result: GateResult) -> str:
    told = f"In brackets: {100 * result.confidence:g} % intervals. More is always worse"
    rates = sorted({each.metric for each in result.findings if each.higher_is_better and each.scale == "ratio"})
    return escape(
        f"{told}; of {', '.join(rates)} the baseline's is divided by the candidate's." if rates else f"{told}."
    )


def _notes(findings: Iterable[Finding]) -> list[str]:
    notes = [f"- {escape(f'{each.name}: {each.note}')}" for each in findings if each.note]
    return ["\n".join(notes)] if notes else []


def _facts(result: GateResult) -> list[tuple[str, str]]:
    facts = result.environment | ({"edgec": result.edgec} if result.edgec else {})
    took = f"{result.elapsed_s:.1f} s"
    rows = [
        *facts.items(),
        ("rounds", f"{result.rounds}, in {took}") if result.rounds else ("took", took),
        ("started", result.started),
        ("candidate's manifest", result.candidate.sha256),
        ("baseline's manifest", result.baseline.sha256),
    ]
    return [(escape(name), escape(value)) for name, value in rows if value]


def _subject(subject: Subject) -> str:
    about = (subject.model, subject.target, subject.backend, subject.profile)
    told = ", ".join(escape(each) for each in about if each)
    return f"**{escape(subject.path)}**" + (f" ({told})" if told else "")


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (columns, ["---"] * len(columns), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
