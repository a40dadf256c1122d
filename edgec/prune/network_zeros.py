"""Make weights of a network 0: of convolutions and products, by the methods of `edgec.prune.methods`.

All layers are measured on the float network as it comes, not on what pruning makes of the layers before them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgec.calibrate.arrays import Batch
from edgec.calibrate.stats import Stats
from edgec.errors import CheckpointError, EdgecError
from edgec.graph.rewrite import array_of
from edgec.graph.store import Store
from edgec.prune.methods import Method, method_of
from edgec.prune.network_inputs import has_hessian, measure
from edgec.prune.network_layers import Layer, find_layers
from edgec.prune.pattern import Pattern

# Of Hessians that are measured in one pass over the samples.
_HESSIAN_BYTES = 2**28


def put_zeros(
    model: ir.Model,
    layers: Sequence[str],
    pattern: Pattern,
    method: str,
    batches: Callable[[], Iterable[Batch]],
    store: Store,
    tick: Callable[[str], object] = lambda _: None,
) -> tuple[ir.Model, tuple[str, ...]]:
    """Return a copy of a network whose layers have zeros, and remarks on what could not be done as asked.

    In memory are one weight, the Hessians of some layers (256 MiB of them, or one; three times that while they are
    added up), and for one batch what these read.

    Args:
        model: canonical; not changed.
        layers: names, of those that `find_layers` finds for the pattern.
        pattern: each group of each layer has it.
        method: a file in `edgec/prune/methods`.
        batches: gives the samples, once for each pass over them; not called where the method needs none.
        store: where the new weights go.
        tick: called with the name of each layer.

    Raises:
        UsageError: there are no samples, or they are not what the model takes.
        CheckpointError: the model cannot be run, or a number of it is not finite.
    """
    sparse = model.clone()
    wanted, chosen = set(layers), method_of(method)
    found = [layer for layer in find_layers(sparse, pattern)[0] if layer.name in wanted]
    hessians = chosen.NEEDS == "hessian"
    without = [layer.name for layer in found if hessians and not has_hessian(layer)]
    for some in _passes(found, hessians=hessians):
        measured: Mapping[str, Sequence[Stats | None]] = (
            {} if chosen.NEEDS == "nothing" else measure(model, some, batches(), hessians=hessians)
        )
        for layer in some:
            rows = _pruned(layer, chosen, pattern, measured.get(layer.name, [None] * layer.groups))
            layer.weight.const_value = store.add(str(layer.weight.name), rows, ir.DataType.FLOAT, layer.shape)
            tick(layer.name)
    store.flush()
    if not without:
        return sparse, ()
    several = f"{', '.join(without[:3])}{' ...' if len(without) > 3 else ''}"
    return sparse, (f"wanda pruned what {method} has no Hessian for (too large, or transposed): {several}",)


def _pruned(layer: Layer, method: Method, pattern: Pattern, measured: Sequence[Stats | None]) -> NDArray[np.float32]:
    found = []
    for matrix, stats in zip(layer.matrices(array_of(layer.weight)), measured, strict=True):
        try:
            found.append(method.prune(torch.from_numpy(matrix), stats, pattern).weight.numpy())
        except ValueError as error:
            raise CheckpointError(f"it cannot be pruned: {error}", where=str(layer.weight.name)) from error
    return layer.weights(np.stack(found))


def _passes(layers: Sequence[Layer], *, hessians: bool) -> Iterator[list[Layer]]:
    """Yield layers that are measured together."""
    some, size = list[Layer](), 0
    for layer in layers:
        more = 8 * layer.groups * layer.columns**2 if hessians and has_hessian(layer) else 0
        if some and size + more > _HESSIAN_BYTES:
            yield some
            some, size = [], 0
        some.append(layer)
        size += more
    if some:
        yield some


def share_of_zeros(model: ir.Model, sparse: ir.Model, layers: Sequence[str], pattern: Pattern) -> float:
    """Return the share of zeros among the weights of a network's layers, as it stores them.

    Args:
        model: made from `sparse`, in integers or floats.
        sparse: float, and its layers have the pattern.
        layers: their names.
        pattern: of the zeros.

    Raises:
        EdgecError: a layer does not have its zeros any more; that would be a bug in edgec.
    """
    wanted, nodes = set(layers), {str(node.name): node for node in model.graph}
    zeros = count = 0
    for layer in (layer for layer in find_layers(sparse, pattern)[0] if layer.name in wanted):
        stored = layer.matrices(array_of(_stored(nodes[layer.name])))
        if pattern.block is None:
            broken = stored[layer.matrices(array_of(layer.weight)) == 0].any()
        else:
            stays, width = pattern.block
            broken = (np.count_nonzero(stored.reshape(-1, width), axis=1) > stays).any()
        if broken:
            raise EdgecError(f"a layer that was pruned to {pattern} has other weights", where=layer.name)
        zeros, count = zeros + int((stored == 0).sum()), count + stored.size
    return zeros / count if count else 0.0


def _stored(node: ir.Node) -> ir.Value:
    """Return the constant that a layer's weight is made of: behind DequantizeLinear and Cast."""
    value = node.inputs[1]
    assert value is not None
    while (producer := value.producer()) is not None:
        source = producer.inputs[0]
        assert source is not None
        value = source
    return value
