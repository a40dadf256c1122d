"""Small moves on an onnx_ir graph that lowering rules share."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.graph.store import shape_of


def lazy(
    graph: ir.Graph, name: str, dtype: ir.DataType, shape: tuple[int, ...], load: Callable[[], NDArray[Any]]
) -> ir.Value:
    """Register the initializer `name`, computed by `load` each time it is needed, and return it."""
    tensor = ir.LazyTensor(lambda: ir.tensor(load(), dtype=dtype, name=name), dtype, ir.Shape(shape), name=name)
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """Return the small initializer `name`, registering it the first time."""
    if name not in graph.initializers:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(shape_of(tensor)), const_value=tensor
        )
        graph.register_initializer(value)
    return graph.initializers[name]


def array_of(value: ir.Value) -> NDArray[Any]:
    """Return the data of an initializer."""
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy())


def users(value: ir.Value) -> list[ir.Node]:
    """Return the nodes that read `value`, in no particular order."""
    return [use.node for use in value.uses()]


def replace(graph: ir.Graph, old: ir.Node, new: ir.Node, *, at: ir.Node | None = None) -> None:
    """Put `new` where `at` (default: `old`) is, give its outputs the names and users of `old`'s, and drop `old`."""
    new.metadata_props.update(old.metadata_props)
    graph.insert_before(at or old, new)
    for before, after in zip(old.outputs, new.outputs, strict=False):
        after.name, after.type, after.shape = before.name, before.type, before.shape
        before.replace_all_uses_with(after, replace_graph_outputs=True)
    graph.remove(old, safe=True)


def sweep(graph: ir.Graph) -> None:
    """Remove nodes and initializers that nothing reads any more."""
    outputs = set(graph.outputs)
    for node in reversed(list(graph)):
        if not any(value.uses() or value in outputs for value in node.outputs):
            graph.remove(node, safe=True)
    for name in [n for n, v in graph.initializers.items() if not v.uses() and v not in outputs]:
        del graph.initializers[name]
