"""Write, read and run artifacts of networks: an OpenVINO model that any OpenVINO application loads as it stands.

OpenVINO's own ONNX frontend takes the canonical graph: of QuantizeLinear and DequantizeLinear it makes the FakeQuantize
and the compressed constants that its plugins run on integers.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import openvino as ov
from openvino._offline_transformations import apply_moc_transformations

from edgec.backends.backend import Integers8, NetworkJob
from edgec.backends.network import write_network_settings
from edgec.backends.openvino import MARKER
from edgec.backends.openvino.network_attention import split_attention
from edgec.backends.openvino.network_session import is_rounding
from edgec.errors import PlanError
from edgec.graph.integers import grids_of
from edgec.graph.write import write_weights

_GRAPH = "canonical.onnx"
_STEPS = 255
# What OpenVINO calls the nodes that it makes: their type and a number, which counts all that the process made.
_MADE = re.compile(r"[A-Za-z]+_\d+")


def compile_network(job: NetworkJob, folder: Path) -> tuple[str, ...]:
    """Write the artifact of a network; see `edgec.backends.backend.Backend`."""
    scratch = folder / "scratch"
    scratch.mkdir()
    graph = job.model.clone()
    split_attention(graph.graph)
    write_weights(graph, scratch, lambda _: None)
    ir.save(graph, scratch / _GRAPH)
    try:
        # What ov.convert_model does, but for reports to its vendor, which it sends from processes of its own.
        model = ov.Core().read_model(scratch / _GRAPH)
        if job.plan.wishes.weights == "int8":  # it would also widen float16 constants
            apply_moc_transformations(model, False)
    except Exception as error:  # each layer of the frontend has exceptions of its own
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise PlanError(
            f"OpenVINO does not take the graph: {lines[-1] if lines else type(error).__name__}",
            hint="choose another backend, or leave the operator that it names out of the model",
        ) from error
    _name_alike(model, grids_of(job.model.graph))
    for name, value in _runtime_options(job.plan.wishes.activations).items():
        model.set_rt_info(value, ["runtime_options", name])
    ov.save_model(model, folder / MARKER, compress_to_fp16=False)
    del model  # before the files that it reads
    for path in scratch.iterdir():
        path.unlink()
    scratch.rmdir()
    write_network_settings(folder, job, "openvino", MARKER)
    return ()


def _name_alike(model: Any, grids: Mapping[str, tuple[float, int]]) -> None:
    """Give nodes that OpenVINO made names that do not depend on what else the process did.

    Where it moved the rounding of a value through a Transpose, that gets the name of the value again.
    """
    nodes = model.get_ordered_ops()
    lost = dict(grids)
    for node in filter(is_rounding, nodes):
        lost.pop(_name(node), None)
    for index, node in enumerate(nodes):
        if not _MADE.fullmatch(node.get_friendly_name()) or node.get_type_name() in ("Parameter", "Result"):
            continue
        same = (name for name, grid in lost.items() if is_rounding(node) and grid == _grid(node))
        if (name := next(same, None)) is not None:
            del lost[name]
        node.set_friendly_name(f"{node.get_type_name()}.{index}" if name is None else f"{name}.dequantize")


def _runtime_options(activations: str) -> dict[str, str]:
    """Return the properties that the model asks its plugin for; rounding as it runs is the plugin's default."""
    return {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"} if activations == "float" else {}


def read_integers(artifact: Path) -> Integers8:
    """Return the integers of an artifact; see `edgec.backends.backend.Backend`."""
    model = ov.Core().read_model(artifact / MARKER)
    constants = {op.get_friendly_name(): op for op in model.get_ops() if op.get_type_name() == "Constant"}
    weights = {}
    for name, constant in constants.items():
        if name.endswith(".codes") and constant.get_element_type() == ov.Type.i8:
            weights[name.removesuffix(".codes")] = _weight(constant)
    return Integers8(weights, {_name(node): _grid(node) for node in model.get_ops() if is_rounding(node)})


def _weight(constant: Any) -> tuple[Any, Any]:
    """Return the codes (outputs, everything else) and the scales of what a constant is widened to."""
    (convert,) = {port.get_node() for port in constant.output(0).get_target_inputs()}
    (multiply,) = {port.get_node() for port in convert.output(0).get_target_inputs()}
    scales = multiply.input_value(1)
    shape = tuple(scales.get_shape())
    axis = next((axis for axis, size in enumerate(shape) if size > 1), 0)
    node = scales.get_node()
    while node.get_type_name() != "Constant":  # a Reshape of it
        node = node.input_value(0).get_node()
    codes, found = np.moveaxis(np.array(constant.data), axis, 0), np.array(node.data, np.float32).reshape(-1)
    return np.ascontiguousarray(codes.reshape(len(found), -1)), found


def _name(node: Any) -> str:
    return str(node.get_friendly_name()).removesuffix(".dequantize").removesuffix(".quantize")


def _grid(node: Any) -> tuple[float, int]:
    low, high = (float(value.get_node().data.item()) for value in node.input_values()[1:3])
    scale = (high - low) / _STEPS  # as unsigned integers: those around 0 begin at -128
    return scale, round(-low / scale)
