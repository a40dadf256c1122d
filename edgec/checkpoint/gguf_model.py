"""Open a GGUF file as if it were the Hugging Face directory that it was converted from.

Source: https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py
"""

import re
from pathlib import Path

import numpy as np

from edgec.checkpoint.gguf_config import ROPE_FREQUENCIES, read_config
from edgec.checkpoint.gguf_file import GgufFile, read_gguf
from edgec.checkpoint.gguf_tensor import GgufTensor, read_gguf_tensor
from edgec.checkpoint.gguf_tokenizer import tokenizer_files
from edgec.checkpoint.model import Array, Checkpoint, TensorInfo
from edgec.errors import CheckpointError

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TENSOR = re.compile(r"(?:blk\.(?P<layer>\d{1,6})\.)?(?P<part>[a-z_]+)\.(?P<kind>weight|bias)")


def open_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file of a Llama, Mistral, Qwen2 or Qwen3 model.

    Raises:
        CheckpointError: the file is damaged, split, of another architecture, or holds what is not understood.
    """
    gguf = read_gguf(path)
    if gguf.metadata.get("split.count", 0) not in (0, 1):
        raise CheckpointError(
            "this is one part of a split GGUF file",
            where=str(path),
            hint="join the parts first: llama-gguf-split --merge FIRST_PART JOINED.gguf",
        )
    config = read_config(gguf, path)
    tensors = _tensors(gguf, path)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}

    def load(name: str) -> Array:
        array = read_gguf_tensor(path, tensors[name])
        projection = name.split(".")[-2]
        permuted = config["model_type"] == "llama" and projection in heads
        return _unpermute(array, heads[projection]) if permuted else array

    return Checkpoint(
        path=path,
        format="gguf",
        config=config,
        tensors={name: TensorInfo(name, tensor.type.name, tensor.shape) for name, tensor in tensors.items()},
        files={path.name: path},
        load=load,
        load_tokenizer=lambda: tokenizer_files(read_gguf(path).metadata, path),
    )


def _tensors(gguf: GgufFile, path: Path) -> dict[str, GgufTensor]:
    """Return the tensors by their Hugging Face names."""
    tensors = {}
    for name, tensor in gguf.tensors.items():
        if name == ROPE_FREQUENCIES:
            continue
        match = _TENSOR.fullmatch(name)
        if match is None or match["part"] not in _NAMES:
            raise CheckpointError(f"the file holds a tensor '{name}' that is not understood", where=str(path))
        layer = f"model.layers.{match['layer']}." if match["layer"] else ""
        tensors[f"{layer}{_NAMES[match['part']]}.{match['kind']}"] = tensor
    return tensors


def _unpermute(array: Array, heads: int) -> Array:
    """Undo the converter's reordering of rows, from interleaved rotary pairs back to halves; shape (rows, ...)."""
    pairs = array.reshape(heads, -1, 2, *array.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(array.shape)
