"""Write the weights of a lowered model into a file, one tensor in memory at a time."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgec.backends.onnx_cpu.matmul import SAME_BYTES
from edgec.graph.store import Store, shape_of

DATA_FILE = "model.onnx.data"
# Smaller tensors (shapes, scalars) stay inside the model file, where ONNX Runtime can fold them.
_EXTERNAL_FROM_BYTES = 1024


def write_weights(model: ir.Model, folder: Path, tick: Callable[[str], object]) -> None:
    """Write `model.onnx.data` into `folder`; the initializers of `model` then refer to it."""
    with Store(folder / DATA_FILE) as store:
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            assert tensor is not None
            if tensor.nbytes < _EXTERNAL_FROM_BYTES:
                continue
            shape = shape_of(tensor)
            twin = model.graph.initializers.get(value.metadata_props.get(SAME_BYTES, ""))
            if twin is not None and isinstance(twin.const_value, ir.ExternalTensor):
                same = twin.const_value
                place = (same.location, same.offset, same.length, tensor.dtype)
                value.const_value = ir.ExternalTensor(*place, shape=ir.Shape(shape), name=name, base_dir=folder)
            else:
                value.const_value = store.add(name, np.asarray(tensor.numpy()), tensor.dtype, shape)
            tick(name)
    for noted in (*model.graph, *model.graph.initializers.values()):
        noted.metadata_props.clear()  # notes between passes are of no use on a device
