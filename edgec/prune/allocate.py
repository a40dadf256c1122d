"""How sparse each matrix of a model gets: an allocation on a model and, for `owl`, on a calibration text."""

from collections.abc import Callable, Collection
from functools import partial

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgec.calibrate.flow import Flow, measure
from edgec.graph.blocks import cut, read_later
from edgec.graph.torch_run import TorchBlock
from edgec.graph.weights import Kind, float_weights, load, matrix_name
from edgec.prune.allocation import Shares, global_magnitude, outlier_ratio, owl, uniform
from edgec.prune.pattern import Pattern
from edgec.quantize.matrix import by_input, matrices
from edgec.quantize.threads import one_thread
from edgec.quantize.weights import one_ahead


def allocate(
    model: ir.Model,
    names: Collection[str],
    pattern: Pattern,
    allocation: str,
    windows: NDArray[np.int64],
    *,
    device: str = "cpu",
    tick: Callable[[str], object] = lambda _: None,
) -> dict[str, Pattern]:
    """Return the pattern of each matrix.

    Args:
        model: a canonical graph with lazy float weights; not changed.
        names: matrices that become sparse, such as `layers.7.mlp.down`.
        pattern: what of all of them becomes 0.
        allocation: "uniform", "global" or "owl"; see `edgec.prune.allocation`.
        windows: token ids (n, tokens) of a calibration text.
        device: where blocks run.
        tick: called with the name of each block that `owl` has looked at.

    Raises:
        CheckpointError: the model computes something that is not finite.
    """
    shares = uniform(names, pattern.sparsity)
    if allocation == "uniform":
        return dict.fromkeys(names, pattern)
    if allocation == "global":
        found = [(matrix_name(value), value, kind) for value, kind in float_weights(model.graph)]
        shares = global_magnitude(
            {name: partial(_rows, value, kind) for name, value, kind in found if name in shares}, pattern.sparsity
        )
    else:
        shares = _by_outliers(model, names, pattern.sparsity, windows, device, tick)
    return {name: Pattern(share) for name, share in shares.items()}


def _rows(value: ir.Value, kind: Kind) -> torch.Tensor:
    return torch.from_numpy(load(value, kind))


@torch.no_grad()
@one_thread()
def _by_outliers(
    model: ir.Model,
    names: Collection[str],
    target: float,
    windows: NDArray[np.int64],
    device: str,
    tick: Callable[[str], object],
) -> Shares:
    """Give the matrices of a block the share that its outliers ask for."""
    blocks = cut(model)
    later, flow = read_later(blocks), Flow(windows, device)
    ratios: dict[str, float] = {}
    members: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    for index, (runner, weights) in enumerate(one_ahead(TorchBlock.load, [TorchBlock(b, device) for b in blocks[:-1]])):
        name = runner.block.name
        groups = by_input([m for m in matrices(runner.block) if m.node in names])
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
