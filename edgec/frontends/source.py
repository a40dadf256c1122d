"""What a user may name as a model, and which frontend reads it."""

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from edgec.errors import UsageError, require
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
    if network.format == "onnx" and options.inputs:
        network = fix_sizes(network, options.inputs)
    if options.fixed:
        network = fix_inputs(network, options.fixed)
    return network, fuse(network.model, "canonical")


def _read(source: str, options: NetworkOptions) -> Network:
    path = Path(source)
    if path.suffix.lower() == ".onnx":
        from edgec.frontends.onnx_file import read_onnx

        if not path.is_file():
            raise UsageError(f"there is no file '{source}'")
        return read_onnx(path)
    require("torch", "build")
    if path.suffix.lower() == ".pt2":
        from edgec.frontends.traced_program import trace_program

        if not path.is_file():
            raise UsageError(f"there is no file '{source}'")
        return trace_program(path)
    if path.is_dir():
        from edgec.frontends.transformers_model import trace_transformers

        return trace_transformers(path, options.task, options.inputs)
    from edgec.frontends.torch_sources import trace_module

    return trace_module(source, options.inputs, options.state)
