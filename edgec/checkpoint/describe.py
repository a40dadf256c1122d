"""Summarise a checkpoint without reading its weights."""

import math
from collections import Counter
from typing import Any

from edgec.checkpoint.files import size_bytes
from edgec.checkpoint.model import Checkpoint


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a checkpoint is, as values that JSON can hold.

    Raises:
        CheckpointError: a file cannot be read.
    """
    infos = list(checkpoint.tensors.values())
    return {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "architectures": checkpoint.config.get("architectures"),
        "model_type": checkpoint.config.get("model_type"),
        "parameters": sum(math.prod(info.shape) for info in infos),
        "size_bytes": sum(size_bytes(path) for path in checkpoint.files.values()),
        "dtypes": dict(sorted(Counter(info.dtype for info in infos).items())),
        "config": checkpoint.config,
        "tensors": [{"name": info.name, "dtype": info.dtype, "shape": list(info.shape)} for info in infos],
        "sha256": checkpoint.fingerprint(),
    }
