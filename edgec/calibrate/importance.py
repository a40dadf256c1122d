"""Measure how much flows into each input of each matrix, with one block of weights in memory."""

from collections.abc import Callable, Iterable, Sequence
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
    recorder = _Recorder(cut(model), folder, threads)
    recorder.run(windows, tick)
    return recorder.stats


class _Recorder(Streamed):
    """Keeps the statistics of what each weight is multiplied with, and stops before the output matrix."""

    def __init__(self, blocks: Sequence[Block], folder: Path, threads: int) -> None:
        self.multiplied = {block.name: _multiplied(block) for block in blocks}
        self.stats: dict[str, Stats] = {}
        *body, head = blocks
        watched = [
            _giving(block, [*block.model.graph.outputs, *self.multiplied[block.name].values()]) for block in body
        ]
        super().__init__([*watched, _giving(head, self.multiplied[head.name].values())], folder, threads)

    def run(self, windows: NDArray[np.int64], tick: Callable[[str], object]) -> None:
        head = self.blocks[-1]
        hidden = self.hidden(windows, tick)
        self._run(head, dict.fromkeys(head.inputs, hidden))
        tick(head.name)

    def _run(self, block: Block, values: dict[str, Array]) -> dict[str, Array]:
        made = super()._run(block, values)
        multiplied = {weight: str(value.name) for weight, value in self.multiplied[block.name].items()}
        found = {name: _stats(made[name] if name in made else values[name], block) for name in set(multiplied.values())}
        self.stats.update({weight: found[name] for weight, name in multiplied.items()})
        return made


def _multiplied(block: Block) -> dict[str, ir.Value]:
    """Return what each weight of a block is multiplied with, by the name of the weight."""
    found = {}
    for node in block.model.graph:
        if node.op_type == "MatMul":
            x, matrix = node.inputs
            turn = None if matrix is None else matrix.producer()
            weight = turn.inputs[0] if turn is not None and turn.op_type == "Transpose" else matrix
            if x is not None and weight is not None and weight.name in block.weights:
                found[str(weight.name)] = x
    return found


def _giving(block: Block, values: Iterable[ir.Value]) -> Block:
    """Return `block` with other outputs, and with no more inputs and weights than they need."""
    graph = block.model.graph
    outputs = [value for value in dict.fromkeys(values) if value not in graph.inputs]
    graph.outputs[:] = outputs
    sweep(graph)
    graph.inputs[:] = [value for value in graph.inputs if value.uses()]
    needed = {str(value.name) for value in graph.inputs}
    return replace(
        block,
        inputs=tuple(name for name in block.inputs if name in needed),
        weights={name: tensor for name, tensor in block.weights.items() if name in needed},
        outputs=tuple(str(value.name) for value in outputs),
    )


def _stats(x: Array, block: Block) -> Stats:
    """Return the statistics of x (windows, tokens, cols)."""
    total = sum(np.square(window, dtype=np.float64).sum(0) for window in x)
    with np.errstate(over="ignore"):
        importance = (total / (x.shape[0] * x.shape[1])).astype(np.float32)
    if not np.isfinite(importance).all():
        raise CheckpointError("the model computes numbers that are not finite", where=block.name)
    return Stats(torch.from_numpy(importance))
