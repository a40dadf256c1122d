"""Small random models of every family, for tests that run over families and backends."""

import torch
import transformers

from edgec.checkpoint.open import open_checkpoint
from edgec.frontends.families import describe

SIZES = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXTRA = {
    "mistral": {"sliding_window": 9},
    "qwen2": {"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {"head_dim": 16},
    "phi3": {"sliding_window": 9},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 9},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 9, "num_hidden_layers": 6},
    "gpt_neox": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}},
    "granite": {"attention_multiplier": 0.3, "residual_multiplier": 0.7, "logits_scaling": 2.0},
}
GPT2_NAMES = {
    "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions", "intermediate_size": "n_inner",
}  # fmt: skip


def save_random(kind, folder, **changes):
    settings = {**SIZES, **EXTRA.get(kind, {}), **changes}
    if kind == "gpt2":
        settings = {GPT2_NAMES.get(k, k): v for k, v in settings.items()}
    if kind in ("gpt2", "gpt_neox"):
        del settings["num_key_value_heads"]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **settings))
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight + 0.3 * torch.randn_like(weight) if weight.ndim == 1 else 4 * weight)
    model.save_pretrained(folder)


def opener(tmp_path_factory, save=save_random):
    """Return a function that opens a random model, made once for each family and changes, and describes it."""
    made = {}

    def make(kind, **changes):
        key = f"{kind}{changes}"
        if key not in made:
            folder = tmp_path_factory.mktemp(kind)
            save(kind, folder, **changes)
            made[key] = open_checkpoint(folder)
        return made[key], describe(made[key])

    return make
