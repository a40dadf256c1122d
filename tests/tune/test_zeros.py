"""Zeros are taken where a target's runtime gains from them, and nowhere else."""

from itertools import pairwise

import numpy as np
import pytest
from click.testing import CliRunner

from edgec.backends.backend import get_backend
from edgec.checkpoint.open import open_checkpoint
from edgec.cli.plan import command as plan_command
from edgec.errors import UsageError
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe
from edgec.spec.exploit import eligible
from edgec.spec.load import load_profile, load_target
from edgec.spec.plan import resolve
from edgec.spec.prediction import predict
from edgec.spec.preflight import preflight
from edgec.spec.prune import Sparse
from edgec.tune.cost import unit_traffic
from edgec.tune.problem import cost_tables, measure_kl
from edgec.tune.solve import minimise
from edgec.tune.units import Unit, candidate, candidates_of, units_of

JETSON = "jetson-orin-nano"


@pytest.fixture
def problem(tiny_llama):
    """Return the tables of the tiny Llama for candidates, a profile, a target, and a latency or a size."""
    checkpoint = open_checkpoint(tiny_llama)
    decoder = describe(checkpoint)

    def tables(labels, profile, target, *, latency):
        device, wishes = load_target(target), load_profile(profile)
        plan = resolve(checkpoint, decoder, device, wishes)
        offered = candidates_of(labels, wishes, device, get_backend(plan.backend).LIMITS)
        return cost_tables(decoder, plan, device, units_of(decoder), offered, {}, latency=latency)

    return tables


@pytest.mark.parametrize(
    ("profile", "label", "share"), [("fp16", "fp16", 0.5625), ("int8-static", "int8", 0.625), ("int8", "int8", 1.0)]
)
def test_sparse_kernels_read_what_2_of_4_takes(profile, label, share, tiny_llama):
    checkpoint, target = open_checkpoint(tiny_llama), load_target(JETSON)
    decoder, wishes = describe(checkpoint), load_profile(profile)
    plan, units = resolve(checkpoint, decoder, target, wishes), units_of(decoder)
    offered = [candidate(text, wishes.weights) for text in (label, f"{label}+2:4", f"{label}+50%")]
    moved, _, _ = unit_traffic(decoder, plan, target, units, offered)
    assert (moved[:, 0] == moved[:, 2]).all()
    for unit, (dense, sparse, _) in zip(units, moved, strict=True):
        gains = not unit.dense and not (label == "int8" and unit.name.endswith("down"))
        # int8 has scales besides.
        assert sparse == pytest.approx(dense * (share if gains else 1), rel=0.05 if label == "int8" else 1e-9)
        assert (sparse < dense) == (gains and share < 1)


def test_the_least_sensitive_units_become_sparse(problem, tiny_llama):
    checkpoint = open_checkpoint(tiny_llama)
    decoder, ids = describe(checkpoint), np.random.default_rng(0).integers(0, 300, (2, 32))
    tables = problem(["fp16", "fp16+2:4"], "fp16", JETSON, latency=True)
    model = emit(decoder, checkpoint, checkpoint.read, 32)
    tables, _ = measure_kl(model, "dense", ids, tables, lambda _: None)
    assert (tables.kl[:, 0] == 0).all()
    assert (tables.kl[1:, 1] > 0).all()
    assert tables.kl[0, 1] == 0  # the embedding stays dense, whatever its candidate is called
    budget = tables.latency.mean(axis=1).sum()
    chosen = minimise(tables.kl, tables.latency, budget).choice
    sparse = {unit.name for unit, c in tables.choose(chosen).items() if c.pattern}
    assert 0 < len(sparse) < len(tables.units) - 1
    kl = dict(zip((unit.name for unit in tables.units), tables.kl[:, 1], strict=True))
    for name in ("attention.qkv", "attention.o", "mlp.gate+up", "mlp.down"):  # which cost the same in all layers
        ordered = sorted((f"layers.{layer}.{name}" for layer in range(3)), key=kl.get)
        assert all(before in sparse or after not in sparse for before, after in pairwise(ordered))


@pytest.mark.parametrize(
    ("profile", "target", "latency"),
    [("int8", JETSON, True), ("fp16", JETSON, False), ("fp16", "raspberry-pi-5", True)],
)
def test_zeros_that_buy_nothing_are_refused(profile, target, latency, problem):
    label = "fp16" if profile == "fp16" else "int8"
    tables = problem([f"{label}+2:4", label], profile, target, latency=latency)
    assert np.isinf(tables.kl[1:, 0]).all()
    assert (tables.kl[:, 1] == 0).all()
    alone = problem([f"{label}+2:4"], profile, target, latency=latency)
    assert (alone.kl == 0).all()


def test_a_tight_latency_on_a_jetson_takes_zeros(tune, base, changed, tiny_llama, tmp_path):
    half = changed(
        base, tmp_path / "half.toml", ('dtype = "int4"\ngroup_size = 32\nalgorithm = "mse"', 'dtype = "fp16"')
    )
    options = ("--target", JETSON, "--candidates", "fp16,fp16+2:4", "--max-latency")
    loose, written = tune(*options, "1ms", profile=half)
    assert load_profile(str(written)).sparse is None
    costs = {point["label"]: point["cost"] for point in loose["alike"]}
    limit = 0.5 * (costs["fp16"] + costs["fp16+2:4"])
    result, written = tune(*options, f"{limit:.9f}ms", profile=half, out="tight.toml")
    assert costs["fp16+2:4"] < result["chosen"]["measured"] <= limit
    assert result["chosen"]["divergence"]["mean_kl"] > loose["chosen"]["divergence"]["mean_kl"]
    assert any("TensorRT takes those" in remark for remark in result["remarks"])
    profile = load_profile(str(written))
    assert (profile.sparse.pattern, profile.sparse.method) == ("2:4", "wanda")
    checkpoint, target = open_checkpoint(tiny_llama), load_target(JETSON)
    decoder = describe(checkpoint)
    plan = resolve(checkpoint, decoder, target, profile)
    zeros = {
        unit.name for unit in units_of(decoder) if not unit.dense and set(unit.matrices) <= set(plan.sparse.matrices)
    }
    assert zeros == {name for name, label in result["choice"].items() if label == "fp16+2:4"}
    assert eligible(decoder, plan, target) == plan.sparse.matrices
    # What the plan of the tuned profile says is what the budget was held by.
    assert preflight(decoder, plan, target).memory_ms_per_token == pytest.approx(result["chosen"]["measured"], rel=1e-3)
    assert predict(decoder, decoder, plan, target).speed > 1
    shown = CliRunner().invoke(plan_command, [str(tiny_llama), "--target", JETSON, "--profile", str(written)])
    assert "sparse kernels" in shown.stdout
    why = [line for line in written.with_suffix(".md").read_text().splitlines() if "nats/ms" in line]
    assert len(why) == min(len(zeros), 12 - len(zeros))


def test_usual_candidates_have_zeros_where_a_latency_gains(tune):
    result, _ = tune("--target", JETSON, "--max-latency", "1ms")
    assert "fp16+2:4" in {point["label"] for point in result["alike"]}
    assert not any(label.startswith("int8+") for label in result["choice"].values())
    assert not any("skip zeros" in remark for remark in result["remarks"])


def test_a_size_takes_no_zeros_but_those_that_are_asked_for(tune, tiny_llama, compiled, tmp_path):
    options = ("--max-size", "190KB", "--candidates")
    result, written = tune(*options, "int4/32+2:4,int8+2:4,int4/32,int8,fp16")
    assert not any("+" in label for label in result["choice"].values())
    assert load_profile(str(written)).sparse is None
    assert any("no kernels that skip zeros" in remark for remark in result["remarks"])
    result, written = tune(*options, "int4/32+2:4,int8+2:4", out="zeros.toml")
    assert all(("+2:4" in label) == name.startswith("layers.") for name, label in result["choice"].items())
    report = compiled(tiny_llama, written, "cpu", tmp_path / "bundle")
    assert sum(report.size_bytes.values()) == pytest.approx(result["chosen"]["measured"], rel=1e-3)
    assert report.pruning.zeros.share == pytest.approx(0.5, abs=0.02)


def test_what_a_base_profile_makes_sparse_is_sparse_but_for_what_it_skips(tune, base, changed, tmp_path):
    table = '[sparse]\npattern = "50%"\nmethod = "sparsegpt"\nallocation = "owl"\nskip = ["layers.0.*", "*.down"]\n'
    sparse = changed(base, tmp_path / "sparse.toml", ("[calibration]", f"{table}[calibration]"))
    result, written = tune("--max-size", "190KB", profile=sparse)
    dense = {name for name, label in result["choice"].items() if "+50%" not in label}
    downs = {"layers.1.mlp.down", "layers.2.mlp.down"}
    assert dense == {"embedding", *downs} | {name for name in result["choice"] if name.startswith("layers.0.")}
    wishes = load_profile(str(written)).sparse
    skipped = {f"layers.0.attention.{name}" for name in "qkvo"} | {f"layers.0.mlp.{n}" for n in ("gate", "up", "down")}
    assert set(wishes.skip) == skipped | downs
    assert wishes == Sparse(pattern="50%", method="sparsegpt", skip=wishes.skip)
    remarks = " ".join(result["remarks"])
    assert "wanda stands in here for sparsegpt" in remarks
    assert "not by the base profile's owl" in remarks


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ("int8+2:4,fp16+50%", "patterns of 2:4 and of 50%"),
        ("int8+4:2", "some of 2 inputs stay"),
        ("int8+", "no pattern"),
        ("int8+0%", "0% has no zeros"),
        ("int8+2:4+2:4", "no pattern"),
    ],
)
def test_what_is_no_pattern(labels, why, tune):
    with pytest.raises(UsageError, match=why) as caught:
        tune("--max-size", "1MB", "--candidates", labels)
    assert caught.value.exit_code == 2


def test_patterns_that_mean_the_same_count_once():
    limits = get_backend("onnx_cpu").LIMITS
    found = candidates_of(["int8+50%", "int8+50.0%", "int8"], load_profile("int4"), load_target("cpu"), limits)
    assert [one.label for one in found] == ["int8+50%", "int8"]
    assert [one.of(Unit("embedding", dense=True)).label for one in found] == ["int8", "int8"]
