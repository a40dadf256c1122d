"""The floats of a graph: float16 and bfloat16 become float32, as backends narrow what they like; NaN is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.errors import CheckpointError
from edgec.graph.store import raw_bytes, shape_of

_PIECE = 1 << 20
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

# Attributes of standard operators that name a data type.
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "output_datatype", "precision", "softmax_precision", "stash_type")


def half_types(model: ir.Model) -> frozenset[ir.DataType]:
    """Return which of float16 and bfloat16 occur among a model's values; their types must have been inferred."""
    return frozenset(value.dtype for value in _values(model) if value.dtype in _HALF)


def reason_to_keep(model: ir.Model) -> str | None:
    """Say why a model's halves cannot be widened, or None where they can."""
    for node in model.graph.all_nodes():
        touched = [value for value in (*node.inputs, *node.outputs) if value is not None]
        if node.domain and any(value.dtype in _HALF or value.type is None for value in touched):
            return f"operator {node.domain}::{node.op_type} of node '{node.name}' may take them as they are"
        for attribute in node.attributes.values():
            if attribute.type in {ir.AttributeType.TYPE_PROTO, ir.AttributeType.TYPE_PROTOS}:
                return f"node '{node.name}' has a type as its attribute"
    for value in _values(model):
        if value.dtype in _HALF and not isinstance(value.type, ir.TensorType):
            return f"value '{value.name}' is no tensor"
    return None


def widen(model: ir.Model) -> None:
    """Turn every float16 and bfloat16 of a model into float32, in place; weights are widened when they are read.

    Casts from float32 to float32, which that leaves behind, go: they would stand between a weight and its operator.
    """
    for value in _values(model):
        if value.dtype in _HALF:
            value.type = ir.TensorType(ir.DataType.FLOAT)
        if value.const_value is not None and value.const_value.dtype in _HALF:
            value.const_value = _wide(value.const_value)
    for node in model.graph.all_nodes():
        if node.domain:
            continue
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in _HALF:
                node.attributes.add(ir.AttrTensor(name, _wide(attribute.as_tensor())))
            elif name in _TYPE_ATTRIBUTES and attribute.type == ir.AttributeType.INT and attribute.as_int() in _HALF:
                node.attributes.add(ir.AttrInt64(name, ir.DataType.FLOAT))
        _drop_idle_cast(node)


def _drop_idle_cast(node: ir.Node) -> None:
    source, made = node.inputs[0] if node.inputs else None, node.outputs[0]
    is_idle = node.op_type == "Cast" and source is not None and source.dtype == made.dtype == ir.DataType.FLOAT
    if is_idle and source is not None and node.graph is not None and not made.is_graph_output():
        made.replace_all_uses_with(source)
        node.graph.remove(node, safe=True)


def read_tensor(tensor: ir.TensorProtocol) -> NDArray[Any]:
    """Return the numbers of a tensor; those in another file are read, not mapped: mapped pages count as our memory."""
    if not isinstance(tensor, ir.ExternalTensor):
        return np.asarray(tensor.numpy())
    return raw_bytes(tensor)[: tensor.nbytes].view(tensor.dtype.numpy()).reshape(shape_of(tensor))


def _wide(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    return ir.LazyTensor(
        lambda: ir.tensor(read_tensor(tensor).astype(np.float32), name=tensor.name),
        ir.DataType.FLOAT,
        ir.Shape(shape_of(tensor)),
        name=tensor.name,
    )


def _values(model: ir.Model) -> list[ir.Value]:
    """Every value of a model, of its subgraphs too."""
    values: list[ir.Value] = []
    for graph in model.graphs():
        values += [*graph.inputs, *graph.initializers.values()]
        values += [value for node in graph for value in node.outputs]
    return list(dict.fromkeys(values))


def check_numbers(model: ir.Model, path: Path) -> None:
    """Look at weight after weight for NaN, and for infinities in what is multiplied: a mask may have them.

    Raises:
        CheckpointError: there are some; the message names the tensor, the first index and the count.
    """
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        if value.dtype is None or not value.dtype.is_floating_point() or value.dtype.bitwidth < 8:
            continue
        array = read_tensor(value.const_value)
        multiplied = any(use.node.op_type in _WEIGHTED and not use.node.domain for use in value.uses())
        count, first = _count_bad(array, infinite=multiplied)
        if count:
            index = tuple(int(i) for i in np.unravel_index(first, array.shape))
            what = "NaN or infinite" if multiplied else "NaN"
            raise CheckpointError(
                f"tensor '{name}' holds {count} of {array.size} values that are {what}, the first at {index}",
                where=str(path),
                hint="training diverged or the conversion overflowed; take an earlier or a wider checkpoint",
            )


def _count_bad(array: NDArray[Any], *, infinite: bool) -> tuple[int, int]:
    """Return how many numbers are NaN (or infinite), and the flat index of the first; in pieces, to save memory."""
    flat = array.reshape(-1)
    count, first = 0, 0
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE]
        bad = ~np.isfinite(piece) if infinite else np.isnan(piece)
        found = int(np.count_nonzero(bad))
        if found and not count:
            first = start + int(np.argmax(bad))
        count += found
    return count, first
