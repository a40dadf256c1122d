"""Let the layers that read channels make up for those that are gone.

What is gone is predicted, place by place, from what is left: linearly, by least squares on samples. The prediction goes
into the weights of the layers that read it, its constant part into their biases.

Source: He et al. 2017, Channel pruning for accelerating very deep neural networks (arXiv:1707.06168), section 3.1: for
convolutions of one place (1 x 1) this is their reconstruction of what the layer gives.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.fuse.rule import lazily
from edgec.graph.rewrite import constant
from edgec.graph.store import shape_of
from edgec.prune.channels_groups import Channels, Mask, unused
from edgec.prune.channels_known import need_rank, size_of
from edgec.prune.channels_scores import Floats, Statistics
from edgec.prune.channels_trace import Filter

# Of the mean variance, as in GPTQ: channels that are nearly sums of others would get huge weights.
_DAMPING = 0.01

Fit = tuple[Floats, Floats]
"""How channels that are gone follow from those left: (gone, left) factors, (gone,) constants."""


def refit(model: ir.Model, channels: Channels, kept: Mask, statistics: Mapping[str, Statistics]) -> None:
    """Let Conv, Gemm and MatMul read more of the channels that are left, where their weights are theirs alone.

    Near a border that Conv pads with zeros, the constant part is a little too much. Grouped convolutions stay.

    Args:
        model: whose constants still have all channels; new ones are computed when they are read.
        channels: of this very model.
        kept: by label.
        statistics: of values that layers read, as `measure_channels` gives them.
    """
    for each in channels.trace.filters:
        left = kept[channels.root[each.labels]]
        found = None if each.read is None else statistics.get(str(each.read.name))
        weight = each.weight.const_value
        if found is None or left.all() or weight is None or not _may_change(each):
            continue
        bias = None if each.layer.op_type == "MatMul" else _bias(model.graph, channels, each.layer)
        fit = partial(_fit, found, left, shifts=bias is not None)
        if bias is not None and bias.const_value is not None:
            shifted = partial(_shifted, weight, each.axis, left, fit)
            bias.const_value = lazily(bias, shape_of(bias.const_value), shifted)
        each.weight.const_value = lazily(each.weight, shape_of(weight), partial(_spread, each.axis, left, fit))


def _may_change(each: Filter) -> bool:
    plain = all(each.layer.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    known = each.layer.op_type in ("Conv", "Gemm", "MatMul")
    return known and plain and each.groups == 1 and len(each.weight.uses()) == 1


def _bias(graph: ir.Graph, channels: Channels, layer: ir.Node) -> ir.Value | None:
    """Return what Conv or Gemm adds, zeros of its own if it has added nothing so far; None if it may not change."""
    found = layer.inputs[2] if len(layer.inputs) > 2 else None
    labels = channels.trace.layouts[layer.outputs[0]].labels
    if found is None:
        found = constant(graph, unused(graph, f"{layer.name}_bias"), np.zeros(len(labels), np.float32))
        layer.resize_inputs(3)
        layer.replace_input_with(2, found)
        channels.trace.cut(layer, 2, {0: labels})
    alone = len(found.uses()) == 1 and found.const_value is not None
    return found if alone and size_of(found, need_rank(found) - 1) == len(labels) else None


def _fit(found: Statistics, left: Mask, *, shifts: bool) -> Fit:
    """Predict channels that are gone from those left; without `shifts` the constants are 0."""
    means = found.mean if shifts else np.zeros_like(found.mean)
    if found.products is None:
        return np.zeros((int((~left).sum()), int(left.sum()))), means[~left]
    spread = found.products - np.outer(means, means)
    known = spread[np.ix_(left, left)]
    damping = _DAMPING * float(np.trace(known)) / len(known) or 1.0
    solved = np.linalg.solve(known + damping * np.eye(len(known)), spread[np.ix_(left, ~left)])
    factors = np.asarray(solved.T, np.float64)
    return factors, means[~left] - factors @ means[left]


def _spread(axis: int, left: Mask, fit: Callable[[], Fit], weight: NDArray[Any]) -> NDArray[Any]:
    """Add to the weights of what is left the weights of what is gone, as far as it follows."""
    rows = np.moveaxis(weight.astype(np.float64), axis, 0)
    rows[left] += np.tensordot(fit()[0].T, rows[~left], 1)
    return np.moveaxis(rows, 0, axis)


def _shifted(
    weight: ir.TensorProtocol, axis: int, left: Mask, fit: Callable[[], Fit], bias: NDArray[Any]
) -> NDArray[Any]:
    """Add to a bias what the constant part of what is gone gave."""
    rows = np.moveaxis(np.asarray(weight.numpy()), axis, 0)[~left]
    return np.asarray(bias + fit()[1] @ rows.reshape(*rows.shape[:2], -1).sum(axis=2, dtype=np.float64))
