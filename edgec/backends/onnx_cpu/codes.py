"""Read the integers of an artifact back out of its kernels' own formats."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.backends.onnx_cpu.attention import K_SCALE, V_SCALE
from edgec.backends.onnx_cpu.files import ALL_LOGITS_FILE
from edgec.backends.onnx_cpu.integer import MIDDLE
from edgec.graph.rewrite import array_of
from edgec.graph.rows import split_rows
from edgec.graph.sparse import load
from edgec.graph.store import raw_bytes, shape_of, unpack_nibbles
from edgec.graph.tags import WEIGHTS
from edgec.graph.weights import Codes
from edgec.quantize.activations import activation_scales, scale_numbers
from edgec.quantize.scheme import Scheme


def read_codes(artifact: Path) -> Iterator[tuple[str, Codes]]:
    """Yield (name, integers) of each weight that is multiplied by or looked up as integers.

    A scheme with one scale per output comes back with the blocks that the kernel asked for.
    """
    return kernel_codes(load(artifact / ALL_LOGITS_FILE).graph)


def kernel_codes(graph: ir.Graph) -> Iterator[tuple[str, Codes]]:
    """Yield (name, integers) of each weight in kernels' own formats."""
    for node in graph:
        if node.op_type == "MatMulNBits":
            yield from _matmul(node)
        elif node.op_type == "GatherBlockQuantized":
            yield from _gather(node)
        elif node.op_type == "MatMulIntegerToFloat":
            yield from _integer_matmul(node)


def _matmul(node: ir.Node) -> Iterator[tuple[str, Codes]]:
    bits, cols = node.attributes["bits"].as_int(), node.attributes["K"].as_int()
    packed, scales, zeros = (_array(node, index) for index in (1, 2, 3))
    assert packed is not None
    yield from _split(node, packed.reshape(len(packed), -1), scales, zeros, bits, cols, node.inputs[1])


def _integer_matmul(node: ir.Node) -> Iterator[tuple[str, Codes]]:
    codes, scales = _array(node, 1), _array(node, 3)
    assert codes is not None
    assert scales is not None
    assert node.inputs[1] is not None
    if codes.dtype == np.uint8:
        codes = (codes ^ np.uint8(MIDDLE)).view(np.int8)
    joined = Codes(np.ascontiguousarray(codes.T), scales[:, None], None, Scheme("int8", None))
    yield from split_rows(node.inputs[1].metadata_props.get(WEIGHTS, ""), joined)


def _gather(node: ir.Node) -> Iterator[tuple[str, Codes]]:
    bits = node.attributes["bits"].as_int()
    packed, scales, zeros = (_array(node, index) for index in (0, 2, 3))
    assert packed is not None
    yield from _split(node, packed, scales, zeros, bits, packed.shape[1] * 8 // bits, node.inputs[0])


def _split(
    node: ir.Node,
    packed: NDArray[np.uint8],
    scales: NDArray[Any] | None,
    zeros: NDArray[np.uint8] | None,
    bits: int,
    cols: int,
    value: ir.Value | None,
) -> Iterator[tuple[str, Codes]]:
    """Yield the weights in rows that were joined; `cols` may count padding."""
    assert scales is not None
    assert value is not None
    scheme = Scheme("int4" if bits == 4 else "int8", node.attributes["block_size"].as_int(), zeros is None)
    codes = _unpack(packed, bits)[:, :cols]
    if scheme.symmetric:
        codes = (codes.view(np.int8) + np.int8(scheme.low)).astype(np.int8)
    points = None if zeros is None else _unpack(zeros, bits)[:, : scales.shape[1]]
    # Other tools' graphs name no weights.
    yield from split_rows(value.metadata_props.get(WEIGHTS, ""), Codes(codes, scales, points, scheme))


def _unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    return unpack_nibbles(packed.reshape(-1), (len(packed), 2 * packed.shape[1])) if bits == 4 else packed


def _array(node: ir.Node, index: int) -> NDArray[Any] | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.const_value is None:
        return None
    tensor = value.const_value
    return raw_bytes(tensor).view(tensor.dtype.numpy()).reshape(shape_of(tensor))


def read_scales(artifact: Path) -> dict[str, tuple[float, ...]]:
    """Return the scales of activations and of the cache that the artifact holds, by their names."""
    graph = load(artifact / ALL_LOGITS_FILE).graph
    found = activation_scales(graph)
    for node in graph:
        if node.op_type == "GroupQueryAttention":
            for value in node.inputs[K_SCALE : V_SCALE + 1]:
                assert value is not None
                found[str(value.name).removesuffix(".cache_scale")] = scale_numbers(array_of(value))
    return found
