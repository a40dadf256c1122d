"""A checkpoint without the parts of a decoder that do not stay: the shapes shrink, and nothing else need know.

The config gets the smaller sizes, and the family describes it as it would any other. Tensors of both decoders are then
compared part by part, which says for each tensor what stays along each axis, whatever its family stores as one.

**The residual stream.** A norm takes its mean over fewer dimensions. The gains of norms of the stream are multiplied by
sqrt(dimensions / dimensions that stay): then RMS norms compute what they do where the others are 0, but for their
epsilon, and LayerNorms what they do where the others are the mean. Norms over all heads at once (OLMo 2) keep their
gains: the heads that stay stand for the others. Where a family multiplies embeddings by sqrt(dimensions), as Gemma
does, the table takes up the difference, and the final norm of a tied model its inverse.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.checkpoint.model import Array, Checkpoint, TensorInfo
from edgec.errors import PlanError
from edgec.frontends.architecture import Decoder, Layer, Linear, Norm
from edgec.frontends.decoder_tensors import check_tensors
from edgec.frontends.families import describe
from edgec.prune.keep import Indices, Keep, check, full

Numbers = NDArray[np.int64]
Config = dict[str, Any]

# What the config calls each size; where there is no name for the dimensions of a head, they are hidden / heads.
_NAMES = {
    "layers": "num_hidden_layers",
    "mlp": "intermediate_size",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
}
_NAMES_OF = {"gpt2": {"layers": "n_layer", "mlp": "n_inner", "hidden": "n_embd", "heads": "n_head"}}
_WITHOUT_HEAD_DIM = ("gpt2", "gpt_neox")
# transformers refuses these where the heads do not divide the hidden size, though their head_dim is free.
_HEADS_DIVIDE = ("llama", "gemma2", "gemma3_text")
# Keys that a Mistral does not have, and that change nothing in a Llama without biases.
_LLAMA_ONLY = ("attention_bias", "mlp_bias", "rope_interleaved", "is_llama_config", "pretraining_tp")


@dataclass(frozen=True)
class _Cut:
    """How to make a tensor: take `kept` of the source along each axis, then (x + offset) * factor - offset."""

    source: str
    kept: tuple[Numbers, ...]
    factor: float = 1.0
    offset: float = 0.0

    def apply(self, array: Array) -> Array:
        for axis, kept in enumerate(self.kept):
            if len(kept) < array.shape[axis]:
                array = np.take(array, kept, axis)
        if self.factor != 1.0:
            array = (array.astype(np.float32) + np.float32(self.offset)) * np.float32(self.factor)
            array = array - np.float32(self.offset)
        return np.ascontiguousarray(array)

    def info(self, name: str, source: TensorInfo) -> TensorInfo:
        dtype = source.dtype if self.factor == 1.0 else "F32"
        return TensorInfo(name, dtype, tuple(len(kept) for kept in self.kept))


def slim(checkpoint: Checkpoint, decoder: Decoder, keep: Keep, ignored: frozenset[str] = frozenset()) -> Checkpoint:
    """Return `checkpoint` with what stays of its decoder; tensors are cut when they are read.

    Files and tokenizer are those of `checkpoint`, and so is the fingerprint. Tensors that the decoder does not name are
    left out (rotary frequencies, causal masks, the copy of a tied table): nothing computes with them.

    Args:
        checkpoint: the whole model; no weight is read here.
        decoder: its description.
        keep: what stays.
        ignored: keys of config.json that the user declared harmless.

    Raises:
        CheckpointError: a tensor is missing or has another shape than the config says.
        PlanError: `keep` is no selection of the decoder's parts, or its config cannot say what would be left.
    """
    check(keep, decoder)
    check_tensors(decoder, checkpoint)
    config = _smaller_config(checkpoint.config, decoder, keep)
    smaller = describe(replace(checkpoint, config=config), ignored)
    _check_same(decoder, smaller, keep)
    cuts = _cuts(decoder, smaller, keep)

    def load(name: str) -> Array:
        return cuts[name].apply(checkpoint.read(cuts[name].source))

    tensors = {name: cut.info(name, checkpoint.tensors[cut.source]) for name, cut in cuts.items()}
    return replace(checkpoint, config=config, tensors=tensors, load=load)


def _smaller_config(config: Config, decoder: Decoder, keep: Keep) -> Config:
    """Return `config` with the sizes of what stays; keys of what does not change are left alone."""
    there, here = full(decoder), keep.sizes
    changes = _layer_keys(config, decoder, keep) if here.layers < there.layers else {}
    if (here.mlp, here.groups, here.hidden) == (there.mlp, there.groups, there.hidden):
        return config | changes
    attention, names = decoder.layers[0].attention, _NAMES_OF.get(decoder.family, _NAMES)
    heads = here.groups * (attention.heads // attention.kv_heads)
    changes |= {names["mlp"]: here.mlp, names["hidden"]: here.hidden, names["heads"]: heads}
    if decoder.family not in _WITHOUT_HEAD_DIM:
        changes |= {"num_key_value_heads": here.groups, "head_dim": attention.head_dim}
        return _loadable(config | changes, decoder)
    if here.hidden != heads * attention.head_dim:
        raise PlanError(
            f"the config of a {decoder.family} model cannot say that its heads have {attention.head_dim} dimensions, "
            f"where {heads} of them do not make up a hidden size of {here.hidden}",
            where="heads, hidden",
            hint=f"remove as much of hidden as of the heads (to {heads * attention.head_dim}), or of neither",
        )
    return config | changes


def _layer_keys(config: Config, decoder: Decoder, keep: Keep) -> Config:
    """Return the keys that say which layer is which; those that follow from a layer's number are written out."""
    all_windows = {layer.attention.window for layer in decoder.layers}
    ropes = {layer.attention.rope is None for layer in decoder.layers}
    stay = [decoder.layers[index].attention for index in keep.layers]
    names = _NAMES_OF.get(decoder.family, _NAMES)
    changes: Config = {names["layers"]: len(stay)}
    if len(all_windows) > 1 or config.get("layer_types"):
        changes["layer_types"] = ["sliding_attention" if a.window else "full_attention" for a in stay]
    if len(ropes) > 1 or config.get("no_rope_layers"):
        changes["no_rope_layers"] = [0 if a.rope is None else 1 for a in stay]
    if (first := config.get("max_window_layers")) is not None:
        changes["max_window_layers"] = sum(index < first for index in keep.layers)
    return changes


def _loadable(config: Config, decoder: Decoder) -> Config:
    """Return a config that transformers loads, too.

    Raises:
        PlanError: there is none.
    """
    hidden, heads, head_dim = (config[key] for key in ("hidden_size", "num_attention_heads", "head_dim"))
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if decoder.family == "phi3" and "short_factor" in scaling and hidden // heads != head_dim:
        what = f"a Phi-3 with LongRoPE whose heads have other than hidden / heads = {hidden // heads} dimensions"
    elif decoder.family in _HEADS_DIVIDE and hidden % heads:
        # A Llama without biases is a Mistral without a window, of which transformers does not ask that.
        if decoder.family == "llama" and not config.get("attention_bias") and not config.get("mlp_bias"):
            kept = {key: value for key, value in config.items() if key not in _LLAMA_ONLY}
            return kept | {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}
        what = f"a {decoder.family} model whose heads ({heads}) do not divide its hidden size ({hidden})"
    else:
        return config
    raise PlanError(
        f"transformers does not load {what}",
        where="heads, hidden",
        hint="leave heads and hidden alone, or remove so many that this holds",
    )


def _check_same(decoder: Decoder, smaller: Decoder, keep: Keep) -> None:
    """Make sure that the smaller config says of what stays what the config said of it, but for sizes.

    Raises:
        PlanError: it cannot, because something follows from the number of a layer, or from its sizes.
    """
    pairs = [("the model", _facts(decoder), _facts(smaller))]
    for index, new in zip(keep.layers, smaller.layers, strict=True):
        pairs.append((f"layer {index}", _layer_facts(decoder.layers[index]), _layer_facts(new)))
    for where, before, after in pairs:
        for name, value in before.items():
            if after[name] != value:
                raise PlanError(
                    f"the config of a {decoder.family} model cannot say that {where} keeps its {name}",
                    where=where,
                    hint="leave alone what it follows from: the numbers of layers, or sizes",
                )


def _facts(decoder: Decoder) -> dict[str, Any]:
    return {
        "vocabulary": decoder.vocab_size,
        "context length": decoder.context_length,
        "tied embeddings": decoder.tied,
        "factor on the logits": decoder.logits_multiplier,
        "soft cap of the logits": decoder.logits_softcap,
    }


def _layer_facts(layer: Layer) -> dict[str, Any]:
    a = layer.attention
    return {
        "head size": a.head_dim,
        "query heads of a group": a.heads // a.kv_heads,
        "attention scale": a.scale,
        "rotary embedding": a.rope,
        "sliding window": a.window,
        "soft cap": a.softcap,
        "activation": layer.mlp.activation,
        "parallel branches": layer.parallel,
        "factor on its branches": layer.residual_multiplier,
    }


def _cuts(decoder: Decoder, smaller: Decoder, keep: Keep) -> dict[str, _Cut]:
    """Return how each tensor of `smaller` is made, by its name."""
    hidden = np.array(keep.hidden)
    stretch = (decoder.hidden_size / smaller.hidden_size) ** 0.5
    table = decoder.embedding_multiplier / smaller.embedding_multiplier
    cuts = {smaller.embedding: _Cut(decoder.embedding, (np.arange(decoder.vocab_size), hidden), table)}
    if decoder.position_embedding and smaller.position_embedding:
        kept = (np.arange(decoder.context_length), hidden)
        cuts[smaller.position_embedding] = _Cut(decoder.position_embedding, kept)
    last = stretch / table if decoder.tied else stretch
    for old, new, kept_values, factor in [
        *_norm_pairs(decoder, smaller, keep, stretch),
        (decoder.final_norm, smaller.final_norm, hidden, last),
    ]:
        cuts[new.weight] = _Cut(old.weight, (kept_values,), factor, old.offset)
        if old.bias and new.bias:
            cuts[new.bias] = _Cut(old.bias, (kept_values,))
    return cuts | _linear_cuts(_linear_pairs(decoder, smaller, keep))


def _norm_pairs(
    decoder: Decoder, smaller: Decoder, keep: Keep, stretch: float
) -> Iterator[tuple[Norm, Norm, Numbers, float]]:
    """Yield the norms of layers: in the whole decoder and in the smaller one, values that stay, factor on the gains."""
    hidden = np.array(keep.hidden)
    for place, new in enumerate(smaller.layers):
        old = decoder.layers[keep.layers[place]]
        for name in ("attention_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm"):
            before, after = getattr(old, name), getattr(new, name)
            if before and after:
                yield before, after, hidden, stretch
        a, b = old.attention, new.attention
        for before, after in ((a.q_norm, b.q_norm), (a.k_norm, b.k_norm)):
            if before and after:
                over_heads = _spread(keep.groups[place], before.size // a.kv_heads)
                yield before, after, np.arange(a.head_dim) if before.size == a.head_dim else over_heads, 1.0


def _linear_pairs(decoder: Decoder, smaller: Decoder, keep: Keep) -> Iterator[tuple[Linear, Linear, Numbers, Numbers]]:
    """Yield the matrices: in the whole decoder and in the smaller one, the inputs that stay, the outputs that stay."""
    hidden = np.array(keep.hidden)
    for place, new in enumerate(smaller.layers):
        old = decoder.layers[keep.layers[place]]
        a, b, m, n = old.attention, new.attention, old.mlp, new.mlp
        kv = _spread(keep.groups[place], a.head_dim)
        q = _spread(keep.groups[place], a.head_dim * (a.heads // a.kv_heads))
        inner = np.array(keep.mlp[place])
        yield from ((a.q, b.q, hidden, q), (a.k, b.k, hidden, kv), (a.v, b.v, hidden, kv), (a.o, b.o, q, hidden))
        if m.gate and n.gate:
            yield m.gate, n.gate, hidden, inner
        yield from ((m.up, n.up, hidden, inner), (m.down, n.down, inner, hidden))
    if decoder.head and smaller.head:
        yield decoder.head, smaller.head, hidden, np.arange(decoder.vocab_size)


def _linear_cuts(pairs: Iterable[tuple[Linear, Linear, Numbers, Numbers]]) -> dict[str, _Cut]:
    """Return the cuts of matrices and biases; several matrices may be parts of one tensor, in any order of its rows."""
    tensors: dict[str, list[tuple[Linear, Linear, Numbers, Numbers]]] = {}
    for pair in pairs:
        tensors.setdefault(pair[1].weight, []).append(pair)
    cuts = {}
    for name, parts in tensors.items():
        old, new, inputs, _ = parts[0]
        places = np.concatenate([_rows(part) for _, part, _, _ in parts])
        sources = np.concatenate([_rows(part)[outputs] for part, _, _, outputs in parts])
        rows = sources[np.argsort(places)]
        cuts[name] = _Cut(old.weight, (inputs, rows) if old.transposed else (rows, inputs))
        if old.bias and new.bias:
            cuts[new.bias] = _Cut(old.bias, (rows,))
    return cuts


def _rows(linear: Linear) -> Numbers:
    """Return which rows of its tensor a matrix takes, in order."""
    return np.concatenate([np.arange(start, stop) for start, stop in linear.rows or ((0, linear.size[1]),)])


def _spread(groups: Indices, size: int) -> Numbers:
    """Return the numbers of all values of some groups, each of `size` values."""
    return (np.array(groups)[:, None] * size + np.arange(size)).ravel()
