"""Read what a GGUF file says about itself: its metadata and the headers of its tensors.

`gguf.GGUFReader` maps the whole file into memory and trusts the counts it finds there; this reader checks each of them
against the size of the file first.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from edgec.checkpoint.files import size_bytes, unreadable
from edgec.checkpoint.gguf_tensor import GgufTensor, decodable
from edgec.errors import CheckpointError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_RANK = 4
_MAX_NAME_BYTES = 1 << 16
# Smallest possible encodings, to check a count before believing it.
_MIN_PAIR_BYTES = 13
_MIN_TENSOR_BYTES = 24

_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF file says about itself."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Read metadata and tensor headers.

    Raises:
        CheckpointError: the file violates the format, is big-endian, or holds a tensor type that cannot be decoded.
    """
    file_bytes = size_bytes(path)
    try:
        with path.open("rb", buffering=1 << 20) as file:
            return _read(_Reader(file, path, file_bytes))
    except OSError as error:
        raise unreadable(path, error) from error


@dataclass
class _Reader:
    """A position in the header, which checks each length against what is left of the file."""

    file: BinaryIO
    path: Path
    left_bytes: int

    def take(self, n_bytes: int, what: str) -> bytes:
        if n_bytes > self.left_bytes:
            raise self.damaged(f"truncated: {what} needs {n_bytes} bytes, {self.left_bytes} are left")
        data = self.file.read(n_bytes)
        if len(data) != n_bytes:
            raise self.damaged(f"became shorter while {what} was read")
        self.left_bytes -= n_bytes
        return data

    def scalar(self, code: str, what: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), what))[0]

    def count(self, min_bytes_each: int, what: str) -> int:
        value = int(self.scalar("Q", what))
        if value * min_bytes_each > self.left_bytes:
            raise self.damaged(f"truncated: {what} claims {value} entries, {self.left_bytes} bytes are left")
        return value

    def text(self, what: str, limit_bytes: int | None = None) -> str:
        n_bytes = self.count(1, what)
        if limit_bytes is not None and n_bytes > limit_bytes:
            raise self.damaged(f"{what} claims {n_bytes} bytes, at most {limit_bytes} are allowed")
        return self.take(n_bytes, what).decode("utf-8", errors="replace")

    def name(self, what: str) -> str:
        name = self.text(what, _MAX_NAME_BYTES)
        if not name.isprintable() or "\ufffd" in name:
            raise self.damaged(f"{what} {name!r} contains control characters")
        return name

    def damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path.name}: {what}", where=str(self.path), hint="download the file again")


def _read(reader: _Reader) -> GgufFile:
    file_bytes = reader.left_bytes
    if reader.take(4, "the magic number") != _MAGIC:
        raise reader.damaged("this is no GGUF file")
    version = reader.scalar("I", "the version")
    if version not in _VERSIONS:
        why = "big-endian" if version & 0xFFFF == 0 else f"version {version}"
        raise CheckpointError(f"{reader.path.name} is a {why} GGUF file, not supported", where=str(reader.path))
    n_tensors = reader.count(_MIN_TENSOR_BYTES, "the list of tensors")
    n_pairs = reader.count(_MIN_PAIR_BYTES, "the metadata")
    metadata: dict[str, Any] = {}
    for _ in range(n_pairs):
        key = reader.name("a metadata key")
        if key in metadata:
            raise reader.damaged(f"the metadata key '{key}' occurs twice")
        metadata[key] = _value(reader, key)
    headers = [_tensor_header(reader) for _ in range(n_tensors)]
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise reader.damaged(f"general.alignment is {alignment!r}, not a power of two")
    header_bytes = file_bytes - reader.left_bytes
    data_start = -(-header_bytes // alignment) * alignment
    tensors = [GgufTensor(name, kind, shape, data_start + offset) for name, kind, shape, offset in headers]
    _check_layout(reader, tensors, file_bytes)
    return GgufFile(metadata, {tensor.name: tensor for tensor in tensors})


def _value(reader: _Reader, key: str) -> Any:
    what = f"the metadata '{key}'"
    kind = _value_type(reader, what)
    if kind is GGUFValueType.STRING:
        return reader.text(what)
    if kind is not GGUFValueType.ARRAY:
        return reader.scalar(_SCALARS[kind], what)
    element = _value_type(reader, what)
    if element is GGUFValueType.ARRAY:
        raise reader.damaged(f"{what} is an array of arrays, not supported")
    if element is GGUFValueType.STRING:
        return [reader.text(what) for _ in range(reader.count(8, what))]
    code = _SCALARS[element]
    each_bytes = struct.calcsize(f"<{code}")
    n = reader.count(each_bytes, what)
    return np.frombuffer(reader.take(n * each_bytes, what), dtype=np.dtype(f"<{code}")).tolist()


def _value_type(reader: _Reader, what: str) -> GGUFValueType:
    raw = reader.scalar("I", what)
    try:
        return GGUFValueType(raw)
    except ValueError as error:
        raise reader.damaged(f"{what} has the unknown type {raw}") from error


def _tensor_header(reader: _Reader) -> tuple[str, GGMLQuantizationType, tuple[int, ...], int]:
    name = reader.name("a tensor name")
    what = f"tensor '{name}'"
    rank = reader.scalar("I", what)
    if not 1 <= rank <= _MAX_RANK:
        raise reader.damaged(f"{what} has {rank} dimensions, 1 to {_MAX_RANK} are allowed")
    # GGUF lists the innermost dimension first.
    shape = tuple(reader.scalar("Q", what) for _ in range(rank))[::-1]
    raw_type, offset = reader.scalar("I", what), reader.scalar("Q", what)
    kind = next((kind for kind in GGML_QUANT_SIZES if kind.value == raw_type), None)
    if kind is None or not decodable(kind):
        raise CheckpointError(
            f"{what} has the type {kind.name if kind else raw_type}, which cannot be decoded",
            where=str(reader.path),
            hint="give another quantization of this model, such as F16 or Q8_0, or the original checkpoint",
        )
    if 0 in shape or shape[-1] % GGML_QUANT_SIZES[kind][0]:
        raise reader.damaged(f"{what} has shape {shape}, which is no whole number of {kind.name} blocks")
    return name, kind, shape, offset


def _check_layout(reader: _Reader, tensors: list[GgufTensor], file_bytes: int) -> None:
    names: set[str] = set()
    position, before = 0, ""
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        end = tensor.offset + tensor.size_bytes
        if tensor.name in names:
            raise reader.damaged(f"tensor '{tensor.name}' occurs twice")
        if end > file_bytes:
            raise reader.damaged(
                f"truncated: tensor '{tensor.name}' needs bytes {tensor.offset}..{end}, the file ends at {file_bytes}"
            )
        if tensor.offset < position:
            raise reader.damaged(f"tensor '{tensor.name}' starts at byte {tensor.offset}, inside tensor '{before}'")
        names.add(tensor.name)
        position, before = end, tensor.name
