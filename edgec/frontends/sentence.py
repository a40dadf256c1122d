"""What sentence-transformers adds to a model: how the hidden states of tokens become the embedding of a sentence.

Source: Reimers and Gurevych 2019, "Sentence-BERT", https://arxiv.org/abs/1908.10084
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from edgec.checkpoint.files import exists, read_bytes, read_json_object
from edgec.errors import CheckpointError

MODULES = "modules.json"
_DIVISOR = 1e-9  # of an empty sentence


@dataclass(frozen=True)
class Pooling:
    """What a directory of sentence-transformers says.

    Args:
        model: the folder of the transformers model, "" for the directory itself.
        mode: which hidden states count; None where edgec does not know the modules after the model.
        normalise: whether embeddings have length 1.
        files: name -> path of what was read.
        remarks: what the user should know.
    """

    model: str
    mode: Literal["mean", "cls"] | None
    normalise: bool
    files: Mapping[str, Path]
    remarks: tuple[str, ...] = ()

    def embed(self, hidden: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the hidden states (batch, tokens, size) and the embeddings (batch, size) by name."""
        if self.mode == "cls":
            embedding = hidden[:, 0]
        else:
            weights = mask.to(hidden.dtype)[:, :, None]
            embedding = (hidden * weights).sum(1) / weights.sum(1).clamp(min=_DIVISOR)
        if self.normalise:
            embedding = torch.nn.functional.normalize(embedding, dim=-1)
        return {"last_hidden_state": hidden, "sentence_embedding": embedding}


def read_pooling(directory: Path) -> Pooling | None:
    """Return how embeddings are made, or None where the directory is not from sentence-transformers.

    Raises:
        CheckpointError: modules.json or the configuration of the pooling is damaged.
    """
    path = directory / MODULES
    if not exists(path):
        return None
    modules = _read_modules(path)
    files = {MODULES: path}
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        remark = f"no sentence_embedding: edgec does not know the chain {' > '.join(kinds)} of {MODULES}"
        model = next((folder for kind, folder in modules if kind == "Transformer"), "")
        return Pooling(model, None, False, files, (remark,))
    model, folder = modules[0][1], modules[1][1]
    config = read_json_object(directory / folder / "config.json")
    files[f"{folder}/config.json"] = directory / folder / "config.json"
    mode = _mode(config)
    remarks = () if mode else ("no sentence_embedding: edgec pools by mean or by the first token",)
    return Pooling(model, mode, len(kinds) == 3, files, remarks)


def _read_modules(path: Path) -> list[tuple[str, str]]:
    """Return kind and folder of each module."""
    try:
        modules = json.loads(read_bytes(path))
        found = [(str(m["type"]).rsplit(".", 1)[-1], str(m["path"])) for m in sorted(modules, key=lambda m: m["idx"])]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(
            f"{path.name} is no list of modules with idx, path and type", where=str(path), hint="download it again"
        ) from error
    for _, folder in found:
        if folder.startswith("/") or "\\" in folder or "\0" in folder or ".." in Path(folder).parts:
            raise CheckpointError(f"{path.name} names {folder!r}, outside the directory", where=str(path))
    return found


def _mode(config: dict[str, Any]) -> Literal["mean", "cls"] | None:
    """Return what is pooled: the config names it, or has a flag for each way."""
    flags = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    chosen = {flags.get(key, key) for key, value in config.items() if key.startswith("pooling_mode_") and value is True}
    if isinstance(named := config.get("pooling_mode"), str):
        chosen.add(named)
    if chosen == {"mean"}:
        return "mean"
    return "cls" if chosen == {"cls"} else None
