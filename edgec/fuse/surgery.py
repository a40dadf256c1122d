"""Small changes to a model that rules and the machinery share."""

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, NameFixPass, ShapeInferencePass
from onnx_ir.passes.common.naming import SimpleNameGenerator

_UNNAMED = "unk__"  # how shape inference calls sizes that it knows nothing of


def bypass(node: ir.Node, source: ir.Value) -> bool:
    """Let everyone who reads a node's first output read `source` instead, and remove the node.

    An output of a graph keeps its name: `source` takes it, or an Identity stays where `source` cannot (it is an input,
    an initializer, an output itself, or of another graph).

    Returns:
        Whether something changed: an Identity that has to stay is no change.
    """
    out, graph = node.outputs[0], node.graph
    assert graph is not None
    renamed = out.is_graph_output()
    if renamed and (source.producer() is None or source.graph is not graph or source.is_graph_output()):
        if node.op_type == "Identity" and node.inputs[0] is source:
            return False
        stay = ir.node("Identity", [source], name=node.name, metadata_props=dict(node.metadata_props))
        graph.insert_after(node, stay)
        stay.outputs[0].name, stay.outputs[0].type, stay.outputs[0].shape = out.name, out.type, out.shape
        source, renamed = stay.outputs[0], False
    out.replace_all_uses_with(source, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    if renamed:
        source.name = out.name
    if source.shape is None:
        source.shape = out.shape
    return True


def tidy(model: ir.Model) -> None:
    """Make constants initializers, and give every node and value a name of its own."""
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    NameFixPass(_NodeNames())(model)


def infer_shapes(model: ir.Model) -> None:
    """Infer shapes, also in subgraphs; inputs and outputs of the graph keep theirs.

    A size that nothing is known of gets a name of its own, which is forgotten when shapes are inferred again.
    """
    shapes = [(value, value.shape) for value in (*model.graph.inputs, *model.graph.outputs)]
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.shape is not None and any(size_name(dim) is None for dim in value.shape):
                value.shape = ir.Shape([dim if isinstance(dim, int) else size_name(dim) for dim in value.shape])
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    for value, shape in shapes:
        value.shape = shape


def size_name(dim: int | ir.SymbolicDim) -> str | None:
    """Return the name that a model gives a size, if it gives it one."""
    name = None if isinstance(dim, int) else dim.value
    return None if name is None or name.startswith(_UNNAMED) else name


def same_size(a: int | ir.SymbolicDim, b: int | ir.SymbolicDim) -> bool:
    """Return whether two sizes are known to be the same; two without a name are not."""
    return a == b and (isinstance(a, int) or a.value is not None)


class _NodeNames(SimpleNameGenerator):
    def generate_node_name(self, node: ir.Node) -> str:
        return node.name or f"{node.op_type}_{node.outputs[0].name}"
