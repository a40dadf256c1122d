"""Qwen2 and Qwen2.5: Llama with biases on Q, K and V, and windows in the later layers where the config asks.

Source: Yang et al. 2024 (arXiv:2407.10671).
"""

from edgec.frontends.architecture import Decoder, Layer
from edgec.frontends.config import Config
from edgec.frontends.families import _gated as g

MODEL_TYPES = ("qwen2",)


def decoder(config: Config) -> Decoder:
    """Describe the decoder that `config` asks for."""
    s = g.sizes(config, context=32768, kv_heads=32)
    kind = g.activation(config, "hidden_act", "silu")
    config.only("use_mrope", False)
    windows = sliding(config, s)
    rotary = g.rotation(config, s)

    def layer(i: int, prefix: str) -> Layer:
        attend = g.attention(s, f"{prefix}.self_attn", rotary, bias=True, window=windows[i])
        return g.pre_norm_layer(s, prefix, attend, g.mlp(s, f"{prefix}.mlp", kind))

    return g.decoder(config, s, "qwen2", layer)


def sliding(config: Config, s: g.Sizes) -> tuple[int | None, ...]:
    """Return the window of each layer: those from `max_window_layers` on slide, where windows are on at all."""
    window = config.optional_size("sliding_window", 4096)
    window = window if config.flag("use_sliding_window", False) else None
    first = config.number("max_window_layers", 28)
    types = ["sliding_attention" if window and i >= first else "full_attention" for i in range(s.layers)]
    return g.windows(config, s, window, types)
