"""Weights as OpenVINO's plugins expect them: Constant -> Convert -> [Subtract] -> Multiply [-> Reshape] -> Convert.

This is the pattern that plugins recognise and keep compressed in memory. Matrices are (out, in), groups run along the
inputs; scales are stored as float16, which rounds nothing (see `edgec.quantize.scheme`).

Source: OpenVINO documentation, weight compression; the decompression patterns of its plugins.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op

from edgec.backends.openvino.kernels import block_size
from edgec.graph.rows import rows_note
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

    def get(self, *values: ir.Value) -> tuple[ov.Node, int]:
        """Return the float32 (out, in) node of a weight, and by how many zero inputs its rows were padded.

        Args:
            values: what a `MatMul` multiplies by, or a `Gather` looks up; the rows of several are joined.
        """
        weights = [_behind_transpose(value) for value in values]
        name = " ".join(str(value.name) for value in weights)
        if name not in self._made:
            self._made[name] = self._make(weights)
            for value in weights:
                self._tick(str(value.name))
        return self._made[name]

    def _make(self, values: Sequence[ir.Value]) -> tuple[ov.Node, int]:
        nodes = [value.producer() for value in values]
        if nodes[0] is not None and nodes[0].op_type == "DequantizeLinear":
            return self._integers([stored_codes(node) for node in nodes if node is not None])
        # A weight that is stored as float16 is behind the Cast that widens it.
        stored = [node.inputs[0] if node is not None else value for node, value in zip(nodes, values, strict=True)]
        array = np.concatenate([_rows(s, value) for s, value in zip(stored, values, strict=True) if s is not None])
        dtype = ov.Type.f32 if nodes[0] is None else ov.Type.f16
        constant = self._place(" ".join(str(value.name) for value in values), array, dtype, array.shape)
        return (constant if nodes[0] is None else op.convert(constant, ov.Type.f32)), 0

    def _integers(self, pieces: Sequence[StoredCodes]) -> tuple[ov.Node, int]:
        scheme, cols = pieces[0].scheme, pieces[0].shape[1]
        rows = sum(piece.shape[0] for piece in pieces)
        width = block_size(scheme, cols) or cols
        groups = -(-cols // width)
        repeat = (scheme.group or cols) // width
        padding = groups * width - cols
        codes = np.concatenate([piece.codes() for piece in pieces])
        if padding:  # inputs are padded with zeros, so the value of these codes does not matter
            codes = np.pad(codes, ((0, 0), (0, padding)))
        shape = (rows, groups, width) if scheme.group else (rows, cols)
        note, dtype = rows_note((p.name, p.shape[0]) for p in pieces), _TYPES[scheme.dtype, scheme.symmetric]

        def integers(suffix: str, array: NDArray[Any], shape: tuple[int, ...]) -> ov.Node:
            data = pack_nibbles(array) if scheme.bits == 4 else np.ascontiguousarray(array)
            return op.convert(self._place(note + suffix, data, dtype, shape), ov.Type.f16)

        per_group = (*shape[:-1], 1)
        weight = integers(".codes", codes, shape)
        if not scheme.symmetric:
            zeros = np.repeat(np.concatenate([p.zero_points() for p in pieces]), repeat, axis=1)[:, :groups]
            weight = op.subtract(weight, integers(".zero_points", zeros, per_group))
        scales = np.repeat(np.concatenate([p.scales() for p in pieces]), repeat, axis=1)[:, :groups].astype(np.float16)
        weight = op.multiply(weight, self._place(f"{note}.scales", scales, ov.Type.f16, per_group))
        if scheme.group:
            weight = op.reshape(weight, np.array([rows, groups * width], np.int64), special_zero=False)
        return op.convert(weight, ov.Type.f32), padding

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
