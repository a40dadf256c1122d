"""GPT-NeoX and Pythia: LayerNorm, attention beside the MLP, part of each head rotates, Q, K and V by head in one.

Source: Black et al. 2022 (arXiv:2204.06745).
"""

from edgec.frontends.architecture import Attention, Decoder, Layer, Linear, Mlp, Norm
from edgec.frontends.config import Config
from edgec.frontends.families._gated import activation, linear
from edgec.frontends.rope import rope, rope_parameters, trained_length

MODEL_TYPES = ("gpt_neox",)


def decoder(config: Config) -> Decoder:
    """Describe the decoder that `config` asks for."""
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    inner, eps = config.size("intermediate_size"), config.number("layer_norm_eps", 1e-5)
    head_dim, vocab = hidden // heads, config.size("vocab_size")
    context = config.size("max_position_embeddings", 2048)
    kind = activation(config, "hidden_act", "gelu")
    bias = bool(config.nullable("attention_bias", True))
    parallel = bool(config.nullable("use_parallel_residual", True))
    parameters = rope_parameters(config, config.number("rotary_emb_base", 10000.0))
    fraction = float(parameters.get("partial_rotary_factor", config.number("rotary_pct", 0.25)))
    rotary = rope(parameters, int(head_dim * fraction), context)

    def norm(name: str) -> Norm:
        return Norm(f"{name}.weight", hidden, eps, kind="layer", bias=f"{name}.bias")

    def part(name: str, index: int) -> Linear:
        starts = [(head * 3 + index) * head_dim for head in range(heads)]
        rows = tuple((start, start + head_dim) for start in starts)
        return Linear(
            f"{name}.weight", (hidden, hidden), f"{name}.bias" if bias else None, rows=rows, part="qkv"[index]
        )

    def layer(i: int) -> Layer:
        name = f"gpt_neox.layers.{i}"
        q, k, v = (part(f"{name}.attention.query_key_value", index) for index in range(3))
        attend = Attention(
            q=q,
            k=k,
            v=v,
            o=linear(f"{name}.attention.dense", hidden, hidden, bias),
            heads=heads,
            kv_heads=heads,
            head_dim=head_dim,
            scale=head_dim**-0.5,
            rope=rotary,
        )
        feed = Mlp(
            up=linear(f"{name}.mlp.dense_h_to_4h", hidden, inner, True),
            down=linear(f"{name}.mlp.dense_4h_to_h", inner, hidden, True),
            activation=kind,
        )
        return Layer(
            attend,
            feed,
            attention_norm=norm(f"{name}.input_layernorm"),
            mlp_norm=norm(f"{name}.post_attention_layernorm"),
            parallel=parallel,
        )

    return Decoder(
        family="gpt_neox",
        vocab_size=vocab,
        hidden_size=hidden,
        context_length=trained_length(parameters, context),
        embedding="gpt_neox.embed_in.weight",
        layers=tuple(layer(i) for i in range(config.size("num_hidden_layers"))),
        final_norm=norm("gpt_neox.final_layer_norm"),
        head=None if config.get("tie_word_embeddings", False) else Linear("embed_out.weight", (hidden, vocab)),
    )
