"""Quantize the matrices of one block, each group with the inputs that those before it give."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from edgec.calibrate.flow import Flow, measure
from edgec.calibrate.stats import Stats
from edgec.errors import CheckpointError
from edgec.graph.torch_run import TorchBlock
from edgec.quantize.algorithms import algorithm_of, autoround, gptq
from edgec.quantize.fold import divide, find_fold
from edgec.quantize.matrix import Matrix, by_input
from edgec.quantize.pieces import for_rows
from edgec.quantize.results import BlockResult
from edgec.quantize.scheme import Scheme
from edgec.quantize.tensor import QuantizedTensor
from edgec.quantize.transforms import scaling_named

Tensor = torch.Tensor
Weights = dict[str, Tensor]
Storage = Scheme | str


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


class BlockWork:
    """A block on its way: `weights` are what it computes with so far, as the graph has them, floats all.

    Args:
        runner: the block.
        floats: its weights.
        mine: the matrices to quantize.
        flow: its inputs, as the quantized blocks before it give them.
        recipe: what to do.
        shared: weights that other blocks read too.
    """

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
        """Scale, round each group of matrices that share their input, and tune what wants the whole block.

        Args:
            reference: the block's inputs in the float model, to tune its outputs to; None leaves that out.

        Raises:
            CheckpointError: the block computes something that is not finite, or an algorithm cannot quantize a matrix.
        """
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
        if self.starts and reference is not None:
            targets = reference.outputs(self.runner, self.floats)
            tuned = autoround.tune_block(self.runner, self.weights, self.starts, self.flow, targets, self.recipe.steps)
            for m, _, _ in self.starts:
                self.put(m, tuned[m.weight])
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
        self.put(m, tensor)

    def put(self, m: Matrix, tensor: QuantizedTensor) -> None:
        self.tensors[m.weight] = tensor
        if not ("logits" in self.runner.block.outputs and m is self.mine[-1]):  # that one nothing comes after
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
    square = torch.stack(for_rows(len(table), table.shape[1], lambda piece: table[piece].square().sum(0))).sum(0)
    tiny = torch.finfo(torch.float32).tiny
    return importance / (importance * square).sum().clamp(min=tiny) + 1 / square.sum().clamp(min=tiny)
