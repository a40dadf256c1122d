"""edgec's own JSON; docs/gate-result.schema.json describes it."""

from pathlib import Path

import msgspec

from edgec.errors import UsageError
from edgec.gate.result import SCHEMA_VERSION, GateResult

DEFAULT_PATH = "edgec-gate.json"


class _Header(msgspec.Struct):
    schema_version: int


def render(result: GateResult) -> str:
    """Return a result as JSON."""
    return msgspec.json.format(msgspec.json.encode(result), indent=2).decode() + "\n"


def read_result(path: Path) -> GateResult:
    """Read what `edgec gate --report json` wrote.

    Raises:
        UsageError: it cannot be read, is something else, or was written in another version of this format.
    """
    try:
        data = path.read_bytes()
        version = msgspec.json.decode(data, type=_Header).schema_version
        if version != SCHEMA_VERSION:
            raise UsageError(
                f"the gate result has version {version} of its format, and this edgec reads version {SCHEMA_VERSION}",
                where=str(path),
                hint="read it with the edgec that wrote it, or run the gate again",
            )
        return msgspec.json.decode(data, type=GateResult)
    except OSError as error:
        raise UsageError(f"the gate result cannot be read: {error.strerror}", where=str(path)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"this is no gate result: {error}", where=str(path), hint="`edgec gate --report json:FILE` writes one"
        ) from error
