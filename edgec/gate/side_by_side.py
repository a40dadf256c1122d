"""Bundles side by side: what a race of several says of each, and of each beside the first."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import numpy as np

from edgec.bundle.open import is_network_bundle
from edgec.gate.compare import beside, common, exp, logarithms, typical
from edgec.gate.fits import check_bundles
from edgec.gate.metrics import Measured
from edgec.gate.side_by_side_result import Cell, Row, SideBySide, names_of
from edgec.gate.statistics import hierarchical
from edgec.gate.subject import describe
from edgec.measure.arrivals import overloaded
from edgec.measure.fingerprint import fingerprint
from edgec.measure.race import APART, Course, Round, have_room, race
from edgec.measure.workload import Workload

_SEED = 0


def put_side_by_side(
    bundles: Sequence[Path],
    workloads: Sequence[Workload],
    *,
    rounds: int,
    threads: int | None = None,
    confidence: float = 0.95,
    tick: Callable[[], object] = lambda: None,
) -> SideBySide:
    """Race bundles, in rounds of fresh processes.

    Args:
        bundles: the others are compared with the first; one alone is measured.
        workloads: what all run.
        rounds: at least five where there is something to compare; with fewer, a bootstrap says little of intervals.
        threads: of the runtimes; None leaves that to them.
        confidence: of each interval.
        tick: called after each round.

    Raises:
        UsageError: the bundles are of different kinds, or do not take the workloads.
        BundleError: a bundle cannot be read, or crashes.
        InconclusiveError: a process was killed.
        MissingRuntimeError: what would run a bundle is not here.
    """
    start, started = time.monotonic(), datetime.now(UTC)
    check_bundles(bundles, workloads)
    subjects = tuple(map(describe, bundles))
    together = have_room(bundles)
    course = Course(workloads=tuple(workloads), threads=threads, together=together, seed=_SEED)
    taken = []
    for each in islice(race(bundles, course), rounds):
        taken.append(each)
        tick()
    names = names_of([str(bundle) for bundle in bundles])
    return SideBySide(
        kind="network" if is_network_bundle(bundles[0]) else "decoder",
        bundles=subjects,
        names=names,
        workloads=tuple(workloads),
        rows=tuple(row_of(taken, metric, confidence) for metric in common(taken)),
        rounds=rounds,
        confidence=confidence,
        threads=threads,
        elapsed_s=time.monotonic() - start,
        started=started.isoformat(timespec="seconds"),
        environment=fingerprint(),
        remarks=(
            *([] if together else [APART]),
            *overloaded(taken, workloads, names),
        ),
    )


def row_of(rounds: Sequence[Round], metric: Measured, confidence: float) -> Row:
    """Return what rounds say of a metric."""
    alpha = (1 - confidence) / 2
    logs = logarithms(rounds, metric)
    first = typical(rounds, metric, (0,))
    cells = []
    for variant in range(len(rounds[0])):
        single = [typical([each], metric, (variant,)) for each in rounds]
        known = [value for value in single if value is not None]
        limits = {"least": min(known, default=None), "most": max(known, default=None)}
        value, ratio = first, {}
        if variant:
            # Only these two: how much a third one scatters has nothing to do with them.
            pair = [turns[:, [0, variant]] for turns in logs]
            estimate = hierarchical(pair, np.array([-1.0, 1.0]), level=alpha, seed=_SEED)
            ends = {"low": exp(estimate.low(alpha)), "high": exp(estimate.high(alpha))}
            value, ratio = beside(first, metric, estimate.centre), {"ratio": exp(estimate.centre), **ends}
        cells.append(Cell(value=value, **limits, **ratio))
    return Row(
        metric=metric.name,
        workload=metric.workload,
        unit=metric.unit,
        higher_is_better=metric.higher_is_better,
        bundles=tuple(cells),
    )
