"""Structs as JSON files, for machines and for people."""

from pathlib import Path
from typing import TypeVar

import msgspec

from edgec.errors import BundleError

T = TypeVar("T")


def write_json(path: Path, value: object) -> None:
    """Write a struct, indented, in the order of its fields."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def read_json(path: Path, kind: type[T], what: str) -> T:
    """Read a struct of an artifact.

    Args:
        path: the file.
        kind: of the struct.
        what: it says, for people.

    Raises:
        BundleError: there is no such file, or something else in it.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{what} cannot be read: {error}", where=str(path), hint="copy or build it again") from error
