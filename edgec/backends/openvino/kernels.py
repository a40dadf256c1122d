"""Which of OpenVINO's CPU kernels an operation gets.

Source: the CPU plugin of OpenVINO 2026.4: its fusions, and its fully connected kernels on compressed weights.
"""

import msgspec

from edgec.quantize.scheme import Scheme
from edgec.spec.operation import Kernel, Operation
from edgec.spec.plan import Plan
from edgec.spec.target import Target

# The group in which activations are rounded to int8; groups of weights must consist of whole ones.
_ACTIVATION_GROUP = 32
_VNNI = frozenset({"avx_vnni", "avx512_vnni"})


def block_size(scheme: Scheme, cols: int) -> int | None:
    """Return the blocks in which integers are written, smaller than the groups where that avoids padding."""
    return scheme.whole_block(cols, smallest=_ACTIVATION_GROUP) or scheme.group


def kernel_of(operation: Operation, plan: Plan, target: Target) -> Kernel:
    """Return the kernel of one operation."""
    storage = operation.storage
    match operation.kind:
        case "norm":
            return Kernel("RMS" if operation.name.startswith("rms") else "MVN, Multiply, Add")
        case "attention":
            return _attention(operation, plan)
        case "lookup" if isinstance(storage, Scheme):
            return Kernel(f"GatherCompressed, {storage.dtype}")
        case "lookup":
            return Kernel("Gather")
        case _:
            caveat = _saturation(target) if plan.is_static(operation.matrix) else _bfloat16(target)
            return msgspec.structs.replace(_matmul(operation, plan, target), caveat=caveat)


def _bfloat16(target: Target) -> str | None:
    """Return that floats may be bfloat16, on targets that AVX-512 or nothing is known of."""
    may = not target.isa or any(name.startswith(("avx512", "amx")) for name in target.isa)
    return "on a CPU with AVX512_BF16 or AMX, OpenVINO computes in bfloat16 what is float here" if may else None


def _saturation(target: Target) -> str | None:
    """Return that sums of products may not fit, on x86 targets without VNNI.

    Source: OpenVINO documentation, saturation (overflow) issue on CPUs without VNNI.
    """
    may = target.arch == "x86_64" and not _VNNI & set(target.isa)
    return "without VNNI, OpenVINO adds pairs of int8 products in 16 bits, which may not hold them" if may else None


def _attention(operation: Operation, plan: Plan) -> Kernel:
    assert operation.attention is not None
    cache = "int8" if plan.kv_cache == "int8" else "float16"
    if operation.attention.softcap:
        return Kernel(
            f"MatMul, Tanh, Softmax, MatMul; {cache} cache",
            "OpenVINO's attention has no soft cap: scores are written to memory between four kernels",
            spills=3,
        )
    rope = ", RoPE" if operation.attention.rope else ""
    return Kernel(f"ScaledDotProductAttentionWithKVCache{rope}; {cache} cache")


def _matmul(operation: Operation, plan: Plan, target: Target) -> Kernel:
    storage = operation.storage
    if not isinstance(storage, Scheme):
        reason = "the CPU plugin widens float16 weights when it loads them" if storage == "fp16" else None
        return Kernel("FullyConnected, float32 weights", reason, 4.0 if reason else None)
    if plan.is_static(operation.matrix):
        return Kernel("FullyConnected, int8 x int8, calibrated scales")
    kernel = f"FullyConnectedCompressed, {storage.dtype}"
    if plan.accuracy_level == 1:
        return Kernel(f"{kernel}, floating-point activations")
    if not _VNNI & set(target.isa):
        reason = "int8 activations need VNNI: this CPU keeps them in floating point"
        return Kernel(f"{kernel}, floating-point activations", reason if plan.accuracy_level == 4 else None)
    block = block_size(storage, operation.size[0])
    if block is not None and block % _ACTIVATION_GROUP:
        reason = f"int8 activations need groups of whole {_ACTIVATION_GROUP}s: they stay in floating point"
        return Kernel(f"{kernel}, floating-point activations", reason if plan.accuracy_level == 4 else None)
    return Kernel(f"{kernel}, int8 activations in groups of {_ACTIVATION_GROUP}")
