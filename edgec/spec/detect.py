"""The target `cpu`: this machine, looked at."""

import os
import platform
from pathlib import Path
from typing import Literal

from edgec.spec.target import Target

# Extensions for which runtimes have kernels of their own.
_KERNEL_FLAGS = (
    *("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16"),
    *("amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)


def this_machine() -> Target:
    """Return what this machine says about itself; its memory bandwidth is left to `edgec bench`, which measures it."""
    cpuinfo, meminfo = _read("/proc/cpuinfo"), _read("/proc/meminfo")
    flags = set((cpuinfo.get("flags") or cpuinfo.get("Features") or "").split())
    memory_kib = meminfo.get("MemTotal", "").split()[:1]
    arch: Literal["x86_64", "aarch64"] = "aarch64" if platform.machine() in ("aarch64", "arm64") else "x86_64"
    return Target(
        name="cpu",
        title=f"this machine ({cpuinfo.get('model name') or platform.machine()})",
        aliases=("local", "host"),
        backends=("onnx_cpu", "openvino"),
        weight_dtypes=("fp32", "fp16", "int8", "int4"),
        arch=arch,
        isa=tuple(flag for flag in _KERNEL_FLAGS if flag in flags),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(int(memory_kib[0]) / 2**20, 1) if memory_kib else None,
        sources={
            **dict.fromkeys(("title", "isa"), "/proc/cpuinfo"),
            "memory_gib": "/proc/meminfo",
            "arch": "uname",
            "cores": "CPU affinity of this process",
            **dict.fromkeys(("backends", "weight_dtypes"), "kernels of ONNX Runtime 1.31 and OpenVINO 2026.4"),
            "memory_usable_fraction": "edgec's own margin for the system",
        },
    )


def _read(path: str) -> dict[str, str]:
    """Return the first value of each `key : value` line of a /proc file; nothing where there is no such file."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    return found
