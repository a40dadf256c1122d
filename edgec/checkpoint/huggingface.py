"""Open a Hugging Face model directory: config.json, safetensors in one file or several, tokenizer.json."""

from pathlib import Path
from typing import Any

from edgec.checkpoint.files import exists, read_bytes, read_json_object
from edgec.checkpoint.model import Array, Checkpoint
from edgec.checkpoint.safetensors_file import Entry, read_header, read_tensor
from edgec.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_CONVERT = (
    'convert them where you trust their origin: python -c "from transformers import AutoModelForCausalLM as M; '
    "M.from_pretrained('OLD').save_pretrained('NEW')\""
)  # fmt: skip


def open_huggingface(path: Path) -> Checkpoint:
    """Open a directory that transformers' `save_pretrained` wrote; Python files and `auto_map` in it are ignored.

    Raises:
        CheckpointError: a file is missing, damaged, or holds pickled weights.
    """
    if not exists(path / "config.json"):
        gguf = sorted(path.glob("*.gguf"))
        hint = "give a directory with config.json and model.safetensors, as transformers' save_pretrained writes it"
        raise CheckpointError(
            "the directory has no config.json",
            where=str(path),
            hint=f"to open its GGUF file, give {gguf[0]}" if gguf else hint,
        )
    config = read_json_object(path / "config.json")
    weights = _open_weights(path)
    shards = sorted({shard for shard, _ in weights.values()})
    names = ["config.json", *shards, *(name for name in TOKENIZER_FILES if exists(path / name))]
    if shards != [SINGLE_FILE]:
        names.append(INDEX_FILE)

    def load(name: str) -> Array:
        shard, entry = weights[name]
        return read_tensor(path / shard, entry)

    return Checkpoint(
        path=path,
        format="huggingface",
        config=config,
        tensors={name: entry.info for name, (_, entry) in weights.items()},
        files={name: path / name for name in names},
        load=load,
        load_tokenizer=lambda: _read_tokenizer(path),
    )


def _open_weights(path: Path) -> dict[str, tuple[str, Entry]]:
    """Return tensor name -> (file name, place in it)."""
    if exists(path / SINGLE_FILE):
        return {name: (SINGLE_FILE, entry) for name, entry in read_header(path / SINGLE_FILE).items()}
    if exists(path / INDEX_FILE):
        return _open_shards(path, read_json_object(path / INDEX_FILE).get("weight_map"))
    pickled = sorted(file.name for pattern in _PICKLED for file in path.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"the weights are pickled ({pickled[0]}), and to read a pickle is to run whatever program it contains",
            where=str(path),
            hint=_CONVERT,
        )
    raise CheckpointError(
        f"the directory has neither {SINGLE_FILE} nor {INDEX_FILE}",
        where=str(path),
        hint="download the weights too; a sharded checkpoint needs its index file",
    )


def _open_shards(path: Path, weight_map: Any) -> dict[str, tuple[str, Entry]]:
    where = str(path / INDEX_FILE)
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX_FILE} has no 'weight_map' from tensors to files", where=where)
    headers: dict[str, dict[str, Entry]] = {}
    weights: dict[str, tuple[str, Entry]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            raise CheckpointError(
                f"{INDEX_FILE} places tensor '{name}' in {shard!r}, which is no plain file name", where=where
            )
        if shard not in headers:
            if not exists(path / shard):
                raise CheckpointError(
                    f"the file {shard} is missing, which {INDEX_FILE} names",
                    where=str(path),
                    hint="download the missing file",
                )
            headers[shard] = read_header(path / shard)
        if name not in headers[shard]:
            raise CheckpointError(f"{shard} has no tensor '{name}', which {INDEX_FILE} places there", where=where)
        weights[name] = (shard, headers[shard][name])
    return weights


def _is_plain_name(name: str) -> bool:
    return name not in ("", ".", "..") and len(name) <= 255 and name.isprintable() and not set(name) & set("/\\")


def _read_tokenizer(path: Path) -> dict[str, bytes]:
    if not exists(path / "tokenizer.json"):
        raise CheckpointError(
            "the directory has no tokenizer.json",
            where=str(path),
            hint='make one: python -c "from transformers import AutoTokenizer as T; '
            f"T.from_pretrained('{path}', use_fast=True).save_pretrained('{path}')\"",
        )  # fmt: skip
    return {name: read_bytes(path / name) for name in TOKENIZER_FILES if exists(path / name)}
