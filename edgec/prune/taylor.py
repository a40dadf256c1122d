"""The gradient of a decoder's loss, carried back over its blocks, and what it says of the parts of each."""

from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional

from edgec.calibrate.flow import Flow
from edgec.frontends.architecture import Decoder
from edgec.graph.blocks import Block
from edgec.graph.torch_run import TorchBlock
from edgec.prune.scores import Parts, Tally
from edgec.quantize.weights import one_ahead

Tensor = torch.Tensor
Weights = Mapping[str, Tensor]

# Numbers that logits take at once: of 85 tokens with a vocabulary of 49 k.
_LOGITS_AT_ONCE = 1 << 22


def sweep_back(flow: Flow, runners: Sequence[TorchBlock], decoder: Decoder, tally: Tally) -> None:
    """Carry the loss's gradient back over the blocks, whose inputs `flow` has, and add up what it says."""
    layers = [runner for runner in runners if runner.block.name.startswith("layers.")]
    gradients = _gradient_of_loss(flow, runners[-1], decoder.vocab_size)
    for runner, weights in one_ahead(TorchBlock.load, layers[::-1]):
        name, branch = output_of(runner.block), runner.block.name.rpartition(".")[2]
        given = gradients.pop(name)
        tally.hidden += _changes(flow.values.pop(name), given)
        unit = Parts(runner.block).writes
        assert unit is not None
        changes, inputs = _step_back(flow, runner, weights, given, str(unit.input), tally)
        tally.units[branch].insert(0, changes)
        for value, gradient in inputs.items():
            gradients[value] = gradients[value] + gradient if value in gradients else gradient
    for name, gradient in gradients.items():  # what the embedding gives
        tally.hidden += _changes(flow.values[name], gradient)


@torch.enable_grad()
def _step_back(
    flow: Flow, runner: TorchBlock, weights: Weights, given: Tensor, unit: str, tally: Tally
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run a block again, and return the scores of its units and the gradients of its inputs.

    Args:
        flow: has the block's inputs.
        runner: the block.
        weights: of the block.
        given: the gradient of its output.
        unit: the value that its units give.
        tally: says how they are grouped.
    """
    branch = runner.block.name.rpartition(".")[2]
    names = [n for n in runner.block.inputs if n in flow.values and flow.values[n].is_floating_point()]
    output = output_of(runner.block)

    def work(rows: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        values = flow.rows_of(runner, rows)
        inputs = [values[name].requires_grad_() for name in names]
        made = runner.run(values, weights, [output, unit])
        towards, *back = torch.autograd.grad(made[output], [made[unit], *inputs], given[rows])
        change = (made[unit].detach() * towards).flatten(0, 1)
        return tally.grouped(branch, change).abs().sum(0, dtype=torch.float64).cpu(), back

    scores = torch.zeros((), dtype=torch.float64)
    gradients = {name: torch.empty_like(flow.values[name]) for name in names}
    for number, (score, back) in enumerate(flow.map(work)):
        scores = scores + score
        for whole, piece in zip(gradients.values(), back, strict=True):
            whole[number * flow.rows :][: len(piece)] = piece
    return scores, gradients


@torch.enable_grad()
def _gradient_of_loss(flow: Flow, head: TorchBlock, vocab_size: int) -> dict[str, Tensor]:
    """Return the gradient of the mean of -log p(next token) for what the head reads, by its name."""
    weights, ids = head.load(), flow.values["input_ids"]
    (name,) = head.block.inputs
    hidden = flow.values[name]
    predicted, at_once = ids[:, 1:].numel(), max(1, _LOGITS_AT_ONCE // vocab_size)

    def of_tokens(piece: Tensor, targets: Tensor) -> Tensor:
        piece.requires_grad_()
        logits = head.run({name: piece[None]}, weights, ["logits"])["logits"][0]
        return torch.autograd.grad(functional.cross_entropy(logits, targets, reduction="sum") / predicted, piece)[0]

    def work(rows: Tensor) -> Tensor:
        last, targets = hidden[rows, :-1].flatten(0, 1), ids[rows, 1:].flatten()
        pieces = zip(torch.split(last, at_once), torch.split(targets, at_once), strict=True)
        found = torch.unflatten(torch.cat([of_tokens(*piece) for piece in pieces]), 0, (len(rows), -1))
        return functional.pad(found, (0, 0, 0, 1))  # nothing is predicted from the last token

    gradient = torch.empty_like(hidden)
    for number, piece in enumerate(flow.map(work)):
        gradient[number * flow.rows :][: len(piece)] = piece
    return {name: gradient}


def _changes(values: Tensor, gradients: Tensor) -> Tensor:
    """Return the sum over tokens of |x * gradient| of each dimension of (windows, tokens, hidden)."""
    sums = [(x * g).abs().sum(0, dtype=torch.float64) for x, g in zip(values, gradients, strict=True)]
    return torch.stack(sums).sum(0).cpu()


def output_of(block: Block) -> str:
    """Return the one value that a block hands on."""
    (name,) = (name for name in block.outputs if not name.startswith("present."))
    return name
