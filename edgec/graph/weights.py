"""Where a graph keeps its weights: which initializers are matrices and tables, and how quantized ones are written."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.graph.rewrite import constant
from edgec.graph.store import Store, pack_nibbles, raw_bytes, shape_of, signed_nibbles, unpack_nibbles
from edgec.graph.tags import BLOCK, SOURCE
from edgec.quantize.scheme import Dtype, Scheme

Kind = Literal["matrix", "table"]
_TYPES: dict[tuple[Dtype, bool], ir.DataType] = {
    ("int3", True): ir.DataType.INT4,
    ("int3", False): ir.DataType.UINT4,
    ("int4", True): ir.DataType.INT4,
    ("int4", False): ir.DataType.UINT4,
    ("int8", True): ir.DataType.INT8,
    ("int8", False): ir.DataType.UINT8,
    ("fp8", True): ir.DataType.FLOAT8E4M3FN,
    ("nvfp4", True): ir.DataType.FLOAT4E2M1,
}
_FLOATS = {"fp8": ml_dtypes.float8_e4m3fn, "nvfp4": ml_dtypes.float4_e2m1fn}
_DTYPES = {stored: (dtype, symmetric) for (dtype, symmetric), stored in _TYPES.items()}


@dataclass(frozen=True)
class Codes:
    """The codes of a quantized weight as numpy arrays, in the orientation of algorithms.

    Args:
        codes: (rows = out, cols = in), int8 or uint8; bit patterns of floats are uint8.
        scales: (rows, groups) float32.
        zero_points: (rows, groups) uint8, or None.
        global_scale: of the whole weight; 1 for all but nvfp4.
    """

    codes: NDArray[Any]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8] | None
    scheme: Scheme
    global_scale: float = 1.0


@dataclass(frozen=True)
class StoredCodes:
    """A quantized weight where the graph keeps it; each call reads one of its arrays, as `Codes` describes them."""

    name: str
    scheme: Scheme
    shape: tuple[int, int]
    transposed: bool
    tensors: tuple[ir.TensorProtocol, ...]

    def codes(self) -> NDArray[Any]:
        array = _array(self.tensors[0])
        return array.T if self.transposed else array

    def scales(self) -> NDArray[np.float32]:
        scales: NDArray[np.float32] = self._per_group(1)
        return _decode(scales, "fp8") if self.scheme.dtype == "nvfp4" else scales

    def zero_points(self) -> NDArray[np.uint8]:
        return self._per_group(2)

    def global_scale(self) -> float:
        """Return the scale of the whole weight."""
        return float(_array(self.tensors[2])) if self.scheme.dtype == "nvfp4" else 1.0

    def floats(self) -> NDArray[np.float32]:
        """Return the (rows, cols) weight that the codes stand for."""
        cols = self.shape[1]

        def per_column(groups: NDArray[Any]) -> NDArray[Any]:
            return np.repeat(groups, self.scheme.group or cols, axis=1)[:, :cols]

        values = _decode(self.codes(), self.scheme.dtype)
        if not self.scheme.symmetric:
            values -= per_column(self.zero_points())
        values *= per_column(self.scales() * np.float32(self.global_scale()))
        return values

    def _per_group(self, index: int) -> NDArray[Any]:
        array = _array(self.tensors[index])
        if self.scheme.group is None:
            return array[:, None]
        return array.T if self.transposed else array


def float_weights(graph: ir.Graph) -> Iterator[tuple[ir.Value, Kind]]:
    """Yield each floating-point weight once, in graph order.

    A matrix (in, out) is multiplied from the right; a table (vocab, hidden) is looked up by `input_ids`, and where the
    output matrix is the same tensor transposed (tied), it is that too.
    """
    seen: set[ir.Value] = set()
    for node in graph:
        kind: Kind | None = None
        if node.op_type == "MatMul":
            kind, value = "matrix", node.inputs[1]
        elif node.op_type == "Gather" and node.inputs[1] is not None and node.inputs[1].name == "input_ids":
            kind, value = "table", node.inputs[0]
        if kind and value is not None and value.is_initializer() and value not in seen:
            seen.add(value)
            yield value, kind


def matrix_name(value: ir.Value) -> str:
    """Return the name of the node that reads a weight, which is the same for all families: `layers.7.mlp.down`.

    Weights outside the layers have several names: `embedding`, `lm_head`, or that of a table's `Transpose`.
    """
    return str(next(iter(value.uses())).node.name)


def load(value: ir.Value, kind: Kind) -> NDArray[np.float32]:
    """Return a floating-point weight as (rows = out, cols = in) float32, contiguous."""
    assert value.const_value is not None
    array = value.const_value.numpy()
    return np.ascontiguousarray(array if kind == "table" else array.T, dtype=np.float32)


def replace_by_codes(graph: ir.Graph, value: ir.Value, kind: Kind, codes: Codes, store: Store) -> None:
    """Replace a float weight by codes in `store` and a `DequantizeLinear` before its first use.

    The scales of nvfp4 are E4M3 numbers behind a `DequantizeLinear` of their own, with the scale of the whole weight.
    """
    name, scheme = str(value.name), codes.scheme
    stored = _TYPES[scheme.dtype, scheme.symmetric]
    blocked = scheme.group is not None

    def put(suffix: str, array: NDArray[Any], dtype: ir.DataType) -> ir.Value:
        array = np.ascontiguousarray(array)
        data = pack_nibbles(array) if dtype.bitwidth == 4 else array
        tensor = store.add(name + suffix, data, dtype, array.shape)
        new = ir.Value(name=name + suffix, type=ir.TensorType(dtype), shape=tensor.shape, const_value=tensor)
        new.metadata_props[SOURCE] = value.metadata_props.get(SOURCE, name)
        graph.register_initializer(new)
        return new

    def turn(array: NDArray[Any]) -> NDArray[Any]:
        return array if kind == "table" else array.T

    def groups(array: NDArray[Any]) -> NDArray[Any]:
        return turn(array) if blocked else array[:, 0]

    inputs = [put(".codes", turn(codes.codes), stored)]
    nodes = []
    if scheme.dtype == "nvfp4":
        scales = put(".scales", groups(codes.scales).astype(ml_dtypes.float8_e4m3fn), ir.DataType.FLOAT8E4M3FN)
        scale_of_all = constant(graph, f"{name}.global_scale", np.array(codes.global_scale, np.float32))
        nodes.append(ir.node("DequantizeLinear", [scales, scale_of_all], name=f"{name}.scales.dequantize"))
        inputs.append(_float_output(nodes[0], f"{name}.scales", scales.shape))
    else:
        inputs.append(put(".scales", groups(codes.scales), ir.DataType.FLOAT))
    if codes.zero_points is not None:
        inputs.append(put(".zero_points", groups(codes.zero_points), stored))
    # Blocks run along the inputs; a scale per output channel sits on the other axis.
    inputs_axis = 1 if kind == "table" else 0
    attributes = {"axis": inputs_axis, "block_size": scheme.group} if blocked else {"axis": 1 - inputs_axis}
    nodes.append(ir.node("DequantizeLinear", inputs, attributes, name=f"{name}.dequantize"))
    _swap(graph, value, nodes)


def replace_by_half(graph: ir.Graph, value: ir.Value, kind: Kind, array: NDArray[np.float32], store: Store) -> None:
    """Replace a float weight by float16 in `store` and a `Cast` before its first use."""
    half = (array if kind == "table" else array.T).astype(np.float16)
    tensor = store.add(f"{value.name}.half", half, ir.DataType.FLOAT16, half.shape)
    new = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(new)
    _swap(graph, value, [ir.node("Cast", [new], {"to": ir.DataType.FLOAT}, name=f"{value.name}.widen")])


def _swap(graph: ir.Graph, value: ir.Value, nodes: list[ir.Node]) -> None:
    """Put `nodes` before the first use of a weight; the last one gives the weight."""
    first = next(user for user in graph if value in user.inputs)
    for node in nodes:
        node.metadata_props[BLOCK] = first.metadata_props[BLOCK]
        graph.insert_before(first, node)
    value.replace_all_uses_with(_float_output(nodes[-1], str(value.name), value.shape))
    del graph.initializers[str(value.name)]


def _float_output(node: ir.Node, name: str, shape: ir.Shape | None) -> ir.Value:
    (output,) = node.outputs
    output.name, output.type, output.shape = f"{name}.float", ir.TensorType(ir.DataType.FLOAT), shape
    return output


def weight_nodes(graph: ir.Graph) -> list[ir.Node]:
    """Return each `DequantizeLinear` that gives a weight, and none that gives scales to others, or activations."""
    nodes = [n for n in graph if n.op_type == "DequantizeLinear" and n.inputs[0] and n.inputs[0].is_initializer()]
    scales = {node.inputs[1] for node in nodes}
    return [node for node in nodes if node.outputs[0] not in scales]


def stored_codes(node: ir.Node) -> StoredCodes:
    """Return what one of `weight_nodes` reads; the scheme's algorithm is not known any more."""
    codes = node.inputs[0]
    assert codes is not None
    tensors = tuple(_constants(node))
    dtype, symmetric = _DTYPES[tensors[0].dtype]
    group = node.attributes.get_int("block_size", 0) or None
    transposed = node.attributes.get_int("axis", 1) != (0 if group is None else 1)
    first, second = shape_of(tensors[0])
    shape = (second, first) if transposed else (first, second)
    scheme = Scheme(dtype, group, symmetric)
    return StoredCodes(str(codes.name).removesuffix(".codes"), scheme, shape, transposed, tensors)


def _constants(node: ir.Node) -> Iterator[ir.TensorProtocol]:
    """Yield what a node reads, through the node that gives its scales."""
    for value in node.inputs:
        producer = None if value is None else value.producer()
        if producer is not None:
            yield from _constants(producer)
        elif value is not None and value.const_value is not None:
            yield value.const_value


def _decode(codes: NDArray[Any], dtype: Dtype) -> NDArray[np.float32]:
    return (codes.view(_FLOATS[dtype]) if dtype in _FLOATS else codes).astype(np.float32)


def _array(tensor: ir.TensorProtocol) -> NDArray[Any]:
    """Return a stored tensor; floats of 4 and 8 bits are bit patterns, uint8."""
    shape = shape_of(tensor)
    if tensor.dtype.bitwidth == 4:
        codes = unpack_nibbles(raw_bytes(tensor), shape)
        return signed_nibbles(codes) if tensor.dtype == ir.DataType.INT4 else codes
    if tensor.dtype == ir.DataType.FLOAT8E4M3FN:
        return raw_bytes(tensor).reshape(shape)
    return raw_bytes(tensor).view(tensor.dtype.numpy()).reshape(shape)
