"""Every file in targets/ and profiles/."""

from collections import Counter
from pathlib import Path

import msgspec
import pytest

from edgec.spec.load import data_dir, list_targets, load_profile, load_target
from edgec.spec.table import target_page

TARGETS = sorted(path.stem for path in data_dir("targets").glob("*.toml"))
PROFILES = sorted(path.stem for path in data_dir("profiles").glob("*.toml"))
NO_SOURCE = {"name", "aliases", "sources"}


def test_the_promised_ones_are_there():
    assert {"x86-avx2", "x86-avx512-vnni", "raspberry-pi-5", "jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin",
            "jetson-thor", "intel-nuc", "rtx-4060"} <= set(TARGETS)  # fmt: skip
    assert {"fp32", "fp16", "int8", "int4", "int4-g128", "int4-asym"} <= set(PROFILES)


@pytest.mark.parametrize("name", ["cpu", *TARGETS])
def test_every_fact_has_a_source(name):
    target = load_target(name)
    assert target.name == name
    stated = {k for k, v in msgspec.to_builtins(target).items() if v not in (None, (), {})} - NO_SOURCE
    assert stated == set(target.sources)
    assert all(len(source) > 4 for source in target.sources.values())


@pytest.mark.parametrize("name", TARGETS)
def test_facts_agree_with_each_other(name):
    target = load_target(name)
    assert ("tensorrt" in target.backends) == (target.gpu is not None)
    if target.gpu is not None:
        assert target.gpu.fp8 == ("fp8" in target.weight_dtypes)
        assert target.gpu.nvfp4 == ("nvfp4" in target.weight_dtypes)
        assert target.runtimes
    arm = {"asimd", "asimdhp", "asimddp", "i8mm", "sve", "sve2", "bf16"}
    assert set(target.isa) <= arm if target.arch == "aarch64" else not set(target.isa) & arm


def test_names_are_unique():
    names = Counter(name for target in list_targets() for name in (target.name, *target.aliases))
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize(
    ("alias", "name"), [("jetson", "jetson-orin-nano"), ("pi5", "raspberry-pi-5"), ("local", "cpu")]
)
def test_aliases(alias, name):
    assert load_target(alias).name == name


def test_this_machine_is_looked_at():
    target = load_target("cpu")
    assert target.cores >= 1
    assert target.memory_gib > 0.1
    assert target.isa


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_load(name):
    profile = load_profile(name)
    assert profile.name == name
    assert profile.weights.dtype == name.partition("-")[0]


def test_the_page_is_current():
    page = Path(__file__).parents[2] / "docs" / "targets.md"
    assert page.read_text() == target_page(), "run `make docs`"
