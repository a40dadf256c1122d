"""`edgec inspect`: what is in a bundle or a checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli._console import json_option, print_json, print_table

if TYPE_CHECKING:
    from edgec.bundle.manifest import Manifest
    from edgec.spec.plan import Plan


@click.command()
@click.argument("path", metavar="BUNDLE|CHECKPOINT")
@click.option("--tensors", is_flag=True, help="List every tensor of a checkpoint.")
@json_option
def command(path: str, tensors: bool, as_json: bool) -> None:
    """Show what a bundle or a checkpoint holds; the files of a bundle are checked against its manifest."""
    from edgec.bundle.manifest import MANIFEST

    if (Path(path) / MANIFEST).is_file():
        _bundle(Path(path), as_json)
    else:
        _checkpoint(path, tensors, as_json)


def _bundle(path: Path, as_json: bool) -> None:
    import json

    from edgec.bundle.manifest import REPORT, check_files, read_manifest
    from edgec.bundle.open import read_plan

    manifest = read_manifest(path)
    check_files(path, manifest)
    plan = read_plan(path)
    if as_json:
        report = json.loads((path / REPORT).read_bytes())
        print_json({"manifest": manifest, "plan": plan, "report": report})
        return
    _show_bundle(manifest, plan)


def _show_bundle(manifest: "Manifest", plan: "Plan") -> None:
    from edgec.report.page import storage_rows

    rows: list[tuple[str, str]] = [
        ("content", f"{manifest.content_sha256} (all files agree with the manifest)"),
        ("model", f"{plan.source.family}, {plan.source.parameters / 1e6:.1f} M parameters"),
        ("target, backend", f"{plan.target}, {plan.backend}"),
        ("profile", plan.profile),
        *storage_rows(plan),
        ("context", f"{plan.context_length} tokens"),
        ("written by", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
    ]
    print_table(("", ""), rows)
    files = {**manifest.content, **manifest.evidence}
    print_table(("file", "bytes", "sha256"), [(name, f.size_bytes, f.sha256[:16]) for name, f in files.items()])


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
