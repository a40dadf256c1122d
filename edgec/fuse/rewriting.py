"""Apply pattern rules to a graph: names, metadata and initializers stay as people know them."""

from collections.abc import Iterable, Sequence

import onnx_ir as ir
from onnxscript.rewriter._rewrite_rule import ReplacementSubgraph
from onnxscript.rewriter.pattern import MatchingTracer, RewriteRule

from edgec.errors import EdgecError


class Names:
    """The names that a model uses, for nodes and for values."""

    def __init__(self, model: ir.Model) -> None:
        self._nodes: set[str] = set()
        self._values: set[str] = set()
        for graph in model.graphs():
            self._values |= {str(value.name) for value in (*graph.inputs, *graph.initializers.values())}
            for node in graph:
                self._nodes.add(str(node.name))
                self._values |= {str(value.name) for value in node.outputs}

    def node(self, wanted: str) -> str:
        """Return a name for a node that no other node has."""
        return _fresh(wanted, self._nodes)

    def value(self, wanted: str) -> str:
        """Return a name for a value that no other value has."""
        return _fresh(wanted, self._values)

    def release(self, node: ir.Node) -> None:
        """Forget the names of a node that left the graph."""
        self._nodes.discard(str(node.name))
        for value in node.outputs:
            self._values.discard(str(value.name))

    def release_value(self, value: ir.Value) -> None:
        """Forget the name of an initializer that left the graph."""
        self._values.discard(str(value.name))


def rewrite(model: ir.Model, rules: Sequence[RewriteRule], tracer: MatchingTracer) -> list[str]:
    """Apply rules once to every node, also in subgraphs, and return the names of the nodes that they made.

    Raises:
        EdgecError: a rule matches what it made.
    """
    names = Names(model)
    made: list[str] = []
    for graph in list(model.graphs()):
        limit = 4 * len(graph) + 64
        for node in graph:
            for rule in rules:
                delta = rule.try_rewrite(model, graph, node, tracer=tracer)
                if delta is not None:
                    made.append(_install(graph, node, delta, names))
                    break
            if len(made) > limit:
                raise EdgecError(f"the fusion rule {rule} does not come to an end", where=made[-1])
    return made


def _install(graph: ir.Graph, root: ir.Node, delta: ReplacementSubgraph, names: Names) -> str:
    """Put a replacement into the graph, and return the name of what stands there now."""
    matched = list(dict.fromkeys(delta.match.nodes))
    new = list(delta.new_nodes)
    ends = {old: _keep_output(old, end, new) for old, end in zip(delta.match.outputs, delta.new_outputs, strict=True)}
    for node in matched:
        names.release(node)
    _name_nodes(new, matched, names)
    for old, end in ends.items():
        if end.producer() in new:
            _inherit(old, end, names)
        old.replace_all_uses_with(end, replace_graph_outputs=True)
    graph.insert_after(root, new)
    _remove_dead(graph, matched, names)
    _name_inner(new, set(ends.values()), names)
    _register(graph, delta.new_initializers, names)
    if len(ends) > 1:
        graph.sort()
    return str(new[-1].name if new else root.name)


def _keep_output(old: ir.Value, end: ir.Value, new: list[ir.Node]) -> ir.Value:
    """Return the value that replaces `old`: an Identity carries a graph output's name where nothing new was made."""
    if end.producer() in new or not old.is_graph_output():
        return end
    identity = ir.node("Identity", [end])
    new.append(identity)
    return identity.outputs[0]


def _name_nodes(new: Sequence[ir.Node], matched: Sequence[ir.Node], names: Names) -> None:
    """Name new nodes after those of their type that they replace, or after where they are; merge metadata."""
    prefix = _common_scope([str(node.name) for node in matched])
    place = "" if prefix else f"_{matched[0].outputs[0].name}"
    heirs = {node.op_type: node for node in reversed(matched)}
    for node in new:
        heir = heirs.pop(node.op_type, None)
        node.name = names.node(node.name or (str(heir.name) if heir else f"{prefix}{node.op_type}{place}"))
        for source in ([heir] if heir else []) + list(matched):
            for key, value in source.metadata_props.items():
                node.metadata_props.setdefault(key, value)


def _inherit(old: ir.Value, end: ir.Value, names: Names) -> None:
    """Give a new value the name, type, shape and metadata of the one that it replaces."""
    end.name = names.value(str(old.name))
    end.type = old.type or end.type
    end.shape = end.shape if old.shape is None else old.shape
    end.metadata_props.update(old.metadata_props)


def _remove_dead(graph: ir.Graph, matched: Sequence[ir.Node], names: Names) -> None:
    """Remove the matched nodes that nothing reads any more, and the initializers that only they read."""
    read: list[ir.Value] = []
    pending = list(matched)
    while dead := [node for node in pending if not any(v.uses() or v.is_graph_output() for v in node.outputs)]:
        for node in dead:
            read += [value for value in node.inputs if value is not None]
            graph.remove(node, safe=True)
            pending.remove(node)
    for node in pending:
        node.name = names.node(str(node.name))
        for value in node.outputs:
            value.name = names.value(str(value.name))
    for value in dict.fromkeys(read):
        if value.is_initializer() and not (value.uses() or value.is_graph_output() or value.is_graph_input()):
            assert value.graph is not None
            del value.graph.initializers[str(value.name)]
            names.release_value(value)


def _name_inner(new: Sequence[ir.Node], ends: set[ir.Value], names: Names) -> None:
    for node in new:
        for position, value in enumerate(node.outputs):
            if value not in ends:
                value.name = names.value(value.name or f"{node.name}_output{position or ''}")


def _register(graph: ir.Graph, initializers: Iterable[ir.Value], names: Names) -> None:
    for value in initializers:
        if value.uses():
            value.name = names.value(str(value.name))
            graph.register_initializer(value)


def _common_scope(names: Sequence[str]) -> str:
    """Return what all names begin with, up to its last / or dot."""
    low, high = min(names), max(names)
    same = next((at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    scope = low[: max(low.rfind("/", 0, same), low.rfind(".", 0, same)) + 1]
    return scope if scope.strip("/.") else ""


def _fresh(wanted: str, taken: set[str]) -> str:
    """Return `wanted`, or it with the first number that makes it new, and take it."""
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name
