"""Llama: Llama 1 to 3, SmolLM, SmolLM2 and every checkpoint that calls itself LlamaForCausalLM.

Source: Touvron et al. 2023 (arXiv:2302.13971), Grattafiori et al. 2024 (arXiv:2407.21783).
"""

from edgec.frontends.architecture import Attention, Decoder, Layer, Linear, Mlp, Norm
from edgec.frontends.config import Config
from edgec.frontends.rope import rope, rope_parameters

MODEL_TYPES = ("llama",)


def decoder(config: Config) -> Decoder:
    """Describe the decoder that `config` asks for."""
    hidden, inner = config.size("hidden_size"), config.size("intermediate_size")
    heads = config.size("num_attention_heads")
    kv_heads = config.size("num_key_value_heads", heads)
    head_dim = config.size("head_dim", hidden // heads)
    vocab, context = config.size("vocab_size"), config.size("max_position_embeddings", 2048)
    eps = config.number("rms_norm_eps", 1e-6)
    config.only("hidden_act", "silu")
    config.only("pretraining_tp", 1)
    config.get("rope_interleaved")  # written by converters; transformers' Llama does not read it
    config.get("is_llama_config")
    attention_bias, mlp_bias = bool(config.get("attention_bias", False)), bool(config.get("mlp_bias", False))
    rotation = rope(rope_parameters(config), head_dim, context)

    def linear(name: str, n_in: int, n_out: int, bias: bool) -> Linear:
        return Linear(f"{name}.weight", (n_in, n_out), f"{name}.bias" if bias else None)

    def layer(prefix: str) -> Layer:
        attention = Attention(
            q=linear(f"{prefix}.self_attn.q_proj", hidden, heads * head_dim, attention_bias),
            k=linear(f"{prefix}.self_attn.k_proj", hidden, kv_heads * head_dim, attention_bias),
            v=linear(f"{prefix}.self_attn.v_proj", hidden, kv_heads * head_dim, attention_bias),
            o=linear(f"{prefix}.self_attn.o_proj", heads * head_dim, hidden, attention_bias),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            scale=head_dim**-0.5,
            rope=rotation,
        )
        mlp = Mlp(
            gate=linear(f"{prefix}.mlp.gate_proj", hidden, inner, mlp_bias),
            up=linear(f"{prefix}.mlp.up_proj", hidden, inner, mlp_bias),
            down=linear(f"{prefix}.mlp.down_proj", inner, hidden, mlp_bias),
            activation="silu",
        )
        return Layer(
            attention,
            mlp,
            attention_norm=Norm(f"{prefix}.input_layernorm.weight", hidden, eps),
            mlp_norm=Norm(f"{prefix}.post_attention_layernorm.weight", hidden, eps),
        )

    return Decoder(
        family="llama",
        vocab_size=vocab,
        hidden_size=hidden,
        context_length=context,
        embedding="model.embed_tokens.weight",
        layers=tuple(layer(f"model.layers.{i}") for i in range(config.size("num_hidden_layers"))),
        final_norm=Norm("model.norm.weight", hidden, eps),
        head=None if config.get("tie_word_embeddings", False) else Linear("lm_head.weight", (hidden, vocab)),
    )
