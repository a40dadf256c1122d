"""Which of TensorRT's kernels an operation gets.

Source: the layers of engines that TensorRT-RTX 1.7.1 compiled (docs/design.md, section 6). What Jetson's own TensorRT
fuses is not known before the device builds its engine.
"""

from edgec.quantize.scheme import Scheme
from edgec.spec.operation import Kernel, Operation
from edgec.spec.plan import Plan
from edgec.spec.target import Target

AHEAD_OF_TIME = "tensorrt_rtx"
"""The runtime of targets that take engines compiled on another machine."""

_CHANNEL_BLOCKS = (128, 64, 32, 16)
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
    storage = operation.storage
    match operation.kind:
        case "norm":
            return Kernel("fused pointwise and reduction, float32")
        case "attention":
            return _attention(operation, plan, target)
        case "lookup" if isinstance(storage, Scheme):
            return Kernel(f"Gather with DequantizeLinear inside, {storage.dtype}")
        case "lookup":
            return Kernel(f"Gather, {storage}")
        case _:
            return _matmul(operation)


def _attention(operation: Operation, plan: Plan, target: Target) -> Kernel:
    assert operation.attention is not None
    apart = "MatMul, Softmax, MatMul"
    if plan.weights == "fp32":
        return Kernel(f"{apart}, float32", "TensorRT has no attention kernel for float32")
    if operation.attention.softcap:
        return Kernel(f"{apart}, float16", "TensorRT's attention has no soft cap: scores are written to memory")
    if AHEAD_OF_TIME not in target.runtimes:
        return Kernel(f"{apart}, float16, fused as far as the device's TensorRT does")
    return Kernel("Attention, float16")


def _matmul(operation: Operation) -> Kernel:
    storage = operation.storage
    if not isinstance(storage, Scheme):
        return Kernel(f"MatMul, {storage}")
    cols = operation.size[0]
    block = block_size(storage, cols)
    if storage.dtype == "int4" and block is None:
        return Kernel("MatMul, float16", f"no block of 16 to 128 divides {cols} inputs: {_WIDENED}", 2.0)
    if block is not None and cols % block:
        return Kernel("MatMul, float16", f"groups of {block} do not divide {cols} inputs: {_WIDENED}", 2.0)
    if storage.dtype == "nvfp4":
        reason = f"without FP4 activations, which need calibration, {_WIDENED}"
        return Kernel("MatMul, float16", reason, 2.0)
    if storage.dtype == "int8" and block is not None:
        return Kernel("MatMul, float16", f"INT8 in groups does not fuse: {_WIDENED}", 2.0)
    return Kernel(f"MatMul with DequantizeLinear inside, {storage.dtype}, float16 activations")
