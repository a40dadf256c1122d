"""Gate files that do not fit the bundles are refused before anything is run."""

import json
import shutil
from pathlib import Path

import pytest
from commands import invoke
from tiny_networks import Tiny, weights

from edgec.errors import MissingRuntimeError, UsageError, explain
from edgec.gate.fits import check_metrics, check_quality, check_race, for_target
from edgec.gate.gate import run_gate
from edgec.gate.limits import gated
from edgec.gate.result import Subject
from edgec.gate.settings import Bound, ForTarget, GateFile, Grid, Performance, Quality, QualityBound
from edgec.measure.energy import Meter

NETWORK = Tiny("(float[N, 4] x) => (float[N, 4] y) { y = MatMul(x, w) }", weights(w=(4, 4)), lambda rng, count: {})
TEXTS = {"texts": ("mine.txt",), "tokens": 3_000, "window": 100}
SAMPLES = {"data": ("mine.npz",), "samples": 3}


@pytest.mark.parametrize("name", [*TEXTS, *SAMPLES])
def test_what_would_be_ignored_is_refused(name):
    network = name in TEXTS
    quality = Quality(**{name: {**TEXTS, **SAMPLES}[name]})
    check_quality(quality, network=not network)
    with pytest.raises(UsageError) as caught:
        check_quality(quality, network=network)
    kind = "decoder language models" if network else "other models than decoder language models"
    assert (caught.value.what, caught.value.where) == (f"`{name}` is for {kind}", f"quality.{name}")


def test_what_says_nothing_else_than_usual_is_fine():
    for network in (True, False):
        check_quality(Quality(metrics={"top1": QualityBound(margin=0.1)}), network=network)


@pytest.mark.parametrize("name", ["ttft_ms", "token_p99_ms", "tokens_per_s", "latency_p50_ms", "rows_per_s"])
def test_metrics_of_the_other_kind_are_refused(name):
    network = name.startswith("t")
    check_metrics(gated({name: Bound()}, {}), network=not network)
    with pytest.raises(UsageError, match=name) as caught:
        check_metrics(gated({}, {name: Bound()}, "cpu"), network=network)
    assert caught.value.where == "targets.cpu.metrics"


def targets(own, *names):
    bounds = {name: ForTarget(quality={"mean_kl": QualityBound(margin=0.1)}) for name in names}
    return for_target(GateFile(targets=bounds), Subject(path="b", target=own))


def test_targets_that_are_not_there():
    assert targets("cpu") == (ForTarget(), ())
    assert targets("cpu", "cpu", "jetson-orin-nano")[1] == ()
    assert "mean_kl" in targets("cpu", "cpu")[0].quality
    assert targets("my-board", "my-board", "my-other-device")[1] == ()


def test_names_that_are_nearly_those_of_targets():
    said = "[targets.{}] of the gate file: did you mean {}?"
    assert targets("cpu", "cpu", "jetson-orin-nan")[1] == (said.format("jetson-orin-nan", "jetson-orin-nano"),)
    assert targets("my-board", "my-board", "my-bord")[1] == (said.format("my-bord", "my-board"),)
    for own, name in (("cpu", "cpuu"), ("my-board", "my-bord")):
        with pytest.raises(UsageError, match=f"says nothing of the target '{own}'") as caught:
            targets(own, name)
        assert caught.value.hint == f"[targets.{name}]: did you mean [targets.{own}]?"
    with pytest.raises(UsageError) as caught:
        targets("cpu", "jetson-orin-nano")
    assert caught.value.hint == "it is for jetson-orin-nano: add [targets.cpu]"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Return a bundle that runs here, and one for a device with TensorRT."""
    folder = tmp_path_factory.mktemp("bundles")
    source = NETWORK.save(folder / "tiny.onnx")
    for target in ("cpu", "rtx-4060"):
        done = invoke("build", source, "--target", target, "--profile", "fp32", "--no-verify", "-o", folder / target)
        assert done.exit_code == 0, done.output
    return folder / "cpu", folder / "rtx-4060"


def test_what_does_not_run_here_is_not_raced(bundles):
    here, elsewhere = bundles
    check_race((here, here), gated(None, {}))
    ticks = []
    for pair in ((here, elsewhere), (elsewhere, here)):
        with pytest.raises(MissingRuntimeError, match="nothing to time here") as caught:
            run_gate(*pair, GateFile(), lambda *done: ticks.append(done))
        assert caught.value.where == str(elsewhere)
        assert caught.value.hint == "time it on the device, or leave the race out: `performance = false`"
    assert ticks == []


def test_workloads_that_do_not_fit_are_refused_before_quality_is_compared(bundles):
    ticks = []
    file = GateFile(
        performance=Performance(workload=(Grid(sizes={"lenght": 3}),)),
        quality=Quality(data=("none.npz",), metrics={"top1": QualityBound(margin=0.1)}),
    )
    with pytest.raises(UsageError, match="no size is called 'lenght'") as caught:
        run_gate(bundles[0], bundles[0], file, lambda *done: ticks.append(done))
    assert (caught.value.where, ticks) == (str(bundles[0]), [])


def test_energy_is_gated_where_the_machine_tells_it(bundles, monkeypatch):
    wanted = gated({"energy_mj": Bound()}, {})
    monkeypatch.setattr(Meter, "read_j", lambda _: None)
    with pytest.raises(UsageError, match="does not tell how much energy") as caught:
        check_race(bundles[:1], wanted)
    assert caught.value.where == "performance.metrics"
    monkeypatch.setattr(Meter, "read_j", lambda _: (1.0,))
    check_race(bundles[:1], wanted)


def test_a_race_without_bounds_is_not_begun(bundles):
    file = GateFile(performance=Performance(metrics={}), quality=False)
    with pytest.raises(UsageError, match="nothing is judged"):
        run_gate(bundles[0], bundles[0], file, lambda *_: pytest.fail("it began"))


def test_a_bundle_that_was_changed_is_not_judged(bundles, tmp_path):
    changed = Path(shutil.copytree(bundles[0], tmp_path / "changed"))
    plan = json.loads((changed / "plan.json").read_text())
    (changed / "plan.json").write_text(json.dumps({**plan, "target": "rtx-4060"}))
    for pair in ((changed, bundles[0]), (bundles[0], changed)):
        with pytest.raises(Exception, match=r"'plan\.json' is not what the manifest says it is") as caught:
            run_gate(*pair, GateFile(performance=False))
        assert caught.value.exit_code == 3


def test_memory_that_is_not_there_is_no_bug():
    told = explain(MemoryError("Unable to allocate 1.12 TiB"))
    assert (told.exit_code, told.what) == (2, "there is not enough memory: Unable to allocate 1.12 TiB")
    assert explain(MemoryError()).what == "there is not enough memory"
