"""How much a network needs each of its channels.

| method | score of a channel | needs |
|---|---|---|
| `magnitude` | the weights that give it | |
| `activation` | its mean absolute number where layers read it | statistics |
| `wanda` | the weights that read it, times the root mean square of its numbers | statistics |

A score is a sum over the layers that give or read the channel, of its share of the squares there; so the score of some
channels is what these layers lose with them, and scores of different groups compare. First-order Taylor scores need
gradients, which networks in ONNX do not have.

Where batch norm is folded into weights, `magnitude` means little: channels that hardly change have the largest weights.

Source: Li et al. 2017, Pruning filters for efficient ConvNets (arXiv:1608.08710); Fang et al. 2023, DepGraph
(arXiv:2301.12900); Sun et al. 2024, Wanda (arXiv:2306.11695).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.calibrate.arrays import Batch
from edgec.calibrate.run import run
from edgec.errors import UsageError
from edgec.graph.rewrite import array_of
from edgec.prune.channels_groups import find_groups
from edgec.prune.channels_trace import Filter

Method = Literal["magnitude", "activation", "wanda"]
Floats = NDArray[np.float64]

# Wider values, as the flat ones in front of classifiers are, have no products: a square of this is 32 MB.
_WIDEST = 2048


@dataclass(frozen=True, eq=False)
class Statistics:
    """What samples make of a value that layers read.

    Args:
        mean: of each position of the axis that channels lie along, as the others.
        size: mean absolute number.
        norm: root mean square.
        products: (n, n) mean product of each two; None where there are too many.
    """

    mean: Floats
    size: Floats
    norm: Floats
    products: Floats | None


def score_channels(
    model: ir.Model, method: Method, statistics: Mapping[str, Statistics] | None = None
) -> dict[str, Floats]:
    """Score the channels of each group of a network: the group's name -> a number for each channel, 0 or more.

    Args:
        model: canonical; weights are read one at a time.
        method: see above.
        statistics: of values, as `measure_channels` gives them; values that are missing do not count.

    Raises:
        UsageError: a method that needs statistics has none.
    """
    if method != "magnitude" and statistics is None:
        raise UsageError(f"{method} scores channels by what samples make of them, and there are no samples")
    channels = find_groups(model)
    total = np.zeros(channels.trace.born)
    for each in channels.trace.filters:
        sizes = _sizes(each, method, statistics or {})
        if sizes is not None:
            squares = np.square(sizes)
            np.add.at(total, channels.root[each.labels], squares / (squares.sum() or 1.0))
    return {group.name: total[group.channels] for group in channels.groups}


def _sizes(each: Filter, method: Method, statistics: Mapping[str, Statistics]) -> Floats | None:
    """Return a number for each position of a filter's axis; None if the method does not look at it."""
    if method == "magnitude":
        return _norms(each) if each.read is None else None
    found = None if each.read is None else statistics.get(str(each.read.name))
    if found is None:
        return None
    return found.size if method == "activation" else found.norm * _norms(each)


def _norms(each: Filter) -> Floats:
    weight = array_of(each.weight)
    squares = np.square(weight.reshape(each.groups, -1, weight.shape[1], prod(weight.shape[2:])), dtype=np.float64)
    return np.asarray(np.sqrt(squares.sum(axis=(2 - each.axis, 3)).reshape(-1)))


def read_values(model: ir.Model) -> dict[str, int]:
    """Return the values whose statistics count: name -> axis that channels lie along."""
    trace = find_groups(model).trace
    return {str(each.read.name): trace.layouts[each.read].axis for each in trace.filters if each.read is not None}


def measure_channels(
    model: ir.Model, batches: Iterable[Batch], *, products: bool = True, threads: int = 0
) -> dict[str, Statistics]:
    """Measure what layers read, wherever channels may go: name of the value -> statistics.

    In memory are all of these values for one batch, and their products.

    Args:
        model: not changed.
        batches: taken one at a time.
        products: whether to measure those, too: nothing but fitting takes them.
        threads: of ONNX Runtime; 0 takes all cores.

    Raises:
        UsageError: a batch is not what the model takes, or there is none.
        CheckpointError: the model cannot be run.
    """
    axes, sums, counts = read_values(model), dict[str, list[Floats]](), dict[str, int]()
    if not axes:
        return {}
    for values in run(model, batches, list(axes), threads=threads):
        for name, array in values.items():
            rows = np.moveaxis(array, axes[name], 0).reshape(array.shape[axes[name]], -1)
            found = [each.sum(axis=1, dtype=np.float64) for each in (rows, np.abs(rows), np.square(rows))]
            found += [_products(rows)] if products and len(rows) <= _WIDEST else []
            sums[name] = [a + b for a, b in zip(sums[name], found, strict=True)] if name in sums else found
            counts[name] = counts.get(name, 0) + rows.shape[1]
    if not sums:
        raise UsageError("there are no samples to run the model on")
    means = {name: [each / counts[name] for each in found] for name, found in sums.items()}
    return {
        name: Statistics(mean, size, np.sqrt(square), both[0] if both else None)
        for name, (mean, size, square, *both) in means.items()
    }


def _products(rows: NDArray[np.floating]) -> Floats:
    """Return the products of channels (channels, places), summed: exactly, as means are taken off them later."""
    wide = rows.astype(np.float64)
    return wide @ wide.T
