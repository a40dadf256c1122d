"""The profile that tuning writes is the choice, and nothing else changes."""

import msgspec
import pytest
from random_models import save_random

from edgec.backends.backend import get_backend
from edgec.checkpoint.open import open_checkpoint
from edgec.errors import PlanError, UsageError
from edgec.frontends.families import describe, families
from edgec.spec.layers import matrix_names
from edgec.spec.load import list_profiles, load_profile, load_target
from edgec.spec.memory import stored_matrices
from edgec.spec.plan import resolve
from edgec.tune.budget import parse, show
from edgec.tune.cost import unit_shapes, unit_sizes, unit_traffic
from edgec.tune.profile_file import to_toml, tuned_profile
from edgec.tune.units import DEFAULT, candidates_of, units_of


@pytest.fixture
def checkpoint(tiny_llama):
    return open_checkpoint(tiny_llama)


def candidates(labels=(), profile="int4", target="cpu", backend="onnx_cpu"):
    return candidates_of(labels, load_profile(profile), load_target(target), get_backend(backend).LIMITS)


@pytest.mark.parametrize("kind", sorted(families()))
def test_units_are_all_matrices_once(kind, tmp_path):
    save_random(kind, tmp_path)
    decoder = describe(open_checkpoint(tmp_path))
    units = units_of(decoder)
    assert [matrix for unit in units for matrix in unit.matrices] == matrix_names(decoder)
    assert units[0].name == "embedding"
    assert {"layers.0.attention.qkv", "layers.1.attention.o", "layers.1.mlp.down"} <= {unit.name for unit in units}
    assert all(rows > 0 and cols > 0 for rows, cols in unit_shapes(decoder, units))


def test_the_plan_of_the_written_profile_is_the_choice(checkpoint, tmp_path):
    decoder = describe(checkpoint)
    units, offered = units_of(decoder), candidates()
    choice = {unit: offered[index % len(offered)] for index, unit in enumerate(units)}
    base = load_profile("int4")
    profile = tuned_profile(base, "mine", "my title", choice, {units[3]: 'because of "this"'})
    (tmp_path / "mine.toml").write_text(to_toml(profile, ["a comment"]))
    assert load_profile(str(tmp_path / "mine.toml")) == profile
    plan = resolve(checkpoint, decoder, load_target("cpu"), profile)
    for unit, candidate in choice.items():
        for matrix in unit.matrices or ("embedding",):
            assert plan.storage_of(matrix) == candidate.storage
    assert plan.calibration == resolve(checkpoint, decoder, load_target("cpu"), base).calibration
    assert 'because of "this"' in {matrix.reason for matrix in plan.layers.values()}


@pytest.mark.parametrize("profile", [profile.name for profile in list_profiles()])
def test_every_shipped_profile_survives_its_own_toml(profile, tmp_path):
    loaded = load_profile(profile)
    path = tmp_path / f"{profile}.toml"
    path.write_text(to_toml(loaded))
    assert load_profile(str(path)) == loaded


def test_sizes_and_traffic_are_those_of_the_plan(checkpoint):
    decoder, units, offered = describe(checkpoint), units_of(describe(checkpoint)), candidates()
    limits, target = get_backend("onnx_cpu").LIMITS, load_target("x86-avx512-vnni")
    sizes = unit_sizes(decoder, units, offered, limits)
    numbers = sum(rows * cols for rows, cols in (o.shape for o in stored_matrices(decoder, lambda _: "fp32")))
    labels = [candidate.label for candidate in offered]
    assert sizes[:, labels.index("fp16")].sum() == 2 * numbers
    assert (sizes[:, labels.index("int4/32")] >= sizes[:, labels.index("int4/128")]).all()
    plan = resolve(checkpoint, decoder, target, load_profile("int4"), "onnx_cpu")
    moved, _, fallen = unit_traffic(decoder, plan, target, units, offered)
    assert (moved[:, labels.index("int4/32")] == sizes[:, labels.index("int4/32")]).all()
    assert fallen[:, labels.index("fp16")].all()
    assert not fallen[:, labels.index("int8")].any()


def test_candidates_are_what_target_and_backend_take():
    assert [candidate.label for candidate in candidates()] == list(DEFAULT)
    assert {c.weights.algorithm for c in candidates()} == {"mse", "rtn"}
    assert {c.weights.symmetric for c in candidates(profile="int4-asym")} == {True, False}
    with pytest.raises(PlanError, match="does not take fp8"):
        candidates(["fp8", "int8"])


@pytest.mark.parametrize(
    "label",
    [
        "int5", "int4/33", "int4/x", "fp16/32", "fp16/", "nvfp4/32", "int4/mse", "int4/32/best", "", "/", "int4/",
        "+2:4", "int5+2:4", "int4//mse", "int4/32/", "int4/32/mse/x", "int4/\N{SUPERSCRIPT TWO}", "int4/" + "9" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_candidate(label):
    with pytest.raises(UsageError, match="is no storage") as caught:
        candidates([label])
    assert "int()" not in str(caught.value)
    assert "integer string" not in str(caught.value)


def test_candidates_that_mean_the_same_count_once():
    labels = ["int8", "int4/32", "int4/32/mse", "int4/32", "int8/channel", "int4/32/kquant"]
    assert [candidate.label for candidate in candidates(labels)] == ["int8", "int4/32", "int4/32/kquant"]
    assert [candidate.label for candidate in candidates(["int8/channel"])] == ["int8/channel"]


def test_a_candidate_may_name_its_algorithm():
    found = candidates(["int4/32/kquant", "int4/32", "int8/channel/mse"])
    assert [(c.weights.dtype, c.weights.group_size, c.weights.algorithm) for c in found] == [
        ("int4", 32, "kquant"), ("int4", 32, "mse"), ("int8", "channel", "mse")
    ]  # fmt: skip
    with pytest.raises(UsageError, match="not measured with gptq"):
        candidates(["int4/32/gptq"])


@pytest.mark.parametrize(
    ("kind", "text", "limit", "shown"),
    [
        ("size", "90MB", 90e6, "90.00 MB"), ("size", "1.5 GiB", 1.5 * 2**30, "1610.61 MB"),
        ("latency", "12ms", 12, "12.00 ms"), ("latency", "0.5s", 500, "500.00 ms"),
        ("perplexity", "2%", 0.02, "2.00 %"), ("perplexity", ".03", 0.03, "3.00 %"),
        ("perplexity", "0.0001%", 1e-6, "0.0001 %"), ("latency", "0.0012ms", 0.0012, "0.0012 ms"),
        ("size", "20B", 20, "20 B"), ("size", "1.5KB", 1500, "1.5 KB"),
    ],
)  # fmt: skip
def test_budgets(kind, text, limit, shown):
    assert parse(kind, text).limit == pytest.approx(limit)
    assert show(kind, limit) == shown


@pytest.mark.parametrize(
    ("kind", "text"),
    [("size", "90"), ("size", "-3MB"), ("latency", "fast"), ("perplexity", "0%"), ("perplexity", "2")],
)
def test_what_is_no_budget(kind, text):
    with pytest.raises(UsageError, match="is no budget"):
        parse(kind, text)


def test_bounds_of_a_profile_stay(checkpoint):
    base = load_profile("int8")
    choice = dict.fromkeys(units_of(describe(checkpoint)), candidates()[0])
    tuned = tuned_profile(base, "x", "y", choice)
    assert tuned.layers == ()
    assert msgspec.structs.replace(tuned, name="int8", title=base.title, weights=base.weights, embedding=None) == base


def test_static_activations_stay_where_a_matrix_takes_them(checkpoint, tmp_path):
    decoder, base = describe(checkpoint), load_profile("int8-static")  # which skips mlp.down
    narrow, wide = candidates(["int4/32", "int8"])
    for static in ([], ["layers.1.mlp.down"], ["layers.1.mlp.down", "layers.0.mlp.gate+up"]):
        choice = {unit: wide if unit.name in static else narrow for unit in units_of(decoder)}
        plan = resolve(checkpoint, decoder, load_target("cpu"), tuned_profile(base, "x", "y", choice))
        matrices = plan.static.matrices if plan.static else ()
        assert matrices == (("layers.0.mlp.gate", "layers.0.mlp.up") if len(static) == 2 else ())
