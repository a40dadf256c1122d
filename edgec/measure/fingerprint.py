"""What decides a measurement's speed: the machine and the versions."""

import hashlib
import json
import os
import platform
from collections.abc import Mapping
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
# What may run models, as pip calls it; named where it is installed.
_RUNTIMES = (
    *("onnxruntime-genai", "openvino", "openvino-genai"),
    *("tensorrt", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs"),
)
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_BOARD = Path("/proc/device-tree/model")
_NVIDIA = Path("/proc/driver/nvidia")
_UNKNOWN = "unknown"

SPEED_FACTS = frozenset(
    {
        *("cpu_model", "cpu_flags", "microcode", "usable_cpus", "governor", "kernel", "gpu", "gpu_driver"),
        *("python", "numpy", "onnxruntime", *_RUNTIMES),
        *("threads", "workloads", "evaluation"),
    }
)
"""The facts that have to be equal where absolute times are compared; the last three are what a gate adds.

edgec's own version is none of them: what changes from one edgec to the next is what a comparison is to show. Nor is
the size of the memory, which says nothing of its speed, and of which kernels keep now more and now less for themselves;
nor CPUs that a process may not use, nor the tokenizers' version, since times begin with tokens.
"""


def fingerprint() -> dict[str, str]:
    """Return facts by name; what this machine does not tell is "unknown"."""
    cpu = _fields(Path("/proc/cpuinfo"))
    have = set((cpu.get("flags") or cpu.get("Features") or "").split())
    memory_kib = _fields(Path("/proc/meminfo")).get("MemTotal", "").split()[:1]
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
        **{name: _version(name) or _UNKNOWN for name in _PACKAGES},
        **{name: found for name in _RUNTIMES if (found := _version(name))},
        **_gpu(),
    }


def speed_facts(environment: Mapping[str, str]) -> dict[str, str]:
    """Return those facts of a machine that decide speed, sorted by name."""
    return {name: environment[name] for name in sorted(SPEED_FACTS & environment.keys())}


def machine_hash(environment: Mapping[str, str]) -> str:
    """Return eight hexadecimal digits: the same for two runs exactly where all facts that decide speed are."""
    return hashlib.sha256(json.dumps(speed_facts(environment)).encode()).hexdigest()[:8]


def _gpu() -> dict[str, str]:
    """Return the models of NVIDIA's GPUs and their driver; nothing where there are none."""
    files = sorted(_NVIDIA.glob("gpus/*/information"))
    driver = _fields(_NVIDIA / "version").get("NVRM version")
    if not (files and driver):
        return {}
    return {"gpu": ", ".join(_fields(file).get("Model", _UNKNOWN) for file in files), "gpu_driver": driver}


def _fields(path: Path) -> dict[str, str]:
    """Return the first value of each `name : value` line."""
    found: dict[str, str] = {}
    for line in _read(path).splitlines():
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
        return ""
