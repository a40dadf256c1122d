"""Phi-3: Q, K and V in one matrix, gate and up in another, part of each head rotates, LongRoPE.

With LongRoPE the artifact takes the original context (4096 tokens): beyond it the model has other frequencies.

Source: Abdin et al. 2024 (arXiv:2404.14219); LongRoPE: Ding et al. 2024 (arXiv:2402.13753).
"""

from edgec.frontends.architecture import Attention, Decoder, Layer, Linear, Mlp
from edgec.frontends.config import Config
from edgec.frontends.families import _gated as g
from edgec.frontends.rope import rope, rope_parameters

MODEL_TYPES = ("phi3",)


def decoder(config: Config) -> Decoder:
    """Describe the decoder that `config` asks for."""
    s = g.sizes(config, context=4096, eps=1e-5)
    kind = g.activation(config, "hidden_act", "silu")
    for key in ("attention_bias", "mlp_bias", "lm_head_bias"):
        config.only(key, False)
    config.only("interpolate_factor", 1)
    config.only("full_attn_mod", 1)
    window = config.optional_size("sliding_window", None)
    original = config.size("original_max_position_embeddings", 4096)
    parameters = rope_parameters(config)
    kind_of_rope = parameters.pop("rope_type", parameters.pop("type", "default"))
    if kind_of_rope in ("longrope", "su", "yarn"):  # all three mean LongRoPE here
        parameters |= {"rope_type": "longrope", "original_max_position_embeddings": original}
    elif kind_of_rope != "default":
        raise config.wrong("rope_type", kind_of_rope, "one that Phi-3 has: default or longrope")
    rotary = rope(parameters, s.head_dim, s.context, partial=True)

    def layer(_: int, prefix: str) -> Layer:
        q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
        qkv, gate_up = f"{prefix}.self_attn.qkv_proj.weight", f"{prefix}.mlp.gate_up_proj.weight"
        attend = Attention(
            q=Linear(qkv, (s.hidden, q), rows=((0, q),), part="q"),
            k=Linear(qkv, (s.hidden, kv), rows=((q, q + kv),), part="k"),
            v=Linear(qkv, (s.hidden, kv), rows=((q + kv, q + 2 * kv),), part="v"),
            o=g.linear(f"{prefix}.self_attn.o_proj", q, s.hidden),
            heads=s.heads,
            kv_heads=s.kv_heads,
            head_dim=s.head_dim,
            scale=s.head_dim**-0.5,
            rope=rotary,
            window=window,
        )
        feed = Mlp(
            gate=Linear(gate_up, (s.hidden, s.inner), rows=((0, s.inner),), part="gate"),
            up=Linear(gate_up, (s.hidden, s.inner), rows=((s.inner, 2 * s.inner),), part="up"),
            down=g.linear(f"{prefix}.mlp.down_proj", s.inner, s.hidden),
            activation=kind,
        )
        return g.pre_norm_layer(s, prefix, attend, feed)

    return g.decoder(config, s, "phi3", layer)
