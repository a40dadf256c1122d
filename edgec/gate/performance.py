"""Race a candidate with its baseline until it is clear whether it is slower, or the time is up.

In each round there are three processes: the candidate, the baseline, and the baseline once more. The candidate is
compared with the mean of both; the second baseline beside the first is the sentinel.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from edgec.errors import EdgecError, InconclusiveError
from edgec.gate.compare import CANDIDATE, SENTINEL, common, exp, find
from edgec.gate.limits import Gated, Limits, bounded
from edgec.gate.looks import Plan, plan_looks
from edgec.gate.metrics import Measured, needed
from edgec.gate.result import Finding, judge
from edgec.gate.settings import Performance
from edgec.measure.arrivals import overloaded
from edgec.measure.race import APART, Course, Round, TooLongError, have_room, race
from edgec.measure.workload import Workload

# Rounds differ in how long they take, and longer ones may fit more turns.
_SLACK = 1.5


class Raced(msgspec.Struct, frozen=True):
    """What a race found; see `GateResult`."""

    findings: tuple[Finding, ...]
    sentinel: tuple[Finding, ...]
    void: str | None
    rounds: tuple[Round, ...]
    remarks: tuple[str, ...] = ()


class Judge:
    """Looks at rounds as they come, and decides metric by metric; a decision is final.

    To fail, a metric has to be worse at a level that all gated metrics share (Bonferroni); to pass, each has to be
    better at its own, since all must (an intersection-union test).

    Attributes:
        findings: of all metrics that are gated, as of when they were decided, or else of the last look.
    """

    def __init__(self, workloads: Sequence[Workload], wanted: Gated, alpha: float, seed: int) -> None:
        """Begin.

        Args:
            workloads: that are run.
            wanted: what metrics may do.
            alpha: one-sided, of the intervals that are shown, and of all looks of a metric.
            seed: of the bootstrap.
        """
        self.findings: dict[Measured, Finding] = {}
        self._workloads, self._alpha, self._seed = workloads, alpha, seed
        self._wanted = wanted
        self._bounds: dict[Measured, Limits] = {}
        self._plans: dict[Measured, Plan] = {}

    def check(self, first: Round) -> None:
        """Make sure, before the time is spent, that there is all that is gated.

        Raises:
            UsageError: a bound is on a metric that there is not.
        """
        bounded(common([first]), self._wanted, self._workloads)

    def plan(self, rounds: Sequence[Round], most: int) -> None:
        """Plan the looks from the first rounds; time allows for `most`."""
        self._bounds = bounded(common(rounds), self._wanted, self._workloads)
        self._plans = plan_looks(rounds, self._bounds, self._alpha, most)

    def look(self, rounds: Sequence[Round], *, is_last: bool) -> bool:
        """Look at what is undecided where a look is due; return whether all is decided, or one metric fails."""
        for metric, plan in self._plans.items():
            over = plan.looks[-1] < len(rounds)
            if not (self._decided(metric) or over) and (is_last or len(rounds) in plan.looks):
                self.findings[metric] = self._judge(rounds, metric, plan, is_last=is_last)
        verdicts = {finding.verdict for finding in self.findings.values()}
        more = any(plan.looks[-1] > len(rounds) for metric, plan in self._plans.items() if not self._decided(metric))
        return is_last or "fail" in verdicts or not more

    def reported(self, rounds: Sequence[Round]) -> tuple[Finding, ...]:
        """Return the metrics that are not gated."""
        return tuple(
            find(rounds, metric, CANDIDATE, self._workloads, self._alpha, self._seed)[1]
            for metric in common(rounds)
            if metric not in self._bounds
        )

    def sentinel(self, rounds: Sequence[Round]) -> tuple[Finding, ...]:
        """Compare the baseline with itself in what is gated.

        It fails where it is surely other than itself, and passes where it is surely within the margin of itself.
        """
        level = self._alpha / max(1, len(self._bounds))
        found = []
        for metric, bound in self._bounds.items():
            estimate, finding = find(rounds, metric, SENTINEL, self._workloads, self._alpha, self._seed)
            low, high = exp(estimate.low(level)), exp(estimate.high(level))
            away = max(estimate.high(self._alpha), -estimate.low(self._alpha))
            differs = (low or 0) > bound.allowed or (high or bound.allowed) < 1 / bound.allowed
            changes = {
                "decided_low": low,
                "decided_high": high,
                "allowed": bound.allowed,
                "margin": bound.margin,
                "verdict": "fail" if differs else "pass" if away < math.log(bound.margin) else "inconclusive",
            }
            found.append(msgspec.structs.replace(finding, **changes))
        return tuple(found)

    def _decided(self, metric: Measured) -> bool:
        return metric in self.findings and self.findings[metric].verdict != "inconclusive"

    def _judge(self, rounds: Sequence[Round], metric: Measured, plan: Plan, *, is_last: bool) -> Finding:
        estimate, finding = find(rounds, metric, CANDIDATE, self._workloads, self._alpha, self._seed)
        bound = self._bounds[metric]
        low = exp(estimate.low(plan.level(len(rounds), self._alpha / len(self._bounds), is_last=is_last)))
        high = exp(estimate.high(plan.level(len(rounds), self._alpha, is_last=is_last)))
        return msgspec.structs.replace(
            finding,
            decided_low=low,
            decided_high=high,
            allowed=bound.allowed,
            margin=bound.margin,
            verdict=judge(low or 0.0, float("inf") if high is None else high, bound.allowed, bound.margin),
        )


def run_race(
    candidate: Path,
    baseline: Path,
    wanted: Performance,
    bounds: Gated,
    *,
    confidence: float,
    seed: int,
    tick: Callable[[int], object] = lambda _: None,
) -> Raced:
    """Race two bundles.

    Args:
        candidate: that is judged.
        baseline: that it is judged by.
        wanted: how.
        bounds: what metrics may do.
        confidence: of the intervals that are shown.
        seed: of what is random.
        tick: told the number of rounds after each.

    Raises:
        UsageError: a bound is on a metric that there is not, or the bundles do not take the workloads.
        BundleError: a bundle cannot be read, or crashes.
        MissingRuntimeError: what would run a bundle is not here.
    """
    workloads = wanted.workloads()
    bundles = (baseline, baseline, candidate)
    together = have_room(bundles)
    course = Course(
        workloads=workloads,
        threads=wanted.threads,
        round_s=wanted.time_limit_s / (wanted.min_rounds + 2),
        longest_s=wanted.time_limit_s / (wanted.min_rounds + 1),  # before the first round, queries are tried
        at_least=needed(bounds.limits),
        together=together,
        seed=seed,
    )
    remarks: tuple[str, ...] = () if together else (APART,)
    judging = Judge(workloads, bounds, (1 - confidence) / 2, seed)
    try:
        rounds, void = follow(race(bundles, course), judging, wanted, tick=tick)
    except TooLongError as error:
        rounds, void = (), _too_long(error.round_s, wanted.min_rounds)
    except InconclusiveError as error:  # a process was killed
        rounds, void = (), reason(error)
    if rounds:
        names = ("the baseline", "the candidate")
        remarks += overloaded([(first, last) for first, _, last in rounds], workloads, names)
    if void:
        return Raced((), (), void, rounds, remarks)
    findings = (*judging.findings.values(), *judging.reported(rounds))
    sentinel = judging.sentinel(rounds)
    return Raced(findings, sentinel, _unsteady(findings, sentinel), rounds, remarks)


def reason(error: EdgecError) -> str:
    """Return why a race is void that ended with an error."""
    return "; ".join(filter(None, (error.what, error.where, error.hint)))


def follow(
    rounds: Iterable[Round],
    judging: Judge,
    wanted: Performance,
    *,
    tick: Callable[[int], object] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[tuple[Round, ...], str | None]:
    """Take rounds until all is decided or the time is up; return them, and why they count for nothing if so.

    Args:
        rounds: without end.
        judging: that looks at them.
        wanted: how many, and how long.
        tick: told the number of rounds after each.
        clock: in seconds.
    """
    taken: list[Round] = []
    start, first_s = clock(), 0.0
    for each in rounds:
        taken.append(each)
        tick(len(taken))
        elapsed_s = clock() - start
        first_s = first_s or elapsed_s
        # Before the first round, it is found out how long queries take.
        round_s = (elapsed_s - first_s) / (len(taken) - 1) if len(taken) > 1 else first_s
        left = (wanted.time_limit_s - elapsed_s) / round_s if round_s else wanted.max_rounds
        possible = min(wanted.max_rounds, len(taken) + max(0, int(left)))
        if possible < wanted.min_rounds and len(taken) > 1:
            return tuple(taken), _too_long(round_s, wanted.min_rounds, first_s)
        if len(taken) == 1:
            judging.check(each)
        if len(taken) == wanted.min_rounds:
            judging.plan(taken, possible)
        if len(taken) >= wanted.min_rounds and judging.look(taken, is_last=len(taken) >= possible):
            break
    return tuple(taken), None


def _too_long(round_s: float, rounds: int, first_s: float = 0.0) -> str:
    enough_s = math.ceil(first_s + _SLACK * round_s * rounds)
    return (
        f"a round takes {round_s:.1f} s, too long for {rounds} rounds: raise `time_limit_s` to {enough_s}, or measure "
        "less (fewer workloads or percentiles, queries that arrive faster)"
    )


def _unsteady(findings: Sequence[Finding], sentinel: Sequence[Finding]) -> str | None:
    """Return why a run counts for nothing.

    The baseline surely differs from itself; or it is not seen to be like itself, and the candidate not to be worse.
    """
    for each in sentinel:
        if each.verdict == "fail":
            return (
                f"the machine is too unsteady: the baseline differs from itself in {each.name}, by a factor of "
                f"{_interval(each.decided_low, each.decided_high)}"
            )
    if all(each.verdict != "fail" for each in findings):
        undecided = {(each.metric, each.where) for each in findings if each.verdict == "inconclusive"}
        for each in sentinel:
            if each.verdict == "inconclusive" and (each.metric, each.where) in undecided:
                return (
                    f"the machine is too unsteady: the baseline beside itself gives {each.name} times "
                    f"{_interval(each.low, each.high)}, and the margin is {each.margin:g}"
                )
    return None


def _interval(low: float | None, high: float | None) -> str:
    return f"{low or 0:.3f} to {'infinity' if high is None else f'{high:.3f}'}"
