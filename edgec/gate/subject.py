"""What a bundle says about itself."""

from pathlib import Path
from typing import TypeVar

import msgspec

from edgec.backends.backend import backend_of
from edgec.bundle.manifest import MANIFEST, PLAN
from edgec.bundle.open import find_artifact
from edgec.errors import BundleError
from edgec.gate.result import Subject

T = TypeVar("T")


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
    plan, manifest = _read(bundle / PLAN, _Plan), _read(bundle / MANIFEST, _Manifest)
    return Subject(
        path=str(bundle),
        model=f"{plan.source.family}, {plan.source.parameters / 1e6:.1f} M parameters",
        target=plan.target,
        backend=backend,
        profile=plan.profile,
        sha256=manifest.content_sha256,
    )


def _read(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise BundleError(f"the bundle's {path.stem} cannot be read: {error}", where=str(path)) from error
