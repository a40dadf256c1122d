"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from edgec.errors import OutputError

_HINT = "name another file, or make room there"


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file that becomes `path` when the block ends without an exception; folders above it are made.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=".") as scratch:
        partial = Path(scratch) / path.name
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def write_whole(path: Path, data: bytes, what: str) -> None:
    """Write a file that the user names, in place of what is there; folders above it are made.

    Args:
        path: a link is followed.
        data: of the file.
        what: it is, for people.

    Raises:
        OutputError: it cannot be written, or something is there that is no file.
    """
    try:
        out = path.resolve()
        if out.exists() and not out.is_file():
            raise OutputError(f"{what} cannot be written: there is something else", where=str(path), hint=_HINT)
        with whole_file(out) as file:
            file.write(data)
    except (OSError, RuntimeError) as error:  # pathlib's, of links that go in circles
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(f"{what} cannot be written: {reason}", where=str(path), hint=_HINT) from error
