"""What a decoder language model consists of, as data: a family turns a config into this, the frontend emits it.

Tensor names are those of the checkpoint. Nothing here holds a weight.
"""

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


@dataclass(frozen=True)
class Linear:
    """A matrix in the checkpoint, `(out, in)` unless `transposed`, that multiplies from the right: x @ W.T + b.

    Args:
        weight: tensor name.
        size: (in, out) after `rows` were taken.
        bias: tensor name, if there is one.
        rows: ranges of output rows to take, in order, where the checkpoint stores several matrices as one.
        part: a short word that tells apart matrices cut from one tensor ("q", "gate"), part of the initializer's name.
        transposed: True where the checkpoint stores `(in, out)` (GPT-2).
    """

    weight: str
    size: tuple[int, int]
    bias: str | None = None
    rows: tuple[tuple[int, int], ...] | None = None
    part: str = ""
    transposed: bool = False


@dataclass(frozen=True)
class Norm:
    """A normalisation over the last axis; `offset` is added to the weight (Gemma stores weight - 1)."""

    weight: str
    size: int
    eps: float
    kind: Literal["rms", "layer"] = "rms"
    bias: str | None = None
    offset: float = 0.0


@dataclass(frozen=True)
class Rope:
    """Rotary embedding over the first `2 * len(inverse_frequencies)` dimensions of each head, in halves.

    Args:
        inverse_frequencies: radians per position, one for each pair of dimensions.
        length: the positions that these frequencies are right for.
        magnitude: factor on cos and sin (YaRN's attention factor), 1 elsewhere.
    """

    inverse_frequencies: tuple[float, ...]
    length: int
    magnitude: float = 1.0


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention with its projections.

    Args:
        scale: factor on q @ k.T.
        window: each query sees its own key and the `window - 1` before it; None sees all.
        softcap: 0 or c, where scores become c * tanh(scores / c).
        q_norm: over each head, or over all heads at once where its size is heads * head_dim; k_norm alike.
    """

    q: Linear
    k: Linear
    v: Linear
    o: Linear
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: Rope | None = None
    window: int | None = None
    softcap: float = 0.0
    q_norm: Norm | None = None
    k_norm: Norm | None = None


@dataclass(frozen=True)
class Mlp:
    """Down(activation(gate(x)) * up(x)), or down(activation(up(x))) where there is no gate."""

    up: Linear
    down: Linear
    activation: Activation
    gate: Linear | None = None


@dataclass(frozen=True)
class Layer:
    """One decoder layer; each norm may be absent. `parallel` adds attention and MLP of the same input (GPT-NeoX)."""

    attention: Attention
    mlp: Mlp
    attention_norm: Norm | None = None
    attention_post_norm: Norm | None = None
    mlp_norm: Norm | None = None
    mlp_post_norm: Norm | None = None
    parallel: bool = False
    residual_multiplier: float = 1.0


@dataclass(frozen=True)
class Decoder:
    """A whole decoder LM.

    Args:
        context_length: the most positions that the description is right for.
        embedding: (vocab_size, hidden_size) token embedding.
        position_embedding: tensor name of (context_length, hidden_size) learned positions, or None.
        head: the output matrix, or None where it is the embedding (tied).
        logits_multiplier: factor on the logits, before the soft cap.
    """

    family: str
    vocab_size: int
    hidden_size: int
    context_length: int
    embedding: str
    layers: tuple[Layer, ...]
    final_norm: Norm
    head: Linear | None
    embedding_multiplier: float = 1.0
    position_embedding: str | None = None
    logits_multiplier: float = 1.0
    logits_softcap: float = 0.0

    @property
    def tied(self) -> bool:
        return self.head is None
