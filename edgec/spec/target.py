"""Target: facts about a device, one TOML file in `targets/`; it knows no wishes."""

from typing import Annotated, Literal

import msgspec

Backend = Literal["onnx_cpu", "openvino", "tensorrt"]
WeightDtype = Literal["fp32", "fp16", "bf16", "fp8", "int8", "int4", "nvfp4"]
Version = Annotated[str, msgspec.Meta(pattern=r"^\d+(\.\d+)*$")]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class Gpu(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What TensorRT needs to know of a GPU.

    Args:
        sm: compute capability, 87 for 8.7.
        dla: number of deep-learning accelerators.
        fp8: tensor cores multiply fp8.
        nvfp4: tensor cores multiply nvfp4.
        sparse_2_4: tensor cores skip zeros of the 2:4 pattern.
    """

    sm: Count
    dla: Annotated[int, msgspec.Meta(ge=0)] = 0
    fp8: bool = False
    nvfp4: bool = False
    sparse_2_4: bool = False


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A device, or a class of devices; what a class does not determine is absent.

    Args:
        name: the file's name without `.toml`.
        title: the device's full name.
        aliases: other names for `--target`.
        backends: what runs on it; the first is the default.
        weight_dtypes: how weights may be stored, so that its kernels take them.
        arch: instruction set.
        isa: extensions that kernels use, by the names of /proc/cpuinfo.
        cores: of the CPU.
        memory_gib: what the device has, shared with a GPU that has none of its own; for a card, its own.
        memory_usable_fraction: share of it that a model may take beside the system.
        memory_bandwidth_gbps: peak, in 10^9 bytes per second.
        runtimes: package -> versions that the vendor supports on it; `jetpack` and `tensorrt` of a Jetson belong
            together in pairs.
        sources: fact -> `title, https link`, `computed: ...` or `edgec's own ...`; several are parted by `; `.
    """

    name: str
    title: str
    aliases: tuple[str, ...] = ()
    backends: Annotated[tuple[Backend, ...], msgspec.Meta(min_length=1)]
    weight_dtypes: Annotated[tuple[WeightDtype, ...], msgspec.Meta(min_length=1)]
    arch: Literal["x86_64", "aarch64"]
    isa: tuple[str, ...] = ()
    cores: Count | None = None
    memory_gib: Positive | None = None
    memory_usable_fraction: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.75
    memory_bandwidth_gbps: Positive | None = None
    gpu: Gpu | None = None
    runtimes: dict[str, Annotated[tuple[Version, ...], msgspec.Meta(min_length=1)]] = {}
    sources: dict[str, str]
