"""Where a scale of a matrix's inputs can go: into the weights of what computes those inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch

from edgec.graph.blocks import Block

Tensor = torch.Tensor


@dataclass(frozen=True)
class Fold:
    """Divide inputs by a scale where they are computed, and multiply the matrices that read them.

    Args:
        divided: initializers that are divided along their last axis.
        repeat: how many inputs share a number of those initializers (heads that share keys and values), in runs of
            `run`; 1 where none do.
        run: the inputs of one head.
    """

    divided: tuple[str, ...]
    repeat: int = 1
    run: int = 1

    def shared(self, values: Tensor) -> Tensor:
        """Return (inputs,) as (numbers that can be divided,): the largest of those that share one."""
        return values.view(-1, self.repeat, self.run).amax(1).flatten()

    def spread(self, scale: Tensor) -> Tensor:
        """Return (numbers that can be divided,) as (inputs,)."""
        return scale.view(-1, 1, self.run).expand(-1, self.repeat, -1).flatten()


def find_fold(block: Block, name: str) -> Fold | str:
    """Return where a scale of the value `name` can go, or why it cannot."""
    node = next((n for n in block.model.graph if n.outputs[0].name == name), None)
    if node is None or name in block.outputs:
        return f"{name} is used outside of {block.name}"
    if any(use.node.op_type != "MatMul" for use in node.outputs[0].uses()):
        return f"{name} is read by more than matrices"
    match node.op_type:
        case "RMSNormalization" | "LayerNormalization" if found := _weights(block, node.inputs[1:]):
            return Fold(found)
        case "Attention":
            return _through_attention(block, node)
        case "Mul":
            for value in node.inputs:
                if found := _linear(block, value):
                    return Fold(found)
    return f"{name} is computed by {node.op_type}, which a scale does not pass"


def _through_attention(block: Block, node: ir.Node) -> Fold | str:
    """Heads are mixed over tokens only: a scale of the output is one of the values."""
    found = _linear(block, node.inputs[2])
    if not found:
        return f"the values of {node.name} do not come from a matrix"
    q_heads, kv_heads = (node.attributes[f"{kind}_num_heads"].as_int() for kind in ("q", "kv"))
    size = block.weights[found[0]].shape[-1]
    assert isinstance(size, int)
    return Fold(found, repeat=q_heads // kv_heads, run=size // kv_heads)


def _linear(block: Block, value: ir.Value | None) -> tuple[str, ...]:
    """Return the matrix that `value` comes from, and its bias; () where it comes from something else."""
    node = None if value is None or len(value.uses()) > 1 else value.producer()
    bias: tuple[str, ...] = ()
    if node is not None and node.op_type == "Add":
        bias = _weights(block, node.inputs[1:])
        node = node.inputs[0].producer() if bias and node.inputs[0] is not None else None
    if node is None or node.op_type != "MatMul" or len(node.outputs[0].uses()) > 1:
        return ()
    return (*_weights(block, node.inputs[1:]), *bias)


def _weights(block: Block, values: Sequence[ir.Value | None]) -> tuple[str, ...]:
    return tuple(str(value.name) for value in values if value is not None and value.name in block.weights)


def divide(fold: Fold, scale: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the divided initializers; `scale` is (numbers that can be divided,)."""
    return {name: weights[name] / scale for name in fold.divided}
