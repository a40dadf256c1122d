"""Find what a command needs in a bundle."""

from pathlib import Path

import msgspec

from edgec.backends.backend import backend_names, get_backend
from edgec.bundle.manifest import ARTIFACT, PLAN
from edgec.errors import BundleError
from edgec.spec.plan import Plan


def find_artifact(path: Path) -> Path:
    """Return the artifact directory of a bundle, or `path` itself where it is a bare artifact.

    Raises:
        BundleError: it is neither.
    """
    markers = [get_backend(name).MARKER for name in backend_names()]
    for folder in (path / ARTIFACT, path):
        if any((folder / marker).is_file() for marker in markers):
            return folder
    what = f"it has none of {', '.join(markers)}" if path.is_dir() else "there is no such directory"
    raise BundleError(f"'{path}' is no bundle: {what}", where=str(path), hint="`edgec build` makes one")


def read_plan(bundle: Path) -> Plan:
    """Return the plan of a bundle.

    Raises:
        BundleError: there is none, or it is not one.
    """
    path = bundle / PLAN
    try:
        return msgspec.json.decode(path.read_bytes(), type=Plan)
    except (OSError, msgspec.DecodeError) as error:
        raise BundleError(f"the bundle's plan cannot be read: {error}", where=str(path)) from error
