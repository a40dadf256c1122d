"""Key-value caches of a decoder in ONNX Runtime: tensors (batch, kv_heads, length, head_dim)."""

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray


class Slot(msgspec.Struct, frozen=True):
    """One tensor of the cache: the graph's input and output that hold it, and its form."""

    past: str
    present: str
    heads: int
    head_dim: int
    dtype: str

    def zeros(self, batch: int, length: int) -> NDArray[Any]:
        return np.zeros((batch, self.heads, length, self.head_dim), self.dtype)


class Cache(Protocol):
    """What the session asks of a cache; it makes a new one for a new text."""

    def bind(self, binding: Any) -> None:
        """Bind the tensors for one run, the presents as the last outputs."""
        ...

    def collect(self, binding: Any) -> None:
        """Take what the run gave."""
        ...

    def reorder(self, rows: NDArray[np.int64], length: int) -> None:
        """Make row i what row `rows[i]` was, for the first `length` tokens."""
        ...

    def rewind(self, length: int) -> None:
        """Forget all tokens after the first `length`."""
        ...


class SharedCache:
    """Buffers for `max_length` tokens: the kernel reads the past and writes the present in the same memory."""

    def __init__(self, slots: Sequence[Slot], batch: int, max_length: int) -> None:
        self._slots = slots
        # Pages of zeros are mapped when they are first written: room that is not used costs nothing.
        self._buffers = [slot.zeros(batch, max_length) for slot in slots]
        self._bound = False

    def bind(self, binding: Any) -> None:
        if self._bound:
            return
        for slot, buffer in zip(self._slots, self._buffers, strict=True):
            place = ("cpu", 0, buffer.dtype.type, buffer.shape, buffer.ctypes.data)
            binding.bind_input(slot.past, *place)
            binding.bind_output(slot.present, *place)
        self._bound = True

    def collect(self, binding: Any) -> None:
        pass

    def reorder(self, rows: NDArray[np.int64], length: int) -> None:
        for index, old in enumerate(self._buffers):
            kept = old[rows, :, :length]
            if len(rows) != len(old):
                self._buffers[index] = self._slots[index].zeros(len(rows), old.shape[2])
                self._bound = False
            self._buffers[index][:, :, :length] = kept

    def rewind(self, length: int) -> None:
        pass


class GrowingCache:
    """Tensors that the graph takes, and returns with the new tokens at their end."""

    def __init__(self, slots: Sequence[Slot], batch: int) -> None:
        self._slots = slots
        self._pasts: list[Any] = [_value(slot.zeros(batch, 0)) for slot in slots]

    def bind(self, binding: Any) -> None:
        for slot, past in zip(self._slots, self._pasts, strict=True):
            binding.bind_ortvalue_input(slot.past, past)
            binding.bind_output(slot.present)

    def collect(self, binding: Any) -> None:
        self._pasts = binding.get_outputs()[-len(self._slots) :]

    def reorder(self, rows: NDArray[np.int64], length: int) -> None:
        self._pasts = [_value(past.numpy()[rows, :, :length]) for past in self._pasts]

    def rewind(self, length: int) -> None:
        self._pasts = [_value(past.numpy()[:, :, :length]) for past in self._pasts]


def _value(array: NDArray[Any]) -> Any:
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
