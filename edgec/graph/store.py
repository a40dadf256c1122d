"""Tensors of a graph that live in one file instead of in memory."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

# A cache line: a kernel that maps the file reads aligned rows.
_ALIGNMENT = 64


class Store:
    """An append-only file of tensors; each `add` returns an external tensor that refers to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, name: str, data: NDArray[Any], dtype: ir.DataType, shape: tuple[int, ...]) -> ir.ExternalTensor:
        """Append `data`, the raw bytes of a tensor of `dtype` and `shape` (4-bit types packed, low nibble first)."""
        self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
        offset = self._file.tell()
        data = np.ascontiguousarray(data)
        self._file.write(data.reshape(-1).view(np.uint8).data)
        return ir.ExternalTensor(
            self.path.name, offset, data.nbytes, dtype, shape=ir.Shape(shape), name=name, base_dir=self.path.parent
        )

    def flush(self) -> None:
        """Make everything that was added readable through the file."""
        self._file.flush()


def shape_of(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """Return the shape of a tensor, whose sizes are all known, as plain integers."""
    return tuple(int(size) for size in tensor.shape)  # type: ignore[arg-type]


def raw_bytes(tensor: ir.TensorProtocol) -> NDArray[np.uint8]:
    """Return the bytes of a tensor as it is stored; a file is read, not mapped (mapped pages count as resident)."""
    if isinstance(tensor, ir.ExternalTensor):
        return np.fromfile(tensor.path, np.uint8, count=tensor.length or -1, offset=tensor.offset or 0)
    return np.frombuffer(tensor.tobytes(), np.uint8)


def pack_nibbles(codes: NDArray[Any]) -> NDArray[np.uint8]:
    """Return 4-bit codes (any shape, int8 or uint8) packed in pairs, low nibble first, in row-major order."""
    flat: NDArray[np.uint8] = codes.reshape(-1).view(np.uint8)
    if flat.size % 2:
        flat = np.append(flat, np.zeros(1, np.uint8))
    high = np.left_shift(flat[1::2], 4, dtype=np.uint8)
    return np.bitwise_or(np.bitwise_and(flat[0::2], 0x0F, dtype=np.uint8), high)


def signed_nibbles(codes: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Return 4-bit codes in two's complement (0..15) as the numbers -8..7."""
    return (codes ^ 8).view(np.int8) - np.int8(8)


def unpack_nibbles(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the 4-bit codes of `packed` as uint8 0..15 (two's complement for signed ones), in `shape`."""
    flat = np.empty(2 * packed.size, np.uint8)
    np.bitwise_and(packed, 0x0F, out=flat[0::2])
    np.right_shift(packed, 4, out=flat[1::2])
    return flat[: int(np.prod(shape))].reshape(shape)
