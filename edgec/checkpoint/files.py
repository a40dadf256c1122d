"""Bounded reads from files that nobody has vouched for. Nothing is memory-mapped: mapped pages count as our memory."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgec.errors import CheckpointError

MAX_JSON_BYTES = 256 << 20
_HASH_CHUNK_BYTES = 2 << 20


def read_bytes(path: Path, limit_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Return the content of a regular file of at most `limit_bytes`.

    Raises:
        CheckpointError: the file is absent, unreadable, no regular file, or larger.
    """
    size = size_bytes(path)
    if size > limit_bytes:
        raise CheckpointError(f"{path.name} holds {size} bytes, at most {limit_bytes} are accepted", where=str(path))
    return read_array(path, np.dtype(np.uint8), size, 0).tobytes()


def exists(path: Path) -> bool:
    """Say whether there is something at `path`.

    Raises:
        CheckpointError: the directory does not let us know.
    """
    try:
        return path.exists()
    except OSError as error:
        raise unreadable(path, error) from error


def size_bytes(path: Path) -> int:
    """Return the size of a regular file.

    Raises:
        CheckpointError: the file is absent, unreadable or no regular file.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"{path.name} is missing, or is no regular file", where=str(path))
        return path.stat().st_size
    except OSError as error:
        raise unreadable(path, error) from error


def read_array(path: Path, dtype: np.dtype[Any], count: int, offset: int) -> npt.NDArray[Any]:
    """Read `count` elements from byte `offset` into a fresh one-dimensional array; safe to call from several threads.

    Raises:
        CheckpointError: the file ends before, or cannot be read.
    """
    try:
        array = np.fromfile(path, dtype=dtype, count=count, offset=offset)
    except OSError as error:
        raise unreadable(path, error) from error
    if array.size != count:
        raise CheckpointError(f"{path.name} became shorter while it was read", where=str(path))
    return array


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object that the file holds.

    Raises:
        CheckpointError: the file is absent, unreadable, or holds something else.
    """
    return parse_json_object(read_bytes(path), path)


def parse_json_object(data: bytes, path: Path) -> dict[str, Any]:
    """Return the JSON object in `data`, which came from `path`; a key that occurs twice is refused.

    Raises:
        CheckpointError: `data` is no JSON object in UTF-8.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path.name} is damaged: {error}", where=str(path), hint="download the file again"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name} holds a JSON {type(value).__name__}, not an object", where=str(path))
    return value


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hex, reading a few MiB at a time.

    Raises:
        CheckpointError: the file cannot be read.
    """
    digest = hashlib.sha256()
    buffer = bytearray(_HASH_CHUNK_BYTES)
    view = memoryview(buffer)
    try:
        with path.open("rb", buffering=0) as file:
            while n_read := file.readinto(buffer):
                digest.update(view[:n_read])
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.hexdigest()


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """Return the CheckpointError for a failed system call on `path`."""
    return CheckpointError(f"cannot read {path.name}: {error.strerror or error}", where=str(path))


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key!r} occurs twice")
        values[key] = value
    return values
