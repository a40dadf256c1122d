"""How many bytes of weights a graph reads for one token.

The graph is read from its protobuf wire format, because the core goes without the onnx package: a few fields of a few
messages. Source: onnx.proto (ModelProto, GraphProto, NodeProto, TensorProto) and the protobuf encoding reference.
"""

import math
from collections.abc import Iterator
from pathlib import Path

from edgec.errors import BundleError

# Operators that read some rows of a table: the embedding's, or the rotary embedding's.
_READ_ROWS = frozenset({"Gather", "GatherBlockQuantized", "GroupQueryAttention", "RotaryEmbedding"})
_BITS = {
    **dict.fromkeys((1, 6, 12), 32),  # float, int32, uint32
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20), 8),  # uint8, int8, bool, float8
    **dict.fromkeys((4, 5, 10, 16), 16),  # uint16, int16, float16, bfloat16
    **dict.fromkeys((7, 11, 13), 64),  # int64, double, uint64
    **dict.fromkeys((21, 22, 23), 4),  # uint4, int4, float4
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def weight_bytes_per_token(path: Path) -> int:
    """Return the size of all initializers that a graph reads whole.

    Raises:
        BundleError: the file is no ONNX model.
    """
    try:
        (graph,) = _messages(path.read_bytes(), 7)
        sizes = dict(map(_initializer, _messages(graph, 5))) | dict(map(_sparse_initializer, _messages(graph, 15)))
        read = {name for node in _messages(graph, 1) for name in _reads_whole(node)}
    except (ValueError, IndexError, KeyError) as error:
        raise BundleError("the file is no ONNX model", where=str(path), hint="copy or build it again") from error
    return sum(size for name, size in sizes.items() if name in read)


def _initializer(tensor: bytes) -> tuple[str, int]:
    """Return a TensorProto's name and the size of its data in bytes."""
    return _name_and_size(tensor, _dims(tensor, 1))


def _sparse_initializer(sparse: bytes) -> tuple[str, int]:
    """Return a SparseTensorProto's name, and the size of its data with the zeros, which the runtime reads too."""
    (numbers,) = _messages(sparse, 1)
    return _name_and_size(numbers, _dims(sparse, 3))


def _dims(message: bytes, wanted: int) -> list[int]:
    dims: list[int] = []
    for number, value in _fields(message):
        if number == wanted:
            dims += [value] if isinstance(value, int) else _varints(value)
    return dims


def _name_and_size(tensor: bytes, dims: list[int]) -> tuple[str, int]:
    (data_type,) = (value for number, value in _fields(tensor) if number == 2)
    (name,) = _messages(tensor, 8)
    return name.decode(), (math.prod(dims) * _BITS.get(int(data_type), 0) + 7) // 8


def _reads_whole(node: bytes) -> list[str]:
    (op_type,) = _messages(node, 4)
    return [] if op_type.decode() in _READ_ROWS else [name.decode() for name in _messages(node, 1)]


def _messages(message: bytes, wanted: int) -> list[bytes]:
    """Return the length-delimited fields with one number."""
    return [value for number, value in _fields(message) if number == wanted and isinstance(value, bytes)]


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _varint(message, at)
        else:
            size = {_FIXED64: 8, _FIXED32: 4}[kind]
        if at + size > len(message):
            raise ValueError("truncated")
        yield number, message[at : at + size]
        at += size


def _varints(packed: bytes) -> Iterator[int]:
    at = 0
    while at < len(packed):
        value, at = _varint(packed, at)
        yield value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the number at a position, and the position after it."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
