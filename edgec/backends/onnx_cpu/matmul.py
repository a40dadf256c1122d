"""Lower integer weights to ONNX Runtime's blocked kernels: MatMulNBits and GatherBlockQuantized.

The integers stay what they are; signed codes are stored with an offset of half the range, which is what the kernels
take for granted when no zero point is given. Groups that do not divide the inputs are written in smaller blocks that
do, with their scales repeated; where there are no such blocks, rows are padded.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.backends.onnx_cpu import CONTRIB
from edgec.backends.onnx_cpu.kernels import block_size
from edgec.graph.rewrite import constant, lazy, replace, users
from edgec.graph.rows import rows_note
from edgec.graph.store import pack_nibbles
from edgec.graph.tags import SAME_BYTES, WEIGHTS
from edgec.graph.weights import StoredCodes, stored_codes

if TYPE_CHECKING:
    from collections.abc import Callable


def lower_matmuls(graph: ir.Graph, accuracy_level: int) -> None:
    """Replace every MatMul whose right side is dequantized by MatMulNBits."""
    for node in list(graph):
        if node.op_type == "MatMul" and (stored := _stored(node.inputs[1])):
            _matmul(graph, node, stored, accuracy_level)


def lower_gathers(graph: ir.Graph) -> None:
    """Replace every Gather from a dequantized table by GatherBlockQuantized."""
    for node in list(graph):
        if node.op_type == "Gather" and (stored := _stored(node.inputs[0])):
            _gather(graph, node, stored)


def _stored(value: ir.Value | None) -> StoredCodes | None:
    """Return the integers behind `value`, with or without a Transpose between (a tied output matrix)."""
    node = value.producer() if value else None
    if node is not None and node.op_type == "Transpose" and node.inputs[0]:
        node = node.inputs[0].producer()
    if node is None or node.op_type != "DequantizeLinear" or not node.inputs[0] or not node.inputs[0].is_initializer():
        return None  # not a weight: an activation that was rounded
    return stored_codes(node)


def _unsigned(stored: StoredCodes, padded_cols: int) -> NDArray[np.uint8]:
    """Return (rows, padded_cols) with the offset added, packed along the columns."""
    codes, scheme = stored.codes(), stored.scheme
    offset = np.uint8(-scheme.low)
    padded = np.full((codes.shape[0], padded_cols), offset, np.uint8)
    np.add(codes.view(np.uint8), offset, out=padded[:, : codes.shape[1]])
    packed = pack_nibbles(padded) if scheme.bits == 4 else padded
    return packed.reshape(len(codes), -1)


def _per_block(groups: NDArray[Any], stored: StoredCodes, width: int) -> NDArray[Any]:
    """Return what each group has (rows, groups) for each of the blocks that it consists of; the last may have fewer."""
    cols = stored.shape[1]
    blocks = -(-cols // width)
    repeats = (stored.scheme.group or blocks * width) // width
    return np.ascontiguousarray(np.repeat(groups, repeats, axis=1)[:, :blocks])


def _packed_zeros(stored: StoredCodes, width: int) -> NDArray[np.uint8]:
    """Return (rows, ceil(blocks * bits / 8)): each row packed by itself."""
    zeros = _per_block(stored.zero_points(), stored, width)
    if stored.scheme.bits == 8:
        return zeros
    return pack_nibbles(np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2)))).reshape(len(zeros), -1)


def _weight_inputs(graph: ir.Graph, stored: StoredCodes) -> tuple[list[ir.Value], int]:
    """Return the kernels' (B, scales[, zero points]) for a quantized weight, made once, and the block size."""
    scheme, (rows, cols), name = stored.scheme, stored.shape, stored.name
    width = block_size(scheme, cols)
    blocks = -(-cols // width)
    shape = (rows, blocks, width * scheme.bits // 8)
    parts: list[tuple[str, ir.DataType, tuple[int, ...], Callable[[], NDArray[Any]]]] = [
        (".nbits", ir.DataType.UINT8, shape, lambda: _unsigned(stored, blocks * width).reshape(shape)),
        (".nbits_scales", ir.DataType.FLOAT, (rows, blocks), lambda: _per_block(stored.scales(), stored, width)),
    ]
    if not scheme.symmetric:
        packed = (rows, -(-blocks * scheme.bits // 8))
        parts.append((".nbits_zeros", ir.DataType.UINT8, packed, lambda: _packed_zeros(stored, width)))
    values = [
        graph.initializers.get(name + suffix) or lazy(graph, name + suffix, dtype, part_shape, load)
        for suffix, dtype, part_shape, load in parts
    ]
    values[0].metadata_props[WEIGHTS] = rows_note([(name, rows)])
    return values, width


def _matmul(graph: ir.Graph, node: ir.Node, stored: StoredCodes, accuracy_level: int) -> None:
    rows, cols = stored.shape
    values, width = _weight_inputs(graph, stored)
    inputs: list[ir.Value | None] = [node.inputs[0], *values]
    add = bias_add(node)
    if add is not None:
        bias = next(v for v in add.inputs if v is not None and v.is_initializer())
        inputs += [None] * (5 - len(inputs)) + [bias]
    attributes = {
        "K": cols, "N": rows, "bits": stored.scheme.bits, "block_size": width, "accuracy_level": accuracy_level,
    }  # fmt: skip
    put(graph, ir.node("MatMulNBits", inputs, attributes, domain=CONTRIB, name=node.name), node, add)


def put(graph: ir.Graph, new: ir.Node, node: ir.Node, add: ir.Node | None) -> None:
    """Put `new` where the matmul `node` is, and where the `add` of its bias is, if it has one."""
    if add is None:
        replace(graph, node, new)
    else:
        replace(graph, add, new)
        graph.remove(node, safe=True)


def bias_add(node: ir.Node) -> ir.Node | None:
    """Return the Add of a one-dimensional initializer that is the only user of `node`, if there is one."""
    after = users(node.outputs[0])
    if len(after) != 1 or after[0].op_type != "Add":
        return None
    weight = node.inputs[1].shape if node.inputs[1] is not None else None
    width = weight[-1] if weight is not None else None
    vectors = [v for v in after[0].inputs if v is not None and v.is_initializer() and v.shape and len(v.shape) == 1]
    return after[0] if any(width in (None, v.shape[0]) for v in vectors if v.shape) else None


def _gather(graph: ir.Graph, node: ir.Node, stored: StoredCodes) -> None:
    rows, cols = stored.shape
    (packed, *rest), width = _weight_inputs(graph, stored)
    padded = -(-cols // width) * width
    shape = (rows, padded * stored.scheme.bits // 8)
    name = f"{stored.name}.table"
    table = lazy(graph, name, ir.DataType.UINT8, shape, lambda: _unsigned(stored, padded))
    table.metadata_props[WEIGHTS] = rows_note([(stored.name, rows)])
    table.metadata_props[SAME_BYTES] = str(packed.name)
    attributes = {"bits": stored.scheme.bits, "block_size": width, "gather_axis": 0, "quantize_axis": 1}
    inputs = [table, node.inputs[1], *rest]
    gather = ir.node("GatherBlockQuantized", inputs, attributes, domain=CONTRIB, name=node.name)
    if padded == cols:
        replace(graph, node, gather)
        return
    # The bytes of the output matrix, which are there once: what pads its rows is cut off.
    gather.metadata_props.update(node.metadata_props)
    gather.outputs[0].name = f"{name}.rows"
    graph.insert_before(node, gather)
    limits = [constant(graph, f"integers.{n}", np.array([n], np.int64)) for n in (0, cols, -1)]
    replace(graph, node, ir.node("Slice", [gather.outputs[0], *limits], name=f"{node.name}.cut"))
