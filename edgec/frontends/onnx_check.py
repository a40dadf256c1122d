"""An .onnx file that nobody has vouched for: parsed, bounded and checked before anything is built from it."""

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from edgec.checkpoint.files import size_bytes, unreadable
from edgec.errors import CheckpointError, first_line
from edgec.frontends.onnx_tensors import DAMAGED, check_tensors

OLDEST_OPSET = 13
_PROTOBUF_LIMIT_BYTES = 2**31 - 1


def read_proto(path: Path) -> tuple[onnx.ModelProto, dict[str, Path]]:
    """Parse and check an .onnx file; tensors that lie in other files are looked at, never read.

    Returns:
        The model, and file name -> path of the files that it consists of, named relative to its directory.

    Raises:
        CheckpointError: it is no valid ONNX model of opset 13 or later, or its tensors are not what it says.
    """
    proto = _parse(path)
    _check_versions(proto, path)
    _check_interface(proto.graph, path)
    files = {path.name: path} | check_tensors(proto, path)
    try:
        onnx.checker.check_model(path)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path.name} is no valid ONNX model: {first_line(error)}", where=str(path), hint=DAMAGED
        ) from error
    return proto, files


def _parse(path: Path) -> onnx.ModelProto:
    if size_bytes(path) > _PROTOBUF_LIMIT_BYTES:
        raise CheckpointError(
            f"{path.name} is larger than 2 GiB, which no protobuf can be",
            where=str(path),
            hint="save its weights as external data",
        )
    try:
        proto = onnx.ModelProto.FromString(path.read_bytes())
    except DecodeError as error:
        raise CheckpointError(f"{path.name} is no ONNX model: {error}", where=str(path), hint=DAMAGED) from error
    except OSError as error:
        raise unreadable(path, error) from error
    if not proto.graph.node or not proto.graph.output:
        raise CheckpointError(f"{path.name} holds no graph that computes something", where=str(path), hint=DAMAGED)
    if proto.graph.sparse_initializer:
        name = proto.graph.sparse_initializer[0].values.name
        raise CheckpointError(
            f"initializer '{name}' is sparse, which no backend takes",
            where=str(path),
            hint="export the model with dense weights",
        )
    return proto


def _check_versions(proto: onnx.ModelProto, path: Path) -> None:
    if proto.ir_version > onnx.IR_VERSION:
        raise CheckpointError(
            f"{path.name} has IR version {proto.ir_version}, this onnx knows up to {onnx.IR_VERSION}",
            where=str(path),
            hint="install a newer onnx, or export the model for an older one",
        )
    opset = max((entry.version for entry in proto.opset_import if entry.domain in {"", "ai.onnx"}), default=None)
    if opset is None:
        raise CheckpointError(
            f"{path.name} does not say which version of the standard operators it uses",
            where=str(path),
            hint="add an opset import for the domain 'ai.onnx'",
        )
    if opset < OLDEST_OPSET:
        raise CheckpointError(
            f"{path.name} uses opset {opset}, the oldest that is read is {OLDEST_OPSET}",
            where=str(path),
            hint=f"export it for a later opset, or try onnx.version_converter.convert_version(model, {OLDEST_OPSET})",
        )
    if opset > onnx.defs.onnx_opset_version():
        raise CheckpointError(
            f"{path.name} uses opset {opset}, this onnx knows up to {onnx.defs.onnx_opset_version()}",
            where=str(path),
            hint="install a newer onnx, or export the model for an older opset",
        )


def _check_interface(graph: onnx.GraphProto, path: Path) -> None:
    """Refuse what no backend can be fed with."""
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if not inputs:
        raise CheckpointError(f"{path.name} takes no inputs", where=str(path), hint="it computes a constant")
    for kind, values in (("input", inputs), ("output", graph.output)):
        for value in values:
            kind_of = value.type.tensor_type  # an empty one where it is a sequence, a map or an optional
            if not kind_of.elem_type or not kind_of.HasField("shape"):
                raise CheckpointError(
                    f"{kind} '{value.name}' is no tensor with a known number of dimensions",
                    where=str(path),
                    hint="export the model with such inputs and outputs; sizes may be left open",
                )
