"""Where a network computes in int8: which nodes do, and which values are rounded once for all who read them.

Convolutions and products with constant weights are the anchors; rows of large tables are looked up as integers. Around
anchors, operators that a runtime can run on integers (additions, pooling, concatenation) follow, so that chains of them
never widen in between: an operator follows where all that it reads comes from integers and something that it leads to
is an anchor. Activations that end at a bound (Relu, Clip) are absorbed into the rounding of what they give, and are
never rounded in front.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from edgec.graph.branches import deciding_option, inner_nodes
from edgec.graph.rewrite import users
from edgec.quantize.operators import ABSORBED, ANCHORS, KEEPING

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
# Rows; the scales of a smaller table are hardly worth it.
_SMALLEST_TABLE = 1024


@dataclass(frozen=True)
class Weight:
    """A constant that integers replace: the axis has one scale for each of its entries."""

    name: str
    axis: int


@dataclass(frozen=True)
class Site:
    """A node that computes in int8.

    Args:
        node: its name.
        op_type: its operator.
        data: the values that it reads as integers.
        weight: its constant weight; None for those that only follow.
        bias: the initializer that becomes int32; None where there is none, or where it is added elsewhere.
    """

    node: str
    op_type: str
    data: tuple[str, ...]
    weight: Weight | None = None
    bias: str | None = None


@dataclass(frozen=True)
class Placement:
    """What becomes int8.

    Args:
        sites: the nodes, in graph order.
        groups: rounded value -> the value whose scale it has: itself, but for what `KEEPING` operators give.
        shared: rounded values that nobody reads as floats: what gives them computes in integers, too.
        floats: node -> why it computes in float, for those that might have been sites.
    """

    sites: tuple[Site, ...]
    groups: Mapping[str, str]
    shared: frozenset[str]
    floats: Mapping[str, str]

    @property
    def weights(self) -> dict[str, Weight]:
        """Return each weight that becomes int8, by its name."""
        return {site.weight.name: site.weight for site in self.sites if site.weight is not None}


def place(
    model: ir.Model,
    follow: Collection[str],
    skip: Callable[[str], bool] = lambda _: False,
    *,
    anchors: Collection[str] = ANCHORS,
    round_convolutions: bool = False,
) -> Placement:
    """Decide which nodes of a canonical float graph compute in int8.

    Args:
        model: not changed; nodes in the bodies of If and Loop stay in float.
        follow: operators, besides the anchors, that the backend runs on integers.
        skip: says by its name whether a node stays in float.
        anchors: operators that a constant weight of integers makes faster.
        round_convolutions: convolutions compute in int8 only where what they give is rounded, too.
    """
    nodes = list(model.graph)
    sites, floats, axes = {}, {}, dict[str, int]()
    for node in nodes:
        if _is_lookup(node) and not skip(str(node.name)):
            sites[node] = Site(str(node.name), "Gather", (), Weight(str(node.inputs[0].name), 0))  # type: ignore[union-attr]
        if node.op_type not in ANCHORS or node.domain:
            continue
        weight = weight_of(node)
        reason = "asked for" if skip(str(node.name)) else _refusal(node, weight)
        if reason is None and weight is not None and axes.setdefault(weight.name, weight.axis) != weight.axis:
            reason = "its weight has scales along the other axis, for another node"
        if reason is None and node.op_type not in anchors:
            reason = "dynamic int8 covers products only"
        if reason is None:
            sites[node] = _anchor(node, weight)
        else:
            floats[str(node.name)] = reason
    floats |= _in_bodies(model.graph)
    integer = _from_integers(nodes, sites, follow, skip)
    wanted = _wanted(nodes, sites, integer)
    for node in nodes:
        if node in integer and node not in sites and node.op_type not in ABSORBED and node in wanted:
            sites[node] = Site(str(node.name), node.op_type, tuple(str(v.name) for v in _data(node)))
    ordered = tuple(sites[node] for node in nodes if node in sites)
    groups, shared = _groups(nodes, sites, integer)
    if round_convolutions:
        values = (_end(node, integer) for node in sites if node.op_type in _CONVOLUTIONS)
        ends = {str(value.name) for value in values if _is_inner(value)} - groups.keys()
        groups |= {name: name for name in sorted(ends)}
        shared |= ends
    return Placement(ordered, groups, shared, floats)


def weight_of(node: ir.Node) -> Weight | None:
    """Return the constant weight of an anchor with the axis of its outputs; None where it has none of its own."""
    value = node.inputs[1]
    if value is None or value.const_value is None or not value.is_initializer() or value.shape is None:
        return None
    if value.dtype != ir.DataType.FLOAT or value.is_graph_output():
        return None
    match node.op_type:
        case "Conv":
            axis = 0
        case "ConvTranspose":
            axis = 1
        case "Gemm":
            axis = 0 if node.attributes.get_int("transB", 0) else 1
        case _:
            if len(value.shape) != 2:
                return None
            axis = 1
    return Weight(str(value.name), axis)


def _is_lookup(node: ir.Node) -> bool:
    """Say whether a node looks up rows of a table that nothing else reads."""
    if node.op_type != "Gather" or node.domain or node.attributes.get_int("axis", 0) != 0:
        return False
    table = node.inputs[0]
    if table is None or table.const_value is None or not table.is_initializer() or table.is_graph_output():
        return False
    is_matrix = table.dtype == ir.DataType.FLOAT and table.shape is not None and len(table.shape) == 2
    return is_matrix and table.const_value.shape.numpy()[0] >= _SMALLEST_TABLE and len(table.uses()) == 1


def _refusal(node: ir.Node, weight: Weight | None) -> str | None:
    """Return why an anchor cannot be int8; None where it can."""
    if weight is None:
        return "its weight is no constant of its own"
    if node.inputs[0] is None or node.inputs[0].dtype not in (None, ir.DataType.FLOAT):
        return "it does not compute in float32"
    if node.inputs[0].is_initializer():
        return "what it multiplies is a constant, too"
    if node.op_type == "ConvTranspose" and node.attributes.get_int("group", 1) != 1:
        return "a transposed convolution in groups has no scale per output"
    if node.op_type == "Gemm":
        plain = node.attributes.get_float("alpha", 1.0) == 1 and node.attributes.get_float("beta", 1.0) == 1
        if not plain or node.attributes.get_int("transA", 0) != 0:
            return "it scales or transposes what it reads"
    return None


def _in_bodies(graph: ir.Graph) -> dict[str, str]:
    """Return the nodes with weights in the bodies of others, which stay in float, and why."""
    found = {}
    for node, outer in inner_nodes(graph):
        if node.op_type in ANCHORS and not node.domain and weight_of(node) is not None:
            option = deciding_option(outer)
            advice = f"; {option} decides which branch runs" if option else ""
            found[str(node.name)] = f"inside {outer.op_type}: stays float{advice}"
    return found


def _anchor(node: ir.Node, weight: Weight | None) -> Site:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    is_constant = bias is not None and bias.is_initializer() and bias.shape is not None and len(bias.shape) == 1
    return Site(
        str(node.name),
        node.op_type,
        (str(node.inputs[0].name),),  # type: ignore[union-attr]
        weight,
        str(bias.name) if bias is not None and is_constant else None,
    )


def _data(node: ir.Node) -> list[ir.Value]:
    """Return the floats that a node reads and that are no constants."""
    return [v for v in node.inputs if v is not None and not v.is_initializer() and v.dtype == ir.DataType.FLOAT]


def _from_integers(
    nodes: list[ir.Node], sites: Mapping[ir.Node, Site], follow: Collection[str], skip: Callable[[str], bool]
) -> set[ir.Node]:
    """Return the nodes that could give integers: convolutions, and what follows or is absorbed behind them."""
    found: set[ir.Node] = set()
    for node in nodes:
        if node in sites:
            if node.op_type in _CONVOLUTIONS:
                found.add(node)
            continue
        if node.domain or skip(str(node.name)) or len(node.outputs) != 1:
            continue
        producers = [value.producer() for value in _data(node)]
        if not producers or any(producer not in found for producer in producers):
            continue
        floats = [v for v in node.inputs if v is not None and v.dtype == ir.DataType.FLOAT]
        constants = [v for v in floats if v.is_initializer()]
        if node.op_type in ABSORBED:
            # Where others read it too, it has to be there in front of the activation.
            if len(node.inputs[0].uses()) == 1 and not node.inputs[0].is_graph_output():  # type: ignore[union-attr]
                found.add(node)
        elif node.op_type in follow and not constants:
            found.add(node)
    return found


def _wanted(nodes: list[ir.Node], sites: Mapping[ir.Node, Site], integer: Collection[ir.Node]) -> set[ir.Node]:
    """Return the nodes whose integers some anchor reads in the end."""
    found: set[ir.Node] = set()
    for node in reversed(nodes):
        readers = [user for value in node.outputs for user in users(value)]
        if any(user in sites or (user in integer and user in found) for user in readers):
            found.add(node)
    return found


def _groups(
    nodes: list[ir.Node], sites: Mapping[ir.Node, Site], integer: Collection[ir.Node]
) -> tuple[dict[str, str], frozenset[str]]:
    groups: dict[str, str] = {}
    shared = set()
    for node in nodes:
        read = set(sites[node].data) if node in sites else set()
        for value in (v for v in node.inputs if v is not None and v.name in read):
            name, producer = str(value.name), value.producer()
            if name in groups:
                continue
            keeps = producer is not None and producer in sites and producer.op_type in KEEPING
            source = str(producer.inputs[0].name) if keeps else name  # type: ignore[union-attr]
            groups[name] = groups.get(source, source)
            if producer in integer and not value.is_graph_output():
                shared.add(name)
    return groups, frozenset(shared)


def _end(node: ir.Node, integer: Collection[ir.Node]) -> ir.Value:
    """Return what a convolution gives, behind the activation that its rounding absorbs."""
    while len(after := users(node.outputs[0])) == 1 and after[0].op_type in ABSORBED and after[0] in integer:
        (node,) = after
    return node.outputs[0]


def _is_inner(value: ir.Value) -> bool:
    """Say whether nodes of the graph itself read a value, and nobody outside."""
    producer = value.producer()
    assert producer is not None
    return not value.is_graph_output() and any(user.graph is producer.graph for user in users(value))


def rounded_values(placement: Placement) -> Iterator[str]:
    """Yield the values that calibration has to see: one for each scale."""
    yield from dict.fromkeys(placement.groups.values())
