"""Rotate a decoder's residual stream and values, so that no weight stands out; the model computes what it did.

RMS norms without weights commute with orthogonal matrices. So each norm's weight goes into the matrices behind it, and
the residual stream may be h Q in place of h: what writes it is multiplied by Q, what reads it by Q^T (rotation R1).
Attention mixes the values of tokens and leaves the dimensions of a head apart, so those may be rotated as well, between
the matrices v and o (R2). All of this is done to the weights as they are loaded; the operators of layers stay.

A tied output matrix has no room for the weight g of the final norm, because the token embedding is the same tensor.
There the graph gets one more matrix, Q^T diag(g) Q, between the final norm and the output matrix.

Source: Ashkboos et al. 2024, QuaRot (arXiv:2404.00456), section 4 without the online rotations; Liu et al. 2024,
SpinQuant (arXiv:2405.16406), R1 and R2 with random Hadamard matrices.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.checkpoint.model import Checkpoint, read_finite
from edgec.frontends.architecture import Decoder
from edgec.frontends.decoder import emit
from edgec.frontends.rotation import check_rotation
from edgec.graph.rewrite import lazy
from edgec.graph.store import shape_of
from edgec.graph.tags import BLOCK, HEAD_ROTATION, SOURCE
from edgec.quantize.hadamard import Rotation, random_rotation
from edgec.quantize.transforms import ROTATION

Array = NDArray[np.float32]
Change = Callable[[Array], Array]
Changes = Iterator[tuple[ir.Value, Change]]
Nodes = Mapping[str, ir.Node]

# In each layer: the branch, the matrices that read the residual stream, the one that writes it.
_BRANCHES = (("attention", ("q", "k", "v"), "o"), ("mlp", ("gate", "up"), "down"))


def emit_turned(decoder: Decoder, checkpoint: Checkpoint, context: int, transforms: Sequence[str]) -> ir.Model:
    """Return the float graph for so many tokens, rotated if the transforms of a profile say so."""
    return turned(emit(decoder, checkpoint, lambda name: read_finite(checkpoint, name), context), decoder, transforms)


def turned(model: ir.Model, decoder: Decoder, transforms: Sequence[str]) -> ir.Model:
    """Return a float graph, rotated in place if the transforms of a profile say so."""
    return rotate(model, decoder) if ROTATION in transforms else model


def rotate(model: ir.Model, decoder: Decoder, seed: int = 0) -> ir.Model:
    """Rotate the float weights of `model`, and return `model`.

    Weights stay lazy: each is read and turned when a pass asks for it, in float32, which takes the memory of a few
    copies of that weight. The same seed gives the same rotations.

    Args:
        model: a canonical graph with lazy float weights; changed in place.
        decoder: its description.
        seed: of the signs, and of what is random besides (see `edgec.quantize.hadamard`).

    Raises:
        PlanError: this model's residual stream cannot be rotated.
    """
    check_rotation(decoder)
    generator = np.random.default_rng(seed)
    nodes = {str(node.name): node for node in model.graph}
    stream = random_rotation(decoder.hidden_size, generator)
    # All changes are collected before the first one is made: they read the norms as they were.
    changes = [*_residual_stream(nodes, decoder, stream), *_values(nodes, decoder, generator)]
    if decoder.tied:
        _insert_head_rotation(model.graph, nodes, stream)
    for value, change in changes:
        _compose(value, change)
    return model


def _residual_stream(nodes: Nodes, decoder: Decoder, q: Rotation) -> Changes:
    """Yield what R1 changes: the weights that write the residual stream, those that read it, the norms between."""
    yield _input(nodes["embedding"], 0), q.turn
    for layer in range(len(decoder.layers)):
        for branch, readers, writer in _BRANCHES:
            name = f"layers.{layer}.{branch}"
            present = [f"{name}.{reader}" for reader in readers if f"{name}.{reader}" in nodes]
            yield from _behind_norm(nodes, f"{name}_norm", present, q)
            for written in _matrix_and_bias(nodes, f"{name}.{writer}"):
                yield written, q.turn
    yield from _behind_norm(nodes, "final_norm", [] if decoder.tied else ["lm_head"], q)


def _behind_norm(nodes: Nodes, norm: str, readers: list[str], q: Rotation) -> Changes:
    weight = _input(nodes[norm], 1)
    gains = _tensor(weight)
    yield weight, np.ones_like
    for reader in readers:
        yield _input(nodes[reader], 1), lambda matrix: q.turn(matrix.T * gains.numpy()).T


def _values(nodes: Nodes, decoder: Decoder, generator: np.random.Generator) -> Changes:
    """Yield what R2 changes, in each layer: what makes values, and the matrix that reads their mixtures."""
    for index, layer in enumerate(decoder.layers):
        h = random_rotation(layer.attention.head_dim, generator)
        yield from _between_v_and_o(nodes, f"layers.{index}.attention", h)


def _between_v_and_o(nodes: Nodes, name: str, h: Rotation) -> Changes:
    def turn(rows: Array) -> Array:
        # One rotation for all heads, so that a query head need not know whose values it reads.
        return h.turn(rows.reshape(*rows.shape[:-1], -1, len(h.signs))).reshape(rows.shape)

    for made in _matrix_and_bias(nodes, f"{name}.v"):
        yield made, turn
    yield _input(nodes[f"{name}.o"], 1), lambda matrix: turn(matrix.T).T


def _insert_head_rotation(graph: ir.Graph, nodes: Nodes, q: Rotation) -> None:
    head, norm = nodes["lm_head"], nodes["final_norm"]
    weight = _input(norm, 1)
    gains, size = _tensor(weight), len(q.signs)

    def load() -> Array:
        return q.turn(q.turn(np.diag(gains.numpy())).T)

    matrix = lazy(graph, f"{HEAD_ROTATION}.weight", ir.DataType.FLOAT, (size, size), load)
    matrix.metadata_props[SOURCE] = weight.metadata_props[SOURCE]
    node = ir.node("MatMul", [norm.outputs[0], matrix], name=HEAD_ROTATION)
    node.outputs[0].name, node.outputs[0].type = HEAD_ROTATION, norm.outputs[0].type
    node.metadata_props[BLOCK] = head.metadata_props[BLOCK]
    graph.insert_after(norm, node)
    head.replace_input_with(0, node.outputs[0])


def _matrix_and_bias(nodes: Nodes, name: str) -> list[ir.Value]:
    bias = nodes.get(f"{name}.bias")
    return [_input(node, 1) for node in (nodes[name], bias) if node is not None]


def _compose(value: ir.Value, change: Change) -> None:
    """Let `value` load what it did, changed."""
    before = _tensor(value)
    value.const_value = ir.LazyTensor(
        lambda: ir.tensor(change(before.numpy()), name=value.name),
        before.dtype,
        ir.Shape(shape_of(before)),
        name=value.name,
    )


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value
