"""Granite 3: Llama with multipliers on embedding, attention, residual branches and logits.

Source: IBM 2024, Granite 3.0 Language Models.
"""

from edgec.frontends.architecture import Decoder, Layer
from edgec.frontends.config import Config
from edgec.frontends.families import _gated as g

MODEL_TYPES = ("granite",)


def decoder(config: Config) -> Decoder:
    """Describe the decoder that `config` asks for."""
    s = g.sizes(config)
    kind = g.activation(config, "hidden_act", "silu")
    bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    scale = config.number("attention_multiplier", 1.0)
    residual = config.number("residual_multiplier", 1.0)
    rotary = g.rotation(config, s)

    def layer(_: int, prefix: str) -> Layer:
        attend = g.attention(s, f"{prefix}.self_attn", rotary, bias=bias, o_bias=bias, scale=scale)
        feed = g.mlp(s, f"{prefix}.mlp", kind, mlp_bias)
        return g.pre_norm_layer(s, prefix, attend, feed, residual_multiplier=residual)

    return g.decoder(
        config,
        s,
        "granite",
        layer,
        embedding_multiplier=config.number("embedding_multiplier", 1.0),
        logits_multiplier=1 / config.number("logits_scaling", 1.0, above=0),
    )
