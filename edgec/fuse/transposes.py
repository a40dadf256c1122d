"""Transposes merged, removed, and moved through the operators between them until they cancel.

A region is a set of operators that work on single elements (or along an axis that can be renamed), all of whose inputs
come transposed in the same way. It can work on the data before the transposes instead. Transposes of its inputs go, if
nobody else reads them; so do transposes of its outputs that undo them; its other outputs need a new one. A region is
moved if that leaves fewer transposes.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgec.fuse.rule import Near, Phase, Stage, is_constant, lazily, node_of
from edgec.fuse.surgery import bypass

TITLE = "transposes merged and cancelled"
STAGE: Stage = "canonical"
PHASE: Phase = "clean"

Order = tuple[int, ...]

# fmt: off
_ELEMENTWISE = frozenset((
    "Abs", "Add", "Cast", "Ceil", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater",
    "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Less", "Log", "Max", "Min", "Mish", "Mul", "Neg", "Not",
    "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub",
    "Sum", "Tanh", "ThresholdedRelu", "Where",
))
# fmt: on
_ALONG_AXIS = ("Concat", "Softmax", "LogSoftmax")  # the last axis if none is given


def apply(model: ir.Model, near: Near) -> list[str]:
    """Merge, remove and move transposes; return the names of those that are gone and of the operators moved."""
    changed: list[str] = []
    for graph in model.graphs():
        changed += [str(node.name) for node in list(graph) if _is_transpose(node) and _merge(node)]
        while moved := _move_one(graph):
            changed += moved
        for region in _regions(graph):
            if region.cancelled:
                near(region.nodes[0], f"moving {len(region.nodes)} operators before transposes would save none of them")
    return changed


def _move_one(graph: ir.Graph) -> list[str]:
    """Move the first region that is worth it, and return the names of its operators."""
    for region in _regions(graph):
        if region.gain > 0:
            _move(graph, region)
            return [str(node.name) for node in region.nodes]
    return []


@dataclass(frozen=True, eq=False)
class _Region:
    order: Order
    nodes: tuple[ir.Node, ...]
    sources: tuple[ir.Node, ...]
    cancelled: tuple[ir.Node, ...]
    leaving: tuple[ir.Value, ...]

    @property
    def gain(self) -> int:
        inside = {*self.nodes}
        gone = [node for node in self.sources if all(use.node in inside for use in node.outputs[0].uses())]
        stay = sum(node.outputs[0].is_graph_output() for node in gone)
        return len(gone) - stay + len(self.cancelled) - len(self.leaving)


def _is_transpose(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and not node.domain and "perm" in node.attributes


def _order(node: ir.Node) -> Order:
    return tuple(node.attributes["perm"].as_ints())


def _merge(node: ir.Node) -> bool:
    """Take over the Transpose before this one, and remove it if nothing changes then."""
    first = node.inputs[0].producer() if node.inputs[0] else None
    merged = first is not None and _is_transpose(first) and first.graph is node.graph
    if merged and first is not None:
        node.attributes["perm"] = ir.AttrInt64s("perm", [_order(first)[axis] for axis in _order(node)])
        node.replace_input_with(0, first.inputs[0])
    order, source = _order(node), node.inputs[0]
    if source is not None and order == tuple(range(len(order))):
        return bypass(node, source)
    return merged


def _regions(graph: ir.Graph) -> list[_Region]:
    orders = dict.fromkeys(_order(node) for node in graph if _is_transpose(node))
    return [region for order in orders for region in _regions_of(graph, order)]


def _regions_of(graph: ir.Graph, order: Order) -> list[_Region]:
    """Return the connected regions of operators all of whose inputs come transposed by `order`."""
    root: dict[ir.Node, ir.Node] = {}
    members: dict[ir.Node, list[ir.Node]] = {}
    for node in graph:
        makers = [value.producer() for value in node.inputs if value is not None and not is_constant(value)]
        known = [maker for maker in makers if maker is not None and (maker in root or _sends(maker, graph, order))]
        if not makers or len(known) < len(makers) or not _movable(node, len(order)):
            continue
        joined = list(dict.fromkeys(root[maker] for maker in known if maker in root)) or [node]
        parts = [part for head in joined for part in members.pop(head, [])] + [node]
        root |= dict.fromkeys(parts, joined[0])
        members[joined[0]] = parts
    places = {node: place for place, node in enumerate(graph)}
    return [_region(sorted(parts, key=places.__getitem__), order) for parts in members.values()]


def _sends(node: ir.Node, graph: ir.Graph, order: Order) -> bool:
    return node.graph is graph and _is_transpose(node) and _order(node) == order


def _movable(node: ir.Node, rank: int) -> bool:
    """Return whether an operator can work on transposed data, its constants transposed with it."""
    if node.domain or len(node.outputs) != 1:
        return False
    if node.op_type in _ALONG_AXIS:
        return all(value is not None and not is_constant(value) for value in node.inputs)
    constants = [value for value in node.inputs if value is not None and is_constant(value)]
    return node.op_type in _ELEMENTWISE and all(len(v.const_value.shape) <= rank for v in constants if v.const_value)


def _region(nodes: list[ir.Node], order: Order) -> _Region:
    inside = set(nodes)
    inputs = [value.producer() for node in nodes for value in node.inputs if value is not None]
    sources = [maker for maker in dict.fromkeys(inputs) if maker is not None and maker not in inside]
    back = tuple(int(axis) for axis in np.argsort(order))
    cancelled, leaving = [], []
    for node in nodes:
        readers = [use.node for use in node.outputs[0].uses() if use.node not in inside]
        undone = [reader for reader in readers if _is_transpose(reader) and _order(reader) == back]
        cancelled += undone
        if len(undone) < len(readers) or node.outputs[0].is_graph_output():
            leaving.append(node.outputs[0])
    return _Region(order, tuple(nodes), tuple(sources), tuple(cancelled), tuple(leaving))


def _move(graph: ir.Graph, region: _Region) -> None:
    """Let a region work on what its inputs are before they are transposed."""
    inside = set(region.nodes)
    back = [int(axis) for axis in np.argsort(region.order)]
    for node in region.nodes:
        _rewire(graph, node, inside, back)
        if node.op_type in _ALONG_AXIS:
            node.attributes["axis"] = ir.AttrInt64("axis", region.order[node.attributes.get_int("axis", -1)])
    for out in region.leaving:
        _transpose_for_others(graph, out, region.order, inside | set(region.cancelled))
    for node in region.nodes:
        shape = node.outputs[0].shape
        node.outputs[0].shape = None if shape is None else ir.Shape([shape[axis] for axis in back])
    for node in region.cancelled:
        assert node.inputs[0] is not None
        bypass(node, node.inputs[0])
    for node in region.sources:
        if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            graph.remove(node, safe=True)


def _rewire(graph: ir.Graph, node: ir.Node, inside: set[ir.Node], back: list[int]) -> None:
    """Give an operator what it read before it was transposed."""
    for position, value in enumerate(node.inputs):
        maker = value.producer() if value is not None else None
        if value is not None and is_constant(value):
            node.replace_input_with(position, _transposed(graph, value, back))
        elif maker is not None and maker not in inside:
            node.replace_input_with(position, maker.inputs[0])


def _transpose_for_others(graph: ir.Graph, out: ir.Value, order: Order, inside: set[ir.Node]) -> None:
    """Put a Transpose after a moved operator, for readers that were not moved; it takes the name of its output."""
    node = node_of(out)
    after = ir.node("Transpose", [out], {"perm": list(order)}, name=f"{node.name}_Transpose")
    new = after.outputs[0]
    new.name, new.type, new.shape = out.name, out.type, out.shape
    out.name = f"{out.name}_untransposed"
    for user, position in list(out.uses()):
        if user not in inside and user is not after:
            user.replace_input_with(position, new)
    for position, value in enumerate(graph.outputs):
        if value is out:
            graph.outputs[position] = new
    graph.insert_after(node, after)


def _transposed(graph: ir.Graph, value: ir.Value, back: list[int]) -> ir.Value:
    """Return a constant operand for data that is not transposed: with all axes, and these in their old order."""
    tensor = value.const_value
    assert tensor is not None
    if tensor.size == 1 and len(tensor.shape) <= len(back):
        return value
    full = (1,) * (len(back) - len(tensor.shape)) + tuple(tensor.shape.numpy())
    shape = tuple(full[axis] for axis in back)
    name = f"{value.name}_untransposed_{'_'.join(map(str, back))}"
    if name not in graph.initializers:
        moved = ir.Value(name=name, type=value.type, shape=ir.Shape(shape))
        moved.const_value = lazily(value, shape, lambda data: data.reshape(full).transpose(back))
        graph.register_initializer(moved)
    return graph.initializers[name]
