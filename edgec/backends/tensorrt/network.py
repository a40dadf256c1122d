"""Write and read artifacts of networks: a strongly typed ONNX graph, and an engine where one can be compiled here."""

import re
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from edgec.backends.backend import Integers8, NetworkJob
from edgec.backends.network import write_network_settings
from edgec.backends.tensorrt.compile import device_settings, write_engines
from edgec.backends.tensorrt.kernels import AHEAD_OF_TIME
from edgec.backends.tensorrt.lower import OLD_OPSET
from edgec.backends.tensorrt.network_floats import mark_norms
from edgec.backends.tensorrt.network_operators import keep_apart, lower_operators
from edgec.backends.tensorrt.network_shapes import network_profile
from edgec.backends.tensorrt.network_types import narrow
from edgec.backends.tensorrt.recipe import MODEL_FILE, write_recipe
from edgec.backends.tensorrt.refusal import note_nodes
from edgec.graph.integers import grids_of, network_codes
from edgec.graph.rewrite import array_of, constant, sweep
from edgec.graph.write import write_weights

_OLD_IR = 10


def compile_network(job: NetworkJob, folder: Path) -> tuple[str, ...]:
    """Write the artifact of a network; see `edgec.backends.backend.Backend`."""
    plan, target = job.plan, job.target
    ahead, half = AHEAD_OF_TIME in target.runtimes, plan.wishes.weights != "fp32"
    lowered = lower_network(job.model, half=half, old=not ahead)
    notes = note_nodes(lowered)
    write_weights(lowered, folder, lambda _: None)
    ir.save(lowered, folder / MODEL_FILE)
    shapes = (network_profile(job.network),)
    if not ahead:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", job.network.name).strip("-._") or "network"
        kinds = f"weights {plan.wishes.weights}, activations {_activations(job) if half else 'fp32'}"
        settings = device_settings(target, f"{name}-{plan.sha256()[:12]}", kinds, shapes)
        sparse = plan.sparse is not None and bool(plan.sparse.kernels)
        write_recipe(folder, msgspec.structs.replace(settings, sparse_weights=sparse))
    engine = write_engines(folder, target, shapes, notes).engine
    file = engine.file if engine is not None and engine.file is not None else MODEL_FILE
    write_network_settings(folder, job, "tensorrt", file)
    return ()


def lower_network(model: ir.Model, *, half: bool, old: bool) -> ir.Model:
    """Return a lowered copy of a canonical, quantized network.

    Args:
        model: the canonical graph; not changed.
        half: compute in float16 where that is safe.
        old: write operators of opset 21 only.

    Raises:
        PlanError: an operator does something that is not written for TensorRT.
    """
    lowered = model.clone()
    graph = lowered.graph
    _fold_biases(graph)
    mark_norms(graph)
    _infer(lowered)
    lower_operators(lowered, half=half, old=old)
    keep_apart(graph)
    if old:
        graph.opset_imports[""] = OLD_OPSET
        lowered.ir_version = _OLD_IR
    sweep(graph)
    _infer(lowered)
    if half:
        narrow(graph)
    return lowered


def _infer(model: ir.Model) -> None:
    """Find the types and shapes of values that have none."""
    ShapeInferencePass(check_type=False, strict_mode=False)(model)


def _fold_biases(graph: ir.Graph) -> None:
    """Replace int32 biases by the float32 that they stand for: TensorRT widens int8 and smaller alone."""
    for node in graph:
        codes = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if codes is not None and codes.is_initializer() and codes.dtype == ir.DataType.INT32:
            integers, scales = (array_of(value) for value in node.inputs[:2] if value is not None)
            folded = constant(graph, f"{node.name}.folded", integers.astype(np.float32) * scales)
            node.outputs[0].replace_all_uses_with(folded)
    sweep(graph)


def _activations(job: NetworkJob) -> str:
    return "fp16" if job.plan.wishes.weights == "fp16" else f"{job.plan.wishes.activations} int8 and fp16"


def read_integers(artifact: Path) -> Integers8:
    """Return the integers of an artifact; see `edgec.backends.backend.Backend`."""
    graph = ir.load(artifact / MODEL_FILE).graph
    weights = {name: (codes, scales.astype(np.float32)) for name, codes, scales in network_codes(graph)}
    return Integers8(weights, grids_of(graph))
