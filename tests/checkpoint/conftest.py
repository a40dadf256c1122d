"""Small checkpoints, written by the tests themselves."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4}


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        "model.embed_tokens.weight": generator.standard_normal((8, 4), np.float32),
        "model.norm.weight": generator.standard_normal(4, np.float32).astype(np.float16),
        "steps": np.array(7, np.int64),
    }


@pytest.fixture
def directory(tmp_path: Path, weights: dict[str, np.ndarray]) -> Path:
    """A directory with one safetensors file and a tokenizer."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "tokenizer.json").write_text("{}")
    save_file(weights, path / "model.safetensors")
    return path


@pytest.fixture
def sharded(directory: Path, weights: dict[str, np.ndarray]) -> Path:
    """The same directory, the weights in two files."""
    (directory / "model.safetensors").unlink()
    names = list(weights)
    shards = {"a.safetensors": names[:1], "b.safetensors": names[1:]}
    for shard, inside in shards.items():
        save_file({name: weights[name] for name in inside}, directory / shard)
    weight_map = {name: shard for shard, inside in shards.items() for name in inside}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


@pytest.fixture
def safetensors(tmp_path: Path) -> Callable[..., Path]:
    """Returns a function that writes a safetensors file from a header, right or wrong, and data."""

    def write(header: Any, data: bytes = b"", length: int | None = None) -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path = tmp_path / "model.safetensors"
        path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
        return path

    return write
