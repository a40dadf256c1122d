"""Where a graph keeps its weights: which initializers are matrices and tables, and how quantized ones are written."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.graph.store import Store, pack_nibbles, raw_bytes, shape_of, unpack_nibbles
from edgec.graph.tags import BLOCK, SOURCE
from edgec.quantize.scheme import Scheme

Kind = Literal["matrix", "table"]
_INTEGERS = {
    ("int4", True): ir.DataType.INT4,
    ("int4", False): ir.DataType.UINT4,
    ("int8", True): ir.DataType.INT8,
    ("int8", False): ir.DataType.UINT8,
}


@dataclass(frozen=True)
class Codes:
    """The integers of a quantized weight as numpy arrays, in the orientation of algorithms.

    Args:
        codes: (rows = out, cols = in), int8 or uint8.
        scales: (rows, groups) float32.
        zero_points: (rows, groups) uint8, or None.
    """

    codes: NDArray[Any]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8] | None
    scheme: Scheme


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
        return self._per_group(1)

    def zero_points(self) -> NDArray[np.uint8]:
        return self._per_group(2)

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


def load(value: ir.Value, kind: Kind) -> NDArray[np.float32]:
    """Return a floating-point weight as (rows = out, cols = in) float32, contiguous."""
    assert value.const_value is not None
    array = value.const_value.numpy()
    return np.ascontiguousarray(array if kind == "table" else array.T, dtype=np.float32)


def replace_by_codes(graph: ir.Graph, value: ir.Value, kind: Kind, codes: Codes, store: Store) -> None:
    """Replace a float weight by integers in `store` and a `DequantizeLinear` before its first use."""
    name, scheme = str(value.name), codes.scheme
    integer = _INTEGERS[scheme.dtype, scheme.symmetric]
    blocked = scheme.group is not None

    def put(suffix: str, array: NDArray[Any], dtype: ir.DataType) -> ir.Value:
        array = np.ascontiguousarray(array)
        data = pack_nibbles(array) if dtype in (ir.DataType.INT4, ir.DataType.UINT4) else array
        tensor = store.add(name + suffix, data, dtype, array.shape)
        new = ir.Value(name=name + suffix, type=ir.TensorType(dtype), shape=tensor.shape, const_value=tensor)
        new.metadata_props[SOURCE] = value.metadata_props.get(SOURCE, name)
        graph.register_initializer(new)
        return new

    def turn(array: NDArray[Any]) -> NDArray[Any]:
        return array if kind == "table" else array.T

    def groups(array: NDArray[Any]) -> NDArray[Any]:
        return turn(array) if blocked else array[:, 0]

    inputs = [put(".codes", turn(codes.codes), integer), put(".scales", groups(codes.scales), ir.DataType.FLOAT)]
    if codes.zero_points is not None:
        inputs.append(put(".zero_points", groups(codes.zero_points), integer))
    # Blocks run along the inputs; a scale per output channel sits on the other axis.
    inputs_axis = 1 if kind == "table" else 0
    attributes = {"axis": inputs_axis, "block_size": scheme.group} if blocked else {"axis": 1 - inputs_axis}
    _swap(graph, value, ir.node("DequantizeLinear", inputs, attributes, name=f"{name}.dequantize"))


def replace_by_half(graph: ir.Graph, value: ir.Value, kind: Kind, array: NDArray[np.float32], store: Store) -> None:
    """Replace a float weight by float16 in `store` and a `Cast` before its first use."""
    half = (array if kind == "table" else array.T).astype(np.float16)
    tensor = store.add(f"{value.name}.half", half, ir.DataType.FLOAT16, half.shape)
    new = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(new)
    _swap(graph, value, ir.node("Cast", [new], {"to": ir.DataType.FLOAT}, name=f"{value.name}.widen"))


def _swap(graph: ir.Graph, value: ir.Value, node: ir.Node) -> None:
    first = next(user for user in graph if value in user.inputs)
    node.metadata_props[BLOCK] = first.metadata_props[BLOCK]
    node.outputs[0].name = f"{value.name}.float"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    node.outputs[0].shape = value.shape
    graph.insert_before(first, node)
    value.replace_all_uses_with(node.outputs[0])
    del graph.initializers[str(value.name)]


def stored_codes(node: ir.Node) -> StoredCodes:
    """Return what a `DequantizeLinear` on initializers reads; the scheme's algorithm is not known any more."""
    tensors = tuple(v.const_value for v in node.inputs if v is not None and v.const_value is not None)
    dtype = tensors[0].dtype
    kind: Literal["int4", "int8"] = "int4" if dtype in (ir.DataType.INT4, ir.DataType.UINT4) else "int8"
    group = node.attributes.get_int("block_size", 0) or None
    scheme = Scheme(kind, group, dtype in (ir.DataType.INT4, ir.DataType.INT8))
    transposed = node.attributes.get_int("axis", 1) != (0 if group is None else 1)
    first, second = shape_of(tensors[0])
    shape = (second, first) if transposed else (first, second)
    assert node.inputs[0] is not None
    return StoredCodes(str(node.inputs[0].name).removesuffix(".codes"), scheme, shape, transposed, tensors)


def _array(tensor: ir.TensorProtocol) -> NDArray[Any]:
    shape = shape_of(tensor)
    if tensor.dtype in (ir.DataType.INT4, ir.DataType.UINT4):
        codes = unpack_nibbles(raw_bytes(tensor), shape)
        return (codes ^ 8).view(np.int8) - np.int8(8) if tensor.dtype == ir.DataType.INT4 else codes
    return raw_bytes(tensor).view(tensor.dtype.numpy()).reshape(shape)
