"""`edgec history`: what gates measured, over time."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgec.cli._console import json_option, print_json, print_table, say
from edgec.errors import require

if TYPE_CHECKING:
    from edgec.gate.history import Record
    from edgec.gate.history_compare import Comparison
    from edgec.gate.history_series import Series

_FILE = "edgec-history.jsonl"
_file_argument = click.argument("file", type=click.Path(path_type=Path), metavar="FILE")


@click.group()
def command() -> None:
    """Keep what gates measured, and find what changed over time.

    A history is a file of JSON lines that only grows: commit it, or let your CI keep it. What was measured on different
    machines is never compared.
    """


@command.command()
@_file_argument
@click.argument("result", type=click.Path(path_type=Path), metavar="RESULT.json")
@click.option("--label", required=True, metavar="TEXT", help="The commit, or another name for what was measured.")
def add(file: Path, result: Path, label: str) -> None:
    """Add a gate's result to the history FILE.

    RESULT.json is what `edgec gate --report json:RESULT.json` wrote; the candidate's values are kept.
    """
    from edgec.gate.formats.json import read_result
    from edgec.gate.history import record_of
    from edgec.gate.history_file import append

    record = record_of(read_result(result), label)
    if (known := append(file, record)) is None:
        say(f"added: {record.label}, {len(record.values)} values, machine {record.machine}")
    else:
        say(f"note: this run is in {file} already, as '{known}'")


@command.command()
@click.argument("file", type=click.Path(path_type=Path), default=_FILE, metavar="[FILE]")
@click.option("--metric", metavar="NAME", help="Only this one.")
@click.option("--machine", metavar="HASH", help="Only this one; the first digits will do.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw it, too: an .svg or .png file.")
@json_option
def show(*, file: Path, metric: str | None, machine: str | None, plot: Path | None, as_json: bool) -> None:
    """Show where metrics began, where they are, and where they changed.

    FILE is edgec-history.jsonl if none is named. Changes are found from 8 runs on.
    """
    from edgec.gate.history_file import read_history
    from edgec.gate.history_plot import write_plot
    from edgec.gate.history_series import series_of
    from edgec.gate.side_by_side_plot import check_plot

    for package in ("scipy", "ruptures"):  # which is broken without the first
        require(package, "gate")
    if plot is not None:
        check_plot(plot)
    history = read_history(file)
    found = series_of(history.records, metric, machine)
    for remark in history.remarks:
        say(f"note: {remark}")
    if plot is not None:
        write_plot(found, plot)
    if as_json:
        print_json(found)
        return
    if not found:
        say("the history is empty")
    machines = {record.machine: record for record in history.records}
    for key in dict.fromkeys((each.machine, each.bundle) for each in found):
        _show([each for each in found if (each.machine, each.bundle) == key], machines[key[0]])


@command.command()
@_file_argument
@click.argument("label_a", metavar="LABEL_A")
@click.argument("label_b", metavar="LABEL_B")
@json_option
def compare(*, file: Path, label_a: str, label_b: str, as_json: bool) -> None:
    """Put the values of two labels side by side.

    Refused where they are of different machines. It says nothing of noise: for a verdict, gate both in one run.
    """
    from edgec.gate.history_compare import compare as side_by_side
    from edgec.gate.history_file import read_history

    history = read_history(file)
    found = side_by_side(history.records, label_a, label_b)
    for remark in history.remarks:
        say(f"note: {remark}")
    if as_json:
        print_json(found)
        return
    for each in found:
        _show_pair(each, label_a, label_b)


def _show(series: Sequence["Series"], record: "Record") -> None:
    """Print the series of one kind of bundle on one machine."""
    from edgec.gate.quantity import quantity

    facts = record.environment
    click.echo(f"{series[0].bundle} on machine {series[0].machine}")
    cpu, kernel = facts.get("cpu_model", "unknown CPU"), facts.get("kernel", "unknown kernel")
    click.echo(f"{cpu}, {facts.get('usable_cpus', '?')} CPUs, {kernel}")
    rows = [
        (
            each.metric,
            str(len(each.points)),
            quantity(each.points[0].value, each.unit),
            quantity(each.points[-1].value, each.unit),
            each.summary,
        )
        for each in series
    ]
    print_table(("metric", "runs", "first", "last", "trend"), rows)
    changes = [(change, each) for each in series for change in each.changes]
    if changes:
        steps = [
            (
                f"{change.when:%Y-%m-%d}",
                change.label,
                each.metric,
                quantity(change.before, each.unit),
                quantity(change.after, each.unit),
                change.words,
            )
            for change, each in sorted(changes, key=lambda pair: pair[0].when, reverse=True)
        ]
        print_table(("changed", "with", "metric", "before", "after", ""), steps)


def _show_pair(found: "Comparison", first: str, second: str) -> None:
    from edgec.gate.quantity import quantity

    click.echo(f"{found.bundle} on machine {found.machine}")
    for name, label, runs in zip("AB", (first, second), found.runs, strict=True):
        click.echo(f"{name} is {label}{f', the median of {runs} runs' * (runs > 1)}")
    rows = [
        (each.metric, quantity(each.first, each.unit), quantity(each.second, each.unit), each.words)
        for each in found.metrics
    ]
    print_table(("metric", "A", "B", ""), rows)
