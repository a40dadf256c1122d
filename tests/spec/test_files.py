"""Every file in targets/ and profiles/."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edgec.spec.load import data_dir, list_targets, load_profile, load_target
from edgec.spec.table import target_page
from edgec.spec.target import Gpu, Target

TARGETS = sorted(path.stem for path in data_dir("targets").glob("*.toml"))
PROFILES = sorted(path.stem for path in data_dir("profiles").glob("*.toml"))
NO_SOURCE = {"name", "aliases", "sources"}
# https://developer.nvidia.com/cuda-gpus, and the ones for which tensorrt_rtx 1.7.1 compiles.
COMPUTE_CAPABILITIES = {75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121}
JETSONS = {87, 110}
TENSORRT_RTX = {75, 80, 86, 89, 120, 121}
ARM_FLAGS = {"asimd", "asimdhp", "asimddp", "i8mm", "sve", "sve2", "bf16"}
SOURCE = re.compile(r"(?:computed: |edgec's own )[^;]+|[^;]{5,}, https://[^\s;,]+\.[^\s;,]+")


def wrong_sources(target: Target) -> Iterator[str]:
    stated = {k for k, v in msgspec.to_builtins(target).items() if v not in (None, (), {})} - NO_SOURCE
    yield from (f"no source for {fact}" for fact in stated - set(target.sources))
    yield from (f"a source for {fact}, which is not stated" for fact in set(target.sources) - stated)
    for fact, source in target.sources.items():
        yield from (f"{fact}: what is '{part}'" for part in source.split("; ") if not SOURCE.fullmatch(part))


def wrong_facts(target: Target) -> Iterator[str]:
    if len(set(target.backends)) < len(target.backends) or len(set(target.weight_dtypes)) < len(target.weight_dtypes):
        yield "something is listed twice"
    if bool(set(target.isa) & ARM_FLAGS) != (target.arch == "aarch64") or not (target.isa or target.gpu):
        yield "instructions of another architecture"
    if ("openvino" in target.backends or "onnx_cpu" in target.backends) and not target.isa:
        yield "a CPU backend, and nothing known of the CPU"
    if target.memory_gib and target.memory_bandwidth_gbps:
        seconds = target.memory_gib * 2**30 / (target.memory_bandwidth_gbps * 1e9)
        if not 0.01 < seconds < 0.6:
            yield f"reading all of the memory takes {seconds:.3f} s"
    if ("tensorrt" in target.backends) != (target.gpu is not None):
        yield "tensorrt and a GPU come together"
    if target.gpu is not None:
        yield from wrong_gpu(target, target.gpu)
    elif {"fp8", "nvfp4"} & set(target.weight_dtypes):
        yield "fp8 and nvfp4 belong to a GPU"


def wrong_gpu(target: Target, gpu: Gpu) -> Iterator[str]:
    if gpu.sm not in COMPUTE_CAPABILITIES:
        yield f"there is no compute capability {gpu.sm / 10}"
    abilities = {"fp8": (gpu.fp8, gpu.sm >= 89), "nvfp4": (gpu.nvfp4, gpu.sm >= 100)}
    for dtype, (stated, expected) in abilities.items():
        if not stated == expected == (dtype in target.weight_dtypes):
            yield f"{dtype} does not go with the compute capability or the weight types"
    if gpu.sparse_2_4 != (gpu.sm >= 80):
        yield "2:4 came with compute capability 8.0"
    if gpu.dla and gpu.sm != 87:
        yield "only Orin has a DLA"
    yield from wrong_runtimes(target, gpu)


def wrong_runtimes(target: Target, gpu: Gpu) -> Iterator[str]:
    tensorrt, jetpack = target.runtimes.get("tensorrt", ()), target.runtimes.get("jetpack", ())
    if len({"tensorrt", "tensorrt_rtx"} & set(target.runtimes)) != 1:
        yield "one of tensorrt and tensorrt_rtx"
    if ("tensorrt" in target.runtimes) != (gpu.sm in JETSONS) or len(tensorrt) != len(jetpack):
        yield "a Jetson has a TensorRT version for each JetPack"
    if "tensorrt_rtx" in target.runtimes and gpu.sm not in TENSORRT_RTX:
        yield "tensorrt_rtx does not compile for it"
    for versions in target.runtimes.values():
        numbers = [tuple(map(int, version.split("."))) for version in versions]
        if not numbers or numbers != sorted(numbers):
            yield f"versions out of order: {versions}"


def test_the_promised_ones_are_there():
    assert {"x86-avx2", "x86-avx512-vnni", "raspberry-pi-5", "jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin",
            "jetson-thor", "intel-nuc", "intel-core-ultra", "rock-5b", "rtx-3060", "rtx-4060", "rtx-5090", "a100",
            "dgx-spark"} <= set(TARGETS)  # fmt: skip
    assert {"fp32", "fp16", "int8", "int4", "int4-g128", "int4-asym"} <= set(PROFILES)


@pytest.mark.parametrize("name", TARGETS)
def test_every_fact_has_a_source_to_open(name):
    target = load_target(name)
    assert target.name == name
    assert [*wrong_sources(target)] == []
    assert "https://" in target.sources["title"]


@pytest.mark.parametrize("name", TARGETS)
def test_facts_agree_with_each_other(name):
    assert [*wrong_facts(load_target(name))] == []


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"cores": None}, "a source for cores, which is not stated"),
        ({"sources": {}}, "no source for memory_gib"),
        ({"sources": {"title": "a data sheet"}}, "what is 'a data sheet'"),
        ({"sources": {"title": "a data sheet, http://vendor.example/x"}}, "what is"),
        ({"sources": {"title": "a data sheet, https://vendor.example/x (page 2)"}}, "what is"),
    ],
)
def test_a_wrong_source_is_found(changes, complaint):
    target = msgspec.structs.replace(load_target("jetson-thor"), **changes)
    assert complaint in "\n".join(wrong_sources(target))


@pytest.mark.parametrize(
    ("name", "changes", "complaint"),
    [
        ("jetson-thor", {"memory_bandwidth_gbps": 273 / 8}, "reading all of the memory"),
        ("jetson-thor", {"memory_gib": 128 / 1024}, "reading all of the memory"),
        ("jetson-thor", {"isa": ("avx2",)}, "another architecture"),
        ("jetson-thor", {"isa": ()}, "nothing known of the CPU"),
        ("jetson-thor", {"backends": ("onnx_cpu",)}, "come together"),
        ("jetson-thor", {"backends": ("tensorrt", "tensorrt")}, "twice"),
        ("jetson-thor", {"gpu": None}, "belong to a GPU"),
        ("jetson-thor", {"gpu": Gpu(sm=101, fp8=True, nvfp4=True)}, "no compute capability 10.1"),
        ("jetson-thor", {"gpu": Gpu(sm=110, fp8=True)}, "nvfp4 does not go"),
        ("jetson-thor", {"gpu": Gpu(sm=110, dla=2)}, "only Orin"),
        ("jetson-thor", {"gpu": Gpu(sm=110)}, "2:4"),
        ("jetson-thor", {"weight_dtypes": ("fp16", "nvfp4")}, "fp8 does not go"),
        ("jetson-thor", {"runtimes": {}}, "one of"),
        ("jetson-thor", {"runtimes": {"tensorrt": ("10.13",)}}, "for each JetPack"),
        ("jetson-thor", {"runtimes": {"tensorrt_rtx": ("1.7",)}}, "does not compile"),
        ("jetson-thor", {"runtimes": {"tensorrt": ("10.13", "10.3"), "jetpack": ("7.0", "7.1")}}, "out of order"),
        ("rtx-4060", {"runtimes": {"tensorrt": ("10.3",), "jetpack": ("6.2",)}}, "a Jetson has"),
    ],
)
def test_a_wrong_fact_is_found(name, changes, complaint):
    target = msgspec.structs.replace(load_target(name), **changes)
    assert complaint in "\n".join(wrong_facts(target))


def test_names_are_unique():
    names = Counter(name for target in list_targets() for name in (target.name, *target.aliases))
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize(
    ("alias", "name"),
    [("jetson", "jetson-orin-nano"), ("pi5", "raspberry-pi-5"), ("gb10", "dgx-spark"), ("local", "cpu")],
)
def test_aliases(alias, name):
    assert load_target(alias).name == name


def test_this_machine_is_looked_at():
    target = load_target("cpu")
    assert target.cores >= 1
    assert target.memory_gib > 0.1
    assert target.isa
    assert set(target.sources) == {key for key, value in msgspec.to_builtins(target).items() if value} - NO_SOURCE


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_load(name):
    profile = load_profile(name)
    assert profile.name == name
    pruned = profile.slim is not None or profile.sparse is not None
    assert pruned or profile.weights.dtype == name.partition("-")[0]


def test_the_page_is_current():
    page = Path(__file__).parents[2] / "docs" / "targets.md"
    assert page.read_text() == target_page(), "run `make docs`"
    for name in TARGETS:
        assert f"**{name}**" in target_page()
    assert "[CUDA GPU Compute Capability](https://developer.nvidia.com/cuda-gpus)" in target_page()
    assert ", https://" not in target_page()
