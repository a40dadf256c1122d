"""Learn which way to round: by the sign of the gradient of the error that a whole block makes.

Each weight may move by half a step before it is rounded, each scale by a factor; both are learned from what the block's
outputs should be, those of the float model on its own inputs, while the inputs are those that the quantized blocks
before it give. So a block also makes up for the errors of earlier ones. A fraction of the text is looked at in each
step; the result is kept only where it is better than the start on all of it.

The start is that of `gptq`, where the source starts from rounding to nearest.

Source: Cheng et al. 2024, Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs
(arXiv:2309.05516), equations 3 to 6 and algorithm 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edgec.calibrate.flow import Flow
from edgec.calibrate.stats import Needs, Stats
from edgec.graph.torch_run import TorchBlock
from edgec.quantize.algorithms import gptq
from edgec.quantize.matrix import Matrix
from edgec.quantize.scheme import Scheme
from edgec.quantize.tensor import QuantizedTensor, as_float16

NEEDS: Needs = "block"

Tensor = torch.Tensor
Weights = Mapping[str, Tensor]
Start = tuple[Matrix, Tensor, QuantizedTensor]
"""A matrix, what was rounded, (rows, cols), and what became of it."""

# Windows of one step.
_BATCH = 8
# Of a scale, at most; and how much slower scales move than weights.
_FACTOR, _SLOWER = 0.25, 0.25


def quantize(weight: Tensor, stats: Stats | None, scheme: Scheme) -> QuantizedTensor:
    """Return the start, which `tune_block` improves."""
    return gptq.quantize(weight, stats, scheme)


@dataclass
class _Learned:
    """A matrix (rows, cols) on its way; scales and zero points are (rows, groups).

    Args:
        target: what is rounded, in the units of the weight: the start's own, before it was rounded.
        start: scales at the start.
        zero: zero points, as float32.
        shift: learned, from -0.5 to 0.5, in steps of the scale.
        factor: learned, of each scale.
    """

    matrix: Matrix
    scheme: Scheme
    target: Tensor
    start: Tensor
    zero: Tensor
    shift: Tensor
    factor: Tensor

    def scales(self) -> Tensor:
        return as_float16(self.start * self.factor)

    def wide(self, per_group: Tensor) -> Tensor:
        cols = self.target.shape[1]
        return per_group.repeat_interleave(self.scheme.group or cols, dim=1)[:, :cols]

    def codes(self) -> tuple[Tensor, Tensor]:
        """Return the codes less their zero points, and where none was cut off at the ends."""
        raw = torch.round(self.target / self.wide(self.scales()) + self.shift)
        codes = torch.clamp(raw, self.wide(self.scheme.low - self.zero), self.wide(self.scheme.high - self.zero))
        return codes, raw == codes

    def weight(self) -> Tensor:
        return self.codes()[0] * self.wide(self.scales())

    def step(self, gradient: Tensor, rate: float) -> None:
        """Move against the sign of the gradient (rows, cols) of the weight, rounding taken as if it were not there."""
        codes, inside = self.codes()
        scales = self.wide(self.scales())
        self.shift -= rate * torch.sign(gradient * inside)
        self.shift.clamp_(-0.5, 0.5)
        by_scale = gradient * (codes - inside * self.target / scales)
        groups, width = self.start.shape[1], self.scheme.group or self.target.shape[1]
        padded = torch.nn.functional.pad(by_scale, (0, groups * width - by_scale.shape[1]))
        self.factor -= _SLOWER * rate * torch.sign(torch.unflatten(padded, 1, (groups, width)).sum(2))
        self.factor.clamp_(1 - _FACTOR, 1 + _FACTOR)

    def result(self) -> QuantizedTensor:
        codes = self.codes()[0] + self.wide(self.zero)
        signed = self.scheme.symmetric
        zeros = None if signed else self.zero.to(torch.uint8).cpu()
        stored = codes.to(torch.int8 if signed else torch.uint8).cpu()
        return QuantizedTensor(stored, self.scales().cpu(), zeros, self.scheme)


def tune_block(
    runner: TorchBlock,
    weights: Weights,
    starts: Sequence[Start],
    flow: Flow,
    targets: Mapping[str, Tensor],
    steps: int,
) -> dict[str, QuantizedTensor]:
    """Return the matrices of a block, better rounded.

    Args:
        runner: the block.
        weights: its weights, those of `starts` replaced.
        starts: the matrices as they are rounded so far.
        flow: the inputs, as the quantized blocks before this one give them.
        targets: what the block's outputs should be, by their names, (windows, tokens, hidden).
        steps: how many.
    """
    learned = [_learn(*start) for start in starts]
    generator = np.random.default_rng(0)
    for step in range(steps):
        rows = np.sort(generator.permutation(flow.count)[:_BATCH])
        gradients = _gradients(runner, weights, _stored(learned), flow, targets, rows)
        for each in learned:
            gradient = each.matrix.turn(gradients[each.matrix.weight])
            each.step(gradient, (1 - step / steps) / steps)
    after = _error(runner, {**weights, **_stored(learned)}, flow, targets)
    if not after < _error(runner, weights, flow, targets):
        return {matrix.weight: tensor for matrix, _, tensor in starts}
    return {each.matrix.weight: each.result() for each in learned}


def _learn(matrix: Matrix, rounded: Tensor, start: QuantizedTensor) -> _Learned:
    zero = torch.zeros_like(start.scales) if start.zero_points is None else start.zero_points.float()
    zero, scales = zero.to(rounded.device), start.scales.to(rounded.device)
    return _Learned(matrix, start.scheme, rounded, scales, zero, torch.zeros_like(rounded), torch.ones_like(scales))


def _stored(learned: Sequence[_Learned]) -> dict[str, Tensor]:
    return {each.matrix.weight: each.matrix.turn(each.weight()) for each in learned}


def _error(runner: TorchBlock, weights: Weights, flow: Flow, targets: Mapping[str, Tensor]) -> float:
    def work(rows: Tensor) -> float:
        made = runner.run(flow.rows_of(runner, rows), weights, targets)
        return float(sum((made[name] - targets[name][rows]).square().sum(dtype=torch.float64) for name in targets))

    return sum(flow.map(work))


def _gradients(
    runner: TorchBlock,
    weights: Weights,
    moving: Mapping[str, Tensor],
    flow: Flow,
    targets: Mapping[str, Tensor],
    chosen: NDArray[np.int64],
) -> dict[str, Tensor]:
    """Return the gradients of the squared error over some windows with respect to the weights in `moving`."""
    leaves = {name: weight.detach().requires_grad_() for name, weight in moving.items()}

    def work(rows: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            made = runner.run(flow.rows_of(runner, rows), {**weights, **leaves}, targets)
            loss = torch.stack([(made[name] - targets[name][rows]).square().sum() for name in targets]).sum()
            return torch.autograd.grad(loss, list(leaves.values()))

    sums = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    for gradients in flow.map(work, chosen):
        for total, gradient in zip(sums.values(), gradients, strict=True):
            total.add_(gradient)
    return sums
