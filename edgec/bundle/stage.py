"""Write a directory whole or not at all."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgec.errors import OutputError


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `out` that becomes `out` when the block ends without an exception.

    Everything is flushed to disk before the rename. On any exception, Ctrl-C included, the directory is removed.

    Raises:
        OutputError: `out` exists, its parent cannot be written, or the disk is full.
    """
    out = out.absolute()
    if out.exists() or out.is_symlink():
        raise OutputError(f"'{out}' exists already", hint="choose another name, or remove it first")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".edgec", dir=out.parent))
    except OSError as error:
        raise _output_error(error, out) from error
    try:
        yield folder
        _flush(folder)
        folder.chmod(0o755)  # mkdtemp makes private directories
        folder.rename(out)
        _sync(out.parent)
    except OSError as error:
        if error.errno in _FATAL:
            raise _output_error(error, out) from error
        raise
    finally:
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)


_FATAL = {
    errno.ENOSPC: ("the disk is full", "free some space, or write to another disk"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or write to another disk"),
    errno.EFBIG: ("a file is larger than `ulimit -f` or this file system allows", "raise it, or write to another disk"),
    errno.EACCES: ("no permission to write", "choose a directory that you may write"),
    errno.EPERM: ("no permission to write", "choose a directory that you may write"),
    errno.EROFS: ("the file system is read-only", "choose a directory that you may write"),
    errno.EEXIST: ("it exists already", "choose another name, or remove it first"),
    errno.ENOTEMPTY: ("it exists already", "choose another name, or remove it first"),
    errno.ENOTDIR: ("a parent of it is a file", "choose another name"),
    errno.EIO: ("the disk reports an input/output error", "check the disk"),
}


def _output_error(error: OSError, out: Path) -> OutputError:
    what, hint = _FATAL.get(error.errno or 0, (error.strerror or str(error), "choose another place"))
    return OutputError(f"cannot write '{out}': {what}", hint=f"{hint}; nothing was left behind")


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
