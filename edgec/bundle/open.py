"""Find what a command needs in a bundle."""

from pathlib import Path

import msgspec

from edgec.bundle.manifest import ARTIFACT, PLAN
from edgec.errors import BundleError
from edgec.spec.plan import Plan

GENAI_CONFIG = "genai_config.json"


def find_artifact(path: Path) -> Path:
    """Return the artifact directory of a bundle, or `path` itself where it is a bare artifact.

    Raises:
        BundleError: it is neither.
    """
    for folder in (path / ARTIFACT, path):
        if (folder / GENAI_CONFIG).is_file():
            return folder
    what = "there is no such directory" if not path.is_dir() else f"it holds neither {ARTIFACT}/ nor {GENAI_CONFIG}"
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
