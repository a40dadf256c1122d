"""A checkpoint with the matrices of a float graph, stored where its family keeps them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgec.checkpoint.model import Array, Checkpoint, TensorInfo
from edgec.frontends.architecture import Decoder, Linear
from edgec.frontends.decoder_tensors import expected_shapes, linears
from edgec.graph.rewrite import array_of


def put_back(checkpoint: Checkpoint, decoder: Decoder, model: ir.Model) -> Checkpoint:
    """Return `checkpoint` with the matrices that `model` has; a tensor is put together when it is read.

    Tensors of matrices become float32; the others, the token embedding among them, are those of `checkpoint`. What the
    decoder does not name is left out, as in `edgec.prune.slim`.

    Args:
        checkpoint: what `model` was emitted from.
        decoder: its description.
        model: the canonical graph, neither rotated nor scaled; its matrices may have other numbers than those read.
    """
    parts: dict[str, list[Linear]] = {}
    for linear in linears(decoder):
        parts.setdefault(linear.weight, []).append(linear)

    def load(name: str) -> Array:
        return _joined(parts[name], model.graph.initializers) if name in parts else checkpoint.load(name)

    tensors = {
        name: TensorInfo(name, "F32", shape) if name in parts else checkpoint.tensors[name]
        for name, shape in expected_shapes(decoder).items()
    }
    return replace(checkpoint, tensors=tensors, load=load)


def _joined(parts: Sequence[Linear], initializers: Mapping[str, ir.Value]) -> Array:
    """Return a tensor of the checkpoint from the (in, out) matrices that are its parts; together they are all of it."""
    rows = np.empty((sum(linear.size[1] for linear in parts), parts[0].size[0]), np.float32)
    for linear in parts:
        matrix = array_of(initializers[f"{linear.weight}.{linear.part}" if linear.part else linear.weight]).T
        start = 0
        for first, stop in linear.rows or ((0, len(rows)),):
            rows[first:stop] = matrix[start : start + stop - first]
            start += stop - first
    return np.ascontiguousarray(rows.T) if parts[0].transposed else rows
