"""Network: any model that is not a decoder language model, as frontends hand it to the compiler."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from edgec.calibrate.audio import Audio
from edgec.calibrate.images import Pictures

if TYPE_CHECKING:
    import onnx_ir as ir


class Port(msgspec.Struct, frozen=True):
    """An input or an output of a network.

    Args:
        name: in the graph.
        dtype: by numpy's name, such as "float32" or "int64".
        shape: sizes; a name stands for one that is only known when the network runs, such as "batch".
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, eq=False)
class Network:
    """A model as a graph, with what is known about its inputs.

    Args:
        name: of the file or directory that it came from.
        format: how it was stored.
        family: the model type of its config, or the producer of its graph; for people.
        model: the canonical graph: opset 23, float32, weights as initializers; operators outside the default domain
            stay where the file had them, and only some backends take them.
        inputs: what it takes; the first axis of each is the batch, unless its size is fixed.
        outputs: what it gives.
        files: name -> SHA-256 in hex, of everything that goes into a build.
        task: by optimum's name, such as "feature-extraction"; None where nobody knows.
        labels: class names by index, where the checkpoint has them.
        tokenizer_files: name -> content, where it takes text, or gives it.
        pictures: how it takes pictures, where somebody says so.
        audio: how it takes sound, where somebody says so.
        fixed: `name=number` of each input that was made a constant.
        remarks: what the user should know, such as an operator that was replaced.
    """

    name: str
    format: str
    family: str
    model: "ir.Model"
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    files: Mapping[str, str]
    task: str | None = None
    labels: tuple[str, ...] = ()
    tokenizer_files: Mapping[str, bytes] = field(default_factory=dict)
    pictures: Pictures | None = None
    audio: Audio | None = None
    fixed: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
