"""Checkpoint: a trained model on disk, opened without executing anything that it contains."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from edgec.checkpoint.files import sha256_file
from edgec.errors import CheckpointError

Array = npt.NDArray[Any]

_FINITE_CHUNK_ELEMENTS = 1 << 20

# Bits of the exponent; a value with all of them set is an infinity or not a number.
_EXPONENT: dict[str, np.unsignedinteger[Any]] = {
    "float64": np.uint64(0x7FF0_0000_0000_0000),
    "float32": np.uint32(0x7F80_0000),
    "float16": np.uint16(0x7C00),
    "bfloat16": np.uint16(0x7F80),
}


class TensorInfo(msgspec.Struct, frozen=True):
    """What the header of a file says about a tensor; `dtype` is "F32", "BF16", or a GGUF type such as "Q4_1"."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained model on disk; a tensor is read when it is asked for, never before.

    Args:
        path: the directory or file.
        format: how it is stored.
        config: as in config.json; for GGUF, its metadata under the names of config.json.
        tensors: by the names that Hugging Face gives them.
        files: by name, every file that goes into a build.
        load: reads one tensor; `read` checks its argument.
        load_tokenizer: see `tokenizer_files`.
    """

    path: Path
    format: Literal["huggingface", "gguf"]
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    files: Mapping[str, Path]
    load: Callable[[str], Array]
    load_tokenizer: Callable[[], dict[str, bytes]]

    def read(self, name: str) -> Array:
        """Read one tensor from disk into a fresh C-contiguous array, in its own dtype; GGUF blocks become float32.

        Safe to call from several threads.

        Raises:
            CheckpointError: there is no such tensor, or the file cannot be read.
        """
        if name not in self.tensors:
            near = difflib.get_close_matches(name, self.tensors, n=1)
            raise CheckpointError(
                f"the checkpoint has no tensor '{name}'",
                where=str(self.path),
                hint=f"the nearest name is '{near[0]}'" if near else None,
            )
        return self.load(name)

    def fingerprint(self) -> dict[str, str]:
        """Return file name -> SHA-256 in hex of every file that goes into a build, sorted by name.

        Raises:
            CheckpointError: a file cannot be read.
        """
        return dict(self._fingerprint)

    def tokenizer_files(self) -> dict[str, bytes]:
        """Return file name -> content: tokenizer.json and, where present, what belongs to it.

        Raises:
            CheckpointError: there is no tokenizer.json and none can be made.
        """
        return self.load_tokenizer()

    @cached_property
    def _fingerprint(self) -> dict[str, str]:
        return {name: sha256_file(self.files[name]) for name in sorted(self.files)}


def read_finite(checkpoint: Checkpoint, name: str) -> Array:
    """Read one tensor and make sure that it holds no NaN and no infinity.

    Raises:
        CheckpointError: it does (the message names the first index and the count), or it cannot be read.
    """
    array = checkpoint.read(name)
    count, first = _count_non_finite(array)
    if count:
        index = tuple(int(i) for i in np.unravel_index(first, array.shape))
        raise CheckpointError(
            f"tensor '{name}' holds {count} of {array.size} values that are NaN or infinite, the first at {index}",
            where=str(checkpoint.path),
            hint="training diverged or the conversion overflowed; take an earlier or a wider checkpoint",
        )
    return array


def _count_non_finite(array: Array) -> tuple[int, int]:
    """Return how many values are not finite and the flat index of the first; integers are always finite."""
    if array.dtype.name not in _EXPONENT:
        return 0, 0
    exponent = np.array(_EXPONENT[array.dtype.name])
    bits = array.reshape(-1).view(exponent.dtype)
    count, first = 0, 0
    for start in range(0, bits.size, _FINITE_CHUNK_ELEMENTS):
        bad = (bits[start : start + _FINITE_CHUNK_ELEMENTS] & exponent) == exponent
        found = int(np.count_nonzero(bad))
        if found and not count:
            first = start + int(np.argmax(bad))
        count += found
    return count, first
