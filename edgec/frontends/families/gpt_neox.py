"""GPT-NeoX and Pythia: LayerNorm, attention beside the MLP, part of each head rotates, Q, K and V by head in one.

Source: Black et al. 2022 (arXiv:2204.06745).
"""

from edgec.frontends.architecture import Attention, Decoder, Layer, Linear, Mlp, Norm
from edgec.frontends.config import Config
from edgec.frontends.families._gated import MOST_HEADS, MOST_LAYERS, activation, head_size, linear
from edgec.frontends.rope import rope, rope_parameters

MODEL_TYPES = ("gpt_neox",)


def decoder(config: Config) -> Decoder:
    """Describe the decoder that `config` asks for."""
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads", most=MOST_HEADS)
    inner, eps = config.size("intermediate_size"), config.number("layer_norm_eps", 1e-5)
    head_dim, vocab = head_size(hidden, heads), config.size("vocab_size")
    context = config.size("max_position_embeddings", 2048)
    kind = activation(config, "hidden_act", "gelu")
    bias = config.flag("attention_bias", True)
    parallel = config.flag("use_parallel_residual", True)
    theta, fraction = config.number("rotary_emb_base", 10000.0), config.number("rotary_pct", 0.25)
    config.only("rope_theta", theta)  # transformers 4 wrote these too, transformers 5 does not read them
    config.only("partial_rotary_factor", fraction)
    rotary = rope(rope_parameters(config, theta, fraction), head_dim, context, partial=True)

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

    head = "lm_head.weight" if "lm_head.weight" in config.tensors else "embed_out.weight"
    return Decoder(
        family="gpt_neox",
        vocab_size=vocab,
        hidden_size=hidden,
        context_length=rotary.length,
        embedding="gpt_neox.embed_in.weight",
        layers=tuple(layer(i) for i in range(config.size("num_hidden_layers", most=MOST_LAYERS))),
        final_norm=norm("gpt_neox.final_layer_norm"),
        head=None if config.flag("tie_word_embeddings", False) else Linear(head, (hidden, vocab)),
    )
