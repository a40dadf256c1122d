"""Write a lowered model with its weights beside it, one tensor in memory at a time."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgec.backends.onnx_cpu.matmul import SAME_BYTES
from edgec.graph.store import Store

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
# Smaller tensors (shapes, scalars) stay inside the model file, where ONNX Runtime can fold them.
_EXTERNAL_FROM_BYTES = 1024


def write(model: ir.Model, folder: Path, tick: Callable[[str], object]) -> None:
    """Write `model.onnx` and `model.onnx.data` into `folder`; the initializers of `model` then refer to the file."""
    with Store(folder / DATA_FILE) as store:
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            assert tensor is not None
            if tensor.nbytes < _EXTERNAL_FROM_BYTES:
                continue
            shape = tuple(int(d) for d in tensor.shape)
            twin = model.graph.initializers.get(value.metadata_props.get(SAME_BYTES, ""))
            if twin is not None and isinstance(twin.const_value, ir.ExternalTensor):
                same = twin.const_value
                value.const_value = ir.ExternalTensor(
                    same.location, same.offset, same.length, tensor.dtype, shape=ir.Shape(shape), name=name,
                    base_dir=folder,
                )  # fmt: skip
            else:
                value.const_value = store.add(name, np.asarray(tensor.numpy()), tensor.dtype, shape)
            tick(name)
    for node in model.graph:
        node.metadata_props.clear()
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    ir.save(model, folder / MODEL_FILE)
