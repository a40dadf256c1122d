"""Weights as OpenVINO's plugins expect them: Constant -> Convert -> [Subtract] -> Multiply [-> Reshape] -> Convert.

This is the pattern that plugins recognise and keep compressed in memory. Matrices are (out, in), groups run along the
inputs; scales are stored as float16, which rounds nothing (see `edgec.quantize.scheme`).

Source: OpenVINO documentation, weight compression; the decompression patterns of its plugins.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op

from edgec.graph.store import Store, pack_nibbles
from edgec.graph.weights import StoredCodes, stored_codes

_TYPES = {
    ("int4", True): ov.Type.i4,
    ("int4", False): ov.Type.u4,
    ("int8", True): ov.Type.i8,
    ("int8", False): ov.Type.u8,
}


class Weights:
    """Writes each weight once; its bytes wait in a file, so that a model's weights are mapped and not held in memory.

    This object owns the mapped memory: it must outlive the model.

    Args:
        store: the file.
        tick: called with the name of each weight when it is written.
    """

    def __init__(self, store: Store, tick: Callable[[str], object]) -> None:
        self._store = store
        self._tick = tick
        self._maps: list[NDArray[np.uint8]] = []
        self._made: dict[str, tuple[ov.Node, int]] = {}

    def get(self, value: ir.Value) -> tuple[ov.Node, int]:
        """Return the float32 (out, in) node of a matrix or table, and by how many zero inputs its rows were padded.

        Args:
            value: what a `MatMul` multiplies by, or a `Gather` looks up.
        """
        value = _behind_transpose(value)
        name = str(value.name)
        if name not in self._made:
            self._made[name] = self._make(value)
            self._tick(name)
        return self._made[name]

    def _make(self, value: ir.Value) -> tuple[ov.Node, int]:
        node = value.producer()
        if node is not None and node.op_type == "DequantizeLinear":
            return self._integers(stored_codes(node))
        if node is not None:  # a Cast that widens float16
            half = node.inputs[0]
            assert half is not None
            array = _rows(half, value)
            return op.convert(self._place(str(half.name), array, ov.Type.f16, array.shape), ov.Type.f32), 0
        array = _rows(value, value)
        return self._place(str(value.name), array, ov.Type.f32, array.shape), 0

    def _integers(self, stored: StoredCodes) -> tuple[ov.Node, int]:
        scheme, (rows, cols) = stored.scheme, stored.shape
        width = scheme.group or cols
        groups = scheme.groups(cols)
        pad = groups * width - cols
        codes = stored.codes()
        if pad:  # inputs are padded with zeros, so the value of these codes does not matter
            codes = np.pad(codes, ((0, 0), (0, pad)))
        shape = (rows, groups, width) if scheme.group else (rows, cols)
        dtype = _TYPES[scheme.dtype, scheme.symmetric]

        def integers(suffix: str, array: NDArray[Any], shape: tuple[int, ...]) -> ov.Node:
            data = pack_nibbles(array) if scheme.bits == 4 else np.ascontiguousarray(array)
            return op.convert(self._place(stored.name + suffix, data, dtype, shape), ov.Type.f16)

        per_group = (*shape[:-1], 1)
        weight = integers(".codes", codes, shape)
        if not scheme.symmetric:
            weight = op.subtract(weight, integers(".zero_points", stored.zero_points(), per_group))
        scales = np.ascontiguousarray(stored.scales(), np.float16)
        weight = op.multiply(weight, self._place(f"{stored.name}.scales", scales, ov.Type.f16, per_group))
        if scheme.group:
            weight = op.reshape(weight, np.array([rows, groups * width], np.int64), special_zero=False)
        return op.convert(weight, ov.Type.f32), pad

    def _place(self, name: str, data: NDArray[Any], dtype: ov.Type, shape: tuple[int, ...]) -> ov.Node:
        placed = self._store.add(name, data, ir.DataType.UINT8, (data.nbytes,))
        self._store.flush()
        mapped = np.memmap(placed.path, np.uint8, "r", placed.offset or 0, (data.nbytes,))
        self._maps.append(mapped)
        constant = op.constant(ov.Tensor(mapped.view(data.dtype), ov.Shape(shape), dtype), shared_memory=True)
        constant.set_friendly_name(name)
        return constant


def _behind_transpose(value: ir.Value) -> ir.Value:
    """Return the table behind a tied output matrix, which is its transpose."""
    node = value.producer()
    if node is not None and node.op_type == "Transpose":
        assert node.inputs[0] is not None
        return node.inputs[0]
    return value


def _rows(stored: ir.Value, read: ir.Value) -> NDArray[Any]:
    """Return the float initializer `stored` as (out, in); how it is `read` tells tables from matrices (in, out)."""
    assert stored.const_value is not None
    table = any(use.node.op_type in ("Gather", "Transpose") for use in read.uses())
    array = stored.const_value.numpy()
    return np.ascontiguousarray(array if table else array.T)
