"""The statistics of the gate, on noise that is known: how often it errs, and how often its intervals hold the truth.

`bench/gate` measures the same on a real machine.
"""

from functools import cache

import numpy as np
import pytest
from simulated import rounds

from edgec.gate.limits import gated
from edgec.gate.performance import Judge, follow
from edgec.gate.result import overall
from edgec.gate.settings import Bound, Performance
from edgec.measure.workload import Workload

WANTED = Performance(max_rounds=40)
NOISE = {
    "quiet": {"process": 0.004, "turn": 0.03},
    "noisy": {"process": 0.015, "turn": 0.08},
    "without end": {"process": 0.3, "turn": 0.3},
}


@cache
def gates(count, slower, noise, *, usual=False):
    """Return the verdict, the interval of the latency, and the number of rounds of each of so many gates."""
    found = []
    bounds = None if usual else {"latency_ms": Bound()}
    for seed in range(count):
        judging = Judge((Workload(),), gated(bounds, {}), 0.025, seed)
        taken, void = follow(
            rounds(np.random.default_rng(seed), slower, **NOISE[noise]), judging, WANTED, clock=lambda: 0.0
        )
        assert void is None
        (latency,) = (finding for metric, finding in judging.findings.items() if metric.name == "latency_ms")
        verdict = overall(tuple(judging.findings.values()))
        found.append((verdict, latency.low, latency.high, len(taken)))
    return found


def share(found, verdict):
    return sum(each[0] == verdict for each in found) / len(found)


@pytest.mark.parametrize("noise", ["quiet", "noisy"])
def test_equal_models_do_not_fail(noise):
    found = gates(100, 0.0, noise)
    assert share(found, "fail") <= 4 / 500
    assert share(found, "inconclusive") <= 0.05
    held = np.mean([low <= 1 <= high for _, low, high, _ in found])
    assert 0.88 <= held <= 0.995  # 100 gates: 0.95 +- 0.022


def test_all_metrics_together_do_not_fail_equal_models():
    found = gates(40, 0.0, "quiet", usual=True)
    assert share(found, "fail") <= 0.01
    assert share(found, "inconclusive") <= 0.05


@pytest.mark.parametrize(("slower", "power"), [(0.05, 0.8), (0.1, 0.95)])
@pytest.mark.parametrize("noise", ["quiet", "noisy"])
def test_slower_models_fail(noise, slower, power):
    found = gates(60, slower, noise)
    assert share(found, "fail") >= power


def test_a_slowdown_as_large_as_is_allowed_rarely_fails():
    # The level is that of the hypothesis "at most allowed", one-sided: 0.025, looks and all.
    found = gates(100, 0.02, "noisy")
    assert share(found, "fail") <= 0.05


def test_intervals_hold_the_truth_of_slower_models_too():
    found = gates(60, 0.05, "noisy")
    held = np.mean([low <= 1.05 <= high for _, low, high, _ in found])
    assert held >= 0.88  # 60 gates: 0.95 +- 0.028


def test_noise_takes_more_rounds_not_more_alarms():
    quiet, noisy = (gates(100, 0.0, noise) for noise in ("quiet", "noisy"))
    assert np.mean([each[3] for each in noisy]) > 1.5 * np.mean([each[3] for each in quiet])


def test_noise_without_end_is_inconclusive():
    found = gates(40, 0.0, "without end")
    assert share(found, "fail") <= 0.05
    assert share(found, "inconclusive") >= 0.8
