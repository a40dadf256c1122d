"""Sizes that are known made constant, and what expand() asks for made the sizes that it comes to.

Older exporters take sizes of tensors out of their shapes even where they are known. They write expand(), whose sizes of
-1 mean "as it is", as a choice between sizes and ones; but what comes from a shape is never -1.
"""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.fuse.emitting import Emitter
from edgec.fuse.rule import Near, Phase, Stage, constant_of, is_constant, scalar_of
from edgec.fuse.surgery import infer_shapes, tidy
from edgec.fuse.terms import maker

TITLE = "known sizes made constant"
STAGE: Stage = "canonical"
PHASE: Phase = "clean"

_NOT_NEGATIVE = ("Add", "Cast", "Concat", "Gather", "Identity", "Mul", "Reshape", "Slice", "Squeeze", "Unsqueeze")
"""Operators whose result is not negative if no input is; Gather and Slice read only what they choose from."""


def apply(model: ir.Model, near: Near) -> list[str]:  # noqa: ARG001  a size is known or it is not
    """Make sizes constant, and return the names of what computed them."""
    changed = [str(node.name) for node in list(model.graph.all_nodes()) if not node.domain and _rewritten(node)]
    if changed:
        tidy(model)
        infer_shapes(model)
    return changed


def _rewritten(node: ir.Node) -> bool:
    if node.op_type == "Where":
        return _is_expansion(node)
    sizes = _known(node)
    if sizes is None or node.outputs[0].is_graph_output():
        return False
    emit = Emitter(node)
    emit.finish(emit.constant(sizes), sizes.shape)
    return True


def _known(node: ir.Node) -> NDArray[np.int64] | None:
    """Return the sizes that Shape, or Gather or Slice after it, gives, if they are all known."""
    if node.op_type == "Shape" and node.inputs[0] is not None and node.inputs[0].shape is not None:
        dims = list(node.inputs[0].shape)
        dims = dims[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(dims))]
        return np.array(dims, np.int64) if all(isinstance(dim, int) for dim in dims) else None
    shape = maker(node.inputs[0], "Shape") if node.op_type == "Gather" else None
    source = None if shape is None else shape.inputs[0]
    if shape is None or source is None or source.shape is None or not is_constant(node.inputs[1]):
        return None
    start, end = shape.attributes.get_int("start", 0), shape.attributes.get_int("end", len(source.shape))
    dims, at = list(source.shape)[start:end], constant_of(node.inputs[1], "the index")
    chosen = [dims[index] for index in at.reshape(-1)]
    known = [dim for dim in chosen if isinstance(dim, int)]
    return np.array(known, np.int64).reshape(at.shape) if len(known) == len(chosen) else None


def _is_expansion(node: ir.Node) -> bool:
    """Replace Where(sizes == -1, ones, sizes) by the sizes, and return whether it was that."""
    equal, ones, sizes = maker(node.inputs[0], "Equal"), node.inputs[1], node.inputs[2]
    concat = maker(sizes, "Concat")
    if equal is None or concat is None or not is_constant(ones) or equal.inputs[0] is not sizes:
        return False
    if not is_constant(equal.inputs[1]) or (constant_of(equal.inputs[1], "sizes") != -1).any():
        return False
    if (constant_of(ones, "sizes") != 1).any() or any(scalar_of(v) is None and not _is_size(v) for v in concat.inputs):
        return False
    if any(value is None or value.shape != [1] for value in concat.inputs):
        return False
    emit = Emitter(node)
    parts = [emit.integers(1) if scalar_of(value) == -1 else value for value in concat.inputs]
    emit.finish(emit.op("Concat", *(part for part in parts if part is not None), axis=0), [len(parts)])
    return True


def _is_size(value: ir.Value | None) -> bool:
    """Return whether a value is computed from shapes in a way that leaves it without a sign."""
    if is_constant(value):
        return bool((constant_of(value, "a size") >= 0).all())
    if maker(value, "Shape") is not None:
        return True
    node = maker(value, *_NOT_NEGATIVE)
    if node is None:
        return False
    read = node.inputs if node.op_type in ("Add", "Mul", "Concat") else node.inputs[:1]
    return all(_is_size(other) for other in read)
