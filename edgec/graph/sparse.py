"""ONNX's sparse tensors: the numbers that are not 0, and the place of each.

Source: SparseTensorProto in onnx.proto: places are int64, counted along all axes. They may be in a file, as all of a
tensor may; ONNX Runtime 1.31 takes them from there and widens them when it loads the model.
"""

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir import external_data

from edgec.graph.store import Store, raw_bytes, shape_of
from edgec.spec.memory import PLACE_BYTES

Shape = tuple[int, ...]


class SparseTensor(ir.LazyTensor):
    """A tensor whose zeros are not stored; all its numbers are there when they are asked for.

    Args:
        numbers: (n,) those that are not 0.
        places: (n,) int64, ascending: where they are, counted along all axes.
        shape: with the zeros.
    """

    def __init__(
        self, name: str, numbers: ir.ExternalTensor, places: ir.ExternalTensor, shape: tuple[int, ...]
    ) -> None:
        super().__init__(self._widened, numbers.dtype, ir.Shape(shape), name=name)
        self.numbers, self.places = numbers, places

    def _widened(self) -> ir.TensorProtocol:
        dense: NDArray[Any] = np.zeros(prod(shape_of(self)), self.dtype.numpy())
        dense[raw_bytes(self.places).view(np.int64)] = raw_bytes(self.numbers).view(dense.dtype)
        return ir.Tensor(dense.reshape(shape_of(self)), name=self.name)


def pays(numbers: NDArray[Any]) -> bool:
    """Return whether a tensor takes fewer bytes without its zeros: from 67 % of them in float32, 80 % in float16."""
    return bool(np.count_nonzero(numbers) * (numbers.itemsize + PLACE_BYTES) < numbers.nbytes)


def add(store: Store, name: str, numbers: NDArray[Any], dtype: ir.DataType, shape: Shape) -> SparseTensor:
    """Append a tensor to a store without its zeros."""
    flat = numbers.reshape(-1)
    places = np.flatnonzero(flat).astype(np.int64, copy=False)
    stored = store.add(name, flat[places], dtype, places.shape)
    return SparseTensor(name, stored, store.add(f"{name}.places", places, ir.DataType.INT64, places.shape), shape)


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """Return a model with its sparse tensors, which onnx_ir leaves out of what it writes."""
    sparse = _sparse(model)
    for name, tensor in sparse.items():  # stand-ins: what is known of initializers is written beside them
        model.graph.initializers[name].const_value = tensor.numbers
    proto: onnx.ModelProto = ir.to_proto(model)
    for name, tensor in sparse.items():
        model.graph.initializers[name].const_value = tensor
    written = list(proto.graph.initializer)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(tensor for tensor in written if tensor.name not in sparse)
    for numbers in (tensor for tensor in written if tensor.name in sparse):
        tensor = sparse[numbers.name]
        places = ir.to_proto(tensor.places)
        proto.graph.sparse_initializer.add(values=numbers, indices=places, dims=shape_of(tensor))
    return proto


def _sparse(model: ir.Model) -> dict[str, SparseTensor]:
    tensors = ((name, value.const_value) for name, value in model.graph.initializers.items())
    return {name: tensor for name, tensor in tensors if isinstance(tensor, SparseTensor)}


def remarks(model: ir.Model) -> tuple[str, ...]:
    """Say for a report what leaving zeros out of a model's file saves, if anything."""
    found = _sparse(model).values()
    if not found:
        return ()
    stored, dense = sum(t.numbers.nbytes + t.places.nbytes for t in found), sum(t.nbytes for t in found)
    what = f"zeros of {len(found)} tensors are left out of the file (ONNX sparse tensors)"
    return (
        f"{what}: {stored / 1e6:.1f} in place of {dense / 1e6:.1f} MB; the runtime puts them back when it loads them",
    )


def save(model: ir.Model, path: Path) -> None:
    """Write a model whose weights are in a file beside `path`."""
    path.write_bytes(to_proto(model).SerializeToString())


def load(path: Path) -> ir.Model:
    """Return the model at `path` with its sparse tensors, which onnx_ir leaves out of what it reads."""
    proto = onnx.load(path, load_external_data=False)
    found = list(proto.graph.sparse_initializer)
    # Stand-ins: what nodes read must be there when they are read.
    for sparse in found:
        proto.graph.initializer.add().CopyFrom(sparse.values)
    model: ir.Model = ir.from_proto(proto)
    external_data.set_base_dir(model.graph, path.parent)
    for sparse in found:
        numbers, places = (ir.from_proto(part) for part in (sparse.values, sparse.indices))
        numbers.base_dir = places.base_dir = path.parent
        shape = tuple(sparse.dims)
        value = model.graph.initializers[sparse.values.name]
        value.const_value = SparseTensor(sparse.values.name, numbers, places, shape)
        value.shape = ir.Shape(shape)
    return model
