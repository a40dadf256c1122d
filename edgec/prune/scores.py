"""What adds up to how much the parts of a decoder count: from the weights, or from what flows by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from edgec.calibrate.flow import Flow, measure
from edgec.calibrate.stats import Stats
from edgec.errors import CheckpointError
from edgec.frontends.architecture import Decoder
from edgec.graph.blocks import Block
from edgec.graph.torch_run import TorchBlock
from edgec.quantize.matrix import Matrix, matrices

Tensor = torch.Tensor
Weights = Mapping[str, Tensor]
Floats = NDArray[np.float64]
Method = Literal["magnitude", "activation", "wanda", "taylor"]

METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True, eq=False)
class Importance:
    """How much each part counts; only the order within a row means something.

    Args:
        layers: (layers,) block influence; 0 where no text was looked at.
        mlp: (layers, inner units).
        groups: (layers, key-value heads).
        hidden: (hidden size,).
    """

    layers: Floats
    mlp: Floats
    groups: Floats
    hidden: Floats


class Parts:
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


class Tally:
    """Scores, as they come in."""

    def __init__(self, decoder: Decoder, method: Method) -> None:
        self.method = method
        self.kv_heads = decoder.layers[0].attention.kv_heads
        self.layers: list[float] = []
        self.units: dict[str, list[Tensor]] = {"attention": [], "mlp": []}
        self.hidden = torch.zeros(decoder.hidden_size, dtype=torch.float64)

    def add(self, runner: TorchBlock, weights: Weights, flow: Flow | None) -> None:
        """Add what a block shows on the way forward: nothing for "taylor"; "magnitude" needs no flow."""
        parts, branch = Parts(runner.block), runner.block.name.rpartition(".")[2]
        if self.method == "magnitude":
            self.add_magnitudes(parts, weights, branch)
        elif self.method in ("activation", "wanda") and parts.reads:
            assert flow is not None
            names = dict.fromkeys(str(m.input) for m in (parts.reads[0], parts.writes) if m)
            stats = measure(flow, runner, weights, list(names), hessian=False)
            self.hidden += self.flowing(stats, parts.reads, weights)
            if parts.writes:
                self.units[branch].append(self.grouped(branch, self.flowing(stats, [parts.writes], weights)))

    def add_magnitudes(self, parts: Parts, weights: Weights, branch: str) -> None:
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
        """Return what was found.

        Raises:
            CheckpointError: something of it is not finite.
        """
        hidden = self.hidden.sqrt() if self.method == "magnitude" else self.hidden
        mlp, groups = (torch.stack(self.units[branch]).numpy() for branch in ("mlp", "attention"))
        found = Importance(np.array(self.layers or [0.0] * len(mlp)), mlp, groups, hidden.numpy())
        if not all(np.isfinite(scores).all() for scores in vars(found).values()):
            raise CheckpointError("the model computes numbers that are not finite", where="importance of its parts")
        return found


def _squares(weight: Tensor, *, of_inputs: bool) -> Tensor:
    """Return the sums of squares of an (in, out) matrix, for each input or for each output."""
    norms: Tensor = torch.linalg.vector_norm(weight, dim=1 if of_inputs else 0)
    return norms.double().square().cpu()
