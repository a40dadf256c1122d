"""Canonical graph -> the strongly typed graph that TensorRT's parser takes.

Every tensor has the type that is written: matmuls, attention and the cache in float16; the residual stream, norms and
logits, which may leave float16's range, in float32; weights as the integers of the canonical graph behind a
`DequantizeLinear` with float16 scales.

Source: NVIDIA TensorRT documentation, strongly typed networks and quantized types; what its parsers take was measured
(docs/design.md, section 6).
"""

import re
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.backends.tensorrt.decompose import decompose
from edgec.backends.tensorrt.floats import narrow_nvfp4
from edgec.backends.tensorrt.kernels import block_size
from edgec.graph.nvfp4 import is_nvfp4
from edgec.graph.rewrite import array_of, constant, lazy, sweep
from edgec.graph.weights import StoredCodes, stored_codes, weight_nodes
from edgec.quantize.activations import quantizers

OLD_OPSET = 21
"""For TensorRT 10.3: older than Attention, RotaryEmbedding and RMSNormalization."""

_NORMS = frozenset({"RMSNormalization", "LayerNormalization"})
# As the decoder frontend names what is added up from layer to layer, and the factors in front of the sums.
_RESIDUAL = re.compile(r"embedding\.(multiplier|sum)|layers\.\d+\.(attention|mlp)_residual(\.multiplier)?")


def lower(model: ir.Model, *, half: ir.DataType = ir.DataType.FLOAT16, old: bool = False) -> ir.Model:
    """Return a lowered copy of a canonical decoder graph; weights stay lazy.

    Args:
        model: the canonical graph; not changed.
        half: the type of matmuls, attention and the cache.
        old: write operators of opset 21 only.
    """
    lowered = model.clone()
    graph = lowered.graph
    wide = _keep_float32(graph, half)
    nvfp4 = [node for node in weight_nodes(graph) if is_nvfp4(node)]
    for node in weight_nodes(graph):
        if node in nvfp4:
            wide.add(narrow_nvfp4(graph, node, half))
        else:
            _requantize(graph, node, half)
    for node in quantizers(graph):
        _halve_scale(node, half)
    decompose(graph, old=old)
    if old and not nvfp4:  # which opset 21 does not have
        graph.opset_imports[""] = OLD_OPSET
        lowered.ir_version = 10
    sweep(graph)
    _narrow(graph, half, wide)
    return lowered


def _requantize(graph: ir.Graph, node: ir.Node, half: ir.DataType) -> None:
    """Give integers float16 scales, and INT4 with one scale per output blocks that fuse; codes stay what they are."""
    stored = stored_codes(node)
    cols = stored.shape[1]
    group = block_size(stored.scheme, cols)
    groups = -(-cols // group) if group else 1
    inputs_axis = 0 if stored.transposed else 1
    ragged = group is not None and groups * group != cols
    codes = _padded_codes(graph, stored, groups * group) if group and ragged else node.inputs[0]
    scales = _half_scales(graph, stored, group, half)
    attributes = {"axis": inputs_axis, "block_size": group} if group else {"axis": 1 - inputs_axis}
    nodes = [ir.node("DequantizeLinear", [codes, scales], attributes, name=node.name)]
    nodes[0].outputs[0].name = str(node.outputs[0].name)
    if ragged:  # TensorRT takes whole groups only
        nodes[0].outputs[0].name += ".padded"
        limits = [constant(graph, f"integers.{n}", np.array([n], np.int64)) for n in (0, cols, inputs_axis)]
        nodes.append(ir.node("Slice", [nodes[0].outputs[0], *limits], name=f"{node.name}.cut"))
        nodes[1].outputs[0].name = node.outputs[0].name
    for new in nodes:
        new.metadata_props.update(node.metadata_props)
        graph.insert_before(node, new)
    node.outputs[0].replace_all_uses_with(nodes[-1].outputs[0])
    graph.remove(node, safe=True)


def _padded_codes(graph: ir.Graph, stored: StoredCodes, cols: int) -> ir.Value:
    rows, given = stored.shape
    dtype = stored.tensors[0].dtype

    def load() -> NDArray[Any]:
        codes = np.pad(stored.codes(), ((0, 0), (0, cols - given))).astype(dtype.numpy())
        return np.ascontiguousarray(codes.T if stored.transposed else codes)

    name = str(stored.tensors[0].name)
    del graph.initializers[name]
    return lazy(graph, name, dtype, (cols, rows) if stored.transposed else (rows, cols), load)


def _half_scales(graph: ir.Graph, stored: StoredCodes, group: int | None, half: ir.DataType) -> ir.Value:
    """Return scales for groups that are as large as the stored ones or divide them."""
    rows, cols = stored.shape
    groups = -(-cols // group) if group else 0

    def load() -> NDArray[Any]:
        scales = stored.scales().astype(half.numpy())
        if group is None:
            return np.ascontiguousarray(scales[:, 0])
        whole = np.repeat(scales, (stored.scheme.group or cols) // group, axis=1)[:, :groups]
        return np.ascontiguousarray(whole.T if stored.transposed else whole)

    shape = (rows,) if group is None else (rows, groups)
    return lazy(graph, f"{stored.name}.half_scales", half, shape[::-1] if stored.transposed else shape, load)


def _halve_scale(quantize: ir.Node, half: ir.DataType) -> None:
    """Give what rounds an activation, and what widens it again, a float16 scale: it must not be computed."""
    scale = quantize.inputs[1]
    assert scale is not None
    scale.const_value = ir.tensor(array_of(scale).astype(half.numpy()), name=scale.name)
    scale.type = ir.TensorType(half)


def _keep_float32(graph: ir.Graph, half: ir.DataType) -> set[str]:
    """Put casts around the residual stream and norms, which overflow float16; return the constants that they read."""
    wide = [node for node in graph if node.op_type in _NORMS or _RESIDUAL.fullmatch(str(node.name))]
    values = {value for node in wide for value in node.outputs}
    constants: set[str] = set()
    casts: dict[ir.Value, ir.Value] = {}
    for node in wide:
        for index, value in enumerate(node.inputs):
            if value is None or value in values:
                continue
            if value.is_initializer():
                constants.add(str(value.name))
                continue
            if value not in casts:
                casts[value] = _cast(graph, value, ir.DataType.FLOAT, f"{value.name}.widen", before=node)
            node.replace_input_with(index, casts[value])
        constants.add(f"{node.name}.epsilon")
    for node in wide:
        for value in node.outputs:
            readers = [(use.node, use.idx) for use in value.uses() if use.node not in wide]
            if readers:
                narrowed = _cast(graph, value, half, f"{value.name}.narrow", after=node)
                for reader, index in readers:
                    reader.replace_input_with(index, narrowed)
    return constants


def _cast(
    graph: ir.Graph,
    value: ir.Value,
    to: ir.DataType,
    name: str,
    *,
    before: ir.Node | None = None,
    after: ir.Node | None = None,
) -> ir.Value:
    cast = ir.node("Cast", [value], {"to": to}, name=name)
    cast.outputs[0].name = name
    place = before or after
    assert place is not None
    cast.metadata_props.update(place.metadata_props)
    if before is not None:
        graph.insert_before(before, cast)
    else:
        graph.insert_after(place, cast)
    return cast.outputs[0]


def _narrow(graph: ir.Graph, half: ir.DataType, wide: set[str]) -> None:
    """Make every other float32 tensor a `half` one; the logits are float32 again."""
    for name, value in list(graph.initializers.items()):
        if half != ir.DataType.FLOAT and value.dtype == ir.DataType.FLOAT and name not in wide:
            _cast_initializer(graph, value, half)
    for node in graph:
        source = node.inputs[0] if node.op_type == "Cast" else None
        if source is not None and source.dtype == ir.DataType.FLOAT16 and source.is_initializer():
            # behind a weight that is stored as float16
            node.attributes["to"] = ir.AttrInt64("to", half)
        for value in node.outputs:
            value.type = None
            if value not in graph.outputs:
                value.shape = None
    logits = next(value for value in graph.outputs if value.name == "logits")
    head = logits.producer()
    assert head is not None
    widened = _cast(graph, logits, ir.DataType.FLOAT, "logits.widen", after=head)
    graph.outputs[list(graph.outputs).index(logits)] = widened
    widened.name, logits.name = "logits", "logits.half"
    widened.type, widened.shape, logits.shape = ir.TensorType(ir.DataType.FLOAT), logits.shape, None
    cache = ir.DataType.INT8 if any(value.dtype == ir.DataType.INT8 for value in graph.inputs) else half
    for value in (*graph.inputs, *graph.outputs):
        if value.name != "logits" and value.dtype != ir.DataType.INT64:
            value.type = ir.TensorType(cache)


def _cast_initializer(graph: ir.Graph, value: ir.Value, half: ir.DataType) -> None:
    """Keep the float32 of a constant in the file, and cast it: compilers fold that, and nothing is rounded twice."""
    readers = [(use.node, use.idx) for use in value.uses()]
    first = next(node for node in graph if value in node.inputs)
    narrowed = _cast(graph, value, half, f"{value.name}.narrow", before=first)
    for node, index in readers:
        node.replace_input_with(index, narrowed)
