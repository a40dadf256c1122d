"""OLMo 2: norms after each branch instead of before, and over all heads of Q and K at once.

Source: OLMo Team 2024 (arXiv:2501.00656).
"""

from edgec.frontends.architecture import Decoder, Layer, Norm
from edgec.frontends.config import Config
from edgec.frontends.families import _gated as g

MODEL_TYPES = ("olmo2",)


def decoder(config: Config) -> Decoder:
    """Describe the decoder that `config` asks for."""
    s = g.sizes(config, eps=1e-5)
    kind = g.activation(config, "hidden_act", "silu")
    bias = config.flag("attention_bias", False)
    rotary = g.rotation(config, s)

    def layer(_: int, prefix: str) -> Layer:
        attend = g.attention(
            s,
            f"{prefix}.self_attn",
            rotary,
            bias=bias,
            o_bias=bias,
            q_norm=Norm(f"{prefix}.self_attn.q_norm.weight", s.heads * s.head_dim, s.eps),
            k_norm=Norm(f"{prefix}.self_attn.k_norm.weight", s.kv_heads * s.head_dim, s.eps),
        )
        return Layer(
            attend,
            g.mlp(s, f"{prefix}.mlp", kind),
            attention_post_norm=Norm(f"{prefix}.post_attention_layernorm.weight", s.hidden, s.eps),
            mlp_post_norm=Norm(f"{prefix}.post_feedforward_layernorm.weight", s.hidden, s.eps),
        )

    return g.decoder(config, s, "olmo2", layer)
