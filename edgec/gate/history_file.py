"""A history: a file with a line of JSON for each run of a gate, which only grows."""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from edgec.errors import OutputError, UsageError
from edgec.gate.history import SCHEMA_VERSION, Record

# How every record begins, so that a part of one can be told from a file of another kind.
_BEGIN = b'{"schema_version":'
_HINT = "name another file, or make room there"


class History(msgspec.Struct, frozen=True):
    """What is in a file.

    Args:
        records: in the order of time.
        remarks: on the file.
    """

    records: tuple[Record, ...]
    remarks: tuple[str, ...] = ()


class _Header(msgspec.Struct):
    schema_version: int


def read_history(path: Path) -> History:
    """Read a history.

    A record that breaks off at the end of the file, as after a power cut, is left out, with a remark.

    Raises:
        UsageError: it cannot be read, or a line is no record, or was written in another version of this format.
    """
    try:
        if path.exists() and not path.is_file():
            raise UsageError("the history is no file", where=str(path))
        whole, torn = _split(path.read_bytes())
    except OSError as error:
        raise UsageError(
            f"the history cannot be read: {error.strerror}", where=str(path), hint="`edgec history add` begins one"
        ) from error
    remarks = ("the last record breaks off, and is left out",) if torn else ()
    return History(tuple(sorted(_parse(whole, path), key=lambda record: record.when)), remarks)


def append(path: Path, record: Record) -> str | None:
    """Add a record to a history, which is begun if there is none.

    A run that is in it already is not added again, whatever its label. Several processes may add at once. A record that
    breaks off at the end of the file is removed.

    Returns:
        None; the label that the run has there if it is in it already.

    Raises:
        UsageError: what is there is no history.
        OutputError: it cannot be written.
    """
    line = msgspec.json.encode(record) + b"\n"
    with _locked(path) as file:
        whole, torn = _split(b"".join(iter(lambda: os.read(file, 1 << 20), b"")))
        given = msgspec.json.decode(line, type=Record)
        for known in _parse(whole, path):
            if msgspec.structs.replace(known, label=given.label) == given:
                return known.label
        if torn:
            os.ftruncate(file, len(whole))
        _write(file, line if whole.endswith(b"\n") or not whole else b"\n" + line, len(whole))
    return None


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Open a history for one process alone; folders above it are made. One that would begin empty is removed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        file = _open(path)
        try:
            yield file
        except BaseException:
            if is_new and os.fstat(file).st_size == 0:
                path.resolve().unlink()
            raise
        finally:
            os.close(file)
    except OSError as error:
        raise OutputError(f"the history cannot be written: {error.strerror}", where=str(path), hint=_HINT) from error


def _open(path: Path) -> int:
    """Open a file, and wait until no other process has it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        try:
            _lock(file, path)
            if os.fstat(file).st_nlink:  # else who had it before could not write, and removed it
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _lock(file: int, path: Path) -> None:
    if not stat.S_ISREG(os.fstat(file).st_mode):
        raise OutputError("the history cannot be written: it is no file", where=str(path), hint=_HINT)
    fcntl.flock(file, fcntl.LOCK_EX)


def _write(file: int, line: bytes, size: int) -> None:
    """Write at the end of a file of that size: all, or nothing."""
    try:
        # At once: who reads without the lock sees the whole line, or one that breaks off.
        if os.write(file, line) == len(line):
            os.fsync(file)
            return
    except OSError:
        with suppress(OSError):
            os.ftruncate(file, size)
        raise
    os.ftruncate(file, size)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _split(data: bytes) -> tuple[bytes, bytes]:
    """Return whole records, and a part of one at the end."""
    last = data[data.rfind(b"\n") + 1 :]
    text = last.rstrip(b"\0")  # which some file systems leave after a power cut
    if not last or _is_json(text) or not (text.startswith(_BEGIN) or _BEGIN.startswith(text)):
        return data, b""
    return data[: len(data) - len(last)], last


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def _parse(data: bytes, path: Path) -> list[Record]:
    return [
        _record(line, f"{path}, line {number}")
        for number, line in enumerate(data.split(b"\n"), start=1)
        if line.strip()
    ]


def _record(line: bytes, where: str) -> Record:
    try:
        version = msgspec.json.decode(line, type=_Header).schema_version
        if version != SCHEMA_VERSION:
            raise UsageError(
                f"the history has version {version} of its format, and this edgec reads version {SCHEMA_VERSION}",
                where=where,
                hint="use the edgec that wrote it, or begin a new history",
            )
        return msgspec.json.decode(line, type=Record)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"this is no record of a history: {error}", where=where, hint="remove the line, or name another file"
        ) from error
