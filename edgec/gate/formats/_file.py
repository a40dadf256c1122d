"""Files that the user names: written whole or not at all."""

from pathlib import Path

from edgec.errors import OutputError
from edgec.whole_file import whole_file

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
        with whole_file(out) as file:
            file.write(data)
    except (OSError, RuntimeError) as error:  # pathlib's, of links that go in circles
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(f"{what} cannot be written: {reason}", where=str(path), hint=_HINT) from error
