"""Say what the compiler refused: the node, its operator, its checkpoint tensor, and what to change."""

import onnx_ir as ir

from edgec.backends.tensorrt.worker import Failure
from edgec.errors import EdgecError, MissingRuntimeError, OutputError, PlanError
from edgec.graph.tags import BLOCK, SOURCE

NOT_OF_THE_GRAPH = frozenset({"import", "write", "memory"})
"""Stages that fail because of this machine."""

_INSTALL = 'pip install "edgec[tensorrt]"'
_MEMORY = "give the build more memory, or choose a smaller context_length in the profile"
_ADVICE = (
    (
        "cannot be imported into TensorRT",
        "TensorRT takes signed integers only: choose a profile with `symmetric = true`",
    ),
    ("zero point", "TensorRT takes symmetric integers only: choose a profile with `symmetric = true`"),
    ("INT4", "INT4 needs groups of 16 to 256 inputs, and a GPU of SM80 or later"),
    ("FP8", "fp8 needs a GPU of SM89 or later"),
    ("FP4", "nvfp4 needs a GPU of SM100 or later"),
    ("memory", _MEMORY),
)
_ELSE = "choose another profile, or another backend of the target (`edgec targets` lists them)"
_LINES = 3


def note_nodes(model: ir.Model) -> dict[str, str]:
    """Return for each node and weight where it comes from: its block, and the checkpoint tensors that it reads."""
    notes = {str(node.name): _origin(node) for node in model.graph}
    for name, value in model.graph.initializers.items():
        if SOURCE in value.metadata_props:
            notes[name] = f"made from {value.metadata_props[SOURCE]}"
    return notes


def _origin(node: ir.Node) -> str:
    block = node.metadata_props.get(BLOCK, "")
    sources = sorted({source for value in node.inputs if value is not None for source in _sources(value)})
    return f"{block}, made from {', '.join(sources)}" if sources else block


def _sources(value: ir.Value) -> set[str]:
    """Return the checkpoint tensors behind a weight: itself, or the integers that it is dequantized from."""
    if value.is_initializer():
        return {value.metadata_props[SOURCE]} if SOURCE in value.metadata_props else set()
    node = value.producer()
    if node is None or node.op_type not in ("DequantizeLinear", "Transpose"):
        return set()
    return {source for v in node.inputs if v is not None for source in _sources(v)}


def refusal(failure: Failure, sm: int, notes: dict[str, str]) -> EdgecError:
    """Return the error for a failed compilation; `notes` is what `note_nodes` returned."""
    if failure.stage == "import":
        return MissingRuntimeError(f"TensorRT-RTX cannot be loaded: {failure.text}", hint=_INSTALL)
    if failure.stage == "write":
        return OutputError(
            f"the engine cannot be written: {failure.text}", hint="make room, or let it be written there"
        )
    text = " ".join([failure.text, *failure.log])
    if failure.stage == "memory":
        return PlanError(f"{failure.compiler} was killed: there is too little memory here", hint=_MEMORY)
    advice = next((advice for word, advice in _ADVICE if word.lower() in text.lower()), _ELSE)
    named = [failure.node] if failure.node in notes else [name for name in notes if name and name in text][:_LINES]
    where = "; ".join(f"{name} ({notes[name]})" if notes[name] else name for name in named) or failure.stage
    subject = f"{failure.operator} node '{failure.node}'" if failure.node else f"'{named[0]}'" if named else "the graph"
    return PlanError(
        f"{failure.compiler} refuses {subject} for SM{sm} while it {failure.stage}s: {_summary(failure)}",
        where=where,
        hint=advice,
    )


def _summary(failure: Failure) -> str:
    # The parser's own text may be just "false": its log says more.
    if failure.text and failure.text != "false":
        return failure.text
    return " | ".join(failure.log[-_LINES:]) or "it does not say why"
