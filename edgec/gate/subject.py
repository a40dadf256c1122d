"""What a bundle says about itself."""

import os
from pathlib import Path

import msgspec

from edgec.backends.backend import backend_of
from edgec.bundle.manifest import MANIFEST, PLAN, Manifest, check_files, read_manifest
from edgec.bundle.open import find_artifact
from edgec.errors import BundleError, UsageError
from edgec.gate.result import Subject
from edgec.json_file import read_json


class _Source(msgspec.Struct):
    family: str
    parameters: int


class _Plan(msgspec.Struct):
    """What the plans of decoders and of networks have in common."""

    source: _Source
    target: str
    profile: str


def describe(bundle: Path) -> Subject:
    """Return what a bundle, or an artifact alone, says of itself; the files of a bundle are those of its manifest.

    Raises:
        UsageError: the path is no text.
        BundleError: it is neither, a file is damaged or was changed, or its plan or manifest cannot be read.
    """
    _check_path(bundle)
    backend = backend_of(find_artifact(bundle)).__name__.rpartition(".")[2]  # type: ignore[attr-defined]
    if not ((bundle / PLAN).is_file() or (bundle / MANIFEST).is_file()):
        return Subject(path=str(bundle), backend=backend)
    manifest = _verified(bundle)
    plan = read_json(bundle / PLAN, _Plan, "the bundle's plan")
    return Subject(
        path=str(bundle),
        model=f"{plan.source.family}, {plan.source.parameters / 1e6:.1f} M parameters",
        target=plan.target,
        backend=backend,
        profile=plan.profile,
        sha256=manifest.content_sha256,
    )


def _verified(bundle: Path) -> Manifest:
    """Return the manifest of a bundle whose files are as it says."""
    try:
        manifest = read_manifest(bundle)
        check_files(bundle, manifest)
    except OSError as error:
        hint = "copy or build it again"
        raise BundleError(f"the bundle cannot be read: {error}", where=str(bundle), hint=hint) from error
    return manifest


def _check_path(bundle: Path) -> None:
    """Refuse a name that no report could hold: reports are UTF-8."""
    name = os.fsencode(bundle)
    try:
        name.decode()
    except UnicodeDecodeError as error:
        shown = name.decode(errors="backslashreplace")
        raise UsageError("the path of the bundle is not UTF-8", where=shown, hint="rename it") from error
