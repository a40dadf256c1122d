"""Quantize a model block by block, each with the inputs that the quantized blocks before it give.

Memory is bounded by the weights of one block (three copies in float32), the Hessian of its widest matrix (six copies,
inputs x inputs), what 4096 tokens (four windows, if those are longer) are inside a block, and the hidden states of the
whole calibration text (tokens x hidden size, twice where an algorithm wants those of the float model too).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgec.calibrate import cache
from edgec.calibrate.flow import Flow, measure
from edgec.calibrate.stats import Stats
from edgec.errors import CheckpointError
from edgec.graph.blocks import Block, cut
from edgec.graph.torch_run import TorchBlock
from edgec.quantize.algorithms import algorithm_of, autoround, gptq
from edgec.quantize.fold import divide, find_fold
from edgec.quantize.matrix import Matrix, by_input, matrices
from edgec.quantize.results import BlockResult, Results, read_result
from edgec.quantize.scheme import Scheme
from edgec.quantize.transforms import scaling_named

if TYPE_CHECKING:
    from edgec.quantize.tensor import QuantizedTensor

Tensor = torch.Tensor
Weights = dict[str, Tensor]
Storage = Scheme | str
Tick = Callable[[str], object]


@dataclass(frozen=True)
class Recipe:
    """What to do with a model.

    Args:
        source: says which float graph it is: hashes of its files, and what was done to the graph.
        storage_of: the storage of a matrix by the name of its node.
        scalings: transforms that are applied to each block before rounding, in order.
        device: where blocks run and algorithms work.
        steps: of `autoround`, for each block.
    """

    source: str
    storage_of: Callable[[str], Storage]
    scalings: tuple[str, ...] = ()
    device: str = "cpu"
    steps: int = 200


@torch.no_grad()
def quantize_model(
    model: ir.Model, windows: NDArray[np.int64], recipe: Recipe, folder: Path, tick: Tick = lambda _: None
) -> Results:
    """Quantize the matrices of a canonical float graph on a calibration text, and return where the results are.

    A block whose result is in `folder`, made from the same model, text, recipe and blocks before it, is not quantized
    again: after an interruption the work goes on where it stopped. A token embedding that is the output matrix too is
    quantized at the end, with the statistics of the output matrix; until then tokens are looked up in the float table.

    Args:
        model: with lazy float weights; not changed.
        windows: token ids (n, tokens); each row is a context of its own.
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
    flow = Flow(windows, recipe.device)
    reference = Flow(windows, recipe.device) if _wants_reference(found, recipe) else None
    for index, block in enumerate(blocks[: last + 1]):
        later = {name for other in blocks[index + 1 :] for name in other.inputs}
        mine = found[block.name]
        runner = TorchBlock(block, recipe.device)
        floats = {n: torch.from_numpy(np.asarray(t.numpy())).to(recipe.device) for n, t in block.weights.items()}
        result = read_result(paths[index])
        if result is None:
            # Logits of a whole text do not fit in memory: the last block is not tuned to them.
            targets = reference if index < len(blocks) - 1 else None
            result = _BlockWork(runner, floats, mine, flow, recipe, shared).quantize(targets)
            result.write(paths[index])
        if index < last:
            flow.advance(runner, _changed(floats, mine, result), later)
            if reference is not None:
                reference.advance(runner, floats, later)
        tick(block.name)
    return Results(paths)


class _BlockWork:
    """A block on its way: `weights` are what it computes with so far, `shared` are those of other blocks too."""

    def __init__(
        self,
        runner: TorchBlock,
        floats: Weights,
        mine: Sequence[Matrix],
        flow: Flow,
        recipe: Recipe,
        shared: set[str],
    ) -> None:
        self.runner = runner
        self.flow = flow
        self.recipe = recipe
        self.shared = shared
        self.floats = floats
        self.weights = dict(floats)
        storages = {m.weight: recipe.storage_of(m.node) for m in mine}
        self.schemes = {name: storage for name, storage in storages.items() if isinstance(storage, Scheme)}
        self.mine = [m for m in mine if m.weight in self.schemes]
        self.readers = by_input(list(mine))
        self.tensors: dict[str, QuantizedTensor] = {}
        self.starts: list[autoround.Start] = []

    def quantize(self, reference: Flow | None) -> BlockResult:
        """Scale, round each group of matrices that share their input, and tune what wants the whole block."""
        groups = by_input(self.mine)
        remarks = [remark for name in self.recipe.scalings for remark in self.scale(name, groups)]
        scaled = {name: w for name, w in self.weights.items() if w is not self.floats[name]}
        for table in (m for m in self.mine if m.input is None):
            self.round_off(table, None)
        for name, members in groups.items():
            # Inputs of later matrices in a block come from the earlier ones as they are quantized.
            stats = self.stats(name, members)
            for m in members:
                self.round_off(m, stats)
        # The logits of a whole text would take more memory than all else: matrices of the head stay as they start.
        if self.starts and reference is not None and "logits" not in self.runner.block.outputs:
            targets = reference.outputs(self.runner, self.floats)
            self.tensors |= autoround.tune_block(
                self.runner, self.weights, self.starts, self.flow, targets, self.recipe.steps
            )
        changed = {name: w for name, w in scaled.items() if name not in self.tensors}
        return BlockResult(self.tensors, changed, tuple(remarks))

    def stats(self, name: str, members: Sequence[Matrix]) -> Stats:
        needs = {algorithm_of(self.schemes[m.weight]).NEEDS for m in members if not m.rows_first}
        hessian = bool(needs & {"hessian", "block"})
        stats = measure(self.flow, self.runner, self.weights, [name], hessian=hessian)[name]
        if members[0].rows_first:
            return Stats(_importance_of_table(self.weights[members[0].weight], stats.importance))
        return stats

    def round_off(self, m: Matrix, stats: Stats | None) -> None:
        scheme, rows = self.schemes[m.weight], m.turn(self.weights[m.weight])
        algorithm = algorithm_of(scheme)
        try:
            tensor = algorithm.quantize(rows, stats, scheme)
        except ValueError as error:
            raise CheckpointError(f"{scheme.algorithm} cannot quantize this matrix: {error}", where=m.node) from error
        if algorithm.NEEDS == "block" and m.input is not None and not m.rows_first:
            self.starts.append((m, gptq.compensated(rows, stats, tensor), tensor))
        self.tensors[m.weight] = tensor
        self.weights[m.weight] = m.turn(tensor.dequantize().to(self.recipe.device))

    def scale(self, name: str, groups: Mapping[str, Sequence[Matrix]]) -> list[str]:
        """Scale the inputs of each group of matrices; return why some were left alone."""
        scaling, remarks = scaling_named(name), []
        known = measure(self.flow, self.runner, self.weights, list(groups), hessian=scaling.NEEDS == "hessian")
        for value, members in groups.items():
            fold = find_fold(self.runner.block, value)
            if members[0].rows_first:
                fold = f"{members[0].weight} is looked up by tokens too"
            elif not isinstance(fold, str) and (both := self.shared.intersection(fold.divided)):
                fold = f"other blocks read {', '.join(sorted(both))} too"
            if isinstance(fold, str):
                remarks.append(f"{name} leaves {', '.join(m.node for m in members)} alone: {fold}")
                continue
            rows = [(m.turn(self.weights[m.weight]), self.schemes[m.weight]) for m in members]
            scale = scaling.scale(rows, known[value], fold)
            spread = fold.spread(scale)
            self.weights |= divide(fold, scale, self.weights)
            # Matrices that stay floats read what was divided, too.
            for m in self.readers[value]:
                self.weights[m.weight] = m.turn(m.turn(self.weights[m.weight]) * spread)
        return remarks


def _importance_of_table(table: Tensor, importance: Tensor) -> Tensor:
    """Return how much a column of a token embedding counts that is the output matrix too, (hidden,).

    The error of logits relative to their square, and that of looked-up rows relative to theirs, count the same. Inputs
    cannot make up for each other's errors in a row that is looked up, so there is no Hessian.
    """
    square = table.square().sum(0)
    tiny = torch.finfo(torch.float32).tiny
    return importance / (importance * square).sum().clamp(min=tiny) + 1 / square.sum().clamp(min=tiny)


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


def _keys(
    blocks: Sequence[Block], found: Mapping[str, Sequence[Matrix]], windows: NDArray[np.int64], recipe: Recipe
) -> list[str]:
    """Return a name for the result of each block: it depends on the block and on all that came before it."""
    text = cache.key(str(windows.shape), np.ascontiguousarray(windows, "<i8").tobytes())
    how = (" ".join(recipe.scalings), recipe.device, str(recipe.steps))
    chain = cache.key(cache.code_key(), torch.__version__, recipe.source, text, *how)
    keys = []
    for block in blocks:
        storages = {m.node: recipe.storage_of(m.node) for m in found[block.name]}
        chain = cache.key(chain, block.name, msgspec.json.encode(storages, order="sorted"))
        keys.append(chain)
    return keys
