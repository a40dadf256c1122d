"""What an artifact's config.json and generation_config.json say to whoever runs it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgec.json_file import read_json

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"


class Settings(msgspec.Struct, frozen=True, rename={"context_length": "max_position_embeddings"}):
    """The settings; `context_length` is the most tokens that the artifact takes."""

    vocab_size: int
    context_length: int
    eos_token_id: int | tuple[int, ...] | None = None

    @property
    def eos_ids(self) -> frozenset[int]:
        """The tokens that end a text."""
        ids = self.eos_token_id
        return frozenset(() if ids is None else (ids,) if isinstance(ids, int) else ids)


def write_settings(
    folder: Path, config: Mapping[str, Any], generation: Mapping[str, Any], vocab_size: int, context_length: int
) -> None:
    """Write both files; where they disagree on the end of a text, the generation settings are right."""
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    sizes = {"vocab_size": vocab_size, "max_position_embeddings": context_length}
    for name, values in (
        (CONFIG, {**config, **sizes, "eos_token_id": eos}),
        (GENERATION_CONFIG, {**generation, "eos_token_id": eos}),
    ):
        (folder / name).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def read_settings(artifact: Path) -> Settings:
    """Return the settings of an artifact directory.

    Raises:
        BundleError: there are none, or they are damaged.
    """
    return read_json(artifact / CONFIG, Settings, "the artifact's settings")
