"""What flows into the layers of a network: how much into each input, or how all of them go together.

The Hessian of a convolution is that of what its kernel sees (im2col), padding included.
"""

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgec.calibrate.arrays import Batch
from edgec.calibrate.run import run
from edgec.calibrate.stats import Stats
from edgec.errors import CheckpointError, UsageError
from edgec.prune.network_layers import Layer
from edgec.quantize.threads import one_thread

Floats = NDArray[np.float32]

# Inputs of an output; a wider Hessian would take more than 170 MB. 3 x 3 places of 512 channels have one.
_WIDEST = 4608
# Numbers of what kernels see that are in memory at once.
_SEEN = 2**24


def has_hessian(layer: Layer) -> bool:
    """Say whether what a kernel sees is measured: where it is not too much, and each output sees the same of it."""
    return layer.columns <= _WIDEST and (layer.node.op_type != "ConvTranspose" or layer.places == 1)


def measure(
    model: ir.Model, layers: Sequence[Layer], batches: Iterable[Batch], *, hessians: bool
) -> dict[str, list[Stats]]:
    """Measure what layers read: name -> statistics for each group.

    Without a Hessian, a channel is as important at each place of a kernel as it is on average.

    Args:
        model: not changed; has all values that the layers read.
        layers: of this model or a copy.
        batches: taken one at a time.
        hessians: whether to measure those, where they are not too large.

    Raises:
        UsageError: a batch is not what the model takes, or there is none.
        CheckpointError: the model cannot be run, or computes numbers that are not finite.
    """
    names = {layer.name: str(layer.node.inputs[0].name) for layer in layers if layer.node.inputs[0] is not None}
    sums: dict[str, Any] = dict.fromkeys(names, 0.0)
    counts = dict.fromkeys(names, 0)
    for values in run(model, batches, list(dict.fromkeys(names.values()))):
        for layer in layers:
            name, full = layer.name, hessians and has_hessian(layer)
            for seen in _seen(layer, values[names[name]]) if full else [_channels(layer, values[names[name]])]:
                with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told at the end
                    more = _products(seen) if full else np.square(seen).sum(2, dtype=np.float64)
                sums[name] = sums[name] + more.astype(np.float64)
                counts[name] += seen.shape[2]
    if not all(counts.values()):
        raise UsageError("there are no samples to run the model on")
    return {layer.name: _stats(layer, sums[layer.name] / counts[layer.name]) for layer in layers}


@one_thread()
def _products(seen: Floats) -> Floats:
    """Return the products of inputs (groups, inputs, numbers), the same with any number of cores."""
    rows = torch.from_numpy(np.ascontiguousarray(seen))
    return np.asarray(torch.matmul(rows, rows.mT).numpy())


def _stats(layer: Layer, mean: NDArray[np.float64]) -> list[Stats]:
    """Return the statistics of each group, of mean products (groups, columns, columns) or squares (groups, inputs)."""
    with np.errstate(over="ignore"):
        groups = torch.from_numpy(mean.astype(np.float32))
    if not groups.isfinite().all():
        raise CheckpointError("the model computes numbers that are not finite", where=f"what {layer.name} reads")
    if groups.ndim == 3:
        return [Stats(each.diagonal().clone(), hessian=each) for each in groups]
    return [Stats(each.repeat(layer.places)) for each in groups]


def _channels(layer: Layer, value: Floats) -> Floats:
    """Return what a layer reads as (groups, channels of a group, numbers)."""
    axis = 1 if layer.node.op_type in ("Conv", "ConvTranspose") else -1
    if layer.node.op_type == "Gemm" and layer.node.attributes.get_int("transA", 0) == 1:
        axis = 0
    return np.moveaxis(value, axis, 0).reshape(layer.groups, layer.inputs, -1)


def _seen(layer: Layer, value: Floats) -> Iterator[Floats]:
    """Yield (groups, places x channels of a group, numbers) of what a layer's kernel sees, some samples at a time."""
    if layer.node.op_type != "Conv":
        yield _channels(layer, value)
        return
    kernel, sizes, node = layer.shape[2:], value.shape[2:], layer.node
    steps, apart = (_numbers(node, name, [1] * len(kernel)) for name in ("strides", "dilations"))
    spans = [gap * (size - 1) + 1 for gap, size in zip(apart, kernel, strict=True)]
    pads = _pads(node, sizes, spans, steps)
    counts = [(size + sum(pad) - span) // s + 1 for size, pad, span, s in zip(sizes, pads, spans, steps, strict=True)]
    several = max(1, _SEEN // max(1, layer.groups * layer.columns * prod(counts)))
    for first in range(0, len(value), several):
        padded = np.pad(value[first : first + several], [(0, 0), (0, 0), *pads])
        places = []
        for place in np.ndindex(*kernel):
            starts = [index * gap for index, gap in zip(place, apart, strict=True)]
            cut = (slice(a, a + (n - 1) * s + 1, s) for a, n, s in zip(starts, counts, steps, strict=True))
            places.append(padded[:, :, *cut].reshape(len(padded), layer.groups, layer.inputs, -1))
        seen = np.stack(places).transpose(2, 0, 3, 1, 4)  # groups, places, channels, samples, positions
        yield seen.reshape(layer.groups, layer.columns, -1)


def _pads(node: ir.Node, sizes: Sequence[int], spans: Sequence[int], steps: Sequence[int]) -> list[tuple[int, int]]:
    """Return what a convolution adds before and behind each axis."""
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    if not automatic.startswith("SAME"):
        given = _numbers(node, "pads", [0] * (2 * len(sizes)))
        return list(zip(given[: len(sizes)], given[len(sizes) :], strict=True))
    found = []
    for size, span, step in zip(sizes, spans, steps, strict=True):
        total = max((-(-size // step) - 1) * step + span - size, 0)
        less, more = total // 2, total - total // 2
        found.append((less, more) if automatic == "SAME_UPPER" else (more, less))
    return found


def _numbers(node: ir.Node, name: str, default: Sequence[int]) -> list[int]:
    found = node.attributes.get_ints(name)
    return list(default if found is None else found)
