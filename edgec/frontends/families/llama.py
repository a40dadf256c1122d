"""Llama: Llama 1 to 3, SmolLM, SmolLM2 and every checkpoint that calls itself LlamaForCausalLM.

Source: Touvron et al. 2023 (arXiv:2302.13971), Grattafiori et al. 2024 (arXiv:2407.21783).
"""

from edgec.frontends.architecture import Decoder, Layer
from edgec.frontends.config import Config
from edgec.frontends.families import _gated as g

MODEL_TYPES = ("llama",)


def decoder(config: Config) -> Decoder:
    """Describe the decoder that `config` asks for."""
    s = g.sizes(config)
    kind = g.activation(config, "hidden_act", "silu")
    config.get("rope_interleaved")  # written by converters; transformers' Llama does not read it
    config.get("is_llama_config")
    bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    rotary = g.rotation(config, s)

    def layer(_: int, prefix: str) -> Layer:
        attend = g.attention(s, f"{prefix}.self_attn", rotary, bias=bias, o_bias=bias)
        return g.pre_norm_layer(s, prefix, attend, g.mlp(s, f"{prefix}.mlp", kind, mlp_bias))

    return g.decoder(config, s, "llama", layer)
