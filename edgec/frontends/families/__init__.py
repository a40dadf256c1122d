"""Decoder families: one file each, named by the architecture; the folder is the registry.

A family has `MODEL_TYPES`, the values of config.json's `model_type` that it understands, and `decoder(config)`.
"""

import difflib
import pkgutil
from importlib import import_module
from types import ModuleType

from edgec.checkpoint.model import Checkpoint
from edgec.errors import CheckpointError
from edgec.frontends.architecture import Decoder
from edgec.frontends.config import Config


def families() -> dict[str, ModuleType]:
    """Return model type -> family module, for every file in this folder."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    modules = [import_module(f"{__name__}.{name}") for name in names]
    return {kind: module for module in modules for kind in module.MODEL_TYPES}


def describe(checkpoint: Checkpoint, ignored: frozenset[str] = frozenset()) -> Decoder:
    """Return the decoder that a checkpoint's config asks for.

    Args:
        checkpoint: the checkpoint; its weights are not read.
        ignored: keys of config.json that the user declared harmless.

    Raises:
        CheckpointError: the architecture is unknown, or the config has something that edgec does not implement.
    """
    kind = checkpoint.config.get("model_type")
    known = families()
    if not isinstance(kind, str) or kind not in known:
        near = difflib.get_close_matches(str(kind), known, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        what = "config.json has no 'model_type'" if kind is None else f"edgec does not know the architecture {kind!r}"
        raise CheckpointError(what, where=str(checkpoint.path), hint=f"{hint}known: {', '.join(sorted(known))}")
    if checkpoint.config.get("quantization_config"):
        raise CheckpointError(
            "config.json has a 'quantization_config': this checkpoint is already quantized",
            where=str(checkpoint.path),
            hint="give the original floating-point checkpoint",
        )
    config = Config(checkpoint.config, ignored, frozenset(checkpoint.tensors))
    decoder: Decoder = known[kind].decoder(config)
    config.finish()
    return decoder
