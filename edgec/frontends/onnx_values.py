"""What passes may count on: every node and value of a graph has a name of its own, and a type and shape where known."""

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from edgec.graph.store import shape_of

# Shape inference reads the numbers of small constants (axes, target shapes); those of weights say nothing to it.
_WEIGHT_BYTES = 4096


def name_all(model: ir.Model, outputs: tuple[str, ...]) -> None:
    """Give every node and value of a model, of its subgraphs too, a name of its own; in place, inputs keep theirs.

    Args:
        model: each name that occurs once stays.
        outputs: what the model's outputs shall be called.
    """
    values = list(dict.fromkeys(value for graph in model.graphs() for value in _values(graph)))
    all_nodes = list(model.graph.all_nodes())
    names = _Names([*(value.name for value in values), *outputs])
    done = {value: names.take(value.name or "input") for value in model.graph.inputs}
    done |= {value: names.take(name) for value, name in zip(model.graph.outputs, outputs, strict=True)}
    node_names = _Names([node.name for node in all_nodes])
    for node in all_nodes:
        node.name = node_names.take(node.name) if node.name else node_names.make(node.op_type)
    for value in values:
        if value not in done:
            maker = value.producer()
            made = f"{maker.name}_output" if maker else "constant"
            done[value] = names.take(value.name) if value.name else names.make(made)
    for value, name in done.items():
        if value.name != name:
            value.name = name


class _Names:
    """Names in use, and those that must not be made up because something has them already."""

    def __init__(self, existing: list[str | None]) -> None:
        self._existing = set(existing)
        self._used: set[str] = set()
        self._counts: dict[str, int] = {}

    def take(self, name: str) -> str:
        """Return `name` where it is free, else one like it."""
        if name in self._used:
            return self.make(name)
        self._used.add(name)
        return name

    def make(self, stem: str) -> str:
        """Return `stem` with the first number that nothing has."""
        while True:
            number = self._counts.get(stem, 0)
            self._counts[stem] = number + 1
            name = f"{stem}_{number}"
            if name not in self._existing and name not in self._used:
                self._used.add(name)
                return name


def infer_shapes(model: ir.Model) -> None:
    """Write types and shapes to the values of a named model, in place, as far as they can be inferred.

    What the file says of its values is kept unless it contradicts the operators.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton(model), strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError:
        forget_shapes(model)
        inferred = onnx.shape_inference.infer_shapes(skeleton(model), data_prop=True)
    known = {value.name: value for graph in ir.from_proto(inferred).graphs() for value in _values(graph)}
    for graph in model.graphs():
        for value in _values(graph):
            other = known.get(value.name)
            if other is not None and other.type is not None and value.const_value is None:
                value.type = other.type
                value.shape = other.shape if other.shape is not None else value.shape


def forget_shapes(model: ir.Model) -> None:
    """Remove the shapes of what standard operators compute; they can be inferred, and those in a file may be wrong."""
    for node in model.graph.all_nodes():
        for value in node.outputs if not node.domain else ():
            value.shape = None


def detach_outputs(graph: ir.Graph) -> None:
    """Let each output be made by a node of its own, where it is an input, a weight or another output too."""
    for index, output in enumerate(graph.outputs):
        if output.producer() is None or output in graph.outputs[:index]:
            node = ir.node("Identity", [output])
            node.outputs[0].type, node.outputs[0].shape = output.type, output.shape
            graph.append(node)
            graph.outputs[index] = node.outputs[0]


def forget_annotations(model: ir.Model) -> None:
    """Remove free text: it says where the model was made, and may look like what edgec's passes write there."""
    ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    model.doc_string = None
    for graph in model.graphs():
        graph.metadata_props.clear()
        made = (value for node in graph for value in node.outputs)
        for value in (*graph.inputs, *graph.initializers.values(), *made):
            value.metadata_props.clear()
            value.doc_string = None


def skeleton(model: ir.Model) -> onnx.ModelProto:
    """Return a model without its weights, which would make it large: it says that they are in a file."""
    values = [value for graph in model.graphs() for value in graph.initializers.values()]
    tensors = [value.const_value for value in values]
    try:
        for value, tensor in zip(values, tensors, strict=True):
            assert tensor is not None
            if tensor.nbytes > _WEIGHT_BYTES:
                value.const_value = ir.ExternalTensor(
                    "weights", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(shape_of(tensor)), name=value.name or ""
                )
        return ir.to_proto(model)
    finally:
        for value, tensor in zip(values, tensors, strict=True):
            value.const_value = tensor


def _values(graph: ir.Graph) -> list[ir.Value]:
    """The values of one graph; an output with an empty name is one that nobody asked for."""
    made = (value for node in graph for value in node.outputs if value.name != "")
    return [*graph.inputs, *graph.initializers.values(), *made]
