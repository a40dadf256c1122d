"""GitHub: the page of `markdown` in the job's summary, and an annotation for each problem.

On a runner, and if no file is named, the page is added to the file that $GITHUB_STEP_SUMMARY names, and annotations are
printed; elsewhere the page is printed. A file that is named gets the page alone.

Source: actions/toolkit, `packages/core/src/command.ts`, for what is escaped in workflow commands.
"""

import os
from contextlib import suppress
from pathlib import Path

import click

from edgec.errors import OutputError
from edgec.gate.formats._text import Problem, problems
from edgec.gate.formats.markdown import render as page
from edgec.gate.result import GateResult

DEFAULT_PATH = None

# Of each kind GitHub shows so many of a step, and does not say that there are more.
_SHOWN = 10
_DATA = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
_PROPERTY = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A", ":": "%3A", ",": "%2C"})


def render(result: GateResult) -> str:
    """Return a result as a page."""
    return page(result)


def publish(result: GateResult) -> None:
    """Add the page to the job's summary and print annotations; away from GitHub, print the page.

    Raises:
        OutputError: the summary cannot be written.
    """
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if not summary:
        click.echo(render(result), nl=False)
        return
    _append(Path(summary), render(result).encode())
    click.echo(annotations(result), nl=False)


def annotations(result: GateResult) -> str:
    """Return a workflow command for each problem: errors are regressions, warnings are undecided."""
    found = problems(result)
    errors = [each for each in found if each.is_regression]
    warnings = [each for each in found if not each.is_regression]
    lines = [*_commands("error", errors), *_commands("warning", warnings)]
    return "".join(f"{line}\n" for line in lines)


def _commands(kind: str, found: list[Problem]) -> list[str]:
    shown = found if len(found) <= _SHOWN else found[: _SHOWN - 1]
    lines = [_command(kind, f"edgec gate: {each.name}", each.text) for each in shown]
    if more := len(found) - len(shown):
        lines.append(_command(kind, "edgec gate", f"{more} more: the job's summary lists them"))
    return lines


def _command(kind: str, title: str, text: str) -> str:
    return f"::{kind} title={title.translate(_PROPERTY)}::{text.translate(_DATA)}"


def _append(path: Path, data: bytes) -> None:
    """Add to a file that earlier commands of the step may have written to, all or nothing."""
    try:
        # Without a buffer: what could not be written would be tried again when the file is cut off, or closed.
        with path.open("ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            left = memoryview(b"\n" + data if size else data)
            try:
                while left:
                    left = left[file.write(left) :]
            except BaseException:
                with suppress(OSError):  # what went wrong first is told
                    file.truncate(size)
                raise
    except OSError as error:
        raise OutputError(
            f"the job's summary cannot be written: {error.strerror}",
            where=str(path),
            hint="$GITHUB_STEP_SUMMARY names it; unset it away from GitHub",
        ) from error
