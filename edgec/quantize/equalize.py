"""The pass that makes the channels between two layers alike, so that one scale rounds them all well.

Dividing a channel of what a layer gives by s, and multiplying by s what the next layer does with it, changes nothing as
long as functions f with f(s x) = s f(x) lie between. s makes the largest weight that gives the channel as large as the
largest that reads it. Here s is a power of two: nothing is rounded, and outputs stay what they were, bit for bit, where
numbers stay in float32's normal range. The bias counts among the weights that give a channel; otherwise a channel of
small weights and a large bias would be scaled until it dwarfs all others.

A Clip (Relu6) is in the way: its bound would have to differ from channel to channel.

Source: Nagel et al. 2019, Data-free quantization through weight equalization and bias correction (arXiv:1906.04721),
section 4.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.graph.rewrite import array_of

Array = NDArray[Any]

_LAYERS = ("Conv", "Gemm", "MatMul")
_PASSED = ("Identity", "LeakyRelu", "Relu")
_PASSED_BEHIND_CONV = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool")
# Whatever is left then is as exact, only less equal.
_MOST_ROUNDS = 100


@dataclass(frozen=True)
class Equalized:
    """What became of the channels that a layer gives.

    Args:
        layer: the name of the node.
        reader: the name of the layer that reads them; None where they were left alone.
        refused: why they were left alone; None where they were not.
        largest_scale: what a channel was multiplied or divided by, at most.
    """

    layer: str
    reader: str | None = None
    refused: str | None = None
    largest_scale: float = 1.0


@dataclass(frozen=True, eq=False)
class _Pair:
    first: ir.Node
    second: ir.Node
    bias: ir.Value | None


class _RefusedError(Exception):
    """Says why a layer is left alone."""


def equalize(model: ir.Model) -> list[Equalized]:
    """Scale the channels between layers of a canonical float graph; return what became of each layer, in graph order.

    Layers are Conv, Gemm and MatMul with a constant weight of their own.

    Args:
        model: weights and biases of equalized layers are replaced by arrays in memory.
    """
    found: dict[ir.Node, _Pair | str] = {}
    for node in model.graph:
        if node.op_type in _LAYERS and not node.domain and _is_constant(node.inputs[1]):
            try:
                found[node] = _pair(node)
            except _RefusedError as error:
                found[node] = str(error)
    pairs = [pair for pair in found.values() if isinstance(pair, _Pair)]
    moved = dict(zip(pairs, _balance(pairs), strict=True))
    return [
        Equalized(str(node.name), refused=pair)
        if isinstance(pair, str)
        else Equalized(str(node.name), str(pair.second.name), largest_scale=2.0 ** int(np.abs(moved[pair]).max()))
        for node, pair in found.items()
    ]


def _pair(first: ir.Node) -> _Pair:
    """Return a layer with the one that reads it.

    Raises:
        _RefusedError: there is none, or something else is in the way.
    """
    _check_layer(first)
    value, bias = first.outputs[0], first.inputs[2] if len(first.inputs) > 2 else None
    second = _only_reader(value)
    if first.op_type == "MatMul" and second.op_type == "Add" and any(map(_is_constant, second.inputs)):
        bias = next(other for other in second.inputs if other is not value)
        value = second.outputs[0]
        second = _only_reader(value)
    passed = _PASSED + _PASSED_BEHIND_CONV * (first.op_type == "Conv")
    while second.op_type in passed and not second.domain:
        if any(other.uses() or other.is_graph_output() for other in second.outputs[1:]):
            raise _RefusedError(f"{second.op_type} behind it gives more than one value")
        value = second.outputs[0]
        second = _only_reader(value)
    if second.op_type not in _LAYERS or second.domain:
        raise _RefusedError(f"{second.op_type} is behind it")
    if second.inputs[0] is not value or (first.op_type == "Conv") != (second.op_type == "Conv"):
        raise _RefusedError(f"{second.op_type} behind it does not multiply its channels by weights")
    _check_layer(second)
    if bias is not None:
        _check_bias(bias, _by_output(first, array_of(_weight(first))).shape[0])
    return _Pair(first, second, bias)


def _only_reader(value: ir.Value) -> ir.Node:
    readers = {use.node for use in value.uses()}
    if value.is_graph_output():
        raise _RefusedError("what it gives is an output of the model")
    if len(readers) != 1 or len(value.uses()) != 1:
        raise _RefusedError("what it gives is read more than once")
    (reader,) = readers
    producer = value.producer()
    if producer is None or reader.graph is not producer.graph:
        raise _RefusedError("what it gives is read in a subgraph")
    return reader


def _check_layer(node: ir.Node) -> None:
    weight = node.inputs[1]
    if weight is None or not _is_constant(weight) or weight.dtype != ir.DataType.FLOAT:
        raise _RefusedError(f"the weight of {node.name} is no float constant")
    if len(weight.uses()) != 1:
        raise _RefusedError(f"the weight of {node.name} is read more than once")
    if node.op_type == "MatMul" and len(array_of(weight).shape) != 2:
        raise _RefusedError(f"the weight of {node.name} is no matrix")
    if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) == 1:
        raise _RefusedError(f"{node.name} transposes what it reads")


def _check_bias(bias: ir.Value, channels: int) -> None:
    if not _is_constant(bias) or len(bias.uses()) != 1:
        raise _RefusedError("its bias is no constant of its own")
    shape = array_of(bias).shape
    if not shape or shape[-1] != channels or bias.const_value.size != channels:  # type: ignore[union-attr]
        raise _RefusedError("its bias is not one number for each channel")


def _is_constant(value: ir.Value | None) -> bool:
    if value is None or not value.is_initializer() or value.const_value is None:
        return False
    return not value.is_graph_output() and not value.is_graph_input()


def _weight(node: ir.Node) -> ir.Value:
    assert node.inputs[1] is not None
    return node.inputs[1]


def _balance(pairs: Sequence[_Pair]) -> list[NDArray[np.int32]]:
    """Scale weights until nothing changes; return the exponents by which the channels of each pair were divided."""
    values = {value for pair in pairs for value in (_weight(pair.first), _weight(pair.second), pair.bias)}
    arrays = {value: array_of(value).copy() for value in values if value is not None}
    sums: list[Any] = [0] * len(pairs)
    for _ in range(_MOST_ROUNDS):
        moves = [_scale(pair, arrays) for pair in pairs]
        sums = [before + now for before, now in zip(sums, moves, strict=True)]
        if not any(move.any() for move in moves):
            break
    for value, array in arrays.items():
        value.const_value = ir.tensor(array, name=value.name)
    return sums


def _scale(pair: _Pair, arrays: dict[ir.Value, Array]) -> NDArray[np.int32]:
    """Scale the channels between two layers in place, and return the exponents."""
    giving = _by_output(pair.first, arrays[_weight(pair.first)])
    reading = _by_input(pair.second, arrays[_weight(pair.second)])
    given = _largest(giving, 1)
    bias = None if pair.bias is None else arrays[pair.bias].reshape(-1)
    if bias is not None:
        given = np.maximum(given, np.abs(bias))
    read = _largest(reading, 2)
    alive = (given > 0) & (read > 0) & np.isfinite(given) & np.isfinite(read)
    ratios = np.divide(given, read, where=alive, out=np.ones(len(given)))
    exponents = np.rint(np.log2(ratios) / 2).astype(np.int32)
    _multiply(giving, 1, -exponents)
    _multiply(reading, 2, exponents)
    if bias is not None:
        _multiply(bias, 1, -exponents)
    return exponents


def _by_output(node: ir.Node, weight: Array) -> Array:
    """Return a view (outputs, ...) of a weight."""
    first = node.op_type == "Conv" or (node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1)
    return weight if first else weight.T


def _by_input(node: ir.Node, weight: Array) -> Array:
    """Return a view (groups, inputs of a group, outputs of a group, ...) of a weight."""
    groups = node.attributes.get_int("group", 1) if node.op_type == "Conv" else 1
    rows = _by_output(node, weight)
    return np.swapaxes(rows.reshape(groups, -1, *rows.shape[1:], copy=False), 1, 2)


def _largest(view: Array, axes: int) -> NDArray[np.float64]:
    """Return the largest sizes along the first axes, flat."""
    return np.asarray(np.abs(view).max(axis=tuple(range(axes, view.ndim)), initial=0.0).astype(np.float64).reshape(-1))


def _multiply(view: Array, axes: int, exponents: NDArray[np.int32]) -> None:
    """Multiply by powers of two along the first axes, in place."""
    np.ldexp(view, exponents.reshape(*view.shape[:axes], *(1,) * (view.ndim - axes)), out=view)
