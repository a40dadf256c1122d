"""What a race tells of a process, by name; names end with their unit."""

import re
from collections.abc import Iterable

import msgspec
import numpy as np

from edgec.gate.statistics import Values
from edgec.measure.percentiles import PERCENTILES, sample_size
from edgec.measure.race import Process

_UNITS = {"ms": "ms", "bytes": "bytes", "per_s": "/s", "mj": "mJ"}
_TAIL = re.compile(r"(\w+)_p(\d+)_ms")


class Measured(msgspec.Struct, frozen=True):
    """A metric of one workload.

    Args:
        name: of the metric.
        workload: its number; None for what has nothing to do with workloads.
    """

    name: str
    workload: int | None

    @property
    def higher_is_better(self) -> bool:
        """Whether more is better: of rates alone."""
        return self.name.endswith("_per_s")

    @property
    def unit(self) -> str:
        """Of its values."""
        return next(unit for suffix, unit in _UNITS.items() if self.name.endswith(f"_{suffix}"))


def measured(process: Process) -> tuple[Measured, ...]:
    """Return the metrics that a process tells of, percentiles that its sample is too small for left out."""
    found = [Measured("load_ms", None), Measured("peak_rss_bytes", None), Measured("size_bytes", None)]
    for number, turns in enumerate(process.slices):
        names_of = dict.fromkeys(name for turn in turns for name in turn.samples)
        counts = {name: sum(len(turn.samples.get(name, ())) for turn in turns) for name in names_of}
        names = list(counts)
        names += [
            f"{name.removesuffix('_ms')}_p{percentile}_ms"
            for name, count in counts.items()
            for percentile in PERCENTILES
            if count >= sample_size(percentile)
        ]
        names.append("tokens_per_s" if "token_ms" in counts else "rows_per_s")
        if turns[0].energy_j is not None:
            names.append("energy_mj")
        found += [Measured(name, number) for name in names]
    return tuple(found)


def values(process: Process, metric: Measured) -> Values:
    """Return a metric of each turn of a process, of each time that it loaded, or the one value of what it gives once.

    Times of a turn are their mean; rates, and energy for each token or row, are of whole queries.
    """
    if metric.workload is None:
        return np.atleast_1d(np.array(getattr(process, metric.name), np.float64))
    turns = process.slices[metric.workload]
    if metric.name.endswith("_per_s") or metric.name == "energy_mj":
        pieces = process.pieces[metric.workload]
        totals = [(turn.work, turn.busy_s, 1e3 * (turn.energy_j or 0.0)) for turn in turns]
        work, busy_s, energy_mj = np.reshape(totals, (-1, pieces, 3)).sum(axis=1).T
        found: Values = energy_mj / work if metric.name == "energy_mj" else work / busy_s
        return found
    if tail := _TAIL.fullmatch(metric.name):
        pooled = np.concatenate([turn.samples.get(f"{tail[1]}_ms", ()) for turn in turns])
        return np.array([np.percentile(pooled, int(tail[2]))])
    return np.array([np.mean(turn.samples[metric.name]) for turn in turns if metric.name in turn.samples])


def needed(names: Iterable[str]) -> dict[str, int]:
    """Return how many times a process has to take of each kind, so that these percentiles can be told."""
    found: dict[str, int] = {}
    for name in names:
        if tail := _TAIL.fullmatch(name):
            kind = f"{tail[1]}_ms"
            found[kind] = max(found.get(kind, 0), sample_size(int(tail[2])))
    return found
