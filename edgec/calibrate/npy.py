"""Arrays from .npy and .npz files, a few rows at a time; what these files can hold besides numbers is refused."""

import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgec.errors import UsageError

_SAVE = "save it again: numpy.savez(path, NAME=array, ...)"
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class ArrayFile:
    """An array whose header has been read.

    Args:
        stream: at the first element.
        shape: at least one axis.
        dtype: numbers.
        where: the file, and the array in it.
    """

    stream: IO[bytes]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    where: str

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        """Yield the array in order, at most `rows` of its first axis at once.

        Raises:
            UsageError: the file is damaged.
        """
        row = self.shape[1:]
        for start in range(0, self.shape[0], rows):
            count = min(rows, self.shape[0] - start)
            try:
                data = self.stream.read(count * math.prod(row) * self.dtype.itemsize)
                yield np.frombuffer(data, self.dtype).reshape(count, *row)
            except (ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
                raise UsageError(f"the array is damaged: {error}", where=self.where, hint=_SAVE) from error


def open_npy(stream: IO[bytes], size_bytes: int, where: str) -> ArrayFile:
    """Read the header of an array.

    Args:
        stream: at its first byte.
        size_bytes: of all of it.
        where: for messages.

    Raises:
        UsageError: this is no .npy file, is damaged, or holds something other than numbers in C order.
    """
    try:
        header = _HEADERS[np.lib.format.read_magic(stream)]
        shape, is_fortran, dtype = header(stream)
    except Exception as error:  # NumPy parses the header as Python, which can fail in many ways
        raise UsageError(f"this is no array in NumPy's format: {error}", where=where, hint=_SAVE) from error
    if dtype.kind not in "biuf":
        raise UsageError(
            f"the array holds {dtype}, not numbers", where=where, hint="save numbers: array.astype('float32')"
        )
    if not shape or (is_fortran and len(shape) > 1):
        raise UsageError(
            "the array has no axes" if not shape else "the array is stored column by column",
            where=where,
            hint="save it with its samples as the first axis, in C order (numpy.ascontiguousarray)",
        )
    if math.prod(shape) * dtype.itemsize != size_bytes - stream.tell():
        raise UsageError("the array is damaged: its size is not what its header says", where=where, hint=_SAVE)
    return ArrayFile(stream, shape, dtype, where)


def open_npz(file: IO[bytes], where: str) -> dict[str, ArrayFile]:
    """Read the header of each array of an archive, by its name.

    Raises:
        UsageError: this is no .npz file, is damaged, or holds something other than arrays of numbers.
    """
    try:
        archive = zipfile.ZipFile(file)
        members = [(info, archive.open(info)) for info in archive.infolist()]
    except (zipfile.BadZipFile, zlib.error, RuntimeError, ValueError) as error:
        raise UsageError(f"this is no archive of NumPy arrays: {error}", where=where, hint=_SAVE) from error
    return {
        info.filename.removesuffix(".npy"): open_npy(stream, info.file_size, f"{where}: {info.filename}")
        for info, stream in members
    }
