"""Say in the words of config.json what the metadata of a GGUF file says.

Source: https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgec.checkpoint.gguf_file import GgufFile
from edgec.checkpoint.gguf_tensor import read_gguf_tensor
from edgec.checkpoint.model import Array
from edgec.errors import CheckpointError

ROPE_FREQUENCIES = "rope_freqs.weight"

_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

# Metadata under the architecture's name that this module understands, or that does not change the mathematics.
_KNOWN = frozenset(
    {
        "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size",
        "attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon",
        "attention.key_length", "attention.value_length", "rope.dimension_count", "rope.freq_base",
        "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
        "rope.scaling.finetuned", "expert_count", "expert_used_count",
    }
)  # fmt: skip

# The only parameters that Llama 3 checkpoints were released with; the factor differs from one to another.
_LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def read_config(gguf: GgufFile, path: Path) -> dict[str, Any]:
    """Return what config.json said before the conversion.

    Raises:
        CheckpointError: the architecture is not supported, or the metadata is incomplete or not understood.
    """
    metadata = _Metadata(gguf.metadata, path)
    architecture = metadata.architecture
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError("the file has no tensor 'token_embd.weight'", where=str(path))
    metadata.refuse_unknown()
    hidden, heads = metadata.size("embedding_length"), metadata.size("attention.head_count")
    kv_heads = metadata.size("attention.head_count_kv", heads)
    head_dim = metadata.size("attention.key_length", max(1, hidden // heads))
    if architecture == "qwen2":  # its head size follows from the others, and config.json does not have the key
        metadata.only("attention.key_length", hidden // heads)
    metadata.only("attention.value_length", head_dim)
    metadata.only("rope.dimension_count", head_dim)
    metadata.only("expert_count", 0)
    _check_projections(gguf, path, heads * head_dim, kv_heads * head_dim)
    config: dict[str, Any] = {
        "architectures": [_CLASSES[architecture]],
        "model_type": architecture,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": metadata.size("feed_forward_length"),
        "num_hidden_layers": metadata.size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "rms_norm_eps": metadata.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.number("rope.freq_base", 10000.0),
        "max_position_embeddings": metadata.size("context_length"),
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
    }
    if architecture == "qwen2":
        del config["head_dim"]
    else:
        config["attention_bias"] = "blk.0.attn_q.bias" in gguf.tensors
    if architecture == "llama":
        config["mlp_bias"] = "blk.0.ffn_up.bias" in gguf.tensors
    scaling = _rope_scaling(metadata, gguf, config["rope_theta"], head_dim)
    tokens = {key: metadata.values.get(f"tokenizer.ggml.{key}") for key in ("bos_token_id", "eos_token_id")}
    optional = {"rope_scaling": scaling, **tokens}
    return config | {key: value for key, value in optional.items() if value is not None}


def _check_projections(gguf: GgufFile, path: Path, q_rows: int, k_rows: int) -> None:
    """Make sure that q and k can be cut into heads, before anything is reordered by them."""
    for name, tensor in gguf.tensors.items():
        rows = q_rows if ".attn_q." in name else k_rows if ".attn_k." in name else tensor.shape[0]
        if tensor.shape[0] != rows:
            raise CheckpointError(
                f"tensor '{name}' has {tensor.shape[0]} rows, the metadata asks for {rows}", where=str(path)
            )


def _rope_scaling(metadata: "_Metadata", gguf: GgufFile, theta: float, head_dim: int) -> dict[str, Any] | None:
    """Return config.json's rope_scaling."""
    frequencies = gguf.tensors.get(ROPE_FREQUENCIES)
    if frequencies is not None:
        factors = read_gguf_tensor(metadata.path, frequencies).astype(np.float64)
        return _llama3_scaling(factors, theta, head_dim, metadata.path)
    kind = metadata.get("rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": metadata.number("rope.scaling.factor")}
    if kind == "yarn":
        original = metadata.size("rope.scaling.original_context_length")
        factor = metadata.number("rope.scaling.factor")
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    raise CheckpointError(f"the rope scaling {kind!r} is not supported", where=str(metadata.path))


def _llama3_scaling(factors: Array, theta: float, head_dim: int, path: Path) -> dict[str, Any] | None:
    """Return the Llama 3 rope scaling that gives `factors`, the divisors of the inverse frequencies, (head_dim / 2,).

    The file keeps the divisors alone. They determine the factor; the other parameters are the released ones, and
    whatever does not follow from those is refused.
    """
    if np.all(factors == 1.0):
        return None
    factor = float(np.round(factors.max(), 4))
    low, high = _LLAMA3_ROPE["low_freq_factor"], _LLAMA3_ROPE["high_freq_factor"]
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((_LLAMA3_ROPE["original_max_position_embeddings"] / wavelengths - low) / (high - low), 0.0, 1.0)
    expected = 1.0 / ((1.0 - smooth) / factor + smooth)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
        raise CheckpointError(
            f"'{ROPE_FREQUENCIES}' holds rope factors that are not those of Llama 3",
            where=str(path),
            hint="give the Hugging Face directory that this file was made from",
        )
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3_ROPE}


class _Metadata:
    """The metadata under the architecture's name, read with checks."""

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:
        architecture = values.get("general.architecture")
        if architecture not in _CLASSES:
            raise CheckpointError(
                f"GGUF files of the architecture {architecture!r} are not supported",
                where=str(path),
                hint=f"supported: {', '.join(_CLASSES)}; for others give the Hugging Face directory",
            )
        self.values = values
        self.path = path
        self.architecture: str = architecture

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(f"{self.architecture}.{key}", default)

    def size(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if type(value) is not int or value <= 0:
            raise self.refused(f"the metadata '{self.architecture}.{key}' is {value!r}, not a positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number; the shortest one that float32 stores like this, because that is what config.json said."""
        value = self.get(key, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self.refused(f"the metadata '{self.architecture}.{key}' is {value!r}, not a number")
        return float(str(np.float32(value)))

    def only(self, key: str, supported: int) -> None:
        if (value := self.get(key, supported)) != supported:
            raise self.refused(f"the metadata '{self.architecture}.{key}' is {value!r}, only {supported} is supported")

    def refuse_unknown(self) -> None:
        prefix = f"{self.architecture}."
        for key in self.values:
            if key.startswith(prefix) and key.removeprefix(prefix) not in _KNOWN:
                raise self.refused(f"the metadata '{key}' is not understood, and may change what the model computes")

    def refused(self, what: str) -> CheckpointError:
        return CheckpointError(what, where=str(self.path))
