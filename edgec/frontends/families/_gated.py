"""What decoders of Llama's kind share: pre-norm RMS layers, rotary grouped-query attention, a gated MLP."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgec.errors import CheckpointError
from edgec.frontends.architecture import Activation, Attention, Decoder, Layer, Linear, Mlp, Norm, Rope
from edgec.frontends.config import Config
from edgec.frontends.rope import rope, rope_parameters

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "relu": "relu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

_LAYER_TYPES = ("full_attention", "sliding_attention")

# Far more than any model has: a config with a number such as 10**9 is refused before it fills the memory.
MOST_LAYERS = MOST_HEADS = 4096


@dataclass(frozen=True)
class Sizes:
    """The sizes that every family names alike."""

    vocab: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    eps: float


def sizes(
    config: Config, *, context: int = 2048, eps: float = 1e-6, head_dim: int | None = None, kv_heads: int | None = None
) -> Sizes:
    """Read the sizes; the arguments are the family's defaults for keys that configs leave out."""
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads", most=MOST_HEADS)
    groups = config.optional_size("num_key_value_heads", kv_heads) or heads
    if heads % groups:
        raise CheckpointError(
            f"config.json: {heads} attention heads cannot share {groups} key-value heads", where="config.json"
        )
    return Sizes(
        vocab=config.size("vocab_size"),
        hidden=hidden,
        inner=config.size("intermediate_size"),
        layers=config.size("num_hidden_layers", most=MOST_LAYERS),
        heads=heads,
        kv_heads=groups,
        head_dim=config.size("head_dim", head_dim or hidden // heads),
        context=config.size("max_position_embeddings", context),
        eps=config.number("rms_norm_eps", eps),
    )


def activation(config: Config, key: str, default: str) -> Activation:
    """Return the activation that `key` names.

    Raises:
        CheckpointError: it is one that edgec does not implement.
    """
    others = [name for name in _ACTIVATIONS if name != default]
    return _ACTIVATIONS[config.only(key, default, *others)]


def rotation(config: Config, s: Sizes, theta: float = 10000.0) -> Rope:
    """Return the rotary embedding of whole heads that the config asks for; `theta` is the family's default."""
    return rope(rope_parameters(config, theta), s.head_dim, s.context)


def head_size(hidden: int, heads: int) -> int:
    """Return the dimensions of a head where the heads share the hidden size.

    Raises:
        CheckpointError: they cannot.
    """
    if hidden % heads:
        raise CheckpointError(
            f"config.json: {heads} attention heads cannot share a hidden size of {hidden}", where="config.json"
        )
    return hidden // heads


def linear(name: str, n_in: int, n_out: int, bias: bool = False) -> Linear:
    """Return a matrix stored as transformers' nn.Linear stores it."""
    return Linear(f"{name}.weight", (n_in, n_out), f"{name}.bias" if bias else None)


def attention(
    s: Sizes, prefix: str, rotary: Rope | None, *, bias: bool = False, o_bias: bool = False, **more: Any
) -> Attention:
    """Return attention with separate projections under `prefix`; `more` goes to `Attention`."""
    return Attention(
        q=linear(f"{prefix}.q_proj", s.hidden, s.heads * s.head_dim, bias),
        k=linear(f"{prefix}.k_proj", s.hidden, s.kv_heads * s.head_dim, bias),
        v=linear(f"{prefix}.v_proj", s.hidden, s.kv_heads * s.head_dim, bias),
        o=linear(f"{prefix}.o_proj", s.heads * s.head_dim, s.hidden, o_bias),
        heads=s.heads,
        kv_heads=s.kv_heads,
        head_dim=s.head_dim,
        rope=rotary,
        **{"scale": s.head_dim**-0.5, **more},
    )


def mlp(s: Sizes, prefix: str, kind: Activation, bias: bool = False) -> Mlp:
    """Return the gated MLP under `prefix`."""
    return Mlp(
        gate=linear(f"{prefix}.gate_proj", s.hidden, s.inner, bias),
        up=linear(f"{prefix}.up_proj", s.hidden, s.inner, bias),
        down=linear(f"{prefix}.down_proj", s.inner, s.hidden, bias),
        activation=kind,
    )


def pre_norm_layer(s: Sizes, prefix: str, attend: Attention, feed: Mlp, **more: Any) -> Layer:
    """Return a layer with a norm before attention and one before the MLP; `more` goes to `Layer`."""
    return Layer(
        attend,
        feed,
        attention_norm=Norm(f"{prefix}.input_layernorm.weight", s.hidden, s.eps),
        mlp_norm=Norm(f"{prefix}.post_attention_layernorm.weight", s.hidden, s.eps),
        **more,
    )


def decoder(
    config: Config,
    s: Sizes,
    family: str,
    layer: Callable[[int, str], Layer],
    *,
    tied: bool = False,
    norm_offset: float = 0.0,
    **more: Any,
) -> Decoder:
    """Return the whole decoder.

    Args:
        config: the config.
        s: its sizes.
        family: the name of the family.
        layer: makes a layer from its index and the prefix of its tensors' names.
        tied: the family's default.
        norm_offset: of the final norm.
        more: goes to `Decoder`.
    """
    layers = tuple(layer(i, f"model.layers.{i}") for i in range(s.layers))
    ropes = (each.attention.rope for each in layers)
    return Decoder(
        family=family,
        vocab_size=s.vocab,
        hidden_size=s.hidden,
        context_length=min((rotary.length for rotary in ropes if rotary), default=s.context),
        embedding="model.embed_tokens.weight",
        layers=layers,
        final_norm=Norm("model.norm.weight", s.hidden, s.eps, offset=norm_offset),
        head=None if config.flag("tie_word_embeddings", tied) else Linear("lm_head.weight", (s.hidden, s.vocab)),
        **more,
    )


def windows(config: Config, s: Sizes, window: int | None, default: list[str]) -> tuple[int | None, ...]:
    """Return the sliding window of each layer, from `layer_types` or the family's default types.

    Raises:
        CheckpointError: a layer has another type, or the list is too short.
    """
    types = config.get("layer_types", default)
    if not isinstance(types, list) or len(types) != s.layers or any(kind not in _LAYER_TYPES for kind in types):
        raise CheckpointError(
            f"config.json: 'layer_types' is {types!r}, expected {s.layers} times full_attention or sliding_attention",
            where="config.json: layer_types",
        )
    if window is None and "sliding_attention" in types:
        raise CheckpointError(
            "config.json: 'layer_types' asks for sliding windows, but they are off", where="config.json"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in types)
