"""Which of TensorRT's kernels an operation gets.

Source: the layers of engines that TensorRT-RTX 1.7.1 compiled (docs/design.md, section 6). What Jetson's own TensorRT
fuses is not known before the device builds its engine.
"""

import msgspec

from edgec.quantize.scheme import Scheme
from edgec.spec.operation import Kernel, Operation, Storage
from edgec.spec.plan import Plan
from edgec.spec.target import Target

AHEAD_OF_TIME = "tensorrt_rtx"
"""The runtime of targets that take engines compiled on another machine."""

_CHANNEL_BLOCKS = (128, 64, 32, 16)
_ON_DEVICE = "kernels are those of TensorRT-RTX; what the device's own TensorRT fuses shows when it builds the engine"
_WIDENED = "the whole weight is widened to float16 in a kernel of its own"


def block_size(scheme: Scheme, cols: int) -> int | None:
    """Return the blocks in which integers are written; None for one scale per output.

    TensorRT fuses whole blocks only, and not INT4 with one scale per output: scales are repeated for smaller blocks.
    """
    if scheme.group is not None:
        return scheme.whole_block(cols) or scheme.group
    if scheme.dtype != "int4":
        return None
    return next((size for size in _CHANNEL_BLOCKS if cols % size == 0), None)


def kernel_of(operation: Operation, plan: Plan, target: Target) -> Kernel:
    """Return the kernel of one operation."""
    kernel = _kernel(operation, plan)
    if AHEAD_OF_TIME in target.runtimes:
        return kernel
    return msgspec.structs.replace(kernel, caveat=_ON_DEVICE)


def _kernel(operation: Operation, plan: Plan) -> Kernel:
    storage = operation.storage
    match operation.kind:
        case "norm":
            return Kernel("pointwise and reduction, float32")
        case "attention":
            return _attention(operation, plan)
        case "lookup" if isinstance(storage, Scheme):
            return Kernel(f"Gather with DequantizeLinear inside, {storage.dtype}")
        case "lookup":
            return Kernel(f"Gather, {storage}")
        case _:
            return _matmul(operation, plan)


def _attention(operation: Operation, plan: Plan) -> Kernel:
    assert operation.attention is not None
    apart = "MatMul, Softmax, MatMul"
    if plan.weights == "fp32":
        return Kernel(f"{apart}, float32", "TensorRT has no attention kernel for float32", spills=2)
    if operation.attention.softcap:
        reason = "TensorRT's attention has no soft cap: scores are written to memory"
        return Kernel(f"{apart}, float16", reason, spills=2)
    if plan.kv_cache == "int8":
        return Kernel("Attention, float16, on an int8 cache with one scale for each head, which is widened first")
    return Kernel("Attention, float16")


def _matmul(operation: Operation, plan: Plan) -> Kernel:
    storage = operation.storage
    if plan.is_static(operation.matrix):
        return Kernel("MatMul, int8 x int8, calibrated scales")
    if not isinstance(storage, Scheme):
        return Kernel(f"MatMul, {storage}")
    reason = _unfused(operation, storage)
    if reason is not None:
        return Kernel("MatMul, float16", f"{reason}: {_WIDENED}", 2.0)
    return Kernel(f"MatMul with DequantizeLinear inside, {storage.dtype}, float16 activations")


def _unfused(operation: Operation, storage: Scheme) -> str | None:
    """Return why DequantizeLinear does not fuse into the matmul; None where it does."""
    cols = operation.size[0]
    block = block_size(storage, cols)
    dtype = storage.dtype
    joined = _joined(operation)
    rules = (
        (dtype == "nvfp4", "FP4 weights fuse with FP4 activations only, which need calibration"),
        (dtype == "int4" and block is None, f"no block of 16 to 128 divides {cols} inputs"),
        (block is not None and cols % block != 0, f"groups of {block} do not divide {cols} inputs"),
        (
            dtype == "int8" and block is not None and bool(joined),
            "INT8 in groups does not fuse, and is stored as float16 where TensorRT joins matmuls of one input",
        ),
        (dtype == "int8" and block is not None, "INT8 in groups does not fuse"),
        (
            dtype != "int4" and operation.block == "head",
            f"{dtype} does not fuse into a matmul of one row, as the logits'",
        ),
        (
            dtype == "fp8" and bool(joined),
            "TensorRT joins matmuls of one input, and fp8 does not fuse there",
        ),
        (
            any(_written(other, cols) != _written(storage, cols) for other in joined),
            f"TensorRT joins matmuls of one input, and {dtype} fuses there only with its like",
        ),
    )
    return next((reason for applies, reason in rules if applies), None)


def _joined(operation: Operation) -> list[Storage]:
    """Return how the other matmuls that TensorRT joins with one are stored: INT4 ones apart from all others."""
    return [other for other in operation.siblings if _is_int4(other) == _is_int4(operation.storage)]


def _is_int4(storage: Storage | None) -> bool:
    return isinstance(storage, Scheme) and storage.dtype == "int4"


def _written(storage: Storage, cols: int) -> tuple[str, int | None]:
    """Return what of a storage the engine sees."""
    return (storage.dtype, block_size(storage, cols)) if isinstance(storage, Scheme) else (storage, None)
