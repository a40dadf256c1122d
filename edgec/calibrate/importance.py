"""Measure how much flows into each input of each matrix, with one block of weights in memory."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgec.calibrate.stats import Stats
from edgec.errors import CheckpointError
from edgec.evaluate.streamed import Streamed
from edgec.graph.blocks import Block, cut
from edgec.graph.rewrite import sweep

Array = NDArray[Any]


def measure_importance(
    model: ir.Model,
    windows: NDArray[np.int64],
    folder: Path,
    tick: Callable[[str], object] = lambda _: None,
    threads: int = 0,
) -> dict[str, Stats]:
    """Run a canonical float graph on a text, and return the mean square of each input of each matrix, by its weight.

    A table that is the output matrix too (tied) has the statistics of the output matrix: an error there reaches the
    logits of every token, an error in the lookup those of one token's context. A table that is only looked up has none.

    Memory is bounded by the weights of one block and what flows through it. The same windows give the same bytes on
    one kind of processor, whatever the number of threads.

    Args:
        model: with lazy float weights; not changed.
        windows: token ids (n, tokens); each row is a context of its own.
        folder: for the file of one block at a time.
        tick: called with the name of each block.
        threads: of ONNX Runtime; 0 takes all cores.

    Raises:
        CheckpointError: the model computes something that is not finite.
    """
    *body, head = cut(model)
    recorder = _Recorder([*map(_watched, body), _trimmed(_watched(head))], folder, threads)
    recorder.run(windows, tick)
    return recorder.stats


class _Recorder(Streamed):
    """Keeps the mean square of what each weight is multiplied with."""

    def __init__(self, blocks: Sequence[Block], folder: Path, threads: int) -> None:
        super().__init__(blocks, folder, threads)
        self.stats: dict[str, Stats] = {}

    def run(self, windows: NDArray[np.int64], tick: Callable[[str], object]) -> None:
        head = self.blocks[-1]
        hidden = self.hidden(windows, tick)
        self._run(head, dict.fromkeys(head.inputs, hidden))
        tick(head.name)

    def _run(self, block: Block, values: dict[str, Array]) -> dict[str, Array]:
        made = super()._run(block, values)
        multiplied = {weight: str(value.name) for weight, value in _multiplied(block)}
        found = {name: _stats(made[name] if name in made else values[name], block) for name in set(multiplied.values())}
        self.stats.update({weight: found[name] for weight, name in multiplied.items()})
        return made


def _multiplied(block: Block) -> Iterator[tuple[str, ir.Value]]:
    """Yield the weight of each matrix product of a block, and what it is multiplied with."""
    for node in block.model.graph:
        if node.op_type == "MatMul":
            x, matrix = node.inputs
            assert x is not None and matrix is not None
            turn = matrix.producer()
            weight = turn.inputs[0] if turn is not None and turn.op_type == "Transpose" else matrix
            if weight is not None and weight.name in block.weights:
                yield str(weight.name), x


def _watched(block: Block) -> Block:
    """Return `block` with what its weights are multiplied with among its outputs."""
    graph = block.model.graph
    made = {str(x.name): x for _, x in _multiplied(block) if not x.is_graph_input() and x not in graph.outputs}
    graph.outputs.extend(made.values())
    return replace(block, outputs=(*block.outputs, *made))


def _stats(x: Array, block: Block) -> Stats:
    """Return the statistics of x (windows, tokens, cols)."""
    total = sum(np.square(window, dtype=np.float64).sum(0) for window in x)
    importance = (total / (x.shape[0] * x.shape[1])).astype(np.float32)
    if not np.isfinite(importance).all():
        raise CheckpointError("the model computes numbers that are not finite", where=block.name)
    return Stats(torch.from_numpy(importance))
