"""The few functions of the CUDA driver that running an engine takes, called in the driver itself: no package is needed.

Where there is no driver there are no GPUs: to look for them costs one failed `dlopen`, and says nothing.

Source: NVIDIA CUDA 13 driver API reference.
"""

import ctypes
from contextlib import ExitStack, suppress
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from functools import cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgec.errors import EdgecError, MissingRuntimeError, UsageError

_LIBRARY = "libcuda.so.1"
# Without these ctypes would cut addresses to 32 bits.
_PARAMETERS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDeviceTotalMem_v2": (POINTER(c_size_t), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuMemcpyDtoDAsync_v2": (c_uint64, c_uint64, c_size_t, c_void_p),
}
_NAME_BYTES = 256
_SM_MAJOR, _SM_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*

_OUT_OF_MEMORY = (2,)
_UNAVAILABLE = (46,)
# Not initialised, a stub in place of the driver, no device, and what a driver says that does not fit GPU or libraries.
_DRIVER = (3, 34, 36, 100, 802, 803, 804)


class Gpu(msgspec.Struct, frozen=True):
    """A GPU that the driver knows.

    Args:
        handle: the driver's number for it.
        name: the product, such as "NVIDIA GeForce RTX 4060".
        sm: compute capability, such as 89 for 8.9.
        memory_bytes: all of its memory.
    """

    handle: int
    name: str
    sm: int
    memory_bytes: int


def gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that this process may use; none where there is no driver, or where it cannot start."""
    try:
        driver = _load(_LIBRARY)
    except (OSError, AttributeError):  # no driver, or one that is older than these functions
        return ()
    if driver.cuInit(0) != 0:
        return ()
    count = c_int()
    _call("cuDeviceGetCount", byref(count))
    return tuple(_describe(index) for index in range(count.value))


@cache
def _load(library: str) -> ctypes.CDLL:
    driver = ctypes.CDLL(library)
    for name, parameters in _PARAMETERS.items():
        getattr(driver, name).argtypes = parameters
    return driver


def _describe(index: int) -> Gpu:
    handle, major, minor, memory = c_int(), c_int(), c_int(), c_size_t()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _call("cuDeviceGet", byref(handle), index)
    _call("cuDeviceGetName", name, _NAME_BYTES, handle)
    _call("cuDeviceGetAttribute", byref(major), _SM_MAJOR, handle)
    _call("cuDeviceGetAttribute", byref(minor), _SM_MINOR, handle)
    _call("cuDeviceTotalMem_v2", byref(memory), handle)
    return Gpu(handle.value, name.value.decode(errors="replace"), 10 * major.value + minor.value, memory.value)


def _call(name: str, *arguments: object) -> None:
    code = getattr(_load(_LIBRARY), name)(*arguments)
    if code != 0:
        raise _error(code, name)


def _error(code: int, function: str) -> EdgecError:
    driver, name, text = _load(_LIBRARY), c_char_p(), c_char_p()
    driver.cuGetErrorName(code, byref(name))
    driver.cuGetErrorString(code, byref(text))
    words = [part.value.decode(errors="replace") for part in (text, name) if part.value is not None]
    what = f"the CUDA driver reports {', '.join(words) or 'an unknown error'} ({code})"
    if code in _OUT_OF_MEMORY:
        hint = "free memory on the GPU (nvidia-smi shows who has it), or ask for fewer tokens"
        return UsageError(what, where=function, hint=hint)
    if code in _UNAVAILABLE:
        return UsageError(what, where=function, hint="wait for the process that uses the GPU, or choose another GPU")
    if code in _DRIVER:
        return MissingRuntimeError(what, where=function, hint="install or update the NVIDIA driver")
    return EdgecError(what, where=function, hint="look at the GPU with nvidia-smi, and at the kernel's log")


class Device:
    """A GPU in use: its primary context, which is TensorRT's too, a stream, and memory.

    One thread at a time may use it, and says so with `use`. Copies are in the stream's order.

    Raises:
        EdgecError: the driver reports an error; so do all methods but `close`.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._waiting: list[NDArray[Any]] = []
        self._owned = ExitStack()
        self._context = _primary_context(_LIBRARY, gpu.handle)
        self.use()
        stream = c_void_p()
        _call("cuStreamCreate", byref(stream), 0)
        self._owned.callback(_release, "cuStreamDestroy_v2", stream)
        self.stream = int(stream.value or 0)

    def use(self) -> None:
        """Make the calling thread the one that uses the GPU."""
        _call("cuCtxSetCurrent", self._context)

    def allocate(self, size_bytes: int) -> int:
        """Return the address of new memory, which is freed by `close`; the driver aligns it to 256 bytes or more."""
        address = c_uint64()
        _call("cuMemAlloc_v2", byref(address), size_bytes)
        self._owned.callback(_release, "cuMemFree_v2", address.value)
        return address.value

    def upload(self, address: int, values: NDArray[np.int64]) -> None:
        """Copy a contiguous array to the GPU; it must not change before `synchronize`."""
        self._waiting.append(values)
        _call("cuMemcpyHtoDAsync_v2", address, values.ctypes.data, values.nbytes, self.stream)

    def download(self, values: NDArray[np.float32], address: int) -> None:
        """Copy from the GPU into a contiguous array, which is complete after `synchronize`."""
        self._waiting.append(values)
        _call("cuMemcpyDtoHAsync_v2", values.ctypes.data, address, values.nbytes, self.stream)

    def copy(self, address: int, source: int, size_bytes: int) -> None:
        """Copy within the GPU's memory; the two places must not overlap."""
        _call("cuMemcpyDtoDAsync_v2", address, source, size_bytes, self.stream)

    def synchronize(self) -> None:
        """Wait until everything in the stream is done."""
        _call("cuStreamSynchronize", self.stream)
        self._waiting.clear()

    def close(self) -> None:
        """Free memory and stream; what the driver says against it does not matter any more."""
        with suppress(EdgecError):
            self.use()
            self.synchronize()
        self._owned.close()


@cache
def _primary_context(library: str, handle: int) -> int:  # noqa: ARG001  # a key: each driver has its own contexts
    """Return a GPU's context; it is kept until the process ends, as CUDA's own runtime does: kernels live in it."""
    context = c_void_p()
    _call("cuDevicePrimaryCtxRetain", byref(context), handle)
    return int(context.value or 0)


def _release(function: str, handle: object) -> None:
    getattr(_load(_LIBRARY), function)(handle)
