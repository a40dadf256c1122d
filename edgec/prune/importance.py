"""What of a decoder to keep: how much its layers, units, heads and dimensions count on a calibration text.

The float model runs block by block, as in `edgec.quantize.sequential`. What counts how much:

- A **layer**, by any method: its block influence, 1 - the mean over tokens of the cosine between the residual stream
  before and after it (Men et al. 2024, ShortGPT, arXiv:2403.03853).
- An inner unit of an **MLP**, by what flows from it into `down`; a **group** of heads that share keys and values, by
  what flows from it into `o`:
  - "magnitude": the norm of all weights of the unit, in every matrix that makes it or reads it.
  - "activation": the mean over tokens of |x|, summed over the values of a group.
  - "wanda": the root mean square of x times the norm of the weights that read it, summed alike (Sun et al. 2023,
    arXiv:2306.11695).
  - "taylor": the sum over tokens of |x * gradient|, where x * gradient is summed over the values of a group: the change
    of the loss, to first order, if the unit gave 0 to that token (Molchanov et al. 2019, arXiv:1906.10771; Michel et
    al. 2019, arXiv:1905.10650).
- A dimension of the **residual stream**, as one for all layers: "magnitude" over all matrices that write or read it;
  "activation" and "wanda" of the inputs of q, k, v, gate, up and the output matrix, which are outputs of norms in most
  families (Muralidharan et al. 2024, Minitron, arXiv:2407.14679); "taylor" of the stream itself, between all blocks.

The gradient is that of the model's loss, the mean of -log p(next token), not of a block's own error. One sweep back
over the blocks computes it: each is run again on the inputs that the sweep forward left, and gives the gradient of its
inputs. Memory: weights of two blocks, what is inside a block for 4 x 1024 tokens, and the hidden states of the text:
three times, but with "taylor" twice for each layer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edgec.calibrate.flow import Flow, measure
from edgec.calibrate.stats import Stats
from edgec.errors import CheckpointError, UsageError
from edgec.frontends.architecture import Decoder
from edgec.graph.blocks import Block, cut, read_later
from edgec.graph.tags import MASK
from edgec.graph.torch_run import TorchBlock
from edgec.prune.keep import Keep, Sizes, full
from edgec.quantize.matrix import Matrix, matrices
from edgec.quantize.threads import one_thread
from edgec.quantize.weights import one_ahead

Tensor = torch.Tensor
Weights = Mapping[str, Tensor]
Floats = NDArray[np.float64]
Method = Literal["magnitude", "activation", "wanda", "taylor"]
Tick = Callable[[str], object]

METHODS: tuple[Method, ...] = get_args(Method)
# Numbers that logits take at once: of 85 tokens with a vocabulary of 49 k.
_LOGITS_AT_ONCE = 1 << 22


@dataclass(frozen=True, eq=False)
class Importance:
    """How much each part counts; only the order within a row means something.

    Args:
        layers: (layers,) block influence.
        mlp: (layers, inner units).
        groups: (layers, key-value heads).
        hidden: (hidden size,).
    """

    layers: Floats
    mlp: Floats
    groups: Floats
    hidden: Floats


def choose(
    model: ir.Model,
    decoder: Decoder,
    windows: NDArray[np.int64],
    sizes: Sizes,
    method: Method,
    *,
    device: str = "cpu",
    tick: Tick = lambda _: None,
) -> Keep:
    """Return what to keep of a decoder: as much as `sizes` say, of what counts most.

    Layers and widths are measured in the whole model; the arguments are those of `importance`.

    Raises:
        CheckpointError: the model computes something that is not finite.
        UsageError: the windows are too short for "taylor".
    """
    there = full(decoder)
    only_layers = (sizes.mlp, sizes.groups, sizes.hidden) == (there.mlp, there.groups, there.hidden)
    chosen: Method = "magnitude" if only_layers else method  # which is done soonest, as nothing comes of it
    return most_important(importance(model, decoder, windows, chosen, device=device, tick=tick), sizes)


def most_important(found: Importance, sizes: Sizes) -> Keep:
    """Keep what counts most; of what counts the same, the first."""
    layers = _largest(found.layers, sizes.layers)
    mlp, groups = (
        tuple(_largest(scores[layer], size) for layer in layers)
        for scores, size in ((found.mlp, sizes.mlp), (found.groups, sizes.groups))
    )
    return Keep(layers, mlp, groups, _largest(found.hidden, sizes.hidden))


def _largest(scores: Floats, count: int) -> tuple[int, ...]:
    return tuple(sorted(np.argsort(-scores, kind="stable")[:count].tolist()))


@torch.no_grad()
@one_thread()
def importance(
    model: ir.Model,
    decoder: Decoder,
    windows: NDArray[np.int64],
    method: Method,
    *,
    device: str = "cpu",
    tick: Tick = lambda _: None,
) -> Importance:
    """Measure how much each part of a decoder counts on a calibration text.

    Args:
        model: its canonical graph, with lazy float weights; not changed.
        decoder: its description.
        windows: token ids (n, tokens); each row is a context of its own.
        method: for all but layers.
        device: where blocks run.
        tick: called with the name of each block of the sweep forward.

    Raises:
        CheckpointError: the model computes something that is not finite.
        UsageError: the windows are too short for "taylor".
    """
    if method == "taylor" and windows.shape[1] < 2:
        raise UsageError("a window of one token has no next token to predict", hint="calibrate on longer windows")
    blocks = cut(model)
    later, runners = read_later(blocks), [TorchBlock(block, device) for block in blocks]
    everything = {name for names in later for name in names}
    flow, tally = Flow(windows, device), _Tally(decoder, method)
    before = stream = torch.empty(0)
    for index, (runner, weights) in enumerate(one_ahead(TorchBlock.load, runners)):
        block = runner.block
        if block.name.endswith(".attention"):
            before = stream
        tally.add(_Parts(block), weights, flow, runner)
        if index < len(blocks) - 1:
            flow.advance(runner, weights, everything if method == "taylor" else later[index])
            stream = stream if block.name == MASK else flow.values[_output(block)]
        if block.name.endswith(".mlp"):
            tally.layers.append(_influence(before, stream))
        tick(block.name)
    if method == "taylor":
        _sweep_back(flow, runners, decoder, tally)
    return tally.importance()


class _Parts:
    """The matrices of a block by what they do.

    Attributes:
        reads: those whose input is the residual stream, or a norm of it.
        writes: the one that reads what the units of the block give, and writes to the stream.
        table: the token embedding.
    """

    def __init__(self, block: Block) -> None:
        found = {m.node.rpartition(".")[2]: m for m in matrices(block)}
        self.reads = [m for name, m in found.items() if name in ("q", "k", "v", "gate", "up", "lm_head")]
        self.writes = found.get("o") or found.get("down")
        self.table = found.get("embedding")


class _Tally:
    """Scores, as they come in."""

    def __init__(self, decoder: Decoder, method: Method) -> None:
        self.method = method
        self.kv_heads = decoder.layers[0].attention.kv_heads
        self.layers: list[float] = []
        self.units: dict[str, list[Tensor]] = {"attention": [], "mlp": []}
        self.hidden = torch.zeros(decoder.hidden_size, dtype=torch.float64)

    def add(self, parts: _Parts, weights: Weights, flow: Flow, runner: TorchBlock) -> None:
        """Add what a block shows on the way forward: nothing for "taylor"."""
        branch = runner.block.name.rpartition(".")[2]
        if self.method == "magnitude":
            self.add_magnitudes(parts, weights, branch)
        elif self.method in ("activation", "wanda") and parts.reads:
            names = dict.fromkeys(str(m.input) for m in (parts.reads[0], parts.writes) if m)
            stats = measure(flow, runner, weights, list(names), hessian=False)
            self.hidden += self.flowing(stats, parts.reads, weights)
            if parts.writes:
                self.units[branch].append(self.grouped(branch, self.flowing(stats, [parts.writes], weights)))

    def add_magnitudes(self, parts: _Parts, weights: Weights, branch: str) -> None:
        for m in (*parts.reads, *([parts.table] if parts.table else [])):
            if not (m.rows_first and m.input):  # the table of a tied model counts once
                self.hidden += _squares(weights[m.weight], of_inputs=not m.rows_first)
        if parts.writes:
            out = weights[parts.writes.weight]
            self.hidden += _squares(out, of_inputs=False)
            made = (self.grouped(branch, _squares(weights[m.weight], of_inputs=False)) for m in parts.reads)
            self.units[branch].append((self.grouped(branch, _squares(out, of_inputs=True)) + sum(made)).sqrt())

    def flowing(self, stats: Mapping[str, Stats], readers: Sequence[Matrix], weights: Weights) -> Tensor:
        """Return for each input of some matrices how much flows into it, and for "wanda" on through the weights."""
        known = stats[str(readers[0].input)]
        if self.method == "activation":
            assert known.magnitude is not None
            return known.magnitude.double().cpu()
        squares = [_squares(weights[m.weight], of_inputs=not m.rows_first) for m in readers]
        return (known.importance.double().cpu() * torch.stack(squares).sum(0)).sqrt()

    def grouped(self, branch: str, scores: Tensor) -> Tensor:
        """Return the sums over each group of heads; units of MLPs stand alone."""
        return torch.unflatten(scores, -1, (self.kv_heads, -1)).sum(-1) if branch == "attention" else scores

    def importance(self) -> Importance:
        hidden = self.hidden.sqrt() if self.method == "magnitude" else self.hidden
        mlp, groups = (torch.stack(self.units[branch]).numpy() for branch in ("mlp", "attention"))
        found = Importance(np.array(self.layers), mlp, groups, hidden.numpy())
        if not all(np.isfinite(scores).all() for scores in vars(found).values()):
            raise CheckpointError("the model computes numbers that are not finite", where="importance of its parts")
        return found


def _squares(weight: Tensor, *, of_inputs: bool) -> Tensor:
    """Return the sums of squares of an (in, out) matrix, for each input or for each output."""
    norms: Tensor = torch.linalg.vector_norm(weight, dim=1 if of_inputs else 0)
    return norms.double().square().cpu()


def _output(block: Block) -> str:
    """Return the one value that a block hands on."""
    (name,) = (name for name in block.outputs if not name.startswith("present."))
    return name


def _influence(before: Tensor, after: Tensor) -> float:
    """Return 1 - the mean over tokens of the cosine between two streams (windows, tokens, hidden)."""
    cosines = [functional.cosine_similarity(x, y, dim=-1).mean() for x, y in zip(before, after, strict=True)]
    return 1 - float(torch.stack(cosines).double().mean())


def _sweep_back(flow: Flow, runners: Sequence[TorchBlock], decoder: Decoder, tally: _Tally) -> None:
    """Carry the loss's gradient back over the blocks, whose inputs `flow` has, and add up what it says."""
    layers = [runner for runner in runners if runner.block.name.startswith("layers.")]
    gradients = _gradient_of_loss(flow, runners[-1], decoder.vocab_size)
    for runner, weights in one_ahead(TorchBlock.load, layers[::-1]):
        name, branch = _output(runner.block), runner.block.name.rpartition(".")[2]
        given = gradients.pop(name)
        tally.hidden += _changes(flow.values.pop(name), given)
        unit = _Parts(runner.block).writes
        assert unit is not None
        changes, inputs = _step_back(flow, runner, weights, given, str(unit.input), tally)
        tally.units[branch].insert(0, changes)
        for value, gradient in inputs.items():
            gradients[value] = gradients[value] + gradient if value in gradients else gradient
    for name, gradient in gradients.items():  # what the embedding gives
        tally.hidden += _changes(flow.values[name], gradient)


@torch.enable_grad()
def _step_back(
    flow: Flow, runner: TorchBlock, weights: Weights, given: Tensor, unit: str, tally: _Tally
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
    output = _output(runner.block)

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
