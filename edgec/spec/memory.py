"""What a plan needs of the target's memory, from shapes alone.

Runtimes take more than an artifact's files: they widen, pack and copy weights, and keep buffers. How much more is in a
backend's `Footprint`, found by measuring (`bench/memory/resident.py`): for models of more than 100 MB the estimate is
meant to lie between the measured peak and about a third above it. It knows no CPU: one that computes in bfloat16 takes
less for float weights in OpenVINO. TensorRT's is derived from its graph and its builder's log.
"""

import math
from collections.abc import Collection, Iterator

import msgspec

from edgec.backends.backend import Limits
from edgec.backends.session import PROMPT
from edgec.frontends.architecture import Decoder, Layer
from edgec.frontends.decoder_tensors import expected_shapes, linears
from edgec.quantize.scheme import Scheme
from edgec.spec.operation import Operation, Storage, StorageOf, operations
from edgec.spec.target import Target


class Estimate(msgspec.Struct, frozen=True):
    """What running the artifact will need, for one row.

    Args:
        weight_bytes: of all weights, in all the copies that the runtime keeps.
        kv_cache_bytes: at full context.
        activation_bytes: between operations, for the last piece of a prompt that fills the context, and the logits of
            one token.
        runtime_bytes: what the runtime takes for any model, and to load the largest weight.
    """

    weight_bytes: int
    kv_cache_bytes: int
    activation_bytes: int
    runtime_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.kv_cache_bytes + self.activation_bytes + self.runtime_bytes


PLACE_BYTES = 8
"""Of each number that a sparse tensor stores."""


def estimate(
    decoder: Decoder,
    weights: Storage,
    storage_of: StorageOf,
    *,
    limits: Limits,
    kv_cache: str,
    context: int,
    static: Collection[str] = (),
) -> Estimate:
    """Return what a decoder needs.

    Args:
        decoder: the model.
        weights: storage of most matrices inside the layers.
        storage_of: storage of each matrix.
        limits: of the backend.
        kv_cache: a key of `limits.cache_bytes`.
        context: tokens in the cache.
        static: matrices that are multiplied with int8 activations of calibrated scales.
    """
    footprint = limits.footprint
    sizes = [
        _resident_bytes(
            operation,
            limits,
            looked_up=operation.kind == "lookup" and not decoder.tied,
            static=operation.matrix in static,
        )
        for operation in stored_matrices(decoder, storage_of)
    ]
    sizes.append(other_numbers(decoder) * 4 * footprint.weight_copies)
    if decoder.tied and storage_of("embedding") == "fp16":
        table = decoder.vocab_size * decoder.hidden_size
        sizes.append(table * footprint.float_bytes * footprint.more_tied_fp16)
    wide = 2 if limits.fp32_activations and weights == "fp32" else 1
    numbers = sum(2 * layer.attention.kv_heads * layer.attention.head_dim for layer in decoder.layers) * context
    return Estimate(
        weight_bytes=sum(sizes),
        kv_cache_bytes=math.ceil(numbers * limits.cache_bytes[kv_cache] * wide) * footprint.cache_copies,
        activation_bytes=_activation_bytes(decoder, limits, context, limits.activation_bytes * wide, fused=wide == 1),
        runtime_bytes=footprint.runtime_bytes + footprint.staged_weights * max(sizes),
    )


def stored_matrices(decoder: Decoder, storage_of: StorageOf) -> Iterator[Operation]:
    """Yield what reads each matrix and table: a table that is the output matrix too (tied) once."""
    for operation in operations(decoder, storage_of):
        if operation.size and not (decoder.tied and operation.block == "head"):
            yield operation


def other_numbers(decoder: Decoder) -> int:
    """Return how many numbers all other weights have: norms, biases and positions, which stay float32."""
    matrices = {decoder.embedding, *(linear.weight for linear in linears(decoder))}
    return sum(math.prod(shape) for name, shape in expected_shapes(decoder).items() if name not in matrices)


def artifact_bytes(
    storage: Storage, rows: int, cols: int, limits: Limits, *, static: bool = False, zeros: float = 0.0
) -> int:
    """Return the size of a (rows = out, cols = in) weight as a backend writes it, in its own blocks and padded.

    Args:
        storage: of the weight.
        rows: outputs.
        cols: inputs.
        limits: of the backend.
        static: whether the weight is multiplied with integers, as which it keeps one scale per output.
        zeros: the share of its numbers that are 0.
    """
    if isinstance(storage, Scheme) and not static:  # blocks have their 0 in the middle
        storage, cols = _written(storage, cols, limits)
        return storage_bytes(storage, rows, cols, limits.scale_bytes)
    size = storage_bytes(storage, rows, cols, limits.scale_bytes)
    itemsize = 1 if isinstance(storage, Scheme) else size // (rows * cols)
    left_out = rows * cols * itemsize - sparse_bytes(rows * cols, itemsize, zeros)
    return size - left_out if limits.sparse_files else size


def storage_bytes(storage: Storage, rows: int, cols: int, scale_bytes: int) -> int:
    """Return the size of a (rows = out, cols = in) weight whose blocks are its groups."""
    if not isinstance(storage, Scheme):
        return rows * cols * (2 if storage == "fp16" else 4)
    groups = rows * storage.groups(cols)
    zero_points = 0 if storage.symmetric else rows * math.ceil(storage.groups(cols) * storage.bits / 8)
    scales = groups + 4 if storage.dtype == "nvfp4" else scale_bytes * groups
    return rows * cols * storage.bits // 8 + scales + zero_points


def sparse_bytes(numbers: int, itemsize: int, zeros: float) -> int:
    """Return the size of a tensor of which a share is zeros, in a file that leaves them out where that is smaller.

    Source: ONNX's SparseTensorProto, which stores an int64 place for each number that is not 0.
    """
    return min(numbers * itemsize, math.ceil(numbers * (1 - zeros)) * (itemsize + PLACE_BYTES))


def usable_bytes(target: Target) -> float | None:
    """Return what a model may use of the target's memory; None where a class of machines does not determine it."""
    return None if target.memory_gib is None else target.memory_gib * target.memory_usable_fraction * 2**30


def _written(scheme: Scheme, cols: int, limits: Limits) -> tuple[Scheme, int]:
    """Return a scheme whose groups are the backend's blocks, and how many inputs rows of `cols` are padded to."""
    block = limits.block_size(scheme, cols)
    if block is None:
        return scheme, cols
    return msgspec.structs.replace(scheme, group=block), -(-cols // block) * block


def _resident_bytes(operation: Operation, limits: Limits, *, looked_up: bool, static: bool) -> int:
    """Return what a weight takes in memory, in all its copies; what is only looked up is not packed for a kernel."""
    footprint, storage = limits.footprint, operation.storage or "fp32"
    rows, cols = operation.shape
    copies, more_scales = (1, 0) if looked_up else (footprint.weight_copies, footprint.more_scales)
    stored = artifact_bytes(storage, rows, cols, limits, static=static)
    if not isinstance(storage, Scheme):
        return max(stored, rows * cols * footprint.float_bytes) * copies
    written, cols = (storage, cols) if static else _written(storage, cols, limits)
    return stored * copies + rows * written.groups(cols) * limits.scale_bytes * more_scales


def _activation_bytes(decoder: Decoder, limits: Limits, context: int, number_bytes: int, *, fused: bool) -> int:
    """Return the activations of the layer that has most, for the last piece of a prompt, and the logits of a token."""
    footprint, tokens = limits.footprint, min(PROMPT, context)

    def layer_bytes(layer: Layer) -> int:
        attention = layer.attention
        vectors = decoder.hidden_size + (attention.heads + 2 * attention.kv_heads) * attention.head_dim
        inner = layer.mlp.up.size[1] * (2 if layer.mlp.gate else 1)
        one_kernel = fused and (limits.soft_caps or not attention.softcap)
        scores = attention.heads * (footprint.scores if one_kernel else footprint.unfused_scores)
        linear = footprint.attention_buffers * vectors + footprint.mlp_buffers * inner
        return tokens * (linear * number_bytes + context * (scores * number_bytes + footprint.mask_bytes))

    return max(map(layer_bytes, decoder.layers)) + 4 * decoder.vocab_size
