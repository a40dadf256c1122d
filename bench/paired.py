"""Compare two things measured in turn: A B A B ..., ratios pair by pair, a bootstrap interval of their median."""

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_RESAMPLES = 4000


@dataclass(frozen=True)
class Process:
    """One finished process: wall seconds, and the peak resident bytes of its largest process."""

    seconds: float
    peak_bytes: int


def run(command: Sequence[str], **environment: str) -> Process:
    """Run a command to its end, with no cache of edgec's; stop everything, with what it said, when it fails."""
    with tempfile.TemporaryFile("w+") as log, tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "EDGEC_CACHE": cache, **environment}
        start = time.perf_counter()
        child = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            log.seek(0)
            sys.exit(f"{' '.join(command)} failed with status {status}:\n{log.read()}")
    return Process(seconds, usage.ru_maxrss * 1024)


def interleave(count: int, **things: Callable[[], object]) -> dict[str, list[object]]:
    """Call each thing once to warm up, then `count` rounds of all of them in turn, the order changing each round."""
    for thing in things.values():
        thing()
    results: dict[str, list[object]] = {name: [] for name in things}
    names = list(things)
    for number in range(count):
        for name in names if number % 2 == 0 else reversed(names):
            results[name].append(things[name]())
    return results


def ratio(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Return the median of a/b pair by pair, and a 95 % bootstrap interval of it."""
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(_RESAMPLES))
    return statistics.median(ratios), medians[int(0.025 * _RESAMPLES)], medians[int(0.975 * _RESAMPLES)]
