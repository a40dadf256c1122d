"""Open a checkpoint, wherever it is."""

import re
from pathlib import Path

from edgec.checkpoint.huggingface import open_huggingface
from edgec.checkpoint.model import Checkpoint
from edgec.errors import CheckpointError, UsageError, first_line

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_FILE_SUFFIXES = (".gguf", ".safetensors", ".bin", ".json", ".onnx", ".pt", ".pth")


_HINT = (
    "give the directory that holds config.json and the safetensors files, or a .gguf, .onnx or .pt2 file; "
    "package.module:factory --state weights takes weights alone"
)
_WEIGHTS = (
    "weights alone need the code of their model: package.module:factory --state FILE; or export it to .onnx or .pt2"
)
_OTHERS = {
    **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt"), _WEIGHTS),
    ".safetensors": f"give the directory that holds config.json and this file; {_WEIGHTS}",
    ".jit": "TorchScript contains code, which edgec does not run: export the model to .onnx or .pt2",
}


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Open a Hugging Face directory, a GGUF file, or a model on the hub by its id "organisation/name".

    A path that exists wins over a hub id. Nothing that the checkpoint contains is executed.

    Raises:
        UsageError: `source` is a path that does not exist.
        CheckpointError: the checkpoint is damaged, incomplete, not understood, or cannot be downloaded.
    """
    try:
        path = Path(source).expanduser()
        is_directory, is_there = path.is_dir(), path.exists()
    except (OSError, RuntimeError) as error:
        raise UsageError(f"'{source}' cannot be used as a path: {error}") from error
    if is_directory:
        return open_huggingface(path)
    if is_there:
        return _open_file(path)
    if isinstance(source, str) and _HUB_ID.fullmatch(source) and not source.lower().endswith(_FILE_SUFFIXES):
        return open_huggingface(_download(source))
    raise UsageError(
        f"there is no file or directory '{source}'",
        hint="give a directory with config.json and safetensors, a .gguf, .onnx or .pt2 file, package.module:factory, "
        "or a hub id such as organisation/name",
    )


def _open_file(path: Path) -> Checkpoint:
    if path.suffix.lower() == ".gguf":
        from edgec.checkpoint.gguf_model import open_gguf

        return open_gguf(path)
    raise CheckpointError(
        f"{path.name} is no checkpoint that edgec can open",
        where=str(path),
        hint=_OTHERS.get(path.suffix.lower(), _HINT),
    )


def _download(hub_id: str) -> Path:
    """Download what a build needs, nothing that could be executed, and return the directory in the hub's cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                hub_id,
                allow_patterns=["*.json", "*.safetensors", "*.jinja"],
                ignore_patterns=["*/*", "consolidated*"],
            )
        )
    except Exception as error:  # every layer below, from HTTP to the cache's locks, has exceptions of its own
        raise CheckpointError(
            f"'{hub_id}' is no file or directory here, and could not be downloaded as a hub id: {first_line(error)}",
            hint=f"check the name and the network, or where there is one run 'hf download {hub_id} --local-dir DIR' "
            "and give the directory",
        ) from error
