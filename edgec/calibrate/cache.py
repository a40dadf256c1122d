"""Results of calibration on disk, found again by what they were made from."""

import hashlib
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgec.errors import OutputError
from edgec.whole_file import whole_file

# Other code, other results.
_PACKAGES = ("calibrate", "checkpoint", "frontends", "graph", "quantize", "prune")

Arrays = Mapping[str, NDArray[Any]]


def cache_dir() -> Path:
    """Return the folder for what can be computed again: $EDGEC_CACHE, or `edgec` in the user's folder for caches."""
    if found := os.environ.get("EDGEC_CACHE"):
        return Path(found)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgec"


def key(*parts: str | bytes) -> str:
    """Return the sha256 of some parts, in hex; where one ends and the next begins matters."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(f"{len(data)}:".encode())
        state.update(data)
    return state.hexdigest()


def code_key(*packages: str) -> str:
    """Return the hash of the source that decides what calibration finds, and of further packages of edgec."""
    root = Path(__file__).parent.parent
    files = sorted(path for package in (*_PACKAGES, *packages) for path in (root / package).rglob("*.py"))
    return key(*(part for path in files for part in (str(path.relative_to(root)), path.read_bytes())))


def save(path: Path, arrays: Arrays) -> None:
    """Write arrays to `path`, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with whole(path, "a result of calibration") as file:
        np.savez(file, allow_pickle=False, **arrays)


@contextmanager
def whole(path: Path, what: str) -> Iterator[IO[bytes]]:
    """Yield a file that becomes `path` when the block ends without an exception.

    Args:
        path: in the cache.
        what: is kept there, for people.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        with whole_file(path) as file:
            yield file
    except OSError as error:
        raise OutputError(
            f"cannot keep {what}: {error.strerror or error}",
            where=str(path.parent),
            hint="make room there, or set EDGEC_CACHE to another folder",
        ) from error


def load(path: Path) -> dict[str, NDArray[Any]] | None:
    """Return what `save` wrote, or None where there is nothing that can be read."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    # zipfile raises all but the last, which is a single array.
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, TypeError):
        return None
