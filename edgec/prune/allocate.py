"""How sparse each matrix of a model gets: an allocation on a model and, for some, on a calibration text."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgec.calibrate.flow import Flow, measure
from edgec.errors import CheckpointError, require
from edgec.graph.blocks import Block, cut, read_later
from edgec.graph.torch_run import TorchBlock
from edgec.graph.weights import Kind, float_weights, load, matrix_name
from edgec.prune.allocation import Shares, by_sensitivity, global_magnitude, outlier_ratio, owl
from edgec.prune.pattern import Pattern
from edgec.prune.sensitivity import Losses, measure_losses
from edgec.quantize.matrix import Matrix, by_input, matrices
from edgec.quantize.threads import one_thread
from edgec.quantize.weights import one_ahead
from edgec.tune.units import cheap_method

if TYPE_CHECKING:
    from edgec.spec.prune import Method

Ids = NDArray[np.int64]
Tick = Callable[[str], object]

# How far from the share of all a block may be by its sensitivity, and the most that it may lose. Farther is worse:
# losses of single blocks then say less about all of them together.
_APART, _MOST = (-0.1, 0.0, 0.1), 0.95


def allocate(
    model: ir.Model,
    names: Collection[str],
    pattern: Pattern,
    allocation: str,
    windows: Ids | None,
    *,
    method: "Method" = "wanda",
    source: str = "",
    folder: Path | None = None,
    device: str = "cpu",
    tick: Tick = lambda _: None,
) -> dict[str, Pattern]:
    """Return the pattern of each matrix.

    Args:
        model: a canonical graph with lazy float weights; not changed.
        names: matrices that become sparse, such as `layers.7.mlp.down`.
        pattern: what of all of them becomes 0.
        allocation: "uniform", "global", "owl" or "sensitivity"; see `edgec.prune.allocation`.
        windows: token ids (n, tokens) of a calibration text; None will do for the first two.
        method: what will prune them. Sensitivity is measured with "wanda" where that asks for more than it does.
        source: says which float graph it is: hashes of its files, and what was done to the graph.
        folder: where "sensitivity" keeps what it measured; None keeps nothing.
        device: where blocks run; those of "sensitivity" on the CPU.
        tick: called with the name of each block that "owl" or "sensitivity" has looked at.

    Raises:
        CheckpointError: the model computes something that is not finite.
        MissingRuntimeError: scipy, which solves for "sensitivity", is not installed.
        OutputError: what was measured cannot be kept.
    """
    if allocation == "uniform":
        return dict.fromkeys(names, pattern)
    if allocation == "global":
        shares = _by_magnitude(model, names, pattern.sparsity)
    elif allocation == "owl":
        assert windows is not None
        shares = _by_outliers(model, names, pattern.sparsity, windows, device, tick)
    else:
        assert windows is not None
        measured = partial(
            measure_losses, model, windows=windows, method=cheap_method(method), source=source, folder=folder, tick=tick
        )
        shares = _by_losses(model, names, pattern.sparsity, measured)
    return {name: Pattern(share) for name, share in shares.items()}


def _by_magnitude(model: ir.Model, names: Collection[str], target: float) -> Shares:
    found = [(matrix_name(value), value, kind) for value, kind in float_weights(model.graph)]
    return global_magnitude({name: partial(_rows, value, kind) for name, value, kind in found if name in names}, target)


def _rows(value: ir.Value, kind: Kind) -> torch.Tensor:
    return torch.from_numpy(load(value, kind))


def _by_losses(
    model: ir.Model, names: Collection[str], target: float, measured: Callable[..., Mapping[str, Losses]]
) -> Shares:
    """Give the matrices of a block the share that makes all losses together the least."""
    require("scipy", "tune")  # before what takes minutes
    blocks = {block.name: block for block in cut(model)[:-1]}
    members = {name: found for name, block in blocks.items() if (found := _pruned(block, names))}
    candidates = sorted({target, *(min(max(target + step, 0.0), _MOST) for step in _APART)})
    losses = measured(members, candidates)
    sizes = {name: sum(blocks[name].weights[m.weight].size for m in found) for name, found in members.items()}
    try:
        shares = by_sensitivity(losses, candidates, sizes, target)
    except ValueError as error:
        raise CheckpointError("the pruned model computes numbers that are not finite", where="sensitivity") from error
    return {m.node: shares[name] for name, found in members.items() for m in found}


def _pruned(block: Block, names: Collection[str]) -> list[Matrix]:
    return [m for m in matrices(block) if m.node in names]


@torch.no_grad()
@one_thread()
def _by_outliers(
    model: ir.Model, names: Collection[str], target: float, windows: Ids, device: str, tick: Tick
) -> Shares:
    """Give the matrices of a block the share that its outliers ask for."""
    blocks = cut(model)
    later, flow = read_later(blocks), Flow(windows, device)
    ratios: dict[str, float] = {}
    members: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    for index, (runner, weights) in enumerate(one_ahead(TorchBlock.load, [TorchBlock(b, device) for b in blocks[:-1]])):
        name = runner.block.name
        groups = by_input(_pruned(runner.block, names))
        if groups:
            stats = measure(flow, runner, weights, list(groups), hessian=False)
            pairs = [
                (m.turn(weights[m.weight]), stats[value].importance) for value, found in groups.items() for m in found
            ]
            ratios[name] = outlier_ratio(pairs)
            members[name] = [m.node for found in groups.values() for m in found]
            sizes[name] = sum(weight.numel() for weight, _ in pairs)
        flow.advance(runner, weights, later[index])
        tick(name)
    shares = owl(ratios, sizes, target)  # never outside [0, 1): `spec.prune.Sparse` has room for it
    return {matrix: shares[block] for block, found in members.items() for matrix in found}
