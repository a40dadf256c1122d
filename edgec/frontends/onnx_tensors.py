"""The tensors of an .onnx file that nobody has vouched for: as large as they say, and in the model's directory."""

import stat
from collections.abc import Iterator
from math import prod
from pathlib import Path, PurePosixPath

import onnx
from onnx.external_data_helper import uses_external_data

from edgec.checkpoint.files import size_bytes, unreadable
from edgec.errors import CheckpointError

DAMAGED = "export the model again, or download the file again"


def check_tensors(proto: onnx.ModelProto, path: Path) -> dict[str, Path]:
    """Check every tensor of a model, those of functions and subgraphs too; what lies in other files is not read.

    Returns:
        File name, relative to the model's directory, -> path of each of these files.

    Raises:
        CheckpointError: a tensor holds more or less than its shape says, or its file is missing, short or elsewhere.
    """
    files: dict[str, Path] = {}
    for tensor in _tensors(proto):
        _check_type(tensor, path)
        if uses_external_data(tensor):
            location, file = _check_external(tensor, path)
            files[location] = file
        else:
            _check_data(tensor, path)
    return files


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initializers and attributes, of its functions and subgraphs too."""
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("g"):
            yield from _graph_tensors(attribute.g)
        for graph in attribute.graphs:
            yield from _graph_tensors(graph)


def _check_type(tensor: onnx.TensorProto, path: Path) -> None:
    known = set(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}
    if tensor.data_type not in known or any(size < 0 for size in tensor.dims):
        raise CheckpointError(
            f"tensor '{tensor.name}' has data type {tensor.data_type} and shape {list(tensor.dims)}",
            where=str(path),
            hint=DAMAGED,
        )


def _check_data(tensor: onnx.TensorProto, path: Path) -> None:
    """Make sure that a tensor inside the file holds as much as its shape says."""
    count = prod(tensor.dims)
    if tensor.HasField("raw_data"):
        held, wanted, unit = len(tensor.raw_data), _bytes_of(tensor), "bytes"
    elif tensor.data_type == onnx.TensorProto.STRING:
        held, wanted, unit = len(tensor.string_data), count, "strings"
    else:
        field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
        held, unit = len(getattr(tensor, field)), "numbers"
        per_entry = {"COMPLEX64": 0.5, "COMPLEX128": 0.5}.get(_type_name(tensor), 1)
        packed = 8 // _bits(tensor) if _bits(tensor) < 8 else 1
        wanted = -int(-count // (per_entry * packed))
    if held != wanted:
        raise CheckpointError(
            f"tensor '{tensor.name}' holds {held} {unit}, its shape {list(tensor.dims)} wants {wanted}",
            where=str(path),
            hint=DAMAGED,
        )


def _check_external(tensor: onnx.TensorProto, path: Path) -> tuple[str, Path]:
    """Make sure that a tensor outside the file lies below the file's directory, and return in which file."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    where = f"{path}: tensor '{tensor.name}'"
    pure = PurePosixPath(location)
    if not location or "\0" in location or "\\" in location or pure.is_absolute() or ".." in pure.parts:
        raise CheckpointError(
            f"the data of tensor '{tensor.name}' is said to be in {location!r}, outside the model's directory",
            where=where,
            hint="do not trust this file; data must lie next to the model, under a relative name",
        )
    file = path.parent / location
    _check_contained(file, path, where)
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries["length"]) if "length" in entries else _bytes_of(tensor)
    except ValueError as error:
        raise CheckpointError(
            f"offset or length of tensor '{tensor.name}' in '{location}' is no number", where=where, hint=DAMAGED
        ) from error
    if offset < 0 or length != _bytes_of(tensor):
        raise CheckpointError(
            f"tensor '{tensor.name}' is said to fill {length} bytes from byte {offset} of '{location}', "
            f"its shape {list(tensor.dims)} wants {_bytes_of(tensor)}",
            where=where,
            hint=DAMAGED,
        )
    size = size_bytes(file)
    if offset + length > size:
        raise CheckpointError(
            f"tensor '{tensor.name}' ends at byte {offset + length} of '{location}', which has only {size}",
            where=where,
            hint="the file is cut off; download it again",
        )
    return pure.as_posix(), file


def _check_contained(file: Path, path: Path, where: str) -> None:
    """Refuse what links could smuggle in: onnx, onnx_ir and ONNX Runtime refuse to read such files too."""
    try:
        status = file.stat()
        inside = file.resolve().is_relative_to(path.parent.resolve())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"the data file '{file.name}' is missing", where=where, hint="put it next to the model"
        ) from error
    except OSError as error:
        raise unreadable(file, error) from error
    if not inside or not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or file.is_symlink():
        raise CheckpointError(
            f"'{file.name}' is a link or no regular file, and a model's data may not be",
            where=where,
            hint="copy the model's directory with `cp -rL`",
        )


def _type_name(tensor: onnx.TensorProto) -> str:
    return str(onnx.TensorProto.DataType.Name(tensor.data_type))


def _bits(tensor: onnx.TensorProto) -> int:
    """Bits of one element; numpy stores those that are narrower than a byte in one byte each."""
    name = _type_name(tensor)
    for narrow, bits in (("INT4", 4), ("FLOAT4", 4), ("INT2", 2), ("FLOAT6", 6)):
        if narrow in name:
            return bits
    itemsize: int = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return itemsize * 8


def _bytes_of(tensor: onnx.TensorProto) -> int:
    count: int = prod(tensor.dims)
    return -(-count * _bits(tensor) // 8)
