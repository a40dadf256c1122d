"""Read the weights of an artifact back out of its model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgec.backends.openvino import MARKER
from edgec.graph.rows import split_rows
from edgec.graph.store import signed_nibbles, unpack_nibbles
from edgec.graph.weights import Codes
from edgec.quantize.activations import scale_numbers
from edgec.quantize.scheme import Scheme

_DECOMPRESSION = frozenset({"Convert", "Subtract", "Multiply", "Reshape"})
_SCHEMES = {"i4": ("int4", True), "u4": ("int4", False), "i8": ("int8", True), "u8": ("int8", False)}


def read_codes(artifact: Path) -> Iterator[tuple[str, Codes]]:
    """Yield (name, integers) of each weight that the model keeps as integers; columns may count padding."""
    model = ov.Core().read_model(artifact / MARKER)
    constants = {op.get_friendly_name(): op for op in model.get_ops() if op.get_type_name() == "Constant"}
    for name, constant in constants.items():
        if not name.endswith(".codes"):
            continue
        note = name.removesuffix(".codes")
        dtype, symmetric = _SCHEMES[constant.get_element_type().get_type_name()]
        shape = tuple(constant.shape)
        scheme = Scheme(dtype, shape[2] if len(shape) == 3 else None, symmetric)  # type: ignore[arg-type]
        codes = _integers(constant, scheme).reshape(shape[0], -1)
        zeros = None if symmetric else _integers(constants[f"{note}.zero_points"], scheme).reshape(shape[0], -1)
        scales = constants[f"{note}.scales"].data.astype(np.float32).reshape(shape[0], -1)
        yield from split_rows(note, Codes(codes, scales, zeros, scheme))


def read_scales(artifact: Path) -> dict[str, tuple[float, ...]]:
    """Return the scale of each activation that is rounded to integers, by its name."""
    model = ov.Core().read_model(artifact / MARKER)
    found = {}
    for node in model.get_ops():
        if node.get_type_name() == "FakeQuantize":
            _, low, high, *_ = (value.get_node() for value in node.input_values())
            steps = node.get_attributes()["levels"] - 1
            name = node.get_friendly_name().removesuffix(".quantize")
            found[name] = scale_numbers((high.data - low.data) / np.float32(steps))
    return found


def weight_bytes_per_token(artifact: Path) -> int:
    """Return the size of all constants that some matmul reads."""
    model = ov.Core().read_model(artifact / MARKER)
    waiting = [op.input_value(1).get_node() for op in model.get_ops() if op.get_type_name() == "MatMul"]
    sizes: dict[str, int] = {}
    while waiting:
        node = waiting.pop()
        if node.get_type_name() == "Constant":
            sizes[node.get_name()] = node.get_byte_size()
        elif node.get_type_name() in _DECOMPRESSION:
            waiting += [value.get_node() for value in node.input_values()]
    return sum(sizes.values())


def _integers(constant: Any, scheme: Scheme) -> NDArray[Any]:
    data, shape = constant.data, tuple(constant.shape)
    if scheme.bits == 8:
        return np.array(data)
    codes = unpack_nibbles(data.reshape(-1).view(np.uint8), shape)
    return signed_nibbles(codes) if scheme.symmetric else codes
