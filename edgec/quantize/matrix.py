"""The weights of a block that are quantized."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from edgec.graph.blocks import Block

Tensor = torch.Tensor


@dataclass(frozen=True)
class Matrix:
    """A weight that something is multiplied with, or a table that tokens are looked up in.

    Args:
        weight: the name of its initializer.
        node: the name of its MatMul, such as `layers.3.mlp.down`, or of its Gather.
        input: the name of what it is multiplied with; None for a table.
        rows_first: stored as (out, in), because it is a table; others are stored as (in, out).
    """

    weight: str
    node: str
    input: str | None
    rows_first: bool

    def turn(self, weight: Tensor) -> Tensor:
        """Return what the graph has as algorithms take it, (rows = out, cols = in), or the other way round."""
        return weight if self.rows_first else weight.T.contiguous()


def matrices(block: Block) -> list[Matrix]:
    """Return the matrices of a block, in the order of the graph."""
    found = []
    for node in block.model.graph:
        value = node.inputs[1] if node.op_type == "MatMul" else node.inputs[0] if node.op_type == "Gather" else None
        if value is None:
            continue
        turn = value.producer()
        weight = turn.inputs[0] if turn is not None and turn.op_type == "Transpose" else value
        if weight is not None and weight.name in block.weights and len(weight.shape or ()) == 2:
            if node.op_type == "MatMul" and node.inputs[0] is not None:
                found.append(Matrix(str(weight.name), str(node.name), str(node.inputs[0].name), weight is not value))
            elif node.inputs[1] is not None and node.inputs[1].name == "input_ids":
                found.append(Matrix(str(weight.name), str(node.name), None, rows_first=True))
    return found


def by_input(found: list[Matrix]) -> Mapping[str, list[Matrix]]:
    """Return the matrices that share their input, by its name, in the order of the graph; tables are left out."""
    groups: dict[str, list[Matrix]] = {}
    for matrix in found:
        if matrix.input is not None:
            groups.setdefault(matrix.input, []).append(matrix)
    return groups
