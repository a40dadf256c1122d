"""Read safetensors files: the header checked in full before any of it is believed, tensors one at a time.

Source: https://github.com/huggingface/safetensors#format
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from edgec.checkpoint.files import parse_json_object, read_array, size_bytes
from edgec.checkpoint.model import TensorInfo
from edgec.errors import CheckpointError

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
# What NumPy can hold.
_MAX_RANK = 64
_MAX_SIZE = 2**62
_AGAIN = "download the file again"


@dataclass(frozen=True)
class Entry:
    """A tensor and the bytes `begin` to `end` of its file."""

    info: TensorInfo
    begin: int
    end: int


def read_header(path: Path) -> dict[str, Entry]:
    """Return the tensors of a safetensors file by name, in file order.

    Raises:
        CheckpointError: the file violates the format in any way.
    """
    file_bytes = size_bytes(path)
    if file_bytes < _LENGTH_BYTES:
        raise _damaged(path, f"truncated: a safetensors file starts with {_LENGTH_BYTES} bytes, this has {file_bytes}")
    header_bytes = int(read_array(path, np.dtype("<u8"), 1, 0)[0])
    if header_bytes > _MAX_HEADER_BYTES:
        raise _damaged(path, f"the header claims {header_bytes} bytes, at most {_MAX_HEADER_BYTES} are allowed")
    data_start = _LENGTH_BYTES + header_bytes
    if data_start > file_bytes:
        raise _damaged(path, f"truncated: the header needs bytes 8..{data_start}, the file ends at {file_bytes}")
    raw = read_array(path, np.dtype(np.uint8), header_bytes, _LENGTH_BYTES).tobytes()
    if not raw.startswith(b"{"):
        raise _damaged(path, "the header does not start with '{': this is no safetensors file")
    header = parse_json_object(raw, path)
    header.pop("__metadata__", None)
    entries = [_entry(path, name, value, data_start) for name, value in header.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    _check_layout(path, entries, data_start, file_bytes)
    return {entry.info.name: entry for entry in entries}


def read_tensor(path: Path, entry: Entry) -> npt.NDArray[Any]:
    """Read one tensor into a fresh array.

    Raises:
        CheckpointError: the file cannot be read, or became shorter since its header was read.
    """
    dtype = DTYPES[entry.info.dtype]
    # np.fromfile knows only NumPy's own types, so bfloat16 is read as bytes.
    raw = read_array(path, np.dtype(np.uint8), entry.end - entry.begin, entry.begin)
    return raw.view(dtype).reshape(entry.info.shape)


def _entry(path: Path, name: str, value: Any, data_start: int) -> Entry:
    if not name.isprintable():
        raise _damaged(path, f"the tensor name {name!r} contains control characters")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"tensor '{name}' is not described by exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(
            f"tensor '{name}' has dtype {dtype!r}, which is not supported",
            where=str(path),
            hint=f"convert the checkpoint to one of {', '.join(DTYPES)}",
        )
    if not _are_sizes(shape) or len(shape) > _MAX_RANK or math.prod(size or 1 for size in shape) > _MAX_SIZE:
        raise _damaged(path, f"tensor '{name}' has shape {shape!r}: at most {_MAX_RANK} sizes, 0 or more, are allowed")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _damaged(path, f"tensor '{name}' has data_offsets {offsets!r}: two integers, 0 or more, are needed")
    begin, end = offsets
    needed_bytes = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != needed_bytes:
        raise _damaged(
            path, f"tensor '{name}' of shape {tuple(shape)} and dtype {dtype} needs {needed_bytes} bytes, "
            f"its data_offsets {begin}..{end} give {end - begin}"
        )  # fmt: skip
    return Entry(TensorInfo(name, dtype, tuple(shape)), data_start + begin, data_start + end)


def _check_layout(path: Path, entries: list[Entry], data_start: int, file_bytes: int) -> None:
    """Make sure that `entries`, sorted, cover the data without overlap or hole, from its start to the end of file."""
    position, before = data_start, "the header"
    for entry in entries:
        name = entry.info.name
        if entry.end > file_bytes:
            raise _damaged(
                path,
                f"truncated: tensor '{name}' needs bytes {entry.begin}..{entry.end}, the file ends at {file_bytes}",
            )
        if entry.begin < position:
            raise _damaged(path, f"tensor '{name}' starts at byte {entry.begin}, inside {before}")
        if entry.begin > position:
            raise _damaged(path, f"bytes {position}..{entry.begin}, before tensor '{name}', belong to no tensor")
        position, before = entry.end, f"tensor '{name}'"
    if position != file_bytes:
        raise _damaged(path, f"the last tensor ends at byte {position}, but the file at {file_bytes}")


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= _MAX_SIZE for value in values)


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path.name}: {what}", where=str(path), hint=_AGAIN)
