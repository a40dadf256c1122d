"""What a build of a network does to prune: channels go before anything else, then weights of what is left become 0."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir

from edgec.backends.backend import NetworkJob, get_backend
from edgec.calibrate.arrays import Batch
from edgec.calibrate.samples import Samples
from edgec.frontends.network import Network
from edgec.graph.store import Store, shape_of
from edgec.graph.write import write_weights
from edgec.measure.paired import paired_ms, ratio_interval
from edgec.prune.channels_cost import cost_of
from edgec.prune.network_zeros import put_zeros, share_of_zeros
from edgec.report.model import Zeros
from edgec.report.network_channels import BesideDense, NetworkPruning
from edgec.spec.exploit import what_of_zeros
from edgec.spec.network_channels import left_of
from edgec.spec.network_plan import NetworkPlan
from edgec.spec.target import Target

_PAIRS = 40


def shrink(network: Network, plan: NetworkPlan, calibration: Samples | None, file: Path) -> Network:
    """Return what a plan leaves of a network; which channels those are, samples say.

    Args:
        network: in canonical form; not changed.
        plan: that prunes.
        calibration: None where the plan needs no samples.
        file: to keep the weights that changed in.

    Raises:
        UsageError: the samples cannot be used.
        CheckpointError: the network cannot be run.
    """
    assert plan.channels is not None
    assert plan.wishes.channels is not None
    model, _ = left_of(network.model, plan.wishes.channels, calibration, plan.channels.sizes)
    with Store(file) as store:
        for name, value in model.graph.initializers.items():
            tensor, dense = value.const_value, network.model.graph.initializers.get(name)
            if isinstance(tensor, ir.LazyTensor) and (dense is None or tensor is not dense.const_value):
                value.const_value = store.add(name, tensor.numpy(), tensor.dtype, shape_of(tensor))
    return replace(network, model=model)


def make_sparse(
    network: Network, plan: NetworkPlan, calibration: Samples | None, file: Path, tick: Callable[[str], object]
) -> tuple[Network, tuple[str, ...]]:
    """Return a network with the plan's zeros, and remarks on what could not be done as asked.

    Args:
        network: what the plan leaves of it; not changed.
        plan: that makes weights 0.
        calibration: None where the plan needs no samples.
        file: to keep the weights that changed in.
        tick: called with the name of each layer.

    Raises:
        UsageError: the samples cannot be used.
        CheckpointError: the network cannot be run, or has weights that are not finite.
    """
    wishes = plan.wishes.sparse
    assert plan.sparse is not None
    assert wishes is not None
    batches = (lambda: ()) if calibration is None else calibration.inputs
    with Store(file) as store:
        model, remarks = put_zeros(
            network.model, plan.sparse.layers, wishes.parsed, wishes.method, batches, store, tick
        )
    return replace(network, model=model), remarks


def evidence(left: Network, stored: ir.Model, plan: NetworkPlan, target: Target) -> NetworkPruning:
    """Return what pruning was to give, and what there is.

    Args:
        left: the float network, pruned.
        stored: what was made of it, in integers or floats.
        plan: that prunes.
        target: the device.

    Raises:
        EdgecError: zeros were lost; that would be a bug in edgec.
    """
    found, predicted, zeros = cost_of(left.model), None, None
    if plan.channels is not None:
        predicted = plan.channels.predicted
    if plan.sparse is not None and plan.wishes.sparse is not None:
        layers = plan.sparse.layers
        share = share_of_zeros(stored, left.model, layers, plan.wishes.sparse.parsed)
        zeros = Zeros(len(layers), share, what_of_zeros(plan, target, len(plan.sparse.kernels)))
    return NetworkPruning(predicted, found.parameters, found.multiply_adds, None, zeros)


def dense_plan(plan: NetworkPlan, floats: frozenset[str]) -> NetworkPlan:
    """Return the plan of the dense network that is stored as the pruned one was: what is in float is so in both.

    Args:
        plan: that prunes.
        floats: nodes that its build left in float.
    """
    skip = tuple(dict.fromkeys((*plan.wishes.skip, *sorted(floats))))
    wishes = msgspec.structs.replace(
        plan.wishes, channels=None, sparse=None, skip=skip, keep_float=0.0, fast=False, correct_bias=False
    )
    return msgspec.structs.replace(plan, wishes=wishes, channels=None, sparse=None)


def race(artifact: Path, dense: NetworkJob, folder: Path, feed: Batch) -> BesideDense:
    """Time an artifact in turn with one of the dense network.

    Args:
        artifact: what was built.
        dense: to be compiled for the same backend.
        folder: for that, with the other files of an artifact.
        feed: one sample.
    """
    backend = get_backend(dense.plan.backend)
    backend.compile_network(dense, folder)
    runs = [partial(backend.open_network(path, "shipped").run, feed) for path in (artifact, folder)]
    times = paired_ms(*runs, pairs=_PAIRS)
    speed, low, high = ratio_interval(times[:, 1], times[:, 0])
    here, there = (sum(file.stat().st_size for file in path.iterdir()) for path in (artifact, folder))
    return BesideDense(here, there, speed, low, high, float(np.median(times[:, 1])))


def write_float(model: ir.Model, folder: Path) -> None:
    """Write a float graph as model.onnx and, for large weights, model.onnx.data."""
    written = model.clone()
    write_weights(written, folder, lambda _: None)
    ir.save(written, folder / "model.onnx")
