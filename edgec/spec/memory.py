"""What a plan needs of the target's memory, from shapes alone."""

import math
from collections.abc import Mapping

import msgspec

from edgec.backends.backend import Limits
from edgec.frontends.architecture import Decoder
from edgec.quantize.scheme import Scheme
from edgec.spec.operation import Storage
from edgec.spec.target import Target

# Activations grow with the prompt that is given at once.
PROMPT = 512


class Estimate(msgspec.Struct, frozen=True):
    """What the artifact will need.

    Args:
        weight_bytes: of all weights as the backend stores them.
        kv_cache_bytes: at full context.
        activation_bytes: between layers, for a prompt of `PROMPT` tokens or the context, and the logits of one token.
    """

    weight_bytes: int
    kv_cache_bytes: int
    activation_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.kv_cache_bytes + self.activation_bytes


def estimate(
    decoder: Decoder,
    shapes: Mapping[str, tuple[int, ...]],
    weights: Storage,
    embedding: Storage,
    *,
    limits: Limits,
    kv_cache: str,
    context: int,
) -> Estimate:
    """Return what a decoder needs.

    Args:
        decoder: the model.
        shapes: of the checkpoint's tensors.
        weights: storage of the matrices inside the layers.
        embedding: storage of the token embedding and the output matrix.
        limits: of the backend.
        kv_cache: a key of `limits.cache_bytes`.
        context: tokens in the cache.
    """
    vocabulary = {decoder.embedding, decoder.head.weight if decoder.head else ""}
    total = 0
    for name, shape in shapes.items():
        if len(shape) != 2:
            total += 4 * math.prod(shape)
        else:
            total += storage_bytes(embedding if name in vocabulary else weights, *shape, limits.scale_bytes)
    numbers = sum(2 * layer.attention.kv_heads * layer.attention.head_dim for layer in decoder.layers) * context
    cache = math.ceil(numbers * limits.cache_bytes[kv_cache])
    return Estimate(total, cache, _activations(decoder, min(PROMPT, context)) * limits.activation_bytes)


def storage_bytes(storage: Storage, rows: int, cols: int, scale_bytes: int) -> int:
    """Return the size of a (rows = out, cols = in) weight."""
    if not isinstance(storage, Scheme):
        return rows * cols * (2 if storage == "fp16" else 4)
    groups = rows * storage.groups(cols)
    zero_points = 0 if storage.symmetric else groups * storage.bits // 8
    scales = groups + 4 if storage.dtype == "nvfp4" else scale_bytes * groups
    return rows * cols * storage.bits // 8 + scales + zero_points


def usable_bytes(target: Target) -> float | None:
    """Return what a model may use of the target's memory; None where a class of machines does not determine it."""
    return None if target.memory_gib is None else target.memory_gib * target.memory_usable_fraction * 2**30


def _activations(decoder: Decoder, tokens: int) -> int:
    """Return how many numbers the widest layer has in flight: residual, branch, its own, and attention's scores."""
    layer = max(decoder.layers, key=lambda layer: layer.mlp.up.size[1])
    attention = layer.attention
    projections = (attention.heads + 2 * attention.kv_heads) * attention.head_dim
    inner = layer.mlp.up.size[1] * (2 if layer.mlp.gate else 1)
    wide = max(projections + attention.heads * tokens, inner)
    return tokens * (2 * decoder.hidden_size + wide) + decoder.vocab_size
