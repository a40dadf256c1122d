"""`edgec gate`: judge a bundle by another one, on this machine, in one run."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgec.cli._console import json_option, print_json, print_table, progress, say
from edgec.errors import InconclusiveError, RegressionError, UsageError, require

if TYPE_CHECKING:
    from edgec.gate.result import Finding, GateResult

_MIB = 2**20


@click.command()
@click.argument("candidate", type=click.Path(path_type=Path), metavar="CANDIDATE")
@click.option("--baseline", type=click.Path(path_type=Path), required=True, metavar="BUNDLE", help="To judge by.")
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="The gate file.  [default: the usual]")
@click.option(
    "--report",
    "reports",
    multiple=True,
    metavar="FORMAT[:FILE]",
    help="For a CI system: benchmark-action, github, gitlab, json, junit, markdown or sarif; repeatable.",
)
@click.option("--history", type=click.Path(path_type=Path), metavar="FILE", help="Append to it: see `edgec history`.")
@click.option("--label", default="", help="Of the candidate in the history, such as a commit.")
@json_option
def command(
    *,
    candidate: Path,
    baseline: Path,
    config: Path | None,
    reports: tuple[str, ...],
    history: Path | None,
    label: str,
    as_json: bool,
) -> None:
    """Judge CANDIDATE by a baseline: is it slower, larger, or worse?

    Both run in turn, in fresh processes, until it is clear or the time is up. Exit code 0: it is not worse; 1: it is;
    5: this machine could not tell.
    """
    from edgec.gate.formats import plain, write_report
    from edgec.gate.gate import run_gate
    from edgec.gate.history import record_of
    from edgec.gate.history_file import append
    from edgec.gate.settings import GateFile, read_gate_file

    if history and not label.strip():
        raise UsageError("a run in a history needs a label", hint="name the commit: --label TEXT")
    require("scipy", "gate")
    file = read_gate_file(config) if config else GateFile()
    wanted = [_report(report, as_json=as_json) for report in reports]
    with progress() as bar:
        step = bar.add_task("gate", total=None)

        def tick(what: str, count: int) -> None:
            bar.update(step, description=f"{what} {count}", advance=1)

        result = run_gate(candidate, baseline, file, tick)
    for name, path in wanted:
        write_report(result, name, path)
    if as_json:
        print_json(plain(result))
    else:
        _show(result)
    if history:
        append(history, record_of(result, label))
    if result.verdict == "fail":
        worse = ", ".join(finding.name for finding in result.findings if finding.verdict == "fail")
        raise RegressionError(f"the candidate is worse than the baseline in {worse}", where=str(candidate))
    if result.verdict == "inconclusive":
        open_ = ", ".join(finding.name for finding in result.findings if finding.verdict == "inconclusive")
        raise InconclusiveError(
            result.void or f"it is not clear whether the candidate is worse in {open_}",
            where=str(candidate),
            hint="run it again on a quieter machine, with a longer `time_limit_s`, or with wider margins",
        )


def _report(report: str, *, as_json: bool) -> tuple[str, Path | None]:
    """Return the format that is wanted, and where it goes."""
    from edgec.gate.formats import get_format

    name, _, path = report.partition(":")
    default = get_format(name).DEFAULT_PATH
    if as_json and (path == "-" or not (path or default)):
        raise UsageError(f"--json and --report {report} both go to stdout", hint=f"name a file: --report {name}:FILE")
    return name, Path(path) if path else None


def _show(result: "GateResult") -> None:
    for remark in result.remarks:
        say(f"note: {remark}")
    for group, heading in (("performance", "times as bad"), ("quality", "ratio, or distance")):
        findings = [finding for finding in result.findings if finding.group == group]
        places = any(finding.where for finding in findings)
        columns = ("metric", *(["of"] if places else []), "baseline -> candidate", heading, "verdict")
        if findings:
            print_table(columns, (_row(finding, places=places) for finding in findings))
    if result.sentinel:
        distance, name = max((abs((each.estimate or 1) - 1), each.name) for each in result.sentinel)
        say(f"the baseline beside itself: within {distance:.1%} (most in {name})")
    say(f"{result.verdict}, {result.rounds} rounds in {result.elapsed_s:.0f} s")


def _row(finding: "Finding", *, places: bool) -> tuple[str, ...]:
    found = "" if finding.estimate is None else f"{finding.estimate:.3f}"
    if finding.low is not None and finding.high is not None:
        found += f" ({finding.low:.3f} to {finding.high:.3f})"
    scale, unit = (_MIB, "MiB") if finding.unit == "bytes" else (1, finding.unit)
    values = [f"{value / scale:.4g}" for value in (finding.baseline, finding.candidate) if value is not None]
    shown = f"{' -> '.join(values)} {unit}" if values else ""
    return finding.metric, *([finding.where] if places else []), shown, found, finding.verdict
