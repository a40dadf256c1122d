import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf_writer import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, VOCAB, model_tensors, write_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from edgec.checkpoint.model import read_finite
from edgec.checkpoint.open import open_checkpoint
from edgec.errors import CheckpointError

torch.set_num_threads(1)


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """What the converter does to q and k: row (head, half, pair) becomes row (head, pair, half)."""
    rows = np.arange(weight.shape[0]).reshape(heads, 2, -1)
    return weight[rows.transpose(0, 2, 1).ravel()]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "model.gguf", model_tensors(), tokenizer__ggml__eos_token_id=2)


def test_config_has_the_names_of_config_json(file: Path) -> None:
    checkpoint = open_checkpoint(file)
    assert checkpoint.format == "gguf"
    assert checkpoint.config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "rope_theta": 50000.0,
        "max_position_embeddings": 128,
        "vocab_size": 40,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "eos_token_id": 2,
    }
    assert list(checkpoint.fingerprint()) == ["model.gguf"]


def test_the_rows_of_q_and_k_come_back_in_order(tmp_path: Path) -> None:
    tensors = model_tensors()
    original = {name: array.copy() for name, array in tensors.items()}
    tensors["blk.1.attn_q.weight"] = permute(tensors["blk.1.attn_q.weight"], HEADS)
    tensors["blk.1.attn_k.weight"] = permute(tensors["blk.1.attn_k.weight"], KV_HEADS)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "model.gguf", tensors))

    for name, projection in {"attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_output": "o"}.items():
        read = checkpoint.read(f"model.layers.1.self_attn.{projection}_proj.weight")
        np.testing.assert_array_equal(read, original[f"blk.1.{name}.weight"])
    np.testing.assert_array_equal(
        checkpoint.read("model.layers.0.mlp.down_proj.weight"), original["blk.0.ffn_down.weight"]
    )


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_equals_what_transformers_reads(architecture: str, tied: bool, tmp_path: Path) -> None:
    tensors = model_tensors(tied=tied)
    if architecture == "qwen2":
        for layer in range(2):
            for part, rows in {"q": HIDDEN, "k": KV_HEADS * HEAD_DIM, "v": KV_HEADS * HEAD_DIM}.items():
                tensors[f"blk.{layer}.attn_{part}.bias"] = np.arange(rows, dtype=np.float32)
    if architecture == "qwen3":
        norms = {f"blk.{layer}.attn_{part}_norm.weight" for layer in range(2) for part in "qk"}
        tensors |= {name: np.arange(HEAD_DIM, dtype=np.float32) for name in norms}
    more = {"qwen3__attention__key_length": HEAD_DIM} if architecture == "qwen3" else {}
    path = write_gguf(
        tmp_path / "model.gguf",
        tensors,
        architecture,
        types={name: Type.Q8_0 for name in tensors if "ffn" in name and "norm" not in name},
        tokenizer__ggml__model="gpt2",
        tokenizer__ggml__tokens=[str(i) for i in range(VOCAB)],
        **more,
    )
    # transformers does not read qwen3's attention.key_length.
    given = {"head_dim": HEAD_DIM} if architecture == "qwen3" else {}
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32, **given)

    checkpoint = open_checkpoint(path)

    state = {name: value.numpy() for name, value in reference.state_dict().items()}
    assert set(state) - set(checkpoint.tensors) == ({"lm_head.weight"} if tied else set())
    assert set(checkpoint.tensors) <= set(state)
    for name in checkpoint.tensors:
        np.testing.assert_array_equal(checkpoint.read(name), state[name])
    for key in ("hidden_size", "num_key_value_heads", "vocab_size", "tie_word_embeddings", "max_position_embeddings"):
        assert checkpoint.config[key] == getattr(reference.config, key)
    assert checkpoint.config["rope_theta"] == reference.config.rope_parameters["rope_theta"]


def test_small_chunks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, down = "blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight"
    checkpoint = open_checkpoint(write_gguf(tmp_path / "model.gguf", model_tensors(), types={name: Type.Q4_1}))
    whole = checkpoint.read(down)
    assert checkpoint.tensors[down].dtype == "Q4_1"
    np.testing.assert_allclose(whole, model_tensors()[name], atol=0.3)

    monkeypatch.setattr("edgec.checkpoint.gguf_tensor._CHUNK_ELEMENTS", 500)
    np.testing.assert_array_equal(checkpoint.read(down), whole)


@pytest.mark.parametrize(("kind", "dtype"), [(Type.F16, np.float16), (Type.BF16, ml_dtypes.bfloat16)])
def test_plain_types_are_kept(kind: Type, dtype: Any, tmp_path: Path) -> None:
    tensors = model_tensors()
    types = {"token_embd.weight": kind}
    read = open_checkpoint(write_gguf(tmp_path / "model.gguf", tensors, types=types)).read("model.embed_tokens.weight")
    np.testing.assert_array_equal(read, tensors["token_embd.weight"].astype(dtype), strict=True)


def test_memory_stays_near_the_size_of_the_tensor(tmp_path: Path) -> None:
    tensors = model_tensors() | {"token_embd.weight": np.zeros((1 << 17, HIDDEN), np.float32)}
    checkpoint = open_checkpoint(write_gguf(tmp_path / "model.gguf", tensors, types={"token_embd.weight": Type.Q8_0}))
    tracemalloc.start()
    array = checkpoint.read("model.embed_tokens.weight")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1.5 * array.nbytes


@pytest.mark.parametrize(
    ("more", "scaling"),
    [
        ({}, None),
        ({"llama__rope__scaling__type": "none"}, None),
        (
            {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 2.0},
            {"rope_type": "linear", "factor": 2.0},
        ),
        (
            {
                "llama__rope__scaling__type": "yarn",
                "llama__rope__scaling__factor": 4.0,
                "llama__rope__scaling__original_context_length": 32,
            },
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        ),
    ],
)
def test_rope_scaling(more: dict[str, Any], scaling: dict[str, Any] | None, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", model_tensors(), **more)
    assert open_checkpoint(path).config.get("rope_scaling") == scaling


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_rope_scaling_is_recovered_from_its_factors(factor: float, tmp_path: Path) -> None:
    """Divide transformers' own unscaled by its scaled frequencies, as the converter does."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(
        hidden_size=HIDDEN, num_attention_heads=HEADS, rope_parameters={"rope_theta": 50000.0, **scaling}
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 50000.0 ** -(np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    tensors = model_tensors() | {"rope_freqs.weight": (plain / scaled.numpy()).astype(np.float32)}
    path = write_gguf(tmp_path / "model.gguf", tensors)
    assert open_checkpoint(path).config["rope_scaling"] == scaling
    assert "rope_freqs.weight" not in open_checkpoint(path).tensors

    tensors["rope_freqs.weight"][1] = 3.0
    path.unlink()
    with pytest.raises(CheckpointError, match="not those of Llama 3"):
        open_checkpoint(write_gguf(path, tensors))


@pytest.mark.parametrize(
    ("architecture", "more", "message"),
    [
        ("gemma2", {}, "the architecture 'gemma2' are not supported"),
        ("llama", {"llama__expert_count": 8}, r"'llama\.expert_count' is 8, only 0"),
        ("llama", {"llama__rope__dimension_count": 8}, r"'llama\.rope\.dimension_count' is 8, only 16"),
        ("llama", {"llama__attention__value_length": 8}, "only 16 is supported"),
        ("llama", {"llama__attention__key_length": 8}, "has 64 rows, the metadata asks for 32"),
        ("llama", {"llama__attention__sliding_window": 8}, "sliding_window' is not understood"),
        ("llama", {"llama__rope__scaling__type": "longrope"}, "rope scaling 'longrope' is not supported"),
        ("llama", {"split__count": 3}, "one part of a split GGUF file"),
        ("qwen2", {"qwen2__attention__key_length": 32}, "key_length' is 32, only 16"),
    ],
)
def test_refuses_metadata(architecture: str, more: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", model_tensors(), architecture, **more)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"blk.0.ffn_gate_exps.weight": np.zeros((2, 2), np.float32)},
            "'blk.0.ffn_gate_exps.weight' that is not understood",
        ),
        ({"blk.0.attn_k.weight": np.zeros((48, HIDDEN), np.float32)}, "has 48 rows, the metadata asks for 32"),
        ({"token_embd.weight": None}, "no tensor 'token_embd.weight'"),
    ],
)
def test_refuses_tensors(change: dict[str, np.ndarray | None], message: str, tmp_path: Path) -> None:
    tensors = {name: array for name, array in (model_tensors() | change).items() if array is not None}
    path = write_gguf(tmp_path / "model.gguf", tensors)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


def change_bytes(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


NORM = string("output_norm.weight") + struct.pack("<IQ", 1, HIDDEN)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"GGUF", b"GGML", "this is no GGUF file"),
        (b"GGUF\3\0\0\0", b"GGUF\1\0\0\0", "is a version 1 GGUF file"),
        (b"GGUF\3\0\0\0", b"GGUF\0\0\0\3", "is a big-endian GGUF file"),
        (b"GGUF\3\0\0\0" + struct.pack("<Q", 20), b"GGUF\3\0\0\0" + struct.pack("<Q", 2**60), "list of tensors claims"),
        (string("llama.block_count") + b"\4", string("llama.block_count") + b"\x63", "has the unknown type 99"),
        (string("llama.block_count"), string("llama.block_c\nunt"), "contains control characters"),
        (string("llama.context_length"), string("llama.embedding_leng"), None),
        (
            string("llama.block_count") + b"\4\0\0\0\2",
            string("llama.block_count") + b"\4\0\0\0\0",
            "not a positive integer",
        ),
        (string("blk.0.attn_norm.weight"), string("blk.1.attn_norm.weight"), "'blk.1.attn_norm.weight' occurs twice"),
        (NORM + struct.pack("<I", 0), NORM + struct.pack("<I", 15), "has the type Q8_K, which cannot be decoded"),
        (NORM + struct.pack("<I", 0), NORM + struct.pack("<I", 999), "has the type 999, which cannot be decoded"),
        (NORM + struct.pack("<I", 0), NORM + struct.pack("<I", 12), r"no whole number of Q4_K blocks"),
        (string("output_norm.weight") + b"\1", string("output_norm.weight") + b"\5", "has 5 dimensions"),
        (NORM, NORM[:-8] + struct.pack("<Q", 2**50), "truncated: tensor 'output_norm.weight' needs bytes"),
        (NORM, NORM[:-8] + struct.pack("<Q", 96), "inside tensor 'output_norm.weight'"),
    ],
)
def test_refuses_a_damaged_file(old: bytes, new: bytes, message: str | None, file: Path) -> None:
    change_bytes(file, old, new)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(file)


def test_refuses_a_truncated_file(file: Path) -> None:
    content = file.read_bytes()
    for size in (0, 3, 10, 100, 600, len(content) - 1):
        file.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match="truncated"):
            open_checkpoint(file)


def test_an_infinite_scale_is_found_when_the_tensor_is_read(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", model_tensors(), types={"token_embd.weight": Type.Q8_0})
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "token_embd.weight")
    with path.open("r+b") as file:
        file.seek(tensor.data_offset)
        file.write(struct.pack("<e", np.inf))
    with pytest.raises(CheckpointError, match=r"'model.embed_tokens.weight' holds 32 of 2560 values"):
        read_finite(open_checkpoint(path), "model.embed_tokens.weight")


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    tokens = {"tokenizer__ggml__tokens": ["a", "b", "c"], "tokenizer__ggml__token_type": [1, 1, 3]}
    path = write_gguf(tmp_path_factory.mktemp("gguf") / "model.gguf", model_tensors(layers=1), layers=1, **tokens)
    return path.read_bytes()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 1400), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_corruption_is_read_or_refused(changes: list[tuple[int, int]], content: bytes, tmp_path: Path) -> None:
    damaged = bytearray(content)
    for position, value in changes:
        damaged[position] = value
    path = tmp_path / "model.gguf"
    path.write_bytes(damaged)
    try:
        checkpoint = open_checkpoint(path)
    except CheckpointError:
        return
    for name, info in checkpoint.tensors.items():
        assert checkpoint.read(name).shape == info.shape
