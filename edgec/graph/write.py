"""Write the weights of a lowered model into a file beside it, one tensor in memory at a time."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgec.graph.sparse import add as add_sparse
from edgec.graph.sparse import pays
from edgec.graph.store import Store, raw_bytes, shape_of
from edgec.graph.tags import SAME_BYTES, WEIGHTS

DATA_FILE = "model.onnx.data"
# Smaller tensors (shapes, scalars) stay inside the model file, where ONNX Runtime can fold them.
_EXTERNAL_FROM_BYTES = 1024


def write_weights(model: ir.Model, folder: Path, tick: Callable[[str], object], *, sparse: bool = False) -> None:
    """Write `model.onnx.data` into `folder`; the initializers of `model` then refer to it.

    Args:
        model: the lowered graph.
        folder: of the artifact.
        tick: called with the name of each weight.
        sparse: leave zeros out where that takes fewer bytes; the model is then to be written by `sparse.save`.
    """
    with Store(folder / DATA_FILE) as store:
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            assert tensor is not None
            if tensor.nbytes < _EXTERNAL_FROM_BYTES:
                if isinstance(tensor, ir.ExternalTensor):  # in a scratch file
                    value.const_value = ir.tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=name)
                continue
            shape = shape_of(tensor)
            twin = model.graph.initializers.get(value.metadata_props.get(SAME_BYTES, ""))
            if twin is not None and isinstance(twin.const_value, ir.ExternalTensor):
                same = twin.const_value
                place = (same.location, same.offset, same.length, tensor.dtype)
                value.const_value = ir.ExternalTensor(*place, shape=ir.Shape(shape), name=name, base_dir=folder)
            else:
                raw = isinstance(tensor, ir.ExternalTensor) or tensor.dtype.bitwidth < 8
                data = raw_bytes(tensor) if raw else np.asarray(tensor.numpy())
                numbers = data.view(tensor.dtype.numpy()) if sparse and tensor.dtype.bitwidth >= 8 else None
                if numbers is not None and pays(numbers):
                    value.const_value = add_sparse(store, name, numbers, tensor.dtype, shape)
                else:
                    value.const_value = store.add(name, data, tensor.dtype, shape)
            tick(name)
    for noted in (*model.graph, *model.graph.initializers.values()):
        for note in [key for key in noted.metadata_props if key != WEIGHTS]:
            del noted.metadata_props[note]  # notes between passes are of no use on a device
