"""Files that are there whole or not at all."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from edgec.errors import OutputError

_HINT = "name another file, or make room there"


def write_whole(path: Path, data: bytes, what: str) -> None:
    """Write a file by rename, in place of what is there; folders above it are made.

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
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out.parent, prefix=".") as scratch:
            partial = Path(scratch) / "file"
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(out)
    except (OSError, RuntimeError) as error:  # pathlib's, of links that go in circles
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(f"{what} cannot be written: {reason}", where=str(path), hint=_HINT) from error
