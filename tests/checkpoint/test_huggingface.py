import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from edgec.checkpoint.describe import describe
from edgec.checkpoint.huggingface import INDEX_FILE
from edgec.checkpoint.model import read_finite
from edgec.checkpoint.open import open_checkpoint
from edgec.errors import CheckpointError

Weights = dict[str, np.ndarray]


@pytest.mark.parametrize("layout", ["directory", "sharded"])
def test_reads_every_tensor(layout: str, weights: Weights, request: pytest.FixtureRequest) -> None:
    checkpoint = open_checkpoint(request.getfixturevalue(layout))

    assert checkpoint.format == "huggingface"
    assert checkpoint.config["hidden_size"] == 4
    assert set(checkpoint.tensors) == set(weights)
    for name, array in weights.items():
        assert checkpoint.tensors[name].shape == array.shape
        np.testing.assert_array_equal(checkpoint.read(name), array, strict=True)


def test_nothing_in_the_directory_is_executed(directory: Path) -> None:
    trap = directory.parent / "executed"
    (directory / "modeling_custom.py").write_text(f"open({str(trap)!r}, 'w')")
    (directory / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "modeling_custom.Model"}}))

    checkpoint = open_checkpoint(directory)
    checkpoint.read("steps")

    assert not trap.exists()
    assert "modeling_custom.py" not in checkpoint.fingerprint()


def test_fingerprint_covers_what_goes_into_a_build(sharded: Path) -> None:
    (sharded / "README.md").write_text("no part of it")
    checkpoint = open_checkpoint(sharded)
    names = ["a.safetensors", "b.safetensors", "config.json", "model.safetensors.index.json", "tokenizer.json"]

    fingerprint = checkpoint.fingerprint()

    assert list(fingerprint) == names
    assert fingerprint == {name: hashlib.sha256((sharded / name).read_bytes()).hexdigest() for name in names}
    (sharded / "a.safetensors").unlink()
    assert checkpoint.fingerprint() == fingerprint


def test_tokenizer_files_are_those_present(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text("{{ x }}")
    assert open_checkpoint(directory).tokenizer_files() == {"tokenizer.json": b"{}", "chat_template.jinja": b"{{ x }}"}


def test_a_missing_tokenizer_says_how_to_make_one(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json") as error:
        open_checkpoint(directory).tokenizer_files()
    assert "save_pretrained" in str(error.value)


def test_an_unknown_tensor_is_answered_with_the_nearest(directory: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the nearest name is 'model\.norm\.weight'"):
        open_checkpoint(directory).read("model.norms.weight")


def test_threads_may_read_at_once(directory: Path, weights: Weights) -> None:
    checkpoint = open_checkpoint(directory)
    name = "model.embed_tokens.weight"
    with ThreadPoolExecutor(8) as pool:
        arrays = list(pool.map(checkpoint.read, [name] * 64))
    assert all(np.array_equal(array, weights[name]) for array in arrays)


@pytest.mark.parametrize("pickled", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused(pickled: str, directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / pickled)
    with pytest.raises(CheckpointError, match=f"pickled \\({pickled}\\)") as error:
        open_checkpoint(directory)
    assert "save_pretrained" in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, r"no config\.json"),
        ("{", r"config\.json is damaged"),
        ("[1]", r"config\.json holds a JSON list, not an object"),
        ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
    ],
)
def test_refuses_a_config(config: str | None, message: str, directory: Path) -> None:
    (directory / "config.json").unlink()
    if config is not None:
        (directory / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(directory)


def test_a_directory_of_gguf_files_points_at_one(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(CheckpointError, match=r"to open its GGUF file, give .*model\.gguf"):
        open_checkpoint(tmp_path)


def test_weights_are_needed(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        open_checkpoint(directory)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"steps": "c.safetensors"}, r"c\.safetensors is missing"),
        ({"steps": "a.safetensors"}, r"a\.safetensors has no tensor 'steps'"),
        ({"steps": "../model/b.safetensors"}, "no plain file name"),
        ({"steps": "/b.safetensors"}, "no plain file name"),
        ({"steps": ".."}, "no plain file name"),
        ({"steps": "x" * 300}, "no plain file name"),
        ({"steps": "\0"}, "no plain file name"),
        ({"steps": 3}, "no plain file name"),
        ({}, "no 'weight_map'"),
        (None, "no 'weight_map'"),
    ],
)
def test_refuses_an_index(weight_map: Any, message: str, sharded: Path) -> None:
    (sharded / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(sharded)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_found(dtype: Any, bad: float, directory: Path) -> None:
    # Larger than one chunk of the search, the largest finite value included.
    array = np.full((1500, 1000), ml_dtypes.finfo(dtype).max, dtype)
    save_file({"fine": array}, directory / "model.safetensors")
    np.testing.assert_array_equal(read_finite(open_checkpoint(directory), "fine"), array)

    array[1, 2] = array[1400, 3] = bad
    save_file({"broken": array}, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"'broken' holds 2 of 1500000 .* the first at \(1, 2\)"):
        read_finite(open_checkpoint(directory), "broken")


def test_integers_are_always_finite(directory: Path) -> None:
    assert read_finite(open_checkpoint(directory), "steps") == 7


def test_describes_a_checkpoint(directory: Path) -> None:
    checkpoint = open_checkpoint(directory)
    summary = describe(checkpoint)

    assert json.loads(json.dumps(summary)) == summary
    assert summary["architectures"] == ["LlamaForCausalLM"]
    assert summary["parameters"] == 8 * 4 + 4 + 1
    assert summary["dtypes"] == {"F16": 1, "F32": 1, "I64": 1}
    assert summary["size_bytes"] == sum((directory / name).stat().st_size for name in summary["sha256"])
    assert {"name": "model.norm.weight", "dtype": "F16", "shape": [4]} in summary["tensors"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_only_regular_files_are_read(name: str, directory: Path) -> None:
    (directory / name).unlink()
    os.mkfifo(directory / name)  # to open it would wait for a writer
    with pytest.raises(CheckpointError, match="no regular file"):
        open_checkpoint(directory)
