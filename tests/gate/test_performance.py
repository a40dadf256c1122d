"""How a race is followed: looks, the sentinel, the clock."""

from itertools import chain, count, islice, repeat

import msgspec
import numpy as np
import pytest
from simulated import rounds

from edgec.errors import InconclusiveError, UsageError
from edgec.gate import performance
from edgec.gate.compare import common, find
from edgec.gate.limits import Limits, gated
from edgec.gate.looks import Plan, plan_looks
from edgec.gate.metrics import Measured
from edgec.gate.performance import Judge, _unsteady, follow, run_race
from edgec.gate.settings import Bound, Grid, Performance
from edgec.measure.query import Slice
from edgec.measure.race import APART, TooLongError
from edgec.measure.workload import Workload

LATENCY = Measured("latency_ms", 0)
LOAD = Measured("load_ms", None)
BOUNDS = {"latency_ms": Bound()}
WANTED = Performance(max_rounds=40)


def judge(bounds=BOUNDS):
    return Judge((Workload(),), gated(bounds, {}), 0.025, 0)


def some(number, slower=0.0, seed=0, **noise):
    return list(islice(rounds(np.random.default_rng(seed), slower, **noise), number))


def slowed(process, factor):
    """Return a process that takes so many times as long."""
    slices = [
        Slice({name: [factor * time for time in times] for name, times in each.samples.items()}, each.busy_s, each.work)
        for each in process.slices[0]
    ]
    return msgspec.structs.replace(process, slices=(tuple(slices),))


def test_steady_machines_are_looked_at_once():
    assert plan_looks(some(6, turn=0.01), {LATENCY: Limits()}, 0.025, 40)[LATENCY] == Plan((6,))


def test_noise_is_given_more_rounds_as_far_as_time_allows():
    noisy = some(6, process=0.05, turn=0.2)
    looks = plan_looks(noisy, {LATENCY: Limits()}, 0.025, 30)[LATENCY].looks
    assert looks[0] == 6
    assert len(looks) == 4
    assert looks[-1] == 30


def test_a_plan_does_not_know_what_the_candidate_does():
    # The same noise with another candidate: planning by what it says would stop where it happens to look good.
    made = some(6, process=0.01)
    factors = np.exp(np.random.default_rng(1).normal(0.3, 0.5, 6))
    others = [(*each[:2], slowed(each[2], factor)) for each, factor in zip(made, factors, strict=True)]
    plans = [plan_looks(taken, {LATENCY: Limits()}, 0.025, 40)[LATENCY] for taken in (made, others)]
    assert plans[0] == plans[1]
    assert 6 < plans[0].looks[-1] < 40


def test_levels_of_looks_add_up_also_where_time_runs_out():
    plan = Plan((6, 12, 18))
    early, late = plan.level(6, 0.025, is_last=False), plan.level(18, 0.025, is_last=True)
    assert early < 0.001 < late < 0.025
    assert plan.level(6, 0.025, is_last=True) == pytest.approx(0.025)
    assert plan.level(15, 0.025, is_last=True) == pytest.approx(0.02, abs=0.005)


def test_the_clock_ends_a_race():
    seconds = count(0, 2.5)
    taken, void = follow(rounds(np.random.default_rng(0), process=0.3), judge(), WANTED, clock=lambda: next(seconds))
    assert void is None
    assert len(taken) == 24  # of 2.5 s each, in 60 s


def test_rounds_that_become_slower_are_looked_at_once_when_the_time_is_up():
    """Each look spends some of the chance to err; the last one all that is left of it."""

    class Counting(Judge):
        last = 0

        def look(self, rounds, *, is_last):
            self.last += is_last
            return super().look(rounds, is_last=is_last)

    seconds = iter([0.0, *range(1, 7), *range(11, 200, 5)])
    judging = Counting((Workload(),), gated(BOUNDS, {}), 0.025, 0)
    noisy = rounds(np.random.default_rng(2), 0.035, process=0.03, turn=0.08)
    taken, _ = follow(noisy, judging, WANTED, clock=lambda: float(next(seconds)))
    assert judging.findings[LATENCY].verdict == "inconclusive"
    assert judging.last == 1
    assert len(taken) <= 6 + 60 / 5


def test_rounds_that_take_too_long_decide_nothing():
    seconds = count(0, 20)
    taken, void = follow(rounds(np.random.default_rng(0)), judge(), WANTED, clock=lambda: next(seconds))
    assert len(taken) == 2
    assert "raise `time_limit_s` to 200" in void


def test_a_decision_is_final():
    judging = judge({"latency_ms": Bound(), "load_ms": Bound(allowed=1.001, margin=1.03)})
    # Far faster, and after the second look far slower.
    generator = np.random.default_rng(0)
    made = chain(islice(rounds(generator, -0.5, process=0.1), 17), rounds(generator, 3.0, process=0.1))
    taken, _ = follow(made, judging, WANTED, clock=lambda: 0.0)
    found = {metric.name: finding for metric, finding in judging.findings.items()}
    assert judging._plans[LATENCY].looks[1] == 17 < judging._plans[LATENCY].looks[2] <= len(taken)
    assert found["latency_ms"].verdict == "pass"
    assert found["latency_ms"].estimate == pytest.approx(0.5, rel=0.2)


def test_no_rounds_are_taken_that_could_decide_nothing():
    judging = judge({"latency_ms": Bound(), "load_ms": Bound(allowed=500.0, margin=1000.0)})
    taken = some(6, 0.045, process=0.02)
    judging.plan(taken, 40)
    judging._plans = {LATENCY: Plan((6,)), LOAD: Plan((6, 14, 22, 30))}
    assert judging.look(taken, is_last=False)
    assert [judging.findings[metric].verdict for metric in (LATENCY, LOAD)] == ["inconclusive", "pass"]
    judging._plans[LATENCY] = Plan((6, 7))
    assert not judging.look(taken, is_last=False)


def test_one_failure_ends_a_race():
    judging = judge(None)
    taken, _ = follow(rounds(np.random.default_rng(0), 1.0), judging, WANTED, clock=lambda: 0.0)
    assert len(taken) == 6
    verdicts = {metric.name: finding.verdict for metric, finding in judging.findings.items()}
    assert verdicts["latency_ms"] == "fail"


def test_metrics_that_are_not_gated_are_reported():
    judging = judge()
    taken, _ = follow(rounds(np.random.default_rng(0)), judging, WANTED, clock=lambda: 0.0)
    reported = {finding.metric: finding for finding in judging.reported(taken)}
    assert {"load_ms", "peak_rss_bytes", "size_bytes", "rows_per_s", "latency_p50_ms"} <= reported.keys()
    assert all(finding.verdict == "reported" for finding in reported.values())


def test_a_baseline_that_differs_from_itself_voids_the_run():
    judging = judge()
    # The second baseline is 10 % slower than the first, as if another job began whenever its turn came.
    made = (
        (first, slow[2], candidate)
        for (first, _, candidate), slow in zip(
            rounds(np.random.default_rng(0)), rounds(np.random.default_rng(1), 0.1), strict=False
        )
    )
    taken, _ = follow(made, judging, WANTED, clock=lambda: 0.0)
    sentinel = judging.sentinel(taken)
    assert [finding.verdict for finding in sentinel] == ["fail"]
    findings = tuple(judging.findings.values())
    assert "too unsteady: the baseline differs from itself in latency_ms" in _unsteady(findings, sentinel)


def test_a_machine_that_does_not_show_the_baseline_to_be_like_itself_voids_the_run():
    judging = judge()
    wanted = Performance(max_rounds=10)
    taken, _ = follow(rounds(np.random.default_rng(3), process=0.1), judging, wanted, clock=lambda: 0.0)
    findings, sentinel = tuple(judging.findings.values()), judging.sentinel(taken)
    assert [finding.verdict for finding in (*findings, *sentinel)] == ["inconclusive"] * 2
    assert "too unsteady: the baseline beside itself gives latency_ms times" in _unsteady(findings, sentinel)


def test_what_is_far_slower_fails_on_such_a_machine_too():
    judging = judge()
    wanted = Performance(max_rounds=10)
    taken, _ = follow(rounds(np.random.default_rng(0), 1.0, process=0.1), judging, wanted, clock=lambda: 0.0)
    findings, sentinel = tuple(judging.findings.values()), judging.sentinel(taken)
    assert [finding.verdict for finding in (*findings, *sentinel)] == ["fail", "inconclusive"]
    assert _unsteady(findings, sentinel) is None


def test_a_steady_machine_passes_its_sentinel():
    judging = judge(None)
    taken, _ = follow(rounds(np.random.default_rng(0)), judging, WANTED, clock=lambda: 0.0)
    sentinel = judging.sentinel(taken)
    assert {finding.verdict for finding in sentinel} == {"pass"}
    assert _unsteady(tuple(judging.findings.values()), sentinel) is None


def test_worse_is_above_one_for_rates_too():
    taken = some(8, 0.1)
    _, finding = find(taken, Measured("rows_per_s", 0), 2, (Workload(),), 0.025, 0)
    assert finding.estimate == pytest.approx(1.1, abs=0.03)
    assert finding.candidate < finding.baseline
    assert finding.low < finding.estimate < finding.high


def test_what_was_zero_once_is_no_metric():
    taken = some(3)
    broken = [(a, b, msgspec.structs.replace(c, peak_rss_bytes=0)) for a, b, c in taken]
    assert Measured("peak_rss_bytes", None) in common(taken)
    assert Measured("peak_rss_bytes", None) not in common(broken)


def test_bounds_on_unknown_metrics_are_refused_before_a_verdict():
    with pytest.raises(UsageError, match="latncy_ms"):
        follow(rounds(np.random.default_rng(0)), judge({"latncy_ms": Bound()}), WANTED, clock=lambda: 0.0)


def test_rounds_that_are_all_equal_pass_at_once():
    taken, void = follow(repeat(some(1)[0]), judge({"size_bytes": Bound()}), WANTED, clock=lambda: 0.0)
    assert (len(taken), void) == (6, None)


def test_values_fit_the_ratio_beside_them():
    taken = some(8, 0.1, turn=0.2)
    for name in ("latency_ms", "rows_per_s", "size_bytes"):
        _, found = find(taken, Measured(name, 0 if name != "size_bytes" else None), 2, (Workload(),), 0.025, 0)
        times = found.baseline / found.candidate if found.higher_is_better else found.candidate / found.baseline
        assert times == pytest.approx(found.estimate)
    assert found.candidate == 1_000_000


class TestRunRace:
    """What becomes of what a race gives; the processes are made up, and `tests/measure` has real ones."""

    @pytest.fixture
    def run(self, monkeypatch, tmp_path):
        def run_(made, wanted=WANTED, bounds=BOUNDS, *, room=True):
            def race(bundles, course):
                self.bundles, self.course = bundles, course
                if isinstance(made, Exception):
                    raise made
                yield from made

            monkeypatch.setattr(performance, "race", race)
            monkeypatch.setattr(performance, "have_room", lambda _: room)
            return run_race(tmp_path / "new", tmp_path / "old", wanted, gated(bounds, {}), confidence=0.95, seed=7)

        return run_

    def test_a_steady_one(self, run, tmp_path):
        found = run(rounds(np.random.default_rng(0), process=0.001, turn=0.01))
        assert (found.void, found.remarks, len(found.rounds)) == (None, (), 6)
        assert found.findings[0].verdict == found.sentinel[0].verdict == "pass"
        assert {finding.metric for finding in found.findings} > {"latency_ms", "load_ms", "size_bytes"}
        assert self.bundles == (tmp_path / "old", tmp_path / "old", tmp_path / "new")
        assert (self.course.together, self.course.seed, self.course.at_least) == (True, 7, {})

    def test_a_slower_candidate(self, run):
        assert run(rounds(np.random.default_rng(0), 0.2)).findings[0].verdict == "fail"

    def test_the_sentinel_voids_it_also_where_the_candidate_is_worse(self, run):
        generator = np.random.default_rng(0)
        made = ((first, slow, slow) for first, _, slow in rounds(generator, 0.2))
        found = run(made)
        assert found.findings[0].verdict == found.sentinel[0].verdict == "fail"
        assert "the baseline differs from itself in latency_ms" in found.void

    def test_percentiles_that_are_bounded_get_the_queries_they_take(self, run):
        run(rounds(np.random.default_rng(0), turn=0.0), bounds={"latency_p50_ms": Bound()})
        assert self.course.at_least == {"latency_ms": 11}

    def test_short_memory_and_queries_that_come_too_fast_are_told(self, run):
        wanted = Performance(workload=(msgspec.convert({"scenario": "server", "rate_per_s": 1e6}, Grid),))
        found = run(rounds(np.random.default_rng(0)), wanted, room=False)
        assert self.course.together is False
        assert found.remarks[0] == APART
        assert [remark.split(" answers")[0] for remark in found.remarks[1:]] == ["the baseline", "the candidate"]

    def test_queries_that_come_too_fast_are_told_of_a_void_race_too(self, run):
        workload = (msgspec.convert({"scenario": "server", "rate_per_s": 1e6}, Grid),)
        found = run(rounds(np.random.default_rng(0)), Performance(workload=workload, time_limit_s=1e-9))
        assert "a round takes" in found.void
        assert [remark.split(" answers")[0] for remark in found.remarks] == ["the baseline", "the candidate"]

    def test_a_process_that_is_killed(self, run):
        found = run(InconclusiveError("it was killed", where="new", hint="by whom?"), room=False)
        assert (found.findings, found.rounds, found.remarks) == ((), (), (APART,))
        assert found.void == "it was killed; new; by whom?"

    def test_rounds_that_cannot_fit(self, run):
        found = run(TooLongError(30.0))
        assert (found.findings, found.rounds) == ((), ())
        assert "a round takes 30.0 s" in found.void
