"""From what torch's exporter writes to the canonical graph: folded, lifted, named after the module, without notes."""

import ast
import re

import onnx_ir as ir
from onnx_ir.passes import Sequential, common
from onnxscript.optimizer import optimize_ir

from edgec.frontends.onnx_values import name_all

_SCOPES = "pkg.torch.onnx.name_scopes"
# The scope of nodes that belong to no module.
_NOWHERE = "_empty_nn_module_stack_from_metadata_hook"


def canonicalise(model: ir.Model, inputs: list[str], outputs: list[str], root: str) -> None:
    """Bring a graph of torch's exporter into canonical form, in place.

    Weights get the names of the state dict, less the `root` that wrappers put before them, and nodes those of modules.
    """
    rename_sizes(model, {})  # the exporter writes a size that torch has fixed as a name
    # Equal transposes first, so that a matrix which several layers share is transposed once.
    common.CommonSubexpressionEliminationPass()(model)
    transposed = _transposed_weights(model.graph)
    optimize_ir(model, should_fold=_fold)
    _widen_masks(model)
    Sequential(
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.CommonSubexpressionEliminationPass(),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
    )(model)
    _detach_outputs(model.graph)
    _name_weights(model.graph, transposed, root)
    for value, name in zip(model.graph.inputs, inputs, strict=True):
        value.name = name
    for node in model.graph.all_nodes():
        node.name = _scoped(node, root)
    name_all(model, tuple(outputs))
    _forget_notes(model)


def rename_sizes(model: ir.Model, names: dict[str, str]) -> None:
    """Give the open sizes in all shapes other names, in place; expressions are rewritten, numbers become numbers."""
    for graph in model.graphs():
        for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
            if value.shape is not None:
                value.shape = ir.Shape([_renamed(size, names) for size in value.shape])


def _renamed(size: int | ir.SymbolicDim, names: dict[str, str]) -> int | str | None:
    if isinstance(size, int) or size.value is None:
        return size if isinstance(size, int) else None
    text = re.sub(r"[^\W\d]\w*", lambda match: names.get(match[0], match[0]), str(size.value))
    return int(text) if text.isdigit() else text


def _transposed_weights(graph: ir.Graph) -> dict[str, str]:
    """Return value -> weight for each transposed weight, whose data takes the place of the weight's."""
    return {
        node.outputs[0].name or "": node.inputs[0].name or ""
        for node in graph
        if node.op_type == "Transpose" and node.inputs[0] is not None and node.inputs[0].is_initializer()
    }


def _fold(node: ir.Node) -> bool | None:
    """Fold a weight's transpose unless something reads the weight itself too: it would be kept twice."""
    if node.op_type == "Transpose" and node.inputs[0] is not None and node.inputs[0].is_initializer():
        return len(node.inputs[0].uses()) == 1
    return None


def _widen_masks(model: ir.Model) -> None:
    """Repeat masks that hold for every query as often as there are queries: ONNX Runtime's Attention wants it so."""
    for graph in model.graphs():
        wide: dict[tuple[ir.Value, str], ir.Value] = {}
        for node in list(graph):
            mask = node.inputs[3] if node.op_type == "Attention" and len(node.inputs) > 3 else None
            query = node.inputs[0]
            if mask is None or query is None or mask.shape is None or query.shape is None:
                continue
            queries = query.shape[-2]
            if len(mask.shape) < 2 or mask.shape[-2] != 1 or queries == 1:
                continue
            key = (mask, str(queries))
            if key not in wide:
                wide[key] = _repeated(graph, node, mask, query)
            node.replace_input_with(3, wide[key])


def _repeated(graph: ir.Graph, before: ir.Node, mask: ir.Value, query: ir.Value) -> ir.Value:
    """Return `mask` (..., 1, keys) as (..., queries, keys), made in front of a node."""
    assert mask.shape is not None
    assert query.shape is not None
    rank = len(query.shape)
    count = ir.node("Shape", [query], {"start": rank - 2, "end": rank - 1})
    one = ir.node("Constant", [], {"value": ir.tensor([1], dtype=ir.DataType.INT64)})
    sizes = ir.node("Concat", [count.outputs[0], one.outputs[0]], {"axis": 0})
    repeated = ir.node("Expand", [mask, sizes.outputs[0]])
    repeated.outputs[0].type = mask.type
    repeated.outputs[0].shape = ir.Shape([*mask.shape[:-2], query.shape[-2], mask.shape[-1]])
    graph.insert_before(before, [count, one, sizes, repeated])
    return repeated.outputs[0]


def _detach_outputs(graph: ir.Graph) -> None:
    """Let each output be made by a node of its own, where it is an input, a weight or another output too."""
    for index, output in enumerate(graph.outputs):
        if output.producer() is None or output in graph.outputs[:index]:
            node = ir.node("Identity", [output])
            node.outputs[0].type, node.outputs[0].shape = output.type, output.shape
            graph.append(node)
            graph.outputs[index] = node.outputs[0]


def _name_weights(graph: ir.Graph, transposed: dict[str, str], root: str) -> None:
    for name, value in list(graph.initializers.items()):
        wanted = transposed.get(name, name).removeprefix(root)
        if wanted != name and wanted not in graph.initializers:
            value.name = wanted
            assert value.const_value is not None
            value.const_value.name = wanted


def _scoped(node: ir.Node, root: str) -> str:
    """Return the path of the module that a node is from, and what the node does."""
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    path = f"{scopes[-2]}." if len(scopes) > 1 else ""
    path = "" if root.startswith(path) or path.startswith(_NOWHERE) else path.removeprefix(root)
    return f"{path.removesuffix('.')}/{node.op_type}" if path else node.op_type


def _forget_notes(model: ir.Model) -> None:
    """Remove what the exporter noted: source lines and paths of this machine, and torch's graph with its weights."""
    common.ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    model.meta.clear()
    for graph in model.graphs():
        graph.metadata_props.clear()
        graph.meta.clear()
        for node in graph:
            node.meta.clear()
        for value in (*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)):
            value.metadata_props.clear()
            value.meta.clear()
            value.doc_string = None
