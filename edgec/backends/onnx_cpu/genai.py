"""The genai_config.json that onnxruntime-genai loads, and that edgec's own runner reads.

Source: onnxruntime-genai's configuration reference.
"""

from collections.abc import Mapping
from typing import Any

from edgec.frontends.architecture import Decoder

# Families whose name onnxruntime-genai knows; its generic decoder loop is called "llama" for the rest.
_KNOWN_TYPES = frozenset(
    {"llama", "smollm3", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "gpt2", "granite"}
)


def genai_config(
    decoder: Decoder, config: Mapping[str, Any], generation: Mapping[str, Any], context_length: int, positions: bool
) -> dict[str, Any]:
    """Return the configuration of an artifact.

    Args:
        decoder: the model.
        config: the checkpoint's config.json.
        generation: the checkpoint's generation_config.json, or {}.
        context_length: the most tokens that the artifact takes.
        positions: whether the graph has the input `position_ids`.
    """
    attention = decoder.layers[0].attention
    token = {key: generation.get(key, config.get(key)) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    first_eos = token["eos_token_id"][0] if isinstance(token["eos_token_id"], list) else token["eos_token_id"]
    eos = 0 if first_eos is None else token["eos_token_id"]
    inputs = {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }
    if positions:
        inputs["position_ids"] = "position_ids"
    return {
        "model": {
            "type": decoder.family if decoder.family in _KNOWN_TYPES else "llama",
            "vocab_size": decoder.vocab_size,
            "context_length": context_length,
            "bos_token_id": _first(token["bos_token_id"], first_eos or 0),
            "eos_token_id": eos,
            "pad_token_id": _first(token["pad_token_id"], first_eos or 0),
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": "model.onnx",
                "head_size": attention.head_dim,
                "hidden_size": decoder.hidden_size,
                "num_attention_heads": attention.heads,
                "num_key_value_heads": attention.kv_heads,
                "num_hidden_layers": len(decoder.layers),
                "inputs": inputs,
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": context_length,
            "min_length": 0,
            "num_beams": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
        },
    }


def _first(value: Any, default: int) -> int:
    """Return a token id where configs hold an id, a list of ids, or nothing."""
    if isinstance(value, list):
        value = value[0] if value else None
    return default if value is None else int(value)
