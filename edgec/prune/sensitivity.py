"""How much pruning one block alone changes what a model predicts: measured on text, block by block.

For each block and share of zeros the model runs with this block's matrices pruned and all others as they are; the
result is the mean of KL(float model || this model) over all positions of the text, in nats. What is before the block
runs once, what comes after it runs for all of its shares together. Memory: the weights of two blocks, those of one
pruned, and (shares, windows, tokens, hidden) float32 values.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgec.calibrate import cache
from edgec.calibrate.flow import Flow, measure
from edgec.graph.blocks import cut, read_later
from edgec.graph.torch_run import TorchBlock
from edgec.prune.methods import method_of
from edgec.prune.pattern import Pattern
from edgec.quantize.matrix import Matrix, by_input
from edgec.quantize.sequential import text_key
from edgec.quantize.threads import one_thread
from edgec.quantize.weights import one_ahead
from edgec.tune.sensitivity import kl

Tensor = torch.Tensor
Weights = Mapping[str, Tensor]
Ids = NDArray[np.int64]
Losses = tuple[float, ...]
"""In nats, for each share, at least 0; infinite where the model computes something that is not finite."""

# Each token goes through half of the model for each block and share.
_TOKENS = 512
# Positions of which all logits are in memory at once, three times.
_POSITIONS_AT_ONCE = 128


@torch.no_grad()
@one_thread()
def measure_losses(
    model: ir.Model,
    members: Mapping[str, Sequence[Matrix]],
    shares: Sequence[float],
    windows: Ids,
    *,
    method: str,
    source: str,
    folder: Path | None,
    device: str,
    tick: Callable[[str], object],
) -> dict[str, Losses]:
    """Return what pruning a block alone to each share loses, by the block's name.

    A block whose result is in `folder`, made from the same model, text and shares, is not measured again.

    Args:
        model: a canonical graph with lazy float weights; not changed.
        members: block -> its matrices that are pruned.
        shares: of zeros.
        windows: token ids (n, tokens) of a calibration text, of which the first 512 tokens are taken.
        method: a file in edgec/prune/methods that needs no Hessian.
        source: says which float graph it is: hashes of its files, and what was done to the graph.
        folder: for results, a file for each block; None keeps nothing.
        device: where blocks run.
        tick: called with the name of each block that was measured.

    Raises:
        CheckpointError: the float model computes something that is not finite.
        OutputError: a result cannot be written.
    """
    text = windows[: max(1, _TOKENS // windows.shape[1]), :_TOKENS]
    how = (source, text_key(text), method, device, repr(list(shares)))
    chain = cache.key(cache.code_key("tune"), torch.__version__, *how)
    paths: dict[str, Path] = {}
    if folder is not None:
        for name, found in members.items():
            paths[name] = folder / f"{cache.key(chain, name, *(m.node for m in found))}.npz"
    losses = {name: tuple(map(float, kept["losses"])) for name, path in paths.items() if (kept := cache.load(path))}
    todo = {name: found for name, found in members.items() if name not in losses}
    if todo:
        for name, measured in _Measuring(model, text, method, device).of_blocks(todo, shares):
            losses[name] = measured
            if name in paths:
                cache.save(paths[name], {"losses": np.array(measured)})
            tick(name)
    return losses


class _Measuring:
    """A model on a text, and what its head reads of it.

    Args:
        model: a canonical graph.
        text: token ids (n, tokens).
        method: prunes.
        device: where blocks run.
    """

    def __init__(self, model: ir.Model, text: Ids, method: str, device: str) -> None:
        blocks = cut(model)
        self.text, self.device, self.prune = text, device, method_of(method).prune
        self.later = read_later(blocks)
        *self.runners, self.head = (TorchBlock(block, device) for block in blocks)
        self.head_weights = self.head.load()
        self.expected = self.final(Flow(text, device), 0)

    def of_blocks(
        self, members: Mapping[str, Sequence[Matrix]], shares: Sequence[float]
    ) -> Iterator[tuple[str, Losses]]:
        """Yield the losses of each block, by its name."""
        flow = Flow(self.text, self.device)
        last = max(index for index, runner in enumerate(self.runners) if runner.block.name in members)
        for index, (runner, weights) in enumerate(one_ahead(TorchBlock.load, self.runners[: last + 1])):
            if found := members.get(runner.block.name):
                forks = [
                    self.advanced(flow, index, pruned) for pruned in self.pruned(flow, index, weights, found, shares)
                ]
                yield runner.block.name, self.divergences(self.final(self.side_by_side(forks), index + 1))
            flow.advance(runner, weights, self.later[index])

    def pruned(
        self, flow: Flow, index: int, weights: Weights, found: Sequence[Matrix], shares: Sequence[float]
    ) -> Iterator[Weights]:
        """Yield the weights of a block with some of its matrices pruned to each share."""
        groups = by_input(list(found))
        stats = measure(flow, self.runners[index], weights, list(groups), hessian=False)
        for pattern in map(Pattern, shares):
            zeros = {
                m.weight: m.turn(self.prune(m.turn(weights[m.weight]), stats[value], pattern).weight)
                for value, group in groups.items()
                for m in group
            }
            yield {**weights, **zeros}

    def advanced(self, flow: Flow, index: int, weights: Weights) -> Mapping[str, Tensor]:
        """Return what flows out of a block with other weights."""
        fork = self.side_by_side([flow.values])
        fork.advance(self.runners[index], weights, self.later[index])
        return fork.values

    def side_by_side(self, states: Sequence[Mapping[str, Tensor]]) -> Flow:
        """Return a flow through several variants at once, one after the other along the rows."""
        flow = Flow(np.tile(self.text, (len(states), 1)), self.device)
        flow.values = {
            name: value
            if len(value) == 1 and all(state[name] is value for state in states)
            else torch.cat([state[name] for state in states])
            for name, value in states[0].items()
        }
        return flow

    def final(self, flow: Flow, first: int) -> Tensor:
        """Carry a flow from a block on to the head, and return what goes into that, (rows, hidden)."""
        rest = self.runners[first:]
        for index, (runner, weights) in enumerate(one_ahead(TorchBlock.load, rest), first):
            flow.advance(runner, weights, self.later[index])
        (name,) = self.head.block.inputs
        return flow.values[name].flatten(0, 1)

    def divergences(self, final: Tensor) -> Losses:
        """Return the mean KL of each of several variants, whose rows follow each other."""
        (name,) = self.head.block.inputs

        def logits(rows: Tensor) -> Tensor:
            return self.head.run({name: rows[None]}, self.head_weights, ["logits"])["logits"][0]

        variants = final.view(-1, *self.expected.shape)
        sums = torch.zeros(len(variants), dtype=torch.float64)
        for start in range(0, len(self.expected), _POSITIONS_AT_ONCE):
            piece = slice(start, start + _POSITIONS_AT_ONCE)
            expected = logits(self.expected[piece])
            likely = torch.softmax(expected, dim=-1)
            for number, variant in enumerate(variants):
                sums[number] += kl(likely, logits(variant[piece]).sub_(expected)).sum(dtype=torch.float64).cpu()
        means = sums / len(self.expected)
        return tuple(means.where(means.isfinite(), torch.inf).tolist())
