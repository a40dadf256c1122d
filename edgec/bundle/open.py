"""Find what a command needs in a bundle."""

from pathlib import Path
from typing import TypeVar

import msgspec

from edgec.backends.backend import backend_names, get_backend
from edgec.backends.network import NETWORK_FILE
from edgec.bundle.manifest import ARTIFACT, PLAN
from edgec.errors import BundleError, UsageError
from edgec.spec.network_plan import NetworkPlan
from edgec.spec.plan import Plan

P = TypeVar("P", Plan, NetworkPlan)


def find_artifact(path: Path) -> Path:
    """Return the artifact directory of a bundle, or `path` itself where it is a bare artifact.

    Raises:
        BundleError: it is neither.
    """
    markers = [*(get_backend(name).MARKER for name in backend_names()), NETWORK_FILE]
    for folder in (path / ARTIFACT, path):
        if any((folder / marker).is_file() for marker in markers):
            return folder
    what = f"it has none of {', '.join(markers)}" if path.is_dir() else "there is no such directory"
    raise BundleError(f"'{path}' is no bundle: {what}", where=str(path), hint="`edgec build` makes one")


def find_decoder(path: Path) -> Path:
    """Return the artifact directory of a decoder language model, as `find_artifact` does.

    Raises:
        BundleError: it is none.
        UsageError: it is the artifact of another model.
    """
    artifact = find_artifact(path)
    if (artifact / NETWORK_FILE).is_file():
        raise UsageError(
            "this command is for decoder language models, and the bundle holds another model",
            where=str(path),
            hint="`edgec eval` and `edgec bench` take it",
        )
    return artifact


def is_network_bundle(path: Path) -> bool:
    """Say whether a bundle, or an artifact, is that of a network."""
    return (path / ARTIFACT / NETWORK_FILE).is_file() or (path / NETWORK_FILE).is_file()


def read_plan(bundle: Path) -> Plan:
    """Return the plan of a decoder's bundle.

    Raises:
        BundleError: there is none, or it is not one.
    """
    return _read(bundle, Plan)


def read_network_plan(bundle: Path) -> NetworkPlan:
    """Return the plan of a network's bundle.

    Raises:
        BundleError: there is none, or it is not one.
    """
    return _read(bundle, NetworkPlan)


def _read(bundle: Path, kind: type[P]) -> P:
    path = bundle / PLAN
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise BundleError(f"the bundle's plan cannot be read: {error}", where=str(path)) from error
