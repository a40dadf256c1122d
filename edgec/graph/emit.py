"""Write an onnx_ir graph node by node."""

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.graph.store import shape_of
from edgec.graph.tags import BLOCK

OPSET = 23


class Emitter:
    """Collects nodes and initializers; every node is tagged with the block that it was written in.

    Attributes:
        block: the tag for nodes written from now on (see `edgec.graph.blocks`).
    """

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self.block = ""

    @contextmanager
    def in_block(self, name: str) -> Any:
        """Tag the nodes written inside with `name`."""
        outer, self.block = self.block, name
        yield
        self.block = outer

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        name: str,
        dtype: ir.DataType = ir.DataType.FLOAT,
        shape: ir.Shape | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Append a node with one output, named after the node, and return that output."""
        return self.ops(op_type, *inputs, name=name, outputs=[name], dtype=dtype, shape=shape, **attributes)[0]

    def ops(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        name: str,
        outputs: list[str],
        dtype: ir.DataType = ir.DataType.FLOAT,
        shape: ir.Shape | None = None,
        **attributes: Any,
    ) -> list[ir.Value]:
        """Append a node and return its outputs."""
        values = [ir.Value(name=n, type=ir.TensorType(dtype), shape=shape) for n in outputs]
        node = ir.node(op_type, inputs, attributes, outputs=values, name=name)
        node.metadata_props[BLOCK] = self.block
        self.nodes.append(node)
        return values

    def constant(self, name: str, array: Any, dtype: ir.DataType | None = None) -> ir.Value:
        """Return the initializer `name`, made from `array` the first time it is asked for."""
        if name not in self.initializers:
            tensor = ir.tensor(np.asarray(array), dtype=dtype, name=name)
            self._add(name, tensor)
        return self.initializers[name]

    def weight(self, name: str, shape: tuple[int, ...], load: Callable[[], np.ndarray[Any, Any]]) -> ir.Value:
        """Return the float32 initializer `name`, whose data is loaded each time that it is needed, and not kept."""
        if name not in self.initializers:
            lazy = ir.LazyTensor(
                lambda: ir.tensor(load(), name=name), ir.DataType.FLOAT, ir.Shape(shape), name=name, cache=False
            )
            self._add(name, lazy)
        return self.initializers[name]

    def _add(self, name: str, tensor: ir.TensorProtocol) -> None:
        self.initializers[name] = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(shape_of(tensor)), const_value=tensor
        )

    def model(self, name: str, inputs: list[ir.Value], outputs: list[ir.Value]) -> ir.Model:
        """Return what was written as a model."""
        graph = ir.Graph(
            inputs,
            outputs,
            nodes=self.nodes,
            initializers=list(self.initializers.values()),
            opset_imports={"": OPSET},
            name=name,
        )
        return ir.Model(graph, ir_version=11, producer_name="edgec")
