"""Prune and quantize the matrices of one block, each group with the inputs that those before it give."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from edgec.calibrate.flow import Flow, measure
from edgec.calibrate.stats import Stats
from edgec.errors import CheckpointError
from edgec.graph.torch_run import TorchBlock
from edgec.prune.methods import masked, method_of, sparsegpt
from edgec.prune.pattern import Pattern
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
class Pruning:
    """What becomes 0 before rounding.

    Args:
        method: a file in edgec/prune/methods.
        patterns: matrix -> which share of it, by the names of nodes; other matrices stay dense.
    """

    method: str = "magnitude"
    patterns: Mapping[str, Pattern] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """What to do with a model.

    Args:
        source: says which float graph it is: hashes of its files, and what was done to the graph.
        storage_of: the storage of a matrix by the name of its node.
        scalings: transforms that are applied to each block before rounding, in order.
        device: where blocks run and algorithms work.
        steps: of `autoround`, for each block.
        pruning: what becomes 0 before rounding.
    """

    source: str
    storage_of: Callable[[str], Storage]
    scalings: tuple[str, ...] = ()
    device: str = "cpu"
    steps: int = 200
    pruning: Pruning = Pruning()


class BlockWork:
    """A block on its way: `weights` are what it computes with so far, as the graph has them, floats all.

    Args:
        runner: the block.
        floats: its weights.
        mine: the matrices.
        flow: its inputs, as the quantized blocks before it give them; None leaves algorithms with weights alone.
        recipe: what to do.
        shared: weights that other blocks read too.
    """

    def __init__(
        self,
        runner: TorchBlock,
        floats: Weights,
        mine: Sequence[Matrix],
        flow: Flow | None,
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
        self.patterns = {m.weight: recipe.pruning.patterns[m.node] for m in mine if m.node in recipe.pruning.patterns}
        self.method = method_of(recipe.pruning.method)
        self.mine = [m for m in mine if m.weight in self.schemes or m.weight in self.patterns]
        self.readers = by_input(list(mine))
        self.tensors: dict[str, QuantizedTensor] = {}
        self.keep: dict[str, Tensor] = {}
        self.starts: list[autoround.Start] = []

    def quantize(self, reference: Flow | None) -> BlockResult:
        """Scale, prune and round each group of matrices that share their input, tune what wants the whole block.

        Args:
            reference: the block's inputs in the float model, to tune its outputs to; None leaves that out.

        Raises:
            CheckpointError: the block computes something that is not finite, or a matrix cannot be pruned or quantized.
        """
        groups = by_input(self.mine)
        remarks = [remark for name in self.recipe.scalings for remark in self.scale(name, groups)]
        for table in (m for m in self.mine if m.input is None):
            self.change(table, None)
        for name, members in groups.items():
            # Inputs of later matrices in a block come from the earlier ones as they are quantized.
            stats = self.stats(name, members)
            for m in members:
                self.change(m, stats)
        if self.starts and self.flow is not None and reference is not None:
            targets = reference.outputs(self.runner, self.floats)
            tuned = autoround.tune_block(self.runner, self.weights, self.starts, self.flow, targets, self.recipe.steps)
            for m, _, _ in self.starts:
                self.put(m, self.zeroed(m, tuned[m.weight]))
        changed = {
            name: w for name, w in self.weights.items() if w is not self.floats[name] and name not in self.tensors
        }
        return BlockResult(self.tensors, changed, tuple(remarks))

    def stats(self, name: str, members: Sequence[Matrix]) -> Stats | None:
        if self.flow is None:
            return None
        needs = {algorithm_of(self.schemes[m.weight]).NEEDS for m in members if m.weight in self.schemes}
        needs |= {self.method.NEEDS for m in members if m.weight in self.patterns}
        hessian = bool(needs & {"hessian", "block"}) and not members[0].rows_first
        stats = measure(self.flow, self.runner, self.weights, [name], hessian=hessian)[name]
        if members[0].rows_first:
            return Stats(_importance_of_table(self.weights[members[0].weight], stats.importance))
        return stats

    def change(self, m: Matrix, stats: Stats | None) -> None:
        """Prune and round a matrix."""
        rows, scheme, pattern = m.turn(self.weights[m.weight]), self.schemes.get(m.weight), self.patterns.get(m.weight)
        try:
            if pattern is not None and scheme is not None and self.in_one_pass(scheme):
                tensor, _ = sparsegpt.prune_and_quantize(rows, stats, pattern, scheme)
                self.put(m, tensor)
                return
            if pattern is not None:
                pruned = self.method.prune(rows, stats, pattern)
                rows, self.keep[m.weight] = pruned.weight, pruned.keep
                self.weights[m.weight] = m.turn(rows)
            if scheme is not None:
                self.round_off(m, rows, stats, scheme)
        except ValueError as error:
            steps = [f"pruned to {pattern}"] * (pattern is not None)
            steps += [f"quantized by {scheme.algorithm}"] if scheme is not None else []
            raise CheckpointError(f"a matrix cannot be {' and '.join(steps)}: {error}", where=m.node) from error

    def in_one_pass(self, scheme: Scheme) -> bool:
        """Say whether pruning and rounding make up for each other's errors."""
        return self.method is method_of("sparsegpt") and algorithm_of(scheme) is gptq

    def round_off(self, m: Matrix, rows: Tensor, stats: Stats | None, scheme: Scheme) -> None:
        algorithm = algorithm_of(scheme)
        tensor = algorithm.quantize(rows, stats, scheme)
        if algorithm.NEEDS == "block" and m.input is not None and not m.rows_first:
            self.starts.append((m, gptq.compensated(rows, stats, tensor), tensor))
        self.put(m, self.zeroed(m, tensor))

    def zeroed(self, m: Matrix, tensor: QuantizedTensor) -> QuantizedTensor:
        """Return a matrix that is 0 where it was pruned, also if rounding made up for something there."""
        return masked(tensor, self.keep[m.weight]) if m.weight in self.keep else tensor

    def put(self, m: Matrix, tensor: QuantizedTensor) -> None:
        self.tensors[m.weight] = tensor
        if not ("logits" in self.runner.block.outputs and m is self.mine[-1]):  # that one nothing comes after
            self.weights[m.weight] = m.turn(tensor.dequantize().to(self.recipe.device))

    def scale(self, name: str, groups: Mapping[str, Sequence[Matrix]]) -> list[str]:
        """Scale the inputs of each group of matrices; return why some were left alone."""
        assert self.flow is not None
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
