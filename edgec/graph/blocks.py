"""Cut a graph into its blocks, so that a model can be run with one block of weights in memory."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import onnx_ir as ir

from edgec.graph.nvfp4 import expand_nvfp4
from edgec.graph.tags import BLOCK


@dataclass(frozen=True)
class Block:
    """A stretch of the graph as a model of its own.

    Args:
        name: the tag that its nodes carry.
        model: takes `inputs` and `weights`, gives `outputs`.
        inputs: values that come from the user or from earlier blocks.
        weights: lazy initializers of the whole graph, which became inputs: load one, feed it, forget it.
        outputs: values that later blocks or the user need.
    """

    name: str
    model: ir.Model
    inputs: tuple[str, ...]
    weights: dict[str, ir.TensorProtocol]
    outputs: tuple[str, ...]


def cut(model: ir.Model) -> list[Block]:
    """Return the blocks of `model`, in order. Initializers in files stay references, constants are copied."""
    model = expand_nvfp4(model)
    graph = model.graph
    weight_nodes = {id(node): node for node in graph if _reads_only_weights(node)}
    nodes = [node for node in graph if id(node) not in weight_nodes]
    stretches = [(name, list(group)) for name, group in groupby(nodes, key=lambda n: n.metadata_props[BLOCK])]
    wanted_at_end = {str(value.name) for value in graph.outputs}
    needs = [_needs(stretch) for _, stretch in stretches]
    blocks = []
    for index, (name, stretch) in enumerate(stretches):
        later = set().union(wanted_at_end, *needs[index + 1 :])
        blocks.append(_block(model, name, stretch, later))
    return blocks


def read_later(blocks: Sequence[Block]) -> list[set[str]]:
    """Return for each block the values that those after it read."""
    return [{name for other in blocks[index:] for name in other.inputs} for index in range(1, len(blocks) + 1)]


def _reads_only_weights(node: ir.Node) -> bool:
    """Say whether `node` turns stored integers into a weight; such nodes go wherever the weight is used."""
    return node.op_type in ("DequantizeLinear", "Cast") and all(v is None or v.is_initializer() for v in node.inputs)


def _needs(nodes: Iterable[ir.Node]) -> set[str]:
    made: set[str] = set()
    needed: set[str] = set()
    for node in nodes:
        needed |= {str(v.name) for v in node.inputs if v is not None and v.name not in made}
        made |= {str(v.name) for v in node.outputs}
    return needed


def _block(model: ir.Model, name: str, nodes: list[ir.Node], later: set[str]) -> Block:
    copied: dict[str, ir.Value] = {}
    inputs: list[ir.Value] = []
    weights: dict[str, ir.TensorProtocol] = {}
    initializers: list[ir.Value] = []
    written: list[ir.Node] = []

    def copy(value: ir.Value | None) -> ir.Value | None:
        if value is None or value.name in copied:
            return None if value is None else copied[str(value.name)]
        key, producer = str(value.name), value.producer()
        if producer is not None and _reads_only_weights(producer):
            write(producer)
            return copied[key]
        new = copied[key] = ir.Value(name=key, type=value.type, shape=value.shape)
        if isinstance(value.const_value, ir.LazyTensor):
            weights[key] = value.const_value
        elif value.is_initializer():
            new.const_value = value.const_value
            initializers.append(new)
            return new
        inputs.append(new)
        return new

    def write(node: ir.Node) -> None:
        taken = [copy(value) for value in node.inputs]
        made = [ir.Value(name=v.name, type=v.type, shape=v.shape) for v in node.outputs]
        copied.update({str(v.name): v for v in made})
        written.append(ir.Node(node.domain, node.op_type, taken, node.attributes, outputs=made, name=node.name))

    for node in nodes:
        write(node)
    outputs = [v for node in written for v in node.outputs if v.name in later]
    graph = ir.Graph(
        inputs, outputs, nodes=written, initializers=initializers, opset_imports=model.graph.opset_imports, name=name
    )
    fed = tuple(str(v.name) for v in inputs if v.name not in weights)
    whole = ir.Model(graph, ir_version=model.ir_version, producer_name="edgec")
    return Block(name, whole, fed, weights, tuple(str(v.name) for v in outputs))
