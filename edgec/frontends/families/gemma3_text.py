"""Gemma 3, text: Gemma 2 with norms on Q and K instead of soft caps, and other frequencies where layers slide.

Source: Gemma Team 2025 (arXiv:2503.19786).
"""

from edgec.frontends.architecture import Decoder, Layer, Norm, Rope
from edgec.frontends.config import Config
from edgec.frontends.families import _gated as g
from edgec.frontends.families.gemma2 import sandwich_layer
from edgec.frontends.rope import WHERE, rope

MODEL_TYPES = ("gemma3_text",)


def decoder(config: Config) -> Decoder:
    """Describe the decoder that `config` asks for."""
    s = g.sizes(config, context=131072, head_dim=256, kv_heads=4)
    kind = g.activation(config, "hidden_activation", "gelu_pytorch_tanh")
    config.get("hidden_act")  # transformers reads hidden_activation
    config.only("use_bidirectional_attention", None, False)
    bias = config.flag("attention_bias", False)
    scale = config.number("query_pre_attn_scalar", 256, above=0) ** -0.5
    config.only("attn_logit_softcapping", None)  # transformers does not apply it
    pattern = config.size("sliding_window_pattern", 6)
    types = ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(s.layers)]
    windows = g.windows(config, s, config.optional_size("sliding_window", 4096), types)
    near, far = _rotations(config, s)

    def layer(i: int, prefix: str) -> Layer:
        attend = g.attention(
            s,
            f"{prefix}.self_attn",
            far if windows[i] is None else near,
            bias=bias,
            o_bias=bias,
            scale=scale,
            window=windows[i],
            q_norm=Norm(f"{prefix}.self_attn.q_norm.weight", s.head_dim, s.eps, offset=1.0),
            k_norm=Norm(f"{prefix}.self_attn.k_norm.weight", s.head_dim, s.eps, offset=1.0),
        )
        return sandwich_layer(s, prefix, attend, g.mlp(s, f"{prefix}.mlp", kind))

    return g.decoder(
        config,
        s,
        "gemma3_text",
        layer,
        tied=True,
        norm_offset=1.0,
        embedding_multiplier=s.hidden**0.5,
        logits_softcap=config.optional_number("final_logit_softcapping", None) or 0.0,
    )


def _rotations(config: Config, s: g.Sizes) -> tuple[Rope, Rope]:
    """Return the frequencies of sliding layers and of full ones: nested by layer type, or in two flat keys."""
    nested = Config(config.mapping("rope_parameters"), where=WHERE)
    near = {"rope_theta": config.number("rope_local_base_freq", 10000.0), **nested.mapping("sliding_attention")}
    far = {"rope_theta": config.number("rope_theta", 1000000.0), **nested.mapping("full_attention")}
    nested.finish()
    far |= config.mapping("rope_scaling")
    return rope(near, s.head_dim, s.context), rope(far, s.head_dim, s.context)
