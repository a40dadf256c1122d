"""Operators written in place of a node, by passes."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.fuse.surgery import same_size


class Emitter:
    """Writes operators in front of a node, and takes the node away in the end.

    Names of its own for each node and value are left to `surgery.tidy`, types and shapes to `surgery.infer_shapes`.

    Args:
        node: what is replaced; it has one output.
    """

    def __init__(self, node: ir.Node) -> None:
        self._node = node

    def op(self, kind: str, *inputs: ir.Value, **attributes: float | Sequence[int]) -> ir.Value:
        """Write an operator, and return its output, which has the type of the first input."""
        node = self._insert(ir.node(kind, inputs, attributes))
        node.outputs[0].type = inputs[0].type
        return node.outputs[0]

    def constant(self, array: NDArray[Any]) -> ir.Value:
        """Write a constant."""
        return self._insert(ir.node("Constant", [], {"value": ir.tensor(array)})).outputs[0]

    def integers(self, *numbers: int) -> ir.Value:
        """Write a vector of int64."""
        return self.constant(np.array(numbers, np.int64))

    def size(self, value: ir.Value, axis: int) -> ir.Value:
        """Write the size of an axis, as a vector of one int64."""
        assert value.shape is not None
        known = self.known_size(value.shape[axis])
        return known if known is not None else self._size(value, axis)

    def known_size(self, size: int | ir.SymbolicDim) -> ir.Value | None:
        """Write a size that is a number, or that of an axis of the graph's inputs; None if it is neither.

        So equal sizes are the same value, and what is computed from them has to be computed once.
        """
        assert self._node.graph is not None
        if isinstance(size, int):
            return self.integers(size)
        places = ((port, at, other) for port in self._node.graph.inputs for at, other in enumerate(port.shape or ()))
        place = next(((port, at) for port, at, other in places if same_size(size, other)), None)
        return None if place is None else self._size(*place)

    def _size(self, value: ir.Value, axis: int) -> ir.Value:
        node = self._insert(ir.node("Shape", [value], {"start": axis, "end": axis + 1}))
        node.outputs[0].type = ir.TensorType(ir.DataType.INT64)
        return node.outputs[0]

    def finish(self, result: ir.Value, shape: Iterable[int | ir.SymbolicDim]) -> None:
        """Let what was written take the node's place."""
        graph, old = self._node.graph, self._node.outputs[0]
        assert graph is not None
        result.name, result.type, result.shape = old.name, old.type, ir.Shape(shape)
        old.replace_all_uses_with(result, replace_graph_outputs=True)
        graph.remove(self._node, safe=True)

    def _insert(self, node: ir.Node) -> ir.Node:
        assert self._node.graph is not None
        node.name = _named_after(str(self._node.name), node.op_type)
        node.metadata_props.update(self._node.metadata_props)
        self._node.graph.insert_before(self._node, node)
        return node


def _named_after(name: str, kind: str) -> str:
    """Return a name for an operator that stands in place of the node `name`: in its scope, if it has one."""
    scope = name[: max(name.rfind("/"), name.rfind(".")) + 1]
    return f"{scope}{kind}" if scope else f"{kind}_{name}"
