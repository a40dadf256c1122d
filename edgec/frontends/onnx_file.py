"""The frontend for .onnx files: any valid graph from opset 13 on, in canonical form, proven to compute the same."""

from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import Sequential
from onnx_ir.passes import common as passes

from edgec.checkpoint.files import sha256_file
from edgec.errors import CheckpointError, first_line
from edgec.frontends.network import Network, Port
from edgec.frontends.onnx_check import read_proto
from edgec.frontends.onnx_floats import check_numbers, half_types, reason_to_keep, widen
from edgec.frontends.onnx_proof import Observation, distance, observe
from edgec.frontends.onnx_upgrade import CANONICAL_OPSET, upgrade
from edgec.frontends.onnx_values import detach_outputs, forget_annotations, infer_shapes, name_all

_QUANTIZED = frozenset(
    {"ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"}
    | {"QuantizeLinear"}
)

# The same kernels compute both graphs, so that only adapters can differ; halves are rounded after each operator.
_SAME = 1e-5
_SLACK = {ir.DataType.FLOAT16: 2e-2, ir.DataType.BFLOAT16: 1e-1}


def read_onnx(path: Path) -> Network:
    """Read an .onnx file.

    Args:
        path: the file; the weights that it keeps in other files stay there and are read when a pass asks.

    Raises:
        CheckpointError: it is damaged, not to be trusted, not understood, or its canonical form computes otherwise.
        OutputError: there is no room for the copy that outputs are compared with.
    """
    path = path.absolute()
    proto, paths = read_proto(path)
    remarks = ["what the file says about training was left out"] if proto.training_info else []
    try:
        model = ir.serde.deserialize_model(proto)  # where external data lies was checked before
        outputs = tuple(value.name for value in proto.graph.output)
        opset = max(model.opset_imports.get(domain, 0) for domain in ("", "ai.onnx"))
        model = _canonicalise(model, outputs, path)
    except (RuntimeError, TypeError, ValueError) as error:  # what onnx_ir raises; its own errors are RuntimeErrors
        raise CheckpointError(
            f"{path.name} cannot be understood: {first_line(_root(error))}", where=str(path), hint="export it again"
        ) from error
    check_numbers(model, path)
    observation = observe(path, model)
    model, apart, floats = _prove(model, observation)
    remarks += [_proof(opset, observation, apart), *floats, *_remarks(model, observation)]
    return Network(
        name=path.name,
        format="onnx",
        family=model.producer_name or "onnx",
        model=model,
        inputs=tuple(_port(value) for value in model.graph.inputs),
        outputs=tuple(_port(value) for value in model.graph.outputs),
        files={name: sha256_file(paths[name]) for name in sorted(paths)},
        remarks=tuple(remarks),
    )


def _canonicalise(model: ir.Model, outputs: tuple[str, ...], path: Path) -> ir.Model:
    """Return a deserialized model, which is used up, in canonical form; it came from `path`."""
    imports = model.opset_imports
    if "ai.onnx" in imports:
        imports[""] = max(imports.pop("ai.onnx"), imports.get("", 0))
    lift = passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
    Sequential(
        passes.InlinePass(),
        passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        passes.RemoveInitializersFromInputsPass(),
        passes.RemoveUnusedNodesPass(),
        lift,
    )(model)
    ir.external_data.set_base_dir(model.graph, path.parent)  # functions' too, which are inlined by now
    detach_outputs(model.graph)
    name_all(model, outputs)
    outputs = tuple(value.name or "" for value in model.graph.outputs)
    model = upgrade(model, path)
    name_all(model, outputs)
    lift(model)
    infer_shapes(model)
    # Not before the inference, which does not see the numbers of what is outside a subgraph.
    passes.LiftSubgraphInitializersToMainGraphPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    name_all(model, outputs)
    forget_annotations(model)
    return model


def _root(error: BaseException) -> Exception:
    """The first cause of an error that passes and the deserializer have wrapped."""
    while error.__cause__ is not None:
        error = error.__cause__
    assert isinstance(error, Exception)
    return error


def _prove(model: ir.Model, observation: Observation) -> tuple[ir.Model, float, list[str]]:
    """Return the model, with wide floats if that can be, how far its outputs are from the file's, and remarks.

    Raises:
        CheckpointError: it computes something else than the file.
    """
    halves = half_types(model)
    if not halves:
        return model, distance(model, observation, _SAME), []
    names = " and ".join(sorted(kind.name.lower() for kind in halves))
    slack = _SLACK[ir.DataType.BFLOAT16 if ir.DataType.BFLOAT16 in halves else ir.DataType.FLOAT16]
    reason = reason_to_keep(model)
    if reason is None:
        wide = model.clone()
        widen(wide)
        try:
            apart = distance(wide, observation, slack, integers=False)
        except CheckpointError as error:
            reason = error.what
        else:
            return wide, apart, [f"{names} became float32"]
    return model, distance(model, observation, slack), [f"{names} stayed, since {reason}"]


def _proof(opset: int, observation: Observation, apart: float) -> str:
    change = f"opset {opset}" if opset == CANONICAL_OPSET else f"opset {opset} became {CANONICAL_OPSET}"
    if observation.reason:
        return f"{change}; not proven, since the file does not run on made-up inputs: {observation.reason}"
    if all(output is None for outputs in observation.outputs for output in outputs):
        return f"{change}; not proven, since all outputs change from run to run, as in training mode"
    result = f"outputs are within {apart:.1g} of their largest number" if apart else "outputs are equal"
    return f"{change}; {result} on {len(observation.feeds)} made-up inputs"


def _remarks(model: ir.Model, observation: Observation) -> list[str]:
    remarks = []
    kinds = {(node.domain, node.op_type) for node in model.graph.all_nodes()}
    if foreign := sorted(f"{domain}::{kind}" for domain, kind in kinds if domain):
        remarks.append(f"not of the ONNX standard, and known to some backends only: {', '.join(foreign)}")
    if quantized := sorted(kind for domain, kind in kinds if not domain and kind in _QUANTIZED):
        remarks.append(f"quantized already: {', '.join(quantized)}")
    chance = {i for outputs in observation.outputs for i, output in enumerate(outputs) if output is None}
    if chance:
        names = ", ".join(f"'{model.graph.outputs[i].name}'" for i in sorted(chance))
        remarks.append(f"changes from run to run and was not compared: {names}")
    return remarks


def _port(value: ir.Value) -> Port:
    assert value.name is not None
    assert value.dtype is not None
    if value.shape is None:
        raise CheckpointError(
            f"what the file says about the shape of '{value.name}' is wrong, and the operators do not tell",
            hint="export the model again, with shapes",
        )
    return Port(value.name, value.dtype.numpy().name, _sizes(value))


def _sizes(value: ir.Value) -> tuple[int | str, ...]:
    """The shape of an input or output; an open size that has no name gets one."""
    assert value.shape is not None
    return tuple(
        size if isinstance(size, int) else size.value or f"{value.name}_{axis}" for axis, size in enumerate(value.shape)
    )
