"""GPT-2: LayerNorm, learned positions, matrices stored (in, out), Q, K and V in one.

Source: Radford et al. 2019, Language Models are Unsupervised Multitask Learners.
"""

from edgec.frontends.architecture import Attention, Decoder, Layer, Linear, Mlp, Norm
from edgec.frontends.config import Config
from edgec.frontends.families._gated import MOST_HEADS, MOST_LAYERS, activation, head_size

MODEL_TYPES = ("gpt2",)


def decoder(config: Config) -> Decoder:
    """Describe the decoder that `config` asks for."""
    hidden, heads = config.size("n_embd"), config.size("n_head", most=MOST_HEADS)
    head_dim = head_size(hidden, heads)
    inner, eps = config.size("n_inner", 4 * hidden), config.number("layer_norm_epsilon", 1e-5)
    kind = activation(config, "activation_function", "gelu_new")
    by_layer = config.flag("scale_attn_by_inverse_layer_idx", False)
    scaled = config.flag("scale_attn_weights", True)
    config.get("reorder_and_upcast_attn")  # the same values in another order
    # Files from before 2020, the original ones among them, have no prefix.
    root = "transformer." if "transformer.wte.weight" in config.tensors else ""

    def norm(name: str) -> Norm:
        return Norm(f"{name}.weight", hidden, eps, kind="layer", bias=f"{name}.bias")

    def matrix(name: str, n_in: int, n_out: int, rows: tuple[int, int] | None = None, part: str = "") -> Linear:
        ranges = (rows,) if rows else None
        return Linear(f"{name}.weight", (n_in, n_out), f"{name}.bias", rows=ranges, part=part, transposed=True)

    def layer(i: int) -> Layer:
        name = f"{root}h.{i}"
        q, k, v = (
            matrix(f"{name}.attn.c_attn", hidden, hidden, (j * hidden, (j + 1) * hidden), part)
            for j, part in enumerate("qkv")
        )
        scale = (head_dim**-0.5 if scaled else 1.0) / (i + 1 if by_layer else 1)
        attend = Attention(
            q=q,
            k=k,
            v=v,
            o=matrix(f"{name}.attn.c_proj", hidden, hidden),
            heads=heads,
            kv_heads=heads,
            head_dim=head_dim,
            scale=scale,
        )
        feed = Mlp(matrix(f"{name}.mlp.c_fc", hidden, inner), matrix(f"{name}.mlp.c_proj", inner, hidden), kind)
        return Layer(attend, feed, attention_norm=norm(f"{name}.ln_1"), mlp_norm=norm(f"{name}.ln_2"))

    vocab = config.size("vocab_size")
    return Decoder(
        family="gpt2",
        vocab_size=vocab,
        hidden_size=hidden,
        context_length=config.size("n_positions", 1024),
        embedding=f"{root}wte.weight",
        position_embedding=f"{root}wpe.weight",
        layers=tuple(layer(i) for i in range(config.size("n_layer", most=MOST_LAYERS))),
        final_norm=norm(f"{root}ln_f"),
        head=None if config.flag("tie_word_embeddings", True) else Linear("lm_head.weight", (hidden, vocab)),
    )
