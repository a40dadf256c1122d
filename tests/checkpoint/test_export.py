import errno
import os
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf_writer import VOCAB, model_tensors, write_gguf
from transformers import AutoModelForCausalLM

from edgec.checkpoint.export import write_huggingface
from edgec.checkpoint.model import Checkpoint
from edgec.checkpoint.open import open_checkpoint
from edgec.errors import OutputError

torch.set_num_threads(1)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    tensors = model_tensors()
    return open_checkpoint(
        write_gguf(
            tmp_path / "model.gguf",
            tensors,
            types={name: Type.Q4_1 for name in tensors if "ffn" in name and "norm" not in name},
            tokenizer__ggml__model="gpt2",
            tokenizer__ggml__pre="gpt-2",
            tokenizer__ggml__tokens=[*"0123456789", "01", *(f"unused{i}" for i in range(VOCAB - 11))],
            tokenizer__ggml__merges=["0 1"],
        )
    )


def test_transformers_computes_the_same_from_the_directory(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write_huggingface(checkpoint, tmp_path / "out")

    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float32", np.float32), ("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)],
)
@pytest.mark.parametrize("max_shard_bytes", [1 << 30, 10_000])
def test_what_was_written_can_be_opened(
    dtype: Literal["float32", "float16", "bfloat16"],
    expected: type,
    max_shard_bytes: int,
    checkpoint: Checkpoint,
    tmp_path: Path,
) -> None:
    write_huggingface(checkpoint, tmp_path / "out", dtype, max_shard_bytes)
    written = open_checkpoint(tmp_path / "out")

    assert written.config == checkpoint.config | {"torch_dtype": dtype}
    assert written.tokenizer_files() == checkpoint.tokenizer_files()
    assert set(written.tensors) == set(checkpoint.tensors)
    for name in checkpoint.tensors:
        np.testing.assert_array_equal(written.read(name), checkpoint.read(name).astype(expected), strict=True)
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert (len(shards) == 1) == (max_shard_bytes == 1 << 30)


def test_integers_are_kept(directory: Path, tmp_path: Path) -> None:
    write_huggingface(open_checkpoint(directory), tmp_path / "out", "float16")
    written = open_checkpoint(tmp_path / "out")
    assert written.read("steps").dtype == np.int64
    assert written.read("model.embed_tokens.weight").dtype == np.float16


def test_a_directory_with_something_in_it_is_left_alone(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(OutputError, match="not empty"):
        write_huggingface(checkpoint, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing(
    failure: BaseException, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(tmp_path.iterdir())

    def fail(_: int) -> None:
        raise failure

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else OutputError):
        write_huggingface(checkpoint, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before
