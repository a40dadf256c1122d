"""What tests of fusion rules share: models from exporters and from text, and the proof that outputs stay the same."""

import io
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from edgec.frontends.onnx_upgrade import upgrade
from edgec.frontends.onnx_values import name_all
from edgec.fuse import Fusions, fuse

torch.set_num_threads(1)


def _legacy(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], opset: int) -> bytes:
    buffer = io.BytesIO()
    torch.onnx.export(module, inputs, buffer, dynamo=False, opset_version=opset)
    return buffer.getvalue()


def _dynamo(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], opset: int) -> bytes:
    # The exporter's own optimizer would do some of what is tested.
    program = torch.onnx.export(module, inputs, dynamo=True, opset_version=opset, verbose=False, optimize=False)
    return program.model_proto.SerializeToString()


@cache
def _exported(make: Callable, exporter: Callable, opset: int) -> tuple[bytes, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    module, *inputs = make()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return exporter(module.eval(), tuple(inputs), opset), tuple(inputs)


@pytest.fixture(params=[("legacy", 13), ("legacy", 17), ("dynamo", 18)], ids=lambda p: f"{p[0]}-{p[1]}")
def export(request):
    """A function: make() -> (module, *inputs) to (model, inputs), for each exporter; an export is made once."""
    name, opset = request.param

    def run(make: Callable) -> tuple[ir.Model, tuple[np.ndarray, ...]]:
        data, inputs = _exported(make, {"legacy": _legacy, "dynamo": _dynamo}[name], opset)
        return ir.serde.deserialize_model(onnx.load_from_string(data)), tuple(value.numpy() for value in inputs)

    return run


@pytest.fixture
def canonical():
    """A function from a model to that model in the canonical opset, everything in it with a name."""

    def run(model: ir.Model) -> ir.Model:
        upgraded = upgrade(model, Path("model.onnx"))
        name_all(upgraded, tuple(value.name for value in upgraded.graph.outputs))
        return upgraded

    return run


@pytest.fixture
def legacy_dynamic():
    """A function from a module and its input to (model, inputs), by the legacy exporter, every size open."""

    def run(module: torch.nn.Module, x: torch.Tensor) -> tuple[ir.Model, tuple[np.ndarray, ...]]:
        buffer = io.BytesIO()
        axes = {"x": {axis: f"size{axis}" for axis in range(x.ndim - 1)}}
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.eval(), (x,), buffer, dynamo=False, opset_version=17, input_names=["x"], dynamic_axes=axes
            )
        return ir.serde.deserialize_model(onnx.load_from_string(buffer.getvalue())), (x.numpy(),)

    return run


@pytest.fixture
def parse():
    """A function from a graph in ONNX's text format to a model of opset 18; `[]` leaves an output's shape open."""

    def run(graph: str, **initializers: np.ndarray) -> ir.Model:
        proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1]>\n{graph}')
        proto.graph.initializer.extend(onnx.numpy_helper.from_array(data, name) for name, data in initializers.items())
        proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
        onnx.checker.check_model(proto)
        return ir.serde.deserialize_model(proto)

    return run


def evaluate(model: ir.Model, inputs: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))


@pytest.fixture
def fused():
    """A function that fuses a model, proves that nothing else changed, and returns the fusions."""

    def run(model: ir.Model, inputs: tuple[np.ndarray, ...], stage: str = "canonical", atol: float = 2e-6) -> Fusions:
        ports = [(value.name, value.dtype) for value in (*model.graph.inputs, *model.graph.outputs)]
        before = evaluate(model, inputs)
        fusions = fuse(model, stage)
        after = evaluate(model, inputs)
        for old, new in zip(before, after, strict=True):
            np.testing.assert_allclose(new, old, rtol=2e-5, atol=atol)
        assert [(value.name, value.dtype) for value in (*model.graph.inputs, *model.graph.outputs)] == ports
        names = [node.name for node in model.graph.all_nodes()]
        assert len(set(names)) == len(names)
        assert None not in names
        onnx.checker.check_model(ir.to_proto(model))
        return fusions

    return run


@pytest.fixture
def operators():
    """A function from a model to the operators in it, subgraphs included."""
    return lambda model: [node.op_type for node in model.graph.all_nodes()]


@pytest.fixture
def reasons():
    """A function from fusions and a rule to the reasons why it did not apply."""
    return lambda fusions, rule: [miss.reason for miss in fusions.missed if miss.rule == rule]


@pytest.fixture
def names():
    """A function from fusions to the rules that applied."""
    return lambda fusions: {entry.rule for entry in fusions.fused}
