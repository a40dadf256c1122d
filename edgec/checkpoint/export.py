"""Write a checkpoint as a Hugging Face directory, one tensor in memory at a time."""

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from edgec.checkpoint.huggingface import INDEX_FILE, SINGLE_FILE
from edgec.checkpoint.model import Checkpoint, TensorInfo
from edgec.checkpoint.safetensors_file import DTYPES
from edgec.errors import OutputError

Dtype = Literal["float32", "float16", "bfloat16"]
Buffer = bytes | memoryview

_CODES: dict[Dtype, str] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_KEPT = ("I64", "I32", "I16", "I8", "U8", "BOOL")
_HEADER_ALIGNMENT_BYTES = 8


def write_huggingface(
    checkpoint: Checkpoint, directory: Path, dtype: Dtype = "float32", max_shard_bytes: int = 5_000_000_000
) -> None:
    """Write config.json, safetensors and the tokenizer into `directory`, which must be new or empty.

    The directory appears when it is complete. Floating-point tensors are stored as `dtype`, others as they are.

    Raises:
        CheckpointError: a tensor cannot be read, or there is no tokenizer.
        OutputError: the directory is not empty, or cannot be written.
    """
    tokenizer = checkpoint.tokenizer_files()
    try:
        if directory.exists() and any(directory.iterdir()):
            raise OutputError("the output directory is not empty", where=str(directory), hint="choose another name")
        directory.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as scratch:
            partial = Path(scratch) / "checkpoint"
            partial.mkdir()
            _write_weights(checkpoint, partial, dtype, max_shard_bytes)
            config = {key: value for key, value in checkpoint.config.items() if key not in ("dtype", "torch_dtype")}
            for name, content in {"config.json": _json(config | {"torch_dtype": dtype}), **tokenizer}.items():
                _write(partial / name, [content])
            partial.replace(directory)
    except OSError as error:
        raise OutputError(f"cannot write the checkpoint: {error.strerror or error}", where=str(directory)) from error


def _write_weights(checkpoint: Checkpoint, directory: Path, dtype: Dtype, max_shard_bytes: int) -> None:
    infos = [
        TensorInfo(info.name, info.dtype if info.dtype in _KEPT else _CODES[dtype], info.shape)
        for info in checkpoint.tensors.values()
    ]
    shards = list(_shards(infos, max_shard_bytes))
    weight_map: dict[str, str] = {}
    for index, shard in enumerate(shards, start=1):
        single = len(shards) == 1
        name = SINGLE_FILE if single else f"model-{index:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys((info.name for info in shard), name)
        _write(directory / name, _shard_pieces(checkpoint, shard))
    if len(shards) > 1:
        total = {"total_size": sum(_size_bytes(info) for info in infos)}
        _write(directory / INDEX_FILE, [_json({"metadata": total, "weight_map": weight_map})])


def _shards(infos: list[TensorInfo], max_shard_bytes: int) -> Iterator[list[TensorInfo]]:
    """Cut `infos` into runs of at most `max_shard_bytes`; a larger tensor gets a shard of its own."""
    shard: list[TensorInfo] = []
    shard_bytes = 0
    for info in infos:
        if shard and shard_bytes + _size_bytes(info) > max_shard_bytes:
            yield shard
            shard, shard_bytes = [], 0
        shard.append(info)
        shard_bytes += _size_bytes(info)
    yield shard


def _shard_pieces(checkpoint: Checkpoint, infos: list[TensorInfo]) -> Iterator[Buffer]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for info in infos:
        end = position + _size_bytes(info)
        header[info.name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT_BYTES)
    yield struct.pack("<Q", len(text)) + text
    for info in infos:
        array = checkpoint.read(info.name).astype(DTYPES[info.dtype], copy=False)
        yield array.reshape(-1).view(np.uint8).data


def _write(path: Path, pieces: Iterable[Buffer]) -> None:
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _size_bytes(info: TensorInfo) -> int:
    return math.prod(info.shape) * DTYPES[info.dtype].itemsize


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()
