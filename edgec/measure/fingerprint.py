"""What decides a measurement's speed: the machine and the versions."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edgec.measure.bandwidth import usable_cpus

# Instruction sets for which the kernels of the runtimes differ; x86 names, then Arm names.
_FLAGS = (
    *("avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_bf16", "amx_int8"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)
_PACKAGES = ("edgec", "onnxruntime", "numpy", "tokenizers")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_BOARD = Path("/proc/device-tree/model")
_UNKNOWN = "unknown"


def fingerprint() -> dict[str, str]:
    """Return facts by name; what this machine does not tell is "unknown"."""
    cpu = _fields("/proc/cpuinfo")
    have = set((cpu.get("flags") or cpu.get("Features") or "").split())
    memory_kib = _fields("/proc/meminfo").get("MemTotal", "").split()[:1]
    return {
        "cpu_model": cpu.get("model name") or _read(_BOARD) or _UNKNOWN,
        "cpu_flags": " ".join(flag for flag in _FLAGS if flag in have) or _UNKNOWN,
        "microcode": cpu.get("microcode", _UNKNOWN),
        "cpus": str(os.cpu_count()),
        "usable_cpus": str(usable_cpus()),
        "governor": _read(_GOVERNOR) or _UNKNOWN,
        "memory_gib": f"{int(memory_kib[0]) / 2**20:.1f}" if memory_kib else _UNKNOWN,
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
    }


def _fields(path: str) -> dict[str, str]:
    """Return the first value of each `name : value` line."""
    found: dict[str, str] = {}
    for line in _read(Path(path)).splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0 \n")
    except OSError:
        return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return _UNKNOWN
