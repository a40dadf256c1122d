"""What the metrics of a race may do, as ratios to the baseline."""

import difflib
from collections.abc import Mapping, Sequence

import msgspec

from edgec.errors import UsageError
from edgec.gate.metrics import Measured
from edgec.gate.settings import Bound
from edgec.measure.percentiles import PERCENTILES
from edgec.measure.workload import Workload

# Of these there are percentiles too.
_TIMES = ("ttft_ms", "token_ms", "latency_ms")
_RATES = ("tokens_per_s", "rows_per_s")


class Limits(msgspec.Struct, frozen=True):
    """What a metric may do: `allowed` and `margin` of a bound, filled in."""

    allowed: float = 1.02
    margin: float = 1.05


USUAL = {
    **dict.fromkeys((*_TIMES, *_RATES, "peak_rss_bytes", "size_bytes"), Limits()),
    # Reading files takes part in it, and is noisier than computing.
    "load_ms": Limits(1.1, 1.35),
}
"""Of what is gated where the gate file names no metrics, as far as the model has it; all else is reported."""


class Gated(msgspec.Struct, frozen=True):
    """What is gated.

    Args:
        limits: by name of a metric.
        named: metrics that the gate file names, and where: the model and the machine have to give them.
    """

    limits: Mapping[str, Limits]
    named: Mapping[str, str]


def gated(bounds: Mapping[str, Bound] | None, own: Mapping[str, Bound], target: str = "") -> Gated:
    """Return what a gate file gates.

    Args:
        bounds: by name of a metric; None for the usual ones.
        own: of the target, in place of those of the same name.
        target: its name.

    Raises:
        UsageError: there is no such metric, or its margin is not above what is allowed.
    """
    named = {**(bounds or {}), **own}
    places = dict.fromkeys(bounds or {}, "performance.metrics") | dict.fromkeys(own, f"targets.{target}.metrics")
    percentiles = [f"{time.removesuffix('_ms')}_p{each}_ms" for time in _TIMES for each in PERCENTILES]
    _refuse(places, [*USUAL, *percentiles, "energy_mj"], "there is no metric '{}'")
    found = {name: _filled(name, bound, places[name]) for name, bound in named.items()}
    return Gated({**USUAL, **found} if bounds is None else found, places)


def bounded(known: Sequence[Measured], wanted: Gated, workloads: Sequence[Workload]) -> dict[Measured, Limits]:
    """Return the limits of metrics that were measured.

    How many queries arrive is no merit of a bundle: where they come at a rate, throughput is gated only if it is named.

    Raises:
        UsageError: the gate file names a metric that was not measured.
    """
    _refuse(wanted.named, [each.name for each in known], "neither model nor machine gives the metric '{}'")
    return {
        each: wanted.limits[each.name]
        for each in known
        if each.name in wanted.limits and (each.name in wanted.named or not _arrives(each, workloads))
    }


def _arrives(metric: Measured, workloads: Sequence[Workload]) -> bool:
    return metric.name in _RATES and metric.workload is not None and workloads[metric.workload].rate_per_s is not None


def _filled(name: str, bound: Bound, place: str) -> Limits:
    usual = USUAL.get(name, Limits())
    found = Limits(bound.allowed or usual.allowed, bound.margin or usual.margin)
    if found.margin <= found.allowed:
        margin = "`margin`" if bound.margin else f"the usual margin of {name}"
        allowed = "`allowed`" if bound.allowed else f"what {name} is usually allowed"
        raise UsageError(
            f"{margin} ({found.margin}) must be above {allowed} ({found.allowed})",
            where=f"{place}.{name}",
            hint=f"write both, such as {name} = {{ allowed = {usual.allowed:g}, margin = {usual.margin:g} }}",
        )
    return found


def _refuse(places: Mapping[str, str], known: Sequence[str], what: str) -> None:
    for name in sorted(places.keys() - set(known)):
        close = difflib.get_close_matches(name, known, 1)
        raise UsageError(
            what.format(name),
            where=places[name],
            hint=f"did you mean {close[0]}?" if close else f"there are {', '.join(dict.fromkeys(known))}",
        )
