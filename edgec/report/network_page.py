"""The report of a network as a Markdown page for people."""

from collections.abc import Sequence

from edgec.report.network import NetworkReport, summary
from edgec.report.network_channels import group_rows, layer_rows
from edgec.report.page import table
from edgec.spec.network_plan import NetworkPlan

_MIB = 2**20


def network_page(plan: NetworkPlan, report: NetworkReport) -> str:
    """Return report.md."""
    found = report.verification
    verdict = "not verified" if found is None else "passed"
    if found is not None and found.failures:
        verdict = "FAILED: " + "; ".join(found.failures)
    rows = [("verification", verdict), *summary(plan, report), ("plan", f"`{report.plan_sha256}`")]
    if report.evaluation is not None:
        rows.append(("measured on", report.evaluation))
    sections = [f"# edgec {report.edgec}: {plan.source.family} for {plan.target}", table(("", ""), rows)]
    if plan.channels is not None:
        sections += ["## Channels", table(("layers that give them", "channels", ""), group_rows(plan))]
    if plan.sparse is not None:
        sections += ["## Zeros", table(("layer", "weights", ""), layer_rows(plan))]
    floats = {**plan.floats, **report.kept_float}
    if floats:
        sections += [
            "## In float",
            "Nodes that might be int8, and why they are not.",
            table(("node", "why"), [*floats.items()]),
        ]
    if found is not None and found.quality.changed:
        changed = [(c.place, c.reference or "", c.test or "", f"{c.distance:.4f}") for c in found.quality.changed]
        sections += ["## What changed most", table(("sample", "float", "artifact", "distance"), changed)]
    sections += ["## Size", table(("file", "size"), _sizes(report))]
    times = [(s.name, f"{s.seconds:.2f} s", f"{s.peak_rss_bytes / _MIB:.0f} MiB") for s in report.stages]
    sections += ["## Build", table(("stage", "time", "peak memory so far"), times)]
    return "\n\n".join(sections) + "\n"


def _sizes(report: NetworkReport) -> Sequence[tuple[str, str]]:
    total = sum(report.size_bytes.values())
    files = [(f"`{name}`", f"{size / _MIB:.2f} MiB") for name, size in report.size_bytes.items()]
    return [*files, ("total", f"{total / _MIB:.2f} MiB")]
