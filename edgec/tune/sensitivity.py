"""How much pruning and quantizing one unit alone changes what a model predicts: measured on text, unit by unit.

For each unit and candidate the model runs with this unit's weights quantized and all others as they are; the result is
the mean of KL(float model || this model) over all positions of the text, in nats. What is before the unit's layer
runs once, what comes after it runs for all candidates of a layer together, one block of weights at a time.

Memory: one block of weights, and (candidates of a layer, windows, tokens, hidden) float32 values.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgec.calibrate.flow import Flow, measure
from edgec.calibrate.stats import Stats
from edgec.graph.blocks import cut, read_later
from edgec.graph.tags import HEAD_ROTATION
from edgec.graph.torch_run import TorchBlock
from edgec.prune.methods import method_of
from edgec.prune.pattern import Pattern
from edgec.quantize.algorithms import algorithm_of
from edgec.quantize.matrix import Matrix, by_input, matrices
from edgec.quantize.scheme import Scheme
from edgec.spec.operation import Storage
from edgec.tune.units import EMBEDDING, Candidate, Unit, cheap, cheap_method

Tensor = torch.Tensor
Weights = dict[str, Tensor]
Ids = NDArray[np.int64]

# Positions of which all logits are in memory at once, three times.
_POSITIONS_AT_ONCE = 128


@dataclass(frozen=True)
class Variant:
    """A unit with a candidate."""

    unit: Unit
    candidate: Candidate


class Sensitivity:
    """Measures variants of one model on one text.

    Args:
        model: a canonical float graph, rotated or not; the matrix that a rotation adds stays as it is.
        windows: token ids (n, tokens); each row is a context of its own.
    """

    def __init__(self, model: ir.Model, windows: Ids) -> None:
        self.blocks = [TorchBlock(block) for block in cut(model)]
        self.windows = windows
        self.stats: dict[str, Stats] = {}
        self.later = read_later([block.block for block in self.blocks])

    @torch.no_grad()
    def measure(
        self, todo: Sequence[Variant], found: Callable[[Variant, float], object], tick: Callable[[str], object]
    ) -> None:
        """Measure variants, layer by layer; `found` gets each result, `tick` the name of each layer that is done.

        Afterwards `stats` knows the inputs of every matrix, by the name of its weight.
        """
        self.reference = self._final(self._run(Flow(self.windows), 0))
        tick("float model")
        head = self.blocks[-1]
        final = _Fork(Flow(self.windows), [dict.fromkeys(head.block.inputs, self.reference)])
        self._measure_stats(final, head, head.load(), matrices(head.block))
        self._report([v for v in todo if v.unit.name == EMBEDDING], self._embedding(todo), found)
        tick(EMBEDDING)
        flow = Flow(self.windows)
        for index in range(len(self.blocks) - 1):
            name = self.blocks[index].block.name
            if name.endswith(".attention"):
                layer = name.rpartition(".")[0]
                here = [v for v in todo if v.unit.name.startswith(f"{layer}.")]
                self._layer(flow, index, here, found)
                tick(layer)
            elif not name.endswith(".mlp"):
                self._advance(flow, index)

    def _layer(
        self, flow: Flow, first: int, todo: Sequence[Variant], found: Callable[[Variant, float], object]
    ) -> None:
        """Carry `flow` through a layer, and measure its variants."""
        ordered, states = [], []
        for index in (first, first + 1):
            block = self.blocks[index]
            weights, members = block.load(), matrices(block.block)
            self._measure_stats(flow, block, weights, members)
            names = {matrix.node for matrix in members}
            for variant in (v for v in todo if names.issuperset(v.unit.matrices)):
                changed = weights | self._quantized(variant, members, weights)
                fork = _Fork(flow, [flow.values])
                fork.advance(block, changed, self.later[index])
                if index == first:
                    self._advance(fork, first + 1)
                ordered.append(variant)
                states.append(fork.values)
            self._advance(flow, index, weights)
        if states:
            final = self._final(self._run(_Fork(flow, states), first + 2))
            self._report(ordered, self._divergences(final, self.blocks[-1].load()), found)

    def _embedding(self, todo: Sequence[Variant]) -> list[float]:
        """Return the divergence of each variant of the embedding and the output matrix."""
        results = []
        for variant in (v for v in todo if v.unit.name == EMBEDDING):
            flow = Flow(self.windows)
            for index, block in enumerate(self.blocks[:-1]):
                weights = block.load()
                tables = [matrix for matrix in matrices(block.block) if matrix.input is None]
                self._advance(flow, index, weights | self._quantized(variant, tables, weights))
            head = self.blocks[-1].load()
            changed = head | self._quantized(variant, matrices(self.blocks[-1].block), head)
            results += self._divergences(self._final(flow), changed)
        return results

    def _measure_stats(self, flow: Flow, block: TorchBlock, weights: Weights, members: list[Matrix]) -> None:
        groups = by_input(members)
        found = measure(flow, block, weights, groups, hessian=False)
        self.stats.update({matrix.weight: found[name] for name, group in groups.items() for matrix in group})

    def _quantized(self, variant: Variant, members: Sequence[Matrix], weights: Weights) -> Weights:
        """Return the weights of a block that a variant changes, as the graph has them."""
        wanted = variant.unit.matrices
        candidate = variant.candidate
        return {
            matrix.weight: matrix.turn(
                as_stored(matrix.turn(weights[matrix.weight]), candidate, self.stats.get(matrix.weight))
            )
            for matrix in members
            if matrix.node in wanted or (not wanted and matrix.node != HEAD_ROTATION)
        }

    def _run(self, flow: Flow, first: int) -> Flow:
        """Carry `flow` from a block to the head."""
        for index in range(first, len(self.blocks) - 1):
            self._advance(flow, index)
        return flow

    def _advance(self, flow: Flow, index: int, weights: Weights | None = None) -> None:
        block = self.blocks[index]
        flow.advance(block, block.load() if weights is None else weights, self.later[index])

    def _final(self, flow: Flow) -> Tensor:
        """Return what goes into the head, (rows, tokens, hidden)."""
        (name,) = self.blocks[-1].block.inputs
        return flow.values[name]

    def _divergences(self, final: Tensor, changed: Weights) -> list[float]:
        """Return the mean KL of each variant in `final`, (variants * windows, tokens, hidden)."""
        head = self.blocks[-1]
        (name,) = head.block.inputs
        weights = head.load()
        variants = final.view(-1, *self.reference.shape)
        sums = torch.zeros(len(variants), dtype=torch.float64)
        rows = self.reference.flatten(0, 1)
        for start in range(0, len(rows), _POSITIONS_AT_ONCE):
            piece = slice(start, start + _POSITIONS_AT_ONCE)
            expected = head.run({name: rows[None, piece]}, weights, ["logits"])["logits"][0]
            shares = torch.softmax(expected, dim=-1)
            for index, variant in enumerate(variants):
                given = variant.flatten(0, 1)[None, piece]
                logits = head.run({name: given}, changed, ["logits"])["logits"][0]
                sums[index] += kl(shares, logits.sub_(expected)).sum(dtype=torch.float64)
        return (sums / len(rows)).tolist()

    def _report(
        self, variants: Sequence[Variant], results: Sequence[float], found: Callable[[Variant, float], object]
    ) -> None:
        for variant, result in zip(variants, results, strict=True):
            found(variant, result if np.isfinite(result) else float("inf"))


class _Fork(Flow):
    """What flows through several variants of a model at once, one after the other along the rows.

    A value that is the same for all, such as the mask, has one row.
    """

    def __init__(self, flow: Flow, states: Sequence[Mapping[str, Tensor]]) -> None:
        self.count, self.rows = flow.count * len(states), flow.rows
        self.values = {}
        for name, value in states[0].items():
            same = len(value) == 1 and all(state[name] is value for state in states)
            self.values[name] = value if same else torch.cat([state[name] for state in states])


def kl(shares: Tensor, difference: Tensor) -> Tensor:
    """Return KL(p || q) of each row, in nats, from p and the difference of the logits of q and p; both (n, vocab).

    With the difference centred under p, log sum p e^d is the log of 1 + sum p (e^d - 1 - d), whose terms are of second
    order, so that float32 does not drown a KL of 1e-9. `difference` is overwritten.
    """
    difference -= torch.linalg.vecdot(shares, difference)[:, None]
    return torch.log1p(torch.linalg.vecdot(shares, difference.expm1() - difference)).clamp(min=0)


def as_stored(rows: Tensor, candidate: Candidate, stats: Stats | None) -> Tensor:
    """Return the (rows = out, cols = in) float32 weight that a candidate makes of one: pruned, then rounded."""
    if candidate.pattern is None:
        return dequantized(rows, candidate.storage, stats)
    pruned = method_of(cheap_method(candidate.method)).prune(rows, stats, Pattern.parse(candidate.pattern))
    return dequantized(pruned.weight, candidate.storage, stats).where(pruned.keep, 0)


def dequantized(rows: Tensor, storage: Storage, stats: Stats | None) -> Tensor:
    """Return the (rows = out, cols = in) float32 weight that a storage makes of one."""
    chosen = cheap(storage)
    if isinstance(chosen, Scheme):
        return algorithm_of(chosen).quantize(rows, stats, chosen).dequantize()
    return rows.half().float() if storage == "fp16" else rows
