"""Gemma 2: norms before and after each branch with weights around 0, soft caps, every other layer slides.

Source: Gemma Team 2024 (arXiv:2408.00118).
"""

from edgec.frontends.architecture import Attention, Decoder, Layer, Mlp, Norm
from edgec.frontends.config import Config
from edgec.frontends.families import _gated as g

MODEL_TYPES = ("gemma2",)


def decoder(config: Config) -> Decoder:
    """Describe the decoder that `config` asks for."""
    s = g.sizes(config, context=8192, head_dim=256, kv_heads=4)
    kind = g.activation(config, "hidden_activation", "gelu_pytorch_tanh")
    config.get("hidden_act")  # transformers reads hidden_activation
    config.only("use_bidirectional_attention", None, False)
    bias = config.flag("attention_bias", False)
    scale = config.number("query_pre_attn_scalar", 256, above=0) ** -0.5
    softcap = config.optional_number("attn_logit_softcapping", 50.0) or 0.0
    types = ["sliding_attention" if (i + 1) % 2 else "full_attention" for i in range(s.layers)]
    windows = g.windows(config, s, config.optional_size("sliding_window", 4096), types)
    rotary = g.rotation(config, s)

    def layer(i: int, prefix: str) -> Layer:
        attend = g.attention(
            s,
            f"{prefix}.self_attn",
            rotary,
            bias=bias,
            o_bias=bias,
            scale=scale,
            softcap=softcap,
            window=windows[i],
        )
        return sandwich_layer(s, prefix, attend, g.mlp(s, f"{prefix}.mlp", kind))

    return g.decoder(
        config,
        s,
        "gemma2",
        layer,
        tied=True,
        norm_offset=1.0,
        embedding_multiplier=s.hidden**0.5,
        logits_softcap=config.optional_number("final_logit_softcapping", 30.0) or 0.0,
    )


def sandwich_layer(s: g.Sizes, prefix: str, attend: Attention, feed: Mlp) -> Layer:
    """Return a layer with norms before and after both branches; Gemma stores the weights of norms minus 1."""

    def norm(name: str) -> Norm:
        return Norm(f"{prefix}.{name}.weight", s.hidden, s.eps, offset=1.0)

    return Layer(
        attend,
        feed,
        attention_norm=norm("input_layernorm"),
        attention_post_norm=norm("post_attention_layernorm"),
        mlp_norm=norm("pre_feedforward_layernorm"),
        mlp_post_norm=norm("post_feedforward_layernorm"),
    )
