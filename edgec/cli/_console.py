"""What the commands print: results on stdout (tables, or JSON for machines), talk on stderr."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress

# Of tables in files and the logs of CI systems, which have no width of their own.
_WIDTH = 140

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")


def print_json(value: object) -> None:
    """Print one JSON document on stdout; msgspec structs and paths are understood."""
    import msgspec

    click.echo(json.dumps(msgspec.to_builtins(value, enc_hook=str), indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """Print a plain aligned table on stdout; cells are shown with `str`."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE, title=title, title_justify="left", pad_edge=False, show_header=any(columns))
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=number == 0, overflow="fold")  # the first one is there to be copied
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDTH)
    # Not printed by rich, which ends the process with the code of a regression when nobody reads on.
    with console.capture() as drawn:
        console.print(table)
    click.echo(drawn.get(), nl=False, color=console.is_terminal)


def say(message: str) -> None:
    """Talk to the person, on stderr; what nobody can hear changes no result."""
    with suppress(OSError):
        click.echo(message, err=True)


def progress() -> "Progress":
    """Return a progress display on stderr; it draws nothing when stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
