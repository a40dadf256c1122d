"""What metrics may do: the gate file's bounds, those of the target, and the usual ones."""

import pytest

from edgec.errors import UsageError
from edgec.gate.limits import USUAL, Limits, bounded, gated
from edgec.gate.metrics import Measured
from edgec.gate.settings import Bound
from edgec.measure.workload import Workload

KNOWN = [Measured(name, None) for name in ("load_ms", "peak_rss_bytes", "size_bytes")] + [
    Measured(name, 0) for name in ("ttft_ms", "token_ms", "token_p50_ms", "tokens_per_s")
]
ALONE, SERVER = Workload(), Workload(scenario="server", rate_per_s=5)


def limits(bounds, own=(), workload=ALONE):
    return bounded(KNOWN, gated(bounds, dict(own)), (workload,))


def test_without_bounds_the_usual_metrics_are_gated():
    found = limits(None)
    assert {metric.name for metric in found} == {metric.name for metric in KNOWN} - {"token_p50_ms"}
    assert found[Measured("load_ms", None)] == USUAL["load_ms"] == Limits(1.1, 1.35)


def test_bounds_of_the_gate_file_are_all_there_is():
    assert limits({"token_ms": Bound()}) == {Measured("token_ms", 0): Limits(1.02, 1.05)}
    assert limits({}) == {}


def test_what_a_bound_leaves_out_is_the_usual_of_its_metric():
    found = limits({"load_ms": Bound(margin=1.5), "token_ms": Bound(allowed=1.04), "token_p50_ms": Bound()})
    assert {metric.name: limit for metric, limit in found.items()} == {
        "load_ms": Limits(1.1, 1.5),
        "token_ms": Limits(1.04, 1.05),
        "token_p50_ms": Limits(1.02, 1.05),
    }


@pytest.mark.parametrize(
    ("bound", "says"),
    [
        (Bound(allowed=1.1), "the usual margin of token_ms (1.05) must be above `allowed` (1.1)"),
        (Bound(allowed=1.05), "the usual margin of token_ms (1.05) must be above `allowed` (1.05)"),
        (Bound(margin=1.02), "`margin` (1.02) must be above what token_ms is usually allowed (1.02)"),
        (Bound(allowed=1.2, margin=1.1), "`margin` (1.1) must be above `allowed` (1.2)"),
    ],
)
def test_a_margin_is_above_what_is_allowed(bound, says):
    for arguments, place in (
        (({"token_ms": bound}, {}), "performance.metrics.token_ms"),
        (({"token_ms": Bound()}, {"token_ms": bound}, "orin"), "targets.orin.metrics.token_ms"),
    ):
        with pytest.raises(UsageError) as caught:
            gated(*arguments)
        assert (caught.value.what, caught.value.where) == (says, place)
        assert "token_ms = { allowed = 1.02, margin = 1.05 }" in caught.value.hint


def test_bounds_of_the_target_stand_in_place_of_those_of_the_same_name():
    wide = {"load_ms": Bound(allowed=1.1, margin=1.2)}
    assert limits(None, wide) == {**limits(None), Measured("load_ms", None): Limits(1.1, 1.2)}
    assert limits({"token_ms": Bound(), "load_ms": Bound()}, wide) == {
        Measured("token_ms", 0): Limits(),
        Measured("load_ms", None): Limits(1.1, 1.2),
    }


def test_how_many_queries_arrive_is_gated_only_where_it_is_asked_for():
    assert Measured("tokens_per_s", 0) not in limits(None, workload=SERVER)
    assert Measured("tokens_per_s", 0) in limits({"tokens_per_s": Bound()}, workload=SERVER)


@pytest.mark.parametrize("name", ["tokn_ms", "token_p100_ms", "token_p95_ms", "load_p50_ms", ""])
@pytest.mark.parametrize("of_file", [True, False], ids=["file", "target"])
def test_metrics_that_there_are_not_are_refused_at_once(name, of_file):
    with pytest.raises(UsageError, match=f"there is no metric '{name}'") as caught:
        gated(*(({name: Bound()}, {}) if of_file else (None, {name: Bound()}, "orin")))
    assert caught.value.where == ("performance.metrics" if of_file else "targets.orin.metrics")
    assert (caught.value.hint or "").startswith(("did you mean", "there are"))


def test_what_the_model_does_not_give_is_refused():
    with pytest.raises(UsageError, match="gives the metric 'latency_ms'") as caught:
        limits({"latency_ms": Bound()})
    assert caught.value.where == "performance.metrics"
    with pytest.raises(UsageError, match="gives the metric 'latency_ms'") as caught:
        bounded(KNOWN, gated({}, {"latency_ms": Bound()}, "orin"), (ALONE,))
    assert caught.value.where == "targets.orin.metrics"
