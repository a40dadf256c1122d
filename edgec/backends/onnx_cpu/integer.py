"""Lower matmuls of int8 by int8 to ONNX Runtime's MatMulIntegerToFloat, with one QuantizeLinear for each value.

The kernels are fast for unsigned inputs only: on x86, signed ones run at a twentieth of the speed. So -128..127 is
written as 0..255 around a zero point of 128: the same integers, moved; what is unsigned already stays as it is. An x86
CPU without VNNI adds two products of unsigned and signed numbers in 16 bits, which may not hold them; for those,
weights are moved too, and nothing is lost.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.backends.onnx_cpu import CONTRIB
from edgec.backends.onnx_cpu.matmul import bias_add, put
from edgec.graph.rewrite import constant, lazy
from edgec.graph.rows import rows_note
from edgec.graph.tags import WEIGHTS
from edgec.graph.weights import StoredCodes, stored_codes

MIDDLE = 128
"""The zero point of what is stored unsigned."""

Rounded = tuple[ir.Value, ir.Value, ir.Value]
"""Unsigned integers, their scale, and their zero point."""


def lower_integer_matmuls(graph: ir.Graph, *, unsigned_weights: bool) -> None:
    """Replace every MatMul of a rounded activation and an integer weight by MatMulIntegerToFloat."""
    for node in list(graph):
        if node.op_type == "MatMul" and (quantize := quantizer(node.inputs[0])) and is_weight(node.inputs[1]):
            multiply(graph, node, rounded(graph, quantize), unsigned_weights=unsigned_weights)


def quantizer(value: ir.Value | None) -> ir.Node | None:
    """Return the QuantizeLinear of an activation that was rounded to integers; None for other values."""
    dequantize = value.producer() if value is not None else None
    if dequantize is None or dequantize.op_type != "DequantizeLinear" or dequantize.inputs[0] is None:
        return None
    return dequantize.inputs[0].producer()


def is_weight(value: ir.Value | None) -> bool:
    """Say whether a value is a constant of int8 with one scale for each output, dequantized."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or len(node.inputs) != 2:
        return False
    codes, scales = node.inputs
    assert codes is not None
    assert scales is not None
    is_constant = codes.is_initializer() and codes.dtype == ir.DataType.INT8
    return is_constant and scales.shape is not None and len(scales.shape) == 1


def multiply(graph: ir.Graph, node: ir.Node, left: Rounded, *, unsigned_weights: bool) -> None:
    """Put MatMulIntegerToFloat, with the bias that is added behind, where the MatMul `node` is."""
    weight = node.inputs[1].producer() if node.inputs[1] is not None else None
    assert weight is not None
    add = bias_add(node)
    inputs = product_inputs(graph, left, stored_codes(weight), unsigned_weights=unsigned_weights)
    if add is not None:
        inputs.append(next(v for v in add.inputs if v is not None and v.is_initializer()))
    put(graph, ir.node("MatMulIntegerToFloat", inputs, domain=CONTRIB, name=node.name), node, add)


def rounded(graph: ir.Graph, quantize: ir.Node) -> Rounded:
    """Return the unsigned integers that a QuantizeLinear gives, made unsigned where it gives others."""
    zero = quantize.inputs[2]
    if zero is None or zero.dtype == ir.DataType.INT8:
        zero = constant(graph, "uint8.zero", np.array(MIDDLE, np.uint8))
        quantize.replace_input_with(2, zero)
        quantize.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
    assert quantize.inputs[1] is not None
    return quantize.outputs[0], quantize.inputs[1], zero


def product_inputs(
    graph: ir.Graph, left: Rounded, stored: StoredCodes, *, unsigned_weights: bool
) -> list[ir.Value | None]:
    """Return what MatMulIntegerToFloat reads, but for a bias, to multiply unsigned integers by a weight."""
    (rows, cols), name = stored.shape, stored.name
    dtype = ir.DataType.UINT8 if unsigned_weights else ir.DataType.INT8

    def once(suffix: str, kind: ir.DataType, shape: tuple[int, ...], load: Callable[[], NDArray[Any]]) -> ir.Value:
        known = graph.initializers.get(name + suffix)  # by another product with the same weight
        return lazy(graph, name + suffix, kind, shape, load) if known is None else known

    codes = once(".int8", dtype, (cols, rows), partial(_codes, stored, unsigned=unsigned_weights))
    codes.metadata_props[WEIGHTS] = rows_note([(name, rows)])
    scales = once(".int8_scales", ir.DataType.FLOAT, (rows,), lambda: stored.scales()[:, 0])
    inputs = [left[0], codes, left[1], scales, left[2], None]
    if unsigned_weights:
        zeros = partial(np.full, rows, MIDDLE, np.uint8)
        inputs[5] = once(".int8_zeros", ir.DataType.UINT8, (rows,), zeros)
    return inputs


def _codes(stored: StoredCodes, *, unsigned: bool) -> NDArray[np.int8] | NDArray[np.uint8]:
    """Return the (in, out) integers, the middle added where they are unsigned."""
    codes = np.ascontiguousarray(stored.codes().T)
    return codes.view(np.uint8) ^ np.uint8(MIDDLE) if unsigned else codes
