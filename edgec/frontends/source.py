"""What a user may name as a model, and which frontend reads it."""

import re
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from edgec.errors import CheckpointError, UsageError, require
from edgec.frontends.network import Network

if TYPE_CHECKING:
    from edgec.fuse import Fusions

_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_TASK_OF_DECODERS = "text-generation"


@dataclass(frozen=True)
class NetworkOptions:
    """What the user says of a network besides its name.

    Args:
        task: by optimum's name; None leaves it to the checkpoint.
        inputs: such as `image:float32[batch,3,224,224]`: what a factory makes takes, or, of an .onnx file, sizes that
            it leaves open.
        state: the weights of what a factory makes.
        fixed: input -> the number that it always is; it is then no input any more.
    """

    task: str | None = None
    inputs: tuple[str, ...] = ()
    state: Path | None = None
    fixed: tuple[str, ...] = ()


def is_network(source: str, task: str | None = None) -> bool:
    """Say whether a model is a network; else it is a decoder language model, or nothing that exists.

    Directories are networks if transformers knows their architecture and edgec does not, or if the user names a task
    that is none of decoders.
    """
    path = Path(source)
    if path.suffix.lower() in (".onnx", ".pt2") or (_FACTORY.fullmatch(source) and not path.exists()):
        return True
    if not (path / "config.json").is_file():
        return False
    from edgec.checkpoint.files import read_json_object
    from edgec.frontends.families import families

    if task is not None:
        return task != _TASK_OF_DECODERS
    kind = read_json_object(path / "config.json").get("model_type")
    if not isinstance(kind, str) or kind in families() or find_spec("transformers") is None:
        return False
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return kind in CONFIG_MAPPING_NAMES


def open_network(source: str, options: NetworkOptions) -> "tuple[Network, Fusions]":
    """Read a network and fuse its graph.

    Returns:
        The network in canonical form, and what fused.

    Raises:
        UsageError: there is no such model, or the options do not fit it.
        CheckpointError: it is refused.
        MissingRuntimeError: the `build` extra is not installed.
    """
    for package in ("onnx", "onnx_ir", "onnxscript"):
        require(package, "build")
    from edgec.frontends.fixed import fix_inputs, fix_sizes
    from edgec.fuse import fuse

    network = _read(source, options)
    sized = network.format == "onnx" and bool(options.inputs)
    if sized:
        network = fix_sizes(network, options.inputs)
    if options.fixed:
        network = fix_inputs(network, options.fixed)
    fusions = fuse(network.model, "canonical")
    if sized:
        _check_sizes(network, options.inputs)
    return _prepared(network, source, options), fusions


def _prepared(network: Network, source: str, options: NetworkOptions) -> Network:
    """Return a network that knows what a preprocessor beside its file says of pictures and sound."""
    from edgec.calibrate.preparation import find_audio, find_pictures, read_preprocessor
    from edgec.checkpoint.files import sha256_file

    path = Path(source)
    if path.is_dir() or not (path.is_file() or options.state):  # a directory was read with what is in it
        return network
    preprocessor, files = read_preprocessor((options.state or path).parent)
    audio = find_audio(preprocessor)
    pictures = find_pictures(network.inputs, preprocessor) if preprocessor and audio is None else None
    if audio is None and pictures is None:
        return network
    hashes = {name: sha256_file(path) for name, path in files.items()}
    return replace(network, pictures=pictures, audio=audio, files=dict(sorted({**network.files, **hashes}.items())))


def _check_sizes(network: Network, inputs: tuple[str, ...]) -> None:
    """Refuse sizes that contradict the graph; branches that never run count, too."""
    from edgec.calibrate.run import open_model
    from edgec.graph.branches import deciding_option

    try:
        open_model(network.model, [port.name for port in network.outputs])
    except CheckpointError as error:
        options = sorted({option for node in network.model.graph if (option := deciding_option(node))})
        advice = f"say which branch runs: {' '.join(options)}" if options else "give sizes that it was made for"
        raise UsageError(
            f"the model does not take the sizes of --input {' '.join(inputs)}: {error.what}",
            where=error.where,
            hint=advice,
        ) from error


def _missing(file: str) -> UsageError:
    return UsageError(f"there is no file '{file}'", where=str(Path(file).absolute()), hint="check the path")


def _read(source: str, options: NetworkOptions) -> Network:
    path = Path(source)
    if path.suffix.lower() == ".onnx":
        from edgec.frontends.onnx_file import read_onnx

        if not path.is_file():
            raise _missing(source)
        return read_onnx(path)
    require("torch", "build")
    if path.suffix.lower() == ".pt2":
        from edgec.frontends.traced_program import trace_program

        if not path.is_file():
            raise _missing(source)
        return trace_program(path)
    if path.is_dir():
        from edgec.frontends.transformers_model import trace_transformers

        return trace_transformers(path, options.task, options.inputs)
    if options.state is not None and not options.state.is_file():
        raise _missing(str(options.state))
    from edgec.frontends.torch_sources import trace_module

    return trace_module(source, options.inputs, options.state)
