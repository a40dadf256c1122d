"""`edgec inspect`: what is in a bundle or a checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli import _network
from edgec.cli._console import json_option, print_json, print_table
from edgec.errors import UsageError

if TYPE_CHECKING:
    from edgec.bundle.manifest import Manifest
    from edgec.frontends.source import NetworkOptions
    from edgec.spec.network_plan import NetworkPlan
    from edgec.spec.plan import Plan


@click.command()
@click.argument("path", metavar="BUNDLE|CHECKPOINT")
@click.option("--tensors", is_flag=True, help="List every tensor of a checkpoint.")
@click.option("--fusions", is_flag=True, help="Show what fuses in a network's graph, what nearly did, and why not.")
@click.option("--nodes", is_flag=True, help="List every node of a network's fused graph.")
@_network.source_options
@json_option
def command(
    path: str,
    tensors: bool,
    fusions: bool,
    nodes: bool,
    task: str | None,
    inputs: tuple[str, ...],
    state: Path | None,
    fixed: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show what a bundle or a checkpoint holds; the files of a bundle are checked against its manifest."""
    from edgec.bundle.manifest import MANIFEST
    from edgec.frontends.source import NetworkOptions, is_network

    options = NetworkOptions(task, inputs, state, fixed)
    reading = {"task": task, "input": inputs, "state": state, "fix": fixed}
    if (Path(path) / MANIFEST).is_file():
        _network.refuse(
            "looks at a model: this is a bundle, give what it was built from",
            fusions=fusions,
            nodes=nodes,
            tensors=tensors,
            **reading,
        )
        _bundle(Path(path), as_json)
    elif is_network(path, task):
        _network.refuse("is for checkpoints of decoder language models: --nodes lists a graph", tensors=tensors)
        _network.check_options(path, options)
        _inspect_network(path, options, fusions, nodes, as_json)
    elif fusions or nodes:
        raise UsageError("decoder language models are written fused: there is no graph to look at", where=path)
    else:
        _network.refuse("is for other models than decoder language models", input=inputs, state=state, fix=fixed)
        _checkpoint(path, tensors, as_json)


def _inspect_network(path: str, options: "NetworkOptions", fusions: bool, nodes: bool, as_json: bool) -> None:
    from collections import Counter

    from edgec.backends.network import describe_port
    from edgec.frontends.source import open_network
    from edgec.fuse import fuse, rows

    network, found = open_network(path, options)
    graph = network.model.graph
    stages = [found]
    if fusions:  # what ONNX Runtime's operators take besides, in a graph that nothing else reads
        stages.append(fuse(network.model.clone(), "onnx_cpu"))
    operators = Counter(node.op_type for node in graph.all_nodes())
    if as_json:
        listed = [(str(node.name), node.op_type) for node in graph.all_nodes()]
        summary = {
            "family": network.family,
            "task": network.task,
            "inputs": network.inputs,
            "outputs": network.outputs,
            "sha256": dict(network.files),
            "remarks": network.remarks,
            "operators": operators,
        }
        print_json({**summary, **({"fusions": stages} if fusions else {}), **({"nodes": listed} if nodes else {})})
        return
    if fusions:
        lines = [(stage.stage, *line) for stage in stages for line in rows(stage)]
        print_table(("stage", "rule", "what", "where, or why not"), lines)
        return
    if nodes:
        print_table(("node", "operator"), [(str(node.name), node.op_type) for node in graph.all_nodes()])
        return
    print_table(
        ("", ""),
        [
            ("path", path),
            ("format", network.format),
            ("family, task", ", ".join(filter(None, (network.family, network.task)))),
            *(("takes", describe_port(port)) for port in network.inputs),
            *(("gives", describe_port(port)) for port in network.outputs),
            ("operators", ", ".join(f"{kind} {count}" for kind, count in operators.most_common())),
            *(("remark", remark) for remark in network.remarks),
            *((f"sha256 {name}", digest) for name, digest in network.files.items()),
        ],
    )


def _bundle(path: Path, as_json: bool) -> None:
    import json

    from edgec.bundle.manifest import REPORT, check_files, read_manifest
    from edgec.bundle.open import is_network_bundle, read_network_plan, read_plan

    manifest = read_manifest(path)
    check_files(path, manifest)
    plan = read_network_plan(path) if is_network_bundle(path) else read_plan(path)
    if as_json:
        report = json.loads((path / REPORT).read_bytes())
        print_json({"manifest": manifest, "plan": plan, "report": report})
        return
    _show_bundle(manifest, plan)


def _show_bundle(manifest: "Manifest", plan: "Plan | NetworkPlan") -> None:
    rows: list[tuple[str, str]] = [
        ("content", f"{manifest.content_sha256} (all files agree with the manifest)"),
        ("model", f"{plan.source.family}, {plan.source.parameters / 1e6:.1f} M parameters"),
        ("target, backend", f"{plan.target}, {plan.backend}"),
        *_plan_rows(plan),
        ("written by", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
    ]
    print_table(("", ""), rows)
    files = {**manifest.content, **manifest.evidence}
    print_table(("file", "bytes", "sha256"), [(name, f.size_bytes, f.sha256[:16]) for name, f in files.items()])


def _plan_rows(plan: "Plan | NetworkPlan") -> list[tuple[str, str]]:
    from edgec.spec.plan import Plan

    if isinstance(plan, Plan):
        from edgec.report.page import storage_rows

        return [("profile", plan.profile), *storage_rows(plan), ("context", f"{plan.context_length} tokens")]
    from edgec.backends.network import describe_port
    from edgec.spec.network_plan import describe

    return [
        ("profile", f"{plan.profile}: {describe(plan)}"),
        *(("takes", describe_port(port)) for port in plan.inputs),
        *(("gives", describe_port(port)) for port in plan.outputs),
    ]


def _checkpoint(path: str, tensors: bool, as_json: bool) -> None:
    from edgec.checkpoint.describe import describe
    from edgec.checkpoint.open import open_checkpoint

    summary = describe(open_checkpoint(path))
    listed = summary["tensors"]
    if as_json:
        print_json(summary if tensors else {**summary, "tensors": len(listed)})
        return
    rows: list[tuple[str, Any]] = [
        ("path", summary["path"]),
        ("format", summary["format"]),
        ("architecture", f"{', '.join(summary['architectures'])} ({summary['model_type']})"),
        ("parameters", f"{summary['parameters'] / 1e6:.1f} M"),
        ("size", f"{summary['size_bytes'] / 2**20:.1f} MiB"),
        ("stored as", ", ".join(f"{dtype}: {count}" for dtype, count in summary["dtypes"].items())),
        ("tensors", len(listed)),
        *((f"sha256 {name}", digest) for name, digest in summary["sha256"].items()),
    ]
    print_table(("", ""), rows)
    if tensors:
        print_table(("tensor", "dtype", "shape"), [(t["name"], t["dtype"], t["shape"]) for t in listed])
