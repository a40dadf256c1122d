"""Prune and quantize a model block by block, each with the inputs that the quantized blocks before it give.

Memory is bounded by the weights of one block and of the next, which are read meanwhile (four copies in float32,
thirteen with `autoround`), the Hessian of its widest matrix (six copies, inputs x inputs), what 4096 tokens (four
windows, if those are longer) are inside a block, and the hidden states of the whole calibration text (twice, tokens x
hidden size; four times where an algorithm wants those of the float model too).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgec.calibrate import cache
from edgec.calibrate.flow import Flow
from edgec.graph.blocks import Block, cut, read_later
from edgec.graph.torch_run import TorchBlock
from edgec.quantize.algorithms import algorithm_of
from edgec.quantize.block import BlockWork, Recipe, Weights
from edgec.quantize.matrix import Matrix, matrices
from edgec.quantize.results import BlockResult, Results, read_result
from edgec.quantize.scheme import Scheme
from edgec.quantize.threads import one_thread
from edgec.quantize.weights import one_ahead

Tick = Callable[[str], object]


@torch.no_grad()
@one_thread()
def quantize_model(
    model: ir.Model, windows: NDArray[np.int64] | None, recipe: Recipe, folder: Path, tick: Tick = lambda _: None
) -> Results:
    """Quantize the matrices of a canonical float graph on a calibration text, and return where the results are.

    A block whose result is in `folder`, made from the same model, text, recipe and blocks before it, is not quantized
    again: after an interruption the work goes on where it stopped. A token embedding that is the output matrix too is
    quantized at the end, with the statistics of the output matrix; until then tokens are looked up in the float table.

    Args:
        model: with lazy float weights; not changed.
        windows: token ids (n, tokens); each row is a context of its own. With None algorithms look at weights alone.
        recipe: what to do.
        folder: for results, a file for each block, named after what it was made from.
        tick: called with the name of each block.

    Raises:
        CheckpointError: the model computes something that is not finite, or an algorithm cannot quantize a matrix.
        OutputError: a result cannot be written.
    """
    blocks = cut(model)
    found = {block.name: matrices(block) for block in blocks}
    tied = {m.weight for m in found[blocks[-1].name] if m.rows_first}
    for block in blocks[:-1]:
        found[block.name] = [m for m in found[block.name] if m.weight not in tied]
    readers = Counter(name for block in blocks for name in block.weights)
    shared = {name for name, count in readers.items() if count > 1}
    paths = [folder / f"{key}.npz" for key in _keys(blocks, found, windows, recipe)]
    last = next((i for i in reversed(range(len(paths))) if read_result(paths[i]) is None), -1)
    flow = None if windows is None else Flow(windows, recipe.device)
    reference = None if windows is None or not _wants_reference(found, recipe) else Flow(windows, recipe.device)
    later = read_later(blocks)
    runners = [TorchBlock(block, recipe.device) for block in blocks[: last + 1]]
    for index, (runner, floats) in enumerate(one_ahead(TorchBlock.load, runners)):
        mine = found[runner.block.name]
        result = read_result(paths[index])
        if result is None:
            # Logits of a whole text do not fit in memory: the last block is not tuned to them.
            targets = reference if index < len(blocks) - 1 else None
            work = BlockWork(runner, floats, mine, flow, recipe, shared)
            result, weights = work.quantize(targets), work.weights
            result.write(paths[index])
        else:
            weights = _changed(floats, mine, result)
        if index < last and flow is not None:
            flow.advance(runner, weights, later[index])
            if reference is not None:
                reference.advance(runner, floats, later[index])
        tick(runner.block.name)
    return Results(paths)


def _changed(floats: Weights, mine: Sequence[Matrix], result: BlockResult) -> Weights:
    """Return the weights of a block as its result has them, floats all."""
    turn = {m.weight: m.turn for m in mine}
    return {
        **floats,
        **{name: value.to(floats[name].device) for name, value in result.floats.items()},
        **{name: turn[name](tensor.dequantize().to(floats[name].device)) for name, tensor in result.tensors.items()},
    }


def _wants_reference(found: Mapping[str, Sequence[Matrix]], recipe: Recipe) -> bool:
    storages = {recipe.storage_of(m.node) for each in found.values() for m in each}
    return any(isinstance(s, Scheme) and algorithm_of(s).NEEDS == "block" for s in storages)


def text_key(windows: NDArray[np.int64] | None) -> str:
    """Return what tells a calibration text from others, for names of cached results."""
    return "" if windows is None else cache.key(str(windows.shape), np.ascontiguousarray(windows, "<i8").tobytes())


def _keys(
    blocks: Sequence[Block], found: Mapping[str, Sequence[Matrix]], windows: NDArray[np.int64] | None, recipe: Recipe
) -> list[str]:
    """Return a name for the result of each block: it depends on the block and on all that came before it."""
    how = (" ".join(recipe.scalings), recipe.device, str(recipe.steps), recipe.pruning.method)
    # numpy does not promise to keep the random numbers that rotations are made of.
    chain = cache.key(cache.code_key(), torch.__version__, np.__version__, recipe.source, text_key(windows), *how)
    keys = []
    for block in blocks:
        storages = {m.node: recipe.storage_of(m.node) for m in found[block.name]}
        patterns = {m.node: recipe.pruning.patterns.get(m.node) for m in found[block.name]}
        chain = cache.key(chain, block.name, msgspec.json.encode((storages, patterns), order="sorted"))
        keys.append(chain)
    return keys
