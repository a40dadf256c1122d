"""What became of the weights of each block, on disk."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgec.calibrate import cache
from edgec.graph.weights import Codes
from edgec.quantize.scheme import Scheme
from edgec.quantize.tensor import QuantizedTensor
from edgec.quantize.weights import as_codes

Tensor = torch.Tensor

# Of arrays in a file, before the name of what they belong to.
_SCHEME, _CODES, _SCALES, _ZEROS, _GLOBAL = "scheme/", "codes/", "scales/", "zeros/", "global/"
_FLOAT, _REMARKS = "float/", "remarks"


@dataclass(frozen=True)
class BlockResult:
    """What became of a block.

    Args:
        tensors: quantized matrices by the names of their initializers.
        floats: initializers that changed and stay floats, as the graph has them.
        remarks: what was not done, and why.
    """

    tensors: Mapping[str, QuantizedTensor]
    floats: Mapping[str, Tensor] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """Write `path`, whole or not at all."""
        arrays: dict[str, NDArray[Any]] = {_REMARKS: np.array(self.remarks, np.str_)}
        for name, tensor in self.tensors.items():
            arrays[_SCHEME + name] = np.frombuffer(msgspec.json.encode(tensor.scheme), np.uint8)
            arrays[_CODES + name], arrays[_SCALES + name] = tensor.codes.numpy(), tensor.scales.numpy()
            arrays[_GLOBAL + name] = np.array(tensor.global_scale)
            if tensor.zero_points is not None:
                arrays[_ZEROS + name] = tensor.zero_points.numpy()
        arrays |= {_FLOAT + name: value.cpu().numpy() for name, value in self.floats.items()}
        cache.save(path, arrays)


def read_result(path: Path) -> BlockResult | None:
    """Return what `BlockResult.write` wrote; None where nothing can be read."""
    arrays = cache.load(path)
    if arrays is None or _REMARKS not in arrays:
        return None
    tensors = {name: _tensor(arrays, name) for name in _names(arrays, _SCHEME)}
    floats = {name: torch.from_numpy(arrays[_FLOAT + name]) for name in _names(arrays, _FLOAT)}
    return BlockResult(tensors, floats, tuple(map(str, arrays[_REMARKS])))


def _names(arrays: Iterable[str], kind: str) -> list[str]:
    return [key.removeprefix(kind) for key in arrays if key.startswith(kind)]


def _tensor(arrays: Mapping[str, NDArray[Any]], name: str) -> QuantizedTensor:
    scheme = msgspec.json.decode(arrays[_SCHEME + name].tobytes(), type=Scheme)
    zeros = torch.from_numpy(arrays[_ZEROS + name]) if _ZEROS + name in arrays else None
    codes, scales = (torch.from_numpy(arrays[kind + name]) for kind in (_CODES, _SCALES))
    return QuantizedTensor(codes, scales, zeros, scheme, float(arrays[_GLOBAL + name]))


class Results:
    """The results of all blocks of a model; weights are read when they are asked for.

    Args:
        paths: of their files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.remarks: tuple[str, ...] = ()
        self._tensors: dict[str, Path] = {}
        self._floats: dict[str, Path] = {}
        for path in paths:
            with np.load(path) as arrays:
                self.remarks += tuple(map(str, arrays[_REMARKS]))
                self._tensors |= dict.fromkeys(_names(arrays.files, _SCHEME), path)
                self._floats |= dict.fromkeys(_names(arrays.files, _FLOAT), path)

    def codes(self, name: str) -> Codes | None:
        """Return the integers of a weight by the name of its initializer; None where it has none."""
        if name not in self._tensors:
            return None
        with np.load(self._tensors[name]) as arrays:
            return as_codes(_tensor(arrays, name))

    def put_floats(self, model: ir.Model) -> None:
        """Let the initializers of a canonical float graph that changed load what they became."""
        for name, path in self._floats.items():
            if (value := model.graph.initializers.get(name)) is not None:
                value.const_value = _lazy(value, path)


def _lazy(value: ir.Value, path: Path) -> ir.LazyTensor:
    name = str(value.name)

    def load() -> ir.TensorProtocol:
        with np.load(path) as arrays:
            return ir.tensor(arrays[_FLOAT + name], name=name)

    assert value.shape is not None
    return ir.LazyTensor(load, ir.DataType.FLOAT, value.shape, name=name)
