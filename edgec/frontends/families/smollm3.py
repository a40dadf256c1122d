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
    config.only("use_sliding_window", False)
    config.only("pretraining_tp", 1)
    config.get("sliding_window")  # not used where use_sliding_window is off
    bias, mlp_bias = bool(config.get("attention_bias", False)), bool(config.get("mlp_bias", False))
    interval = config.size("no_rope_layer_interval", 4)
    rotates = config.get("no_rope_layers", [int((i + 1) % interval != 0) for i in range(s.layers)])
    windows = g.windows(config, s, None, ["full_attention"] * s.layers)
    rotary = g.rotation(config, s, theta=2000000.0)

    def layer(i: int, prefix: str) -> Layer:
        attend = g.attention(
            s, f"{prefix}.self_attn", rotary if rotates[i] else None, bias=bias, o_bias=bias, window=windows[i]
        )
        return g.pre_norm_layer(s, prefix, attend, g.mlp(s, f"{prefix}.mlp", kind, mlp_bias))

    return g.decoder(config, s, "smollm3", layer, tied=True)
