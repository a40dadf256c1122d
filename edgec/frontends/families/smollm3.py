"""SmolLM3: Llama with some layers that have no rotary embedding (NoPE).

Source: Hugging Face 2025, SmolLM3; NoPE layers: Yang et al. 2025 (arXiv:2501.18795).
"""

from edgec.frontends.architecture import Decoder, Layer
from edgec.frontends.config import Config
from edgec.frontends.families import _gated as g

MODEL_TYPES = ("smollm3",)


def decoder(config: Config) -> Decoder:
    """Describe the decoder that `config` asks for."""
    s = g.sizes(config, context=32768, kv_heads=4)
    kind = g.activation(config, "hidden_act", "silu")
    bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    interval = config.size("no_rope_layer_interval", 4)
    rotates = config.get("no_rope_layers", [int((i + 1) % interval != 0) for i in range(s.layers)])
    if not isinstance(rotates, list) or len(rotates) != s.layers or any(value not in (0, 1) for value in rotates):
        raise config.wrong("no_rope_layers", rotates, f"a list of {s.layers} times 0 or 1")
    config.get("max_window_layers")  # transformers does not read it
    window = config.optional_size("sliding_window", None)
    window = window if config.flag("use_sliding_window", False) else None
    types = ["sliding_attention" if window and not rotary else "full_attention" for rotary in rotates]
    windows = g.windows(config, s, window, types)
    rotary = g.rotation(config, s, theta=2000000.0)

    def layer(i: int, prefix: str) -> Layer:
        attend = g.attention(
            s, f"{prefix}.self_attn", rotary if rotates[i] else None, bias=bias, o_bias=bias, window=windows[i]
        )
        return g.pre_norm_layer(s, prefix, attend, g.mlp(s, f"{prefix}.mlp", kind, mlp_bias))

    return g.decoder(config, s, "smollm3", layer, tied=True)
