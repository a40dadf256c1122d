"""What a bundle says about itself."""

from pathlib import Path

import msgspec

from edgec.backends.backend import backend_of
from edgec.bundle.manifest import MANIFEST, PLAN
from edgec.bundle.open import find_artifact
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


class _Manifest(msgspec.Struct):
    content_sha256: str


def describe(bundle: Path) -> Subject:
    """Return what a bundle, or an artifact alone, says of itself.

    Raises:
        BundleError: it is neither, or its plan or manifest cannot be read.
    """
    backend = backend_of(find_artifact(bundle)).__name__.rpartition(".")[2]  # type: ignore[attr-defined]
    if not (bundle / PLAN).is_file():
        return Subject(path=str(bundle), backend=backend)
    plan = read_json(bundle / PLAN, _Plan, "the bundle's plan")
    manifest = read_json(bundle / MANIFEST, _Manifest, "the bundle's manifest")
    return Subject(
        path=str(bundle),
        model=f"{plan.source.family}, {plan.source.parameters / 1e6:.1f} M parameters",
        target=plan.target,
        backend=backend,
        profile=plan.profile,
        sha256=manifest.content_sha256,
    )
