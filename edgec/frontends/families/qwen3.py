"""Qwen3: RMS norms over each head of Q and K, no biases unless the config asks.

Source: Yang et al. 2025 (arXiv:2505.09388).
"""

from edgec.frontends.architecture import Decoder, Layer, Norm
from edgec.frontends.config import Config
from edgec.frontends.families import _gated as g
from edgec.frontends.families.qwen2 import sliding

MODEL_TYPES = ("qwen3",)


def decoder(config: Config) -> Decoder:
    """Describe the decoder that `config` asks for."""
    s = g.sizes(config, context=32768, head_dim=128, kv_heads=32)
    kind = g.activation(config, "hidden_act", "silu")
    bias = config.flag("attention_bias", False)
    windows = sliding(config, s)
    rotary = g.rotation(config, s)

    def layer(i: int, prefix: str) -> Layer:
        attend = g.attention(
            s,
            f"{prefix}.self_attn",
            rotary,
            bias=bias,
            o_bias=bias,
            window=windows[i],
            q_norm=Norm(f"{prefix}.self_attn.q_norm.weight", s.head_dim, s.eps),
            k_norm=Norm(f"{prefix}.self_attn.k_norm.weight", s.head_dim, s.eps),
        )
        return g.pre_norm_layer(s, prefix, attend, g.mlp(s, f"{prefix}.mlp", kind))

    return g.decoder(config, s, "qwen3", layer)
