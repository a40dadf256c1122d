"""Lower integer weights to ONNX Runtime's blocked kernels: MatMulNBits and GatherBlockQuantized.

The integers stay what they are; signed codes are stored with an offset of half the range, which is what the kernels
take for granted when no zero point is given.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.backends.onnx_cpu import CONTRIB
from edgec.graph.rewrite import lazy, replace, users
from edgec.graph.rows import rows_note
from edgec.graph.store import pack_nibbles
from edgec.graph.tags import SAME_BYTES, WEIGHTS
from edgec.graph.weights import StoredCodes, stored_codes
from edgec.quantize.scheme import Scheme

if TYPE_CHECKING:
    from collections.abc import Callable

# Per-channel scales are repeated for blocks: the largest size that adds no padding costs the least.
_CHANNEL_BLOCKS = (128, 64, 32, 16)


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
    return stored_codes(node) if node is not None and node.op_type == "DequantizeLinear" else None


def block_size(scheme: Scheme, cols: int) -> int:
    """Return the kernel's block size for rows of `cols` inputs."""
    return scheme.group or next((size for size in _CHANNEL_BLOCKS if cols % size == 0), 32)


def _unsigned(stored: StoredCodes, padded_cols: int) -> NDArray[np.uint8]:
    """Return (rows, padded_cols) with the offset added, packed along the columns."""
    codes, scheme = stored.codes(), stored.scheme
    offset = np.uint8(-scheme.low)
    padded = np.full((codes.shape[0], padded_cols), offset, np.uint8)
    np.add(codes.view(np.uint8), offset, out=padded[:, : codes.shape[1]])
    packed = pack_nibbles(padded) if scheme.bits == 4 else padded
    return packed.reshape(len(codes), -1)


def _per_block(array: NDArray[Any], scheme: Scheme, blocks: int) -> NDArray[Any]:
    return np.ascontiguousarray(array if scheme.group else np.repeat(array, blocks, axis=1))


def _packed_zeros(stored: StoredCodes, blocks: int) -> NDArray[np.uint8]:
    """Return (rows, ceil(blocks * bits / 8)): each row packed by itself."""
    zeros = _per_block(stored.zero_points(), stored.scheme, blocks)
    if stored.scheme.bits == 8:
        return zeros
    return pack_nibbles(np.pad(zeros, ((0, 0), (0, blocks % 2)))).reshape(len(zeros), -1)


def _weight_inputs(graph: ir.Graph, stored: StoredCodes) -> tuple[list[ir.Value], int]:
    """Return the kernels' (B, scales[, zero points]) for a quantized weight, made once, and the block size."""
    scheme, (rows, cols), name = stored.scheme, stored.shape, stored.name
    width = block_size(scheme, cols)
    blocks = -(-cols // width)
    shape = (rows, blocks, width * scheme.bits // 8)
    parts: list[tuple[str, ir.DataType, tuple[int, ...], Callable[[], NDArray[Any]]]] = [
        (".nbits", ir.DataType.UINT8, shape, lambda: _unsigned(stored, blocks * width).reshape(shape)),
        (".nbits_scales", ir.DataType.FLOAT, (rows, blocks), lambda: _per_block(stored.scales(), scheme, blocks)),
    ]
    if not scheme.symmetric:
        packed = (rows, -(-blocks * scheme.bits // 8))
        parts.append((".nbits_zeros", ir.DataType.UINT8, packed, lambda: _packed_zeros(stored, blocks)))
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
    vectors = [v for v in after[0].inputs if v is not None and v.is_initializer() and v.shape and len(v.shape) == 1]
    return after[0] if vectors else None


def _gather(graph: ir.Graph, node: ir.Node, stored: StoredCodes) -> None:
    rows, cols = stored.shape
    (packed, *rest), width = _weight_inputs(graph, stored)
    shape = (rows, -(-cols * stored.scheme.bits // 8))
    name = f"{stored.name}.table"
    table = lazy(graph, name, ir.DataType.UINT8, shape, lambda: _unsigned(stored, cols + cols % 2))
    table.metadata_props[WEIGHTS] = rows_note([(stored.name, rows)])
    if cols % width == 0:
        table.metadata_props[SAME_BYTES] = str(packed.name)
    attributes = {"bits": stored.scheme.bits, "block_size": width, "gather_axis": 0, "quantize_axis": 1}
    inputs = [table, node.inputs[1], *rest]
    replace(graph, node, ir.node("GatherBlockQuantized", inputs, attributes, domain=CONTRIB, name=node.name))
