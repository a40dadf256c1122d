"""Workflows that gate changes, and the gate file that they read, as `edgec init-ci` writes them."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgec.errors import UsageError

System = Literal["github", "gitlab"]

GATE_FILE = "gate.toml"
WORKFLOWS: dict[System, str] = {"github": ".github/workflows/edgec-gate.yml", "gitlab": ".gitlab/ci/edgec-gate.yml"}
GITLAB_ROOT = ".gitlab-ci.yml"

_FOLDER = Path(__file__).parent
_INCLUDE = f"include:\n  - local: {WORKFLOWS['gitlab']}\n"
# What a CI system would replace before a shell sees it, and what would end a line.
_UNSAFE = re.compile(r"\$|\{\{|[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Setup:
    """What a workflow builds.

    Args:
        checkpoint: from the root of the repository, or a hub id, or package.module:factory.
        target: name, or file from the root of the repository.
        profile: alike.
        install: the requirement that pip installs edgec by.
        is_network: the checkpoint is no decoder language model.
    """

    checkpoint: str
    target: str
    profile: str
    install: str
    is_network: bool = False


def workflow(system: System, setup: Setup) -> str:
    """Return the workflow.

    Raises:
        UsageError: a value has characters in it that the CI system would change.
    """
    values = {
        "CHECKPOINT": setup.checkpoint,
        "TARGET": setup.target,
        "PROFILE": setup.profile,
        "INSTALL": setup.install,
    }
    text = (_FOLDER / f"{system}.yml").read_text(encoding="utf-8")
    for name, value in values.items():
        if _UNSAFE.search(value):
            raise UsageError(
                f"{name.lower()} {value!r} cannot be written into a workflow",
                hint="choose a name without $, {{ or line ends",
            )
        text = text.replace(f"@@{name}@@", json.dumps(value, ensure_ascii=False))  # JSON's strings are YAML's
    return text


def gate_file(setup: Setup) -> str:
    """Return the gate file to begin with."""
    return (_FOLDER / f"{'network' if setup.is_network else 'decoder'}.toml").read_text(encoding="utf-8")


def gitlab_include() -> str:
    """Return what the repository's .gitlab-ci.yml says to take the workflow in."""
    return _INCLUDE
