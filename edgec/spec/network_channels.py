"""What a profile leaves of a network's channels: a plan counts them, a build takes the others out."""

from collections.abc import Mapping

import onnx_ir as ir

from edgec.calibrate.samples import Samples
from edgec.graph.store import shape_of
from edgec.prune.channels import prune_channels
from edgec.prune.channels_cost import cost_of
from edgec.prune.channels_result import GroupReport
from edgec.prune.channels_scores import measure_channels, score_channels
from edgec.quantize.placement import Weight
from edgec.spec.network_plan import NetworkCost, NetworkPrediction
from edgec.spec.network_profile import Channels

Stored = tuple[ir.Model, Mapping[str, Weight]]
"""A float graph, and those of its weights that become int8."""


def left_of(
    model: ir.Model, wishes: Channels, samples: Samples | None, sizes: Mapping[str, int] | None = None
) -> tuple[ir.Model, tuple[GroupReport, ...]]:
    """Return a network without the channels that it needs least, and what became of each group.

    Args:
        model: canonical; not changed, and its weights are shared.
        wishes: of the profile, with names of nodes in `skip`.
        samples: None where the wishes need none.
        sizes: of groups, as a plan has them. None finds them for the share that is wanted: what is left then has its
            shapes, but weights that nothing was fitted in.

    Raises:
        PlanError: so many channels cannot go.
        UsageError: the samples cannot be used, or what is to be counted depends on sizes that are open.
    """
    statistics = None
    if wishes.needs_samples:
        assert samples is not None
        statistics = measure_channels(model, samples.inputs(), products=wishes.refit and sizes is not None)
    return prune_channels(
        model,
        share=wishes.share if sizes is None else None,
        sizes=sizes,
        scores=score_channels(model, wishes.importance, statistics),
        multiple=wishes.multiple,
        of=wishes.of,
        uniform=wishes.uniform,
        skip=wishes.skip,
        statistics=statistics if wishes.refit else None,
    )


def predict(dense: Stored, pruned: Stored, *, halved: bool) -> NetworkPrediction:
    """Return what pruning will give, from shapes alone.

    Args:
        dense: the network as it came.
        pruned: what is left of it.
        halved: whether floats are stored in two bytes.
    """
    before, after = (_cost(*each, halved=halved) for each in (dense, pruned))
    if before.multiply_adds and after.multiply_adds:
        return NetworkPrediction(before, after, before.multiply_adds / after.multiply_adds)
    return NetworkPrediction(before, after, before.weight_bytes / after.weight_bytes)


def _cost(model: ir.Model, integers: Mapping[str, Weight], *, halved: bool) -> NetworkCost:
    cost, stored = cost_of(model), 0
    for name, value in model.graph.initializers.items():
        tensor, weight = value.const_value, integers.get(name)
        if tensor is None:
            continue
        if weight is not None:  # a byte each, and a scale for each output
            stored += int(tensor.size) + 4 * shape_of(tensor)[weight.axis]
        else:
            stored += tensor.nbytes // 2 if halved and tensor.dtype == ir.DataType.FLOAT else tensor.nbytes
    return NetworkCost(cost.parameters, stored, cost.multiply_adds)
