"""Which of ONNX Runtime's CPU kernels an operation gets.

Source: the CPU kernels of ONNX Runtime 1.31 and the instruction sets that its MLAS library has integer matmuls for.
"""

from edgec.quantize.scheme import Scheme
from edgec.spec.operation import Kernel, Operation
from edgec.spec.plan import Plan
from edgec.spec.target import Target

_ACTIVATIONS = {0: "the runtime's choice of", 1: "float32", 2: "float16", 3: "bfloat16", 4: "int8"}
_VNNI = frozenset({"avx_vnni", "avx512_vnni"})
_INT8_MATMULS = frozenset({"avx2", "avx512f", "asimddp"})
# One scale per output is repeated for blocks: the largest size that adds no padding costs the least.
_CHANNEL_BLOCKS = (128, 64, 32, 16)


def block_size(scheme: Scheme, cols: int) -> int:
    """Return the blocks in which kernels of integers and floats take rows of `cols` inputs."""
    if scheme.group is None:
        return next((size for size in _CHANNEL_BLOCKS if cols % size == 0), 32)
    return scheme.whole_block(cols) or scheme.group


def saturates(target: Target) -> bool:
    """Say whether the target's fastest kernel of unsigned by signed integers adds in too few bits."""
    return target.arch == "x86_64" and not _VNNI & set(target.isa)


def kernel_of(operation: Operation, plan: Plan, target: Target) -> Kernel:
    """Return the kernel of one operation."""
    storage = operation.storage
    match operation.kind:
        case "norm":
            kind = "RMS" if operation.name.startswith("rms") else "Layer"
            return Kernel(f"{kind}Normalization, apart from the sum in front of it, which is faster")
        case "attention":
            rope = operation.attention is not None and operation.attention.rope is not None
            inside = ", rotary embedding inside" if rope else ""
            cache = "int8 cache, one scale for each head," if plan.kv_cache == "int8" else "float32 cache"
            return Kernel(f"GroupQueryAttention{inside}, {cache} in one buffer")
        case "lookup" if isinstance(storage, Scheme):
            return Kernel(f"GatherBlockQuantized, {storage.dtype}")
        case "lookup":
            return _floating("Gather", storage)
        case _:
            return _matmul(operation, plan, target)


def _matmul(operation: Operation, plan: Plan, target: Target) -> Kernel:
    storage = operation.storage
    if not isinstance(storage, Scheme):
        return _floating("MatMul", storage)
    if plan.is_static(operation.matrix):
        return Kernel(f"MatMulIntegerToFloat, uint8 x {'uint8' if saturates(target) else 'int8'}, calibrated scales")
    level = plan.accuracy_level
    kernel = f"MatMulNBits, {storage.dtype}, {_ACTIVATIONS[level]} activations"
    if not _INT8_MATMULS & set(target.isa):
        return Kernel(kernel, "this CPU has no integer matmul in ONNX Runtime: weights are widened for each call", 4.0)
    if storage.bits == 8 and level != 4:
        return Kernel(kernel, "8-bit weights have int8 kernels only: they are widened to float32 for each call", 4.0)
    return Kernel(kernel)


def _floating(name: str, storage: object) -> Kernel:
    if storage == "fp16":
        return Kernel(
            f"{name}, float32", "CPU kernels compute in float32: weights are widened when they are loaded", 4.0
        )
    return Kernel(f"{name}, float32")
