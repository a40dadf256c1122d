"""Formats of gate results, a file each; a file's name, with `-` for `_`, is the format's on the command line."""

import difflib
import math
import pkgutil
import re
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import click
import msgspec

from edgec.errors import UsageError
from edgec.gate.result import GateResult
from edgec.whole_file import write_whole

# What XML cannot hold, what UTF-8 cannot, and what terminals take for commands.
_UNSAFE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Format(Protocol):
    """What a format's file has.

    Attributes:
        DEFAULT_PATH: where it is written if the user names no file; None for pages that are printed then.
    """

    DEFAULT_PATH: str | None

    def render(self, result: GateResult) -> str:
        """Return the text; of a result that `plain` gave."""
        ...


@runtime_checkable
class Published(Protocol):
    """What the file of a format has, too, that knows itself where it goes if the user names no file."""

    def publish(self, result: GateResult) -> None:
        """Put a result that `plain` gave there."""
        ...


def format_names() -> list[str]:
    """Return the names of all formats; none of them is imported."""
    names = (file.name for file in pkgutil.iter_modules(__path__))
    return sorted(name.replace("_", "-") for name in names if not name.startswith("_"))


def get_format(name: str) -> Format:
    """Return the format of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in (known := format_names()):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
        raise UsageError(f"there is no report format '{name}'", hint=hint)
    return cast("Format", import_module(f"{__name__}.{name.replace('-', '_')}"))


def render_report(result: GateResult, name: str) -> str:
    """Return a result in the format of that name.

    Raises:
        UsageError: there is no such format.
    """
    return get_format(name).render(plain(result))


def write_report(result: GateResult, name: str, path: Path | None = None) -> Path | None:
    """Write a result: into `path`, else where the format says that it goes, else on stdout.

    What is at `path` is replaced, whole or not at all; folders above it are made. `-` is stdout.

    Returns:
        The file that was written, if one was.

    Raises:
        UsageError: there is no such format.
        OutputError: the file cannot be written.
    """
    form, told = get_format(name), plain(result)
    if path is None and isinstance(form, Published):
        form.publish(told)
        return None
    if path is None and form.DEFAULT_PATH is not None:
        path = Path(form.DEFAULT_PATH)
    text = form.render(told)
    if path is None or str(path) == "-":
        click.echo(text, nl=False)
        return None
    write_whole(path, text.encode(), "the report")
    return path


def plain(result: GateResult) -> GateResult:
    """Return a result that every format can hold.

    Numbers that are not finite are missing, and characters that some format cannot hold are U+FFFD.
    """
    return msgspec.convert(_plain(msgspec.to_builtins(result)), GateResult)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return _UNSAFE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_plain(key): _plain(each) for key, each in value.items() if not _is_missing(each)}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _is_missing(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
