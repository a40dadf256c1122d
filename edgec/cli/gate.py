"""`edgec gate`: judge a bundle by another one, on this machine, in one run."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgec.cli._console import json_option, print_json, print_table, progress, say
from edgec.errors import EdgecError, InconclusiveError, RegressionError, UsageError, explain, require

if TYPE_CHECKING:
    from edgec.gate.history import Record
    from edgec.gate.result import Finding, GateResult

_AGAIN = "run it again on a quieter machine, with a longer `time_limit_s`, or with wider margins"
_MORE = "quality is the same in each run: measure it on more `tokens` or `samples`, or give it a wider margin"


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
    from edgec.gate.gate import run_gate
    from edgec.gate.settings import GateFile, read_gate_file

    if history and not label.strip():
        raise UsageError("a run in a history needs a label", hint="name the commit: --label TEXT")
    require("scipy", "gate")
    file = read_gate_file(config) if config else GateFile()
    wanted = [_report(report, as_json=as_json) for report in reports]
    _check_places(wanted, history)
    with progress() as bar:
        step = bar.add_task("gate", total=None)

        def tick(what: str, count: int) -> None:
            bar.update(step, description=f"{what} {count}", advance=1)

        result = run_gate(candidate, baseline, file, tick)
    failures = _tell_all(_outputs(result, wanted, history, label, as_json=as_json))
    verdict = _error(result, candidate)
    # A candidate that is worse is worse whatever the disk says; else nobody may take for told what was not.
    errors = [verdict, *failures] if result.verdict == "fail" else [*failures, verdict]
    told = [error for error in errors if error is not None]
    for other in told[1:]:
        say(f"error: {other}")
    if told:
        raise told[0]


def _report(report: str, *, as_json: bool) -> tuple[str, Path | None]:
    """Return the format that is wanted, and where it goes."""
    from edgec.gate.formats import get_format

    name, _, path = report.partition(":")
    default = get_format(name).DEFAULT_PATH
    if as_json and (path == "-" or not (path or default)):
        raise UsageError(f"--json and --report {report} both go to stdout", hint=f"name a file: --report {name}:FILE")
    return name, Path(path) if path else None


def _check_places(reports: list[tuple[str, Path | None]], history: Path | None) -> None:
    """Refuse to write two things into one file, of which the second would replace or garble the first."""
    from edgec.gate.formats import get_format

    places: dict[Path, str] = {history.resolve(): "--history"} if history else {}
    for name, path in reports:
        place = path or Path(get_format(name).DEFAULT_PATH or "-")
        key = place if str(place) == "-" else place.resolve()
        if key in places:
            where = "stdout" if str(place) == "-" else str(place)
            raise UsageError(
                f"{places[key]} and --report {name} both go to {where}", hint=f"name another file: --report {name}:FILE"
            )
        places[key] = f"--report {name}"


def _outputs(
    result: "GateResult",
    reports: list[tuple[str, Path | None]],
    history: Path | None,
    label: str,
    *,
    as_json: bool,
) -> Iterator[Callable[[], object]]:
    """Yield what tells a result: the table first."""
    from edgec.gate.formats import plain
    from edgec.gate.history import record_of

    yield lambda: print_json(plain(result)) if as_json else _show(result)
    for name, path in reports:
        yield partial(_write, result, name, path)
    if history:
        yield lambda: _keep(history, record_of(result, label))


def _write(result: "GateResult", name: str, path: Path | None) -> None:
    from edgec.gate.formats import write_report

    if (written := write_report(result, name, path)) is not None:
        say(f"wrote {written}")


def _keep(history: Path, record: "Record") -> None:
    from edgec.gate.history_file import append

    if (known := append(history, record)) is not None:
        say(f"note: this run is in {history} already, as '{known}'")


def _tell_all(outputs: Iterable[Callable[[], object]]) -> list[EdgecError]:
    """Tell a result in all ways, whichever of them fail; return why they did."""
    failures = []
    for tell in outputs:
        try:
            tell()
        except EdgecError as error:
            failures.append(error)
        except BrokenPipeError:
            # Who read the table has gone; the exit code says the verdict all the same.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one way, the others tell it
            failures.append(explain(error))
    return failures


def _error(result: "GateResult", candidate: Path) -> EdgecError | None:
    """Return what the verdict means for the exit code."""
    deciding = [each for each in result.findings if each.verdict == result.verdict and result.counts(each)]
    names = ", ".join(each.name for each in deciding)
    if result.verdict == "fail":
        return RegressionError(f"the candidate is worse than the baseline in {names}", where=str(candidate))
    if result.verdict == "inconclusive":
        return InconclusiveError(
            result.void or f"it is not clear whether the candidate is worse in {names}",
            where=str(candidate),
            hint=_hint(result, {each.group for each in deciding}),
        )
    return None


def _hint(result: "GateResult", undecided: set[str]) -> str | None:
    """Return what to do about groups that are undecided, and a race that is void.

    One that the sentinel did not make void says itself what to do.
    """
    unsteady = result.void is not None and result.sentinel
    again = [_AGAIN] if "performance" in undecided or unsteady else []
    more = [_MORE] if "quality" in undecided else []
    return "; ".join(again + more) or None


def _show(result: "GateResult") -> None:
    for remark in result.remarks:
        say(f"note: {remark}")
    for group, heading in (("performance", "times as bad"), ("quality", "ratio, or distance")):
        findings = [finding for finding in result.findings if finding.group == group]
        places = any(finding.where for finding in findings)
        columns = ("metric", *(["of"] if places else []), "baseline -> candidate", heading, "verdict")
        if findings:
            print_table(columns, (_row(result, finding, places=places) for finding in findings))
        for where, note in dict.fromkeys((finding.where, finding.note) for finding in findings if finding.note):
            say(f"note: {where}: {note}" if where else f"note: {note}")
    if result.sentinel:
        distance, name = max((_distance(each), each.name) for each in result.sentinel)
        say(f"the baseline beside itself: within {distance:.1%} (most in {name})")
    raced = result.rounds > 0 or result.void is not None
    say(f"{result.verdict}, {f'{result.rounds} rounds ' * raced}in {result.elapsed_s:.0f} s")


def _distance(finding: "Finding") -> float:
    """Return how far from 1 a ratio may be."""
    ends = (finding.low or 0, float("inf") if finding.high is None else finding.high)
    return max(abs(end - 1) for end in ends)


def _row(result: "GateResult", finding: "Finding", *, places: bool) -> tuple[str, ...]:
    from edgec.gate.formats._text import judged
    from edgec.gate.quantity import number, quantities

    # Distances may be far smaller than any ratio.
    text = "{:.3f}".format if finding.scale == "ratio" else number
    found = "" if finding.estimate is None else text(finding.estimate)
    if finding.low is not None and finding.high is not None:
        found += f" ({text(finding.low)} to {text(finding.high)})"
    values = [value for value in (finding.baseline, finding.candidate) if value is not None]
    shown = quantities(values, finding.unit)
    return finding.metric, *([finding.where] if places else []), shown, found, judged(result, finding)
