"""What a build of a network measured, and its page for people."""

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from edgec.evaluate.network import MetricQuality, NetworkQuality
from edgec.fuse.result import Fused
from edgec.report.model import Integers, Stage
from edgec.report.network_channels import NetworkPruning, pruning_rows
from edgec.spec.network_plan import NetworkPlan, describe

_MIB = 2**20


class Agreement(msgspec.Struct, frozen=True):
    """The artifact against the canonical graph, both with float activations.

    Args:
        max_error: largest difference of two numbers of any output.
        relative_error: the same, in standard deviations of that output.
        samples: how many were compared.
        bound: what `relative_error` may be.
    """

    max_error: float
    relative_error: float
    samples: int
    bound: float

    @property
    def passed(self) -> bool:
        return self.relative_error <= self.bound


class Speed(msgspec.Struct, frozen=True):
    """The artifact beside the same network in float32 for the same backend, in turn, on the build machine.

    Args:
        latency_ms: of one run, median.
        float_ms: of the float network.
        ratio: float time over artifact's time: above 1 the artifact is faster; median of pairs.
        ratio_low: 95 % interval of it.
        ratio_high: 95 % interval of it.
        shapes: of the inputs.
        threads: of the runtime; None is its own choice.
    """

    latency_ms: float
    float_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    shapes: Mapping[str, tuple[int, ...]]
    threads: int | None = None


class NetworkVerification(msgspec.Struct, frozen=True):
    """The evidence of a build; `failures` says in words which bounds are broken."""

    integers: Integers
    exact: Agreement
    quality: NetworkQuality
    failures: tuple[str, ...]


class NetworkReport(msgspec.Struct, frozen=True):
    """The evidence that a bundle of a network carries; None where something was not measured, which the page then says.

    Args:
        size_bytes: artifact file -> size.
        fused: what fusion made of the graph.
        kept_float: node -> why it stayed in float, of those that the plan would have in int8.
        environment: the machine and the versions that measured.
        remarks: what the artifact or its samples lack, and why.
        not_run: why the artifact itself was not run here, and what was run instead; None where it was.
        pruning: None where nothing was pruned.
    """

    edgec: str
    plan_sha256: str
    stages: tuple[Stage, ...]
    size_bytes: dict[str, int]
    fused: tuple[Fused, ...]
    kept_float: dict[str, str]
    evaluation: str | None
    verification: NetworkVerification | None
    speed: Speed | None
    environment: dict[str, str]
    not_run: str | None = None
    remarks: tuple[str, ...] = ()
    pruning: NetworkPruning | None = None


def summary(plan: NetworkPlan, report: NetworkReport) -> list[tuple[str, str]]:
    """Return what a build did and found, a line each: for the page and for the terminal."""
    size = sum(report.size_bytes.values())
    integers = len(plan.int8) - len(report.kept_float)
    rows = [
        ("model", f"{plan.source.family}, {plan.source.parameters / 1e6:.1f} M parameters, {plan.source.format}"),
        ("target, backend", f"{plan.target}, {plan.backend}"),
        ("profile", f"{plan.profile}: {describe(plan)}"),
    ]
    if plan.wishes.weights == "int8":
        floats = _in_float([*plan.floats.values(), *report.kept_float.values()])
        rows.append(("int8", f"{integers} node{'' if integers == 1 else 's'}{floats}"))
    rows += [("size", f"{size / _MIB:.1f} MiB")]
    rows += pruning_rows(plan, report.pruning)
    if report.fused:
        rows.append(("fused", ", ".join(f"{entry.title} ({len(entry.nodes)})" for entry in report.fused)))
    rows += [*_evidence(report), *(("remark", remark) for remark in report.remarks)]
    if report.not_run is not None:
        rows.append(("not run here", report.not_run))
    return rows


def _in_float(reasons: Sequence[str]) -> str:
    """Return in words how many nodes stay in float, and the reason that most of them have."""
    if not reasons:
        return ""
    ((reason, count),) = Counter(reasons).most_common(1)
    return f"; {len(reasons)} more might be, and stay in float ({count}: {reason})"


def _evidence(report: NetworkReport) -> list[tuple[str, str]]:
    found = report.verification
    if found is None:
        return [("verification", "skipped")]
    integers, exact = found.integers, found.exact
    same = f"{integers.weights} weights and {integers.activations} scales of activations as in the canonical graph"
    rows = []
    if integers.different:
        rows.append(("integers", f"differ: {', '.join(integers.different)}"))
    elif integers.weights:
        rows.append(("integers", f"{same}, bit for bit"))
    rows += [
        ("exact mode", f"outputs within {exact.max_error:.1e} of the canonical graph ({exact.samples} samples)"),
    ]
    rows += quality_rows(found.quality)
    if report.speed is not None:
        speed = report.speed
        ratio = f"{speed.ratio:.2f} times as fast ({speed.ratio_low:.2f} to {speed.ratio_high:.2f})"
        ratio += ": slower than float" if speed.ratio_high < 1 else ""
        rows.append(("speed here", f"{speed.latency_ms:.2f} ms; float {speed.float_ms:.2f} ms, {ratio}"))
    return rows


def quality_rows(quality: NetworkQuality) -> list[tuple[str, str]]:
    """Return how far a network is from its float model, a line for each output and metric."""
    rows: list[tuple[str, str]] = []
    for output in quality.outputs:
        noise = "" if output.snr_db is None else f", SNR {output.snr_db:.1f} dB"
        agreement = "" if output.agreement is None else f", same prediction {100 * output.agreement:.2f} %"
        rows.append((f"{output.output} against float", f"cosine {output.cosine:.5f}{noise}{agreement}"))
    return [*rows, *((metric.name, _metric(metric)) for metric in quality.metrics)]


def _metric(metric: MetricQuality) -> str:
    """Return a metric in words."""
    interval = ""
    if metric.difference is not None:
        bounds = "" if metric.low is None or metric.high is None else f" ({metric.low:+.4f} to {metric.high:+.4f})"
        interval = f", difference {metric.difference:+.4f}{bounds}"
    values = " -> ".join("not defined" if v is None else f"{v:.4f}" for v in (metric.reference, metric.test))
    return f"{values}{interval}, {metric.samples} samples"
