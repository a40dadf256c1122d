"""Read one tensor of a GGUF file; blocks are dequantized a few rows at a time, by the `gguf` package.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from edgec.checkpoint.files import read_array

_CHUNK_ELEMENTS = 1 << 20

_PLAIN: dict[GGMLQuantizationType, np.dtype[Any]] = {
    GGMLQuantizationType.F64: np.dtype("<f8"),
    GGMLQuantizationType.F32: np.dtype("<f4"),
    GGMLQuantizationType.F16: np.dtype("<f2"),
    GGMLQuantizationType.BF16: np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file; `shape` is outermost first, `offset` counts from the start of the file."""

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int

    @property
    def size_bytes(self) -> int:
        block_elements, block_bytes = GGML_QUANT_SIZES[self.type]
        return int(math.prod(self.shape) // block_elements * block_bytes)


def read_gguf_tensor(path: Path, tensor: GgufTensor) -> npt.NDArray[Any]:
    """Read one tensor: F64, F32, F16 and BF16 in their own type, blocks as float32.

    Raises:
        CheckpointError: the file cannot be read, or became shorter since its header was read.
    """
    if tensor.type in _PLAIN:
        raw = read_array(path, np.dtype(np.uint8), tensor.size_bytes, tensor.offset)
        return raw.view(_PLAIN[tensor.type]).reshape(tensor.shape)
    columns = tensor.shape[-1]
    rows = math.prod(tensor.shape[:-1])
    row_bytes = tensor.size_bytes // rows
    out = np.empty((rows, columns), np.float32)
    step = max(1, _CHUNK_ELEMENTS // columns)
    # A damaged scale may be infinite: the values are checked after they were read, with the tensor's name.
    with np.errstate(all="ignore"):
        for start in range(0, rows, step):
            n_rows = min(step, rows - start)
            raw = read_array(path, np.dtype(np.uint8), n_rows * row_bytes, tensor.offset + start * row_bytes)
            out[start : start + n_rows] = dequantize(raw.reshape(n_rows, row_bytes), tensor.type)
    return out.reshape(tensor.shape)


@cache
def decodable(kind: GGMLQuantizationType) -> bool:
    """Say whether `read_gguf_tensor` can read this type."""
    if kind in _PLAIN:
        return True
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True
