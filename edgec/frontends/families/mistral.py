"""Mistral: Llama with a sliding window in every layer, where the config has one.

Source: Jiang et al. 2023 (arXiv:2310.06825).
"""

from edgec.frontends.architecture import Decoder, Layer
from edgec.frontends.config import Config
from edgec.frontends.families import _gated as g

MODEL_TYPES = ("mistral",)


def decoder(config: Config) -> Decoder:
    """Describe the decoder that `config` asks for."""
    s = g.sizes(config, context=4096 * 32, kv_heads=8)
    kind = g.activation(config, "hidden_act", "silu")
    config.only("attention_bias", False)
    window = config.optional_size("sliding_window", 4096)
    rotary = g.rotation(config, s)

    def layer(_: int, prefix: str) -> Layer:
        attend = g.attention(s, f"{prefix}.self_attn", rotary, window=window)
        return g.pre_norm_layer(s, prefix, attend, g.mlp(s, f"{prefix}.mlp", kind))

    return g.decoder(config, s, "mistral", layer)
