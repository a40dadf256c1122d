"""Which nodes of a network compute in float32 where the rest computes in float16.

Float16 ends at 65504 and loses precision below 2^-14. What leaves that range in usual networks is computed in float32:
norms and reductions, the sums that flow into them from layer to layer (the residual stream), what is computed from
integers alone (positions, masks), divisions by what the network computes, and nodes that read constants out of range.
So are products of int8 by int8, and what follows them up to the next product or rounding: TensorRT-RTX multiplies them
by the scales of their outputs in a kernel of its own, and in float16 what it hands over there is larger than the
product by a weight's scale (measured: gemm gives Half, and a Float where the graph says so). What else leaves the range
is found when exact mode runs (`overflow.py`).
"""

from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir

from edgec.graph.rewrite import array_of, users

LARGEST, SMALLEST = 65504.0, 2.0**-14
"""The magnitudes between which float16 has 11 significant bits."""

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16

NORMS = frozenset(
    {"BatchNormalization", "GroupNormalization", "InstanceNormalization", "LRN", "LayerNormalization"}
    | {"LpNormalization", "MeanVarianceNormalization", "RMSNormalization"}
)
REDUCTIONS = frozenset(
    {"CumSum", "GlobalAveragePool", "GlobalLpPool", "LpPool", "ReduceL1", "ReduceL2", "ReduceLogSum"}
    | {"ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare"}
)
_STEEP = frozenset({"DFT", "Exp", "GRU", "LSTM", "Log", "LogSoftmax", "Pow", "RNN", "Reciprocal", "STFT", "Sqrt"})
_PRODUCTS = frozenset({"Attention", "Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})
MOVERS = frozenset(
    {"Concat", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose"} | {"Unsqueeze"}
)
_SHAPES = frozenset({"Shape", "Size"})
_FLOAT32_INPUTS = {"Resize": (1, 2)}
"""Operators that take some floats in float32 only."""

FROM_NORM = "edgec.float32"
"""On a node: it is a norm or a reduction, or part of one that is written with other operators."""


def mark_norms(graph: ir.Graph) -> None:
    """Mark norms and reductions, before any of them is written with other operators."""
    for node in graph:
        if node.op_type in NORMS | REDUCTIONS:
            node.metadata_props[FROM_NORM] = node.op_type


def float32_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Return the nodes that compute in float32; the graph's values have types, and `mark_norms` has seen it."""
    wide = {node for node in graph if FROM_NORM in node.metadata_props or _is_wide(node)}
    wide |= _from_integers(graph)
    wide |= _residual_streams(graph, {node for node in wide if FROM_NORM in node.metadata_props})
    return wide


def floats(values: Collection[ir.Value | None]) -> Iterator[ir.Value]:
    """Yield the float32 values."""
    return (value for value in values if value is not None and value.dtype == FLOAT)


def is_given(value: ir.Value) -> bool:
    """Say whether a value is a constant, or what is stored as integers or float16 for one."""
    node = value.producer()
    return value.is_initializer() or (node is not None and is_stored(node))


def is_stored(node: ir.Node) -> bool:
    """Say whether a node gives a constant that is stored as something smaller."""
    value = node.inputs[0] if node.inputs else None
    is_small = node.op_type == "DequantizeLinear" or (
        node.op_type == "Cast" and value is not None and value.dtype == HALF
    )
    return is_small and value is not None and value.is_initializer()


def reads_float(node: ir.Node, index: int) -> bool:
    """Say whether an operator takes one of its inputs in float32 only, whatever it computes in."""
    return index in _FLOAT32_INPUTS.get(node.op_type, ())


def is_typed(node: ir.Node) -> bool:
    """Say whether a node has a type of its own; shapes are those of any, and rounding has that of what it rounds."""
    return node.op_type not in _SHAPES and node.op_type not in ("QuantizeLinear", "DequantizeLinear")


def fits(value: ir.Value) -> bool:
    """Say whether float16 holds a constant: none of its numbers is too large, and not all are too small."""
    magnitude = np.abs(array_of(value))
    largest = float(magnitude.max(initial=0))
    return largest == 0 or SMALLEST <= largest <= LARGEST


def is_exact(value: ir.Value) -> bool:
    """Say whether the numbers of a constant are float16 numbers."""
    array = array_of(value)
    with np.errstate(over="ignore"):
        return np.array_equal(array.astype(np.float16).astype(np.float32), array)


def _is_wide(node: ir.Node) -> bool:
    """Say whether a node needs float32 for what it is, or for the constants that it reads."""
    if not is_typed(node) or is_stored(node):
        return False
    read, given = list(floats(node.inputs)), list(floats(node.outputs))
    if not read and not given:
        return False
    has_body = any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()
    )
    if has_body or not read or not given or node.op_type in _STEEP:
        return True
    if node.op_type == "Softmax":  # the weights of an attention are as exact as they are used
        return not any(user.op_type == "MatMul" for user in users(node.outputs[0]))
    if node.op_type == "Div" and not is_given(node.inputs[1]):  # type: ignore[arg-type]
        return True
    return node.op_type != "Attention" and not all(map(_is_readable, _constants(node)))


def _constants(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the float32 constants that a node reads in the type that it computes in, scales of integers included."""
    for index, value in enumerate(node.inputs):
        if value is None or reads_float(node, index):
            continue
        producer = value.producer()
        if producer is not None and producer.op_type == "DequantizeLinear":
            yield from floats(producer.inputs[1:2])
        elif value.is_initializer() and value.dtype == FLOAT:
            yield value


def _is_readable(value: ir.Value) -> bool:
    is_scale = any(user.op_type == "DequantizeLinear" for user in users(value))
    return is_exact(value) if is_scale else fits(value)


def _from_integers(graph: ir.Graph) -> set[ir.Node]:
    """Return the nodes that compute with floats made from integers alone, with products of int8, or with sums."""
    found: set[ir.Node] = set()
    indices: set[ir.Value] = set()
    sums: set[ir.Value] = set()
    for node in graph:
        given = list(floats(node.outputs))
        if is_rounded(node):
            sums.update(given)
        if not given or is_stored(node) or not is_typed(node):
            continue
        if node.op_type == "Gather" and node.inputs[0] is not None and is_given(node.inputs[0]):
            continue
        computed = [value for value in floats(node.inputs) if not is_given(value)]
        follows = node.op_type not in _PRODUCTS and all(value in indices or value in sums for value in computed)
        if all(value in indices for value in computed):
            indices.update(given)
        elif follows or node.op_type in REDUCTIONS or _multiplies_integers(node):
            sums.update(given)
        else:
            continue
        found.add(node)
    return found


def is_rounded(node: ir.Node) -> bool:
    """Say whether a node gives a rounded activation."""
    return node.op_type == "DequantizeLinear" and not is_stored(node)


def _multiplies_integers(node: ir.Node) -> bool:
    factors = [value.producer() for value in node.inputs[:2] if value is not None]
    return node.op_type in _PRODUCTS and all(n is not None and n.op_type == "DequantizeLinear" for n in factors)


def _residual_streams(graph: ir.Graph, norms: set[ir.Node]) -> set[ir.Node]:
    """Return the additions of computed values that lead to a norm, through others and through what moves numbers."""
    stream = {value for node in norms for value in floats(node.inputs)}
    passing: list[ir.Node] = []
    found: set[ir.Node] = set()
    for node in reversed(graph):
        if not any(value in stream for value in node.outputs):
            continue
        computed = [value for value in floats(node.inputs) if not is_given(value)]
        if node.op_type == "Add" and len(computed) > 1:
            found.add(node)
            stream.update(computed)
        elif node.op_type in MOVERS:
            passing.append(node)
            stream.update(computed)
    for node in reversed(passing):
        if any(value.producer() in found for value in floats(node.inputs)):
            found.add(node)
    return found
