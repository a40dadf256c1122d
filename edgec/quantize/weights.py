"""The pass that quantizes the weights of a canonical graph, one at a time, into a file."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgec.graph.store import Store
from edgec.graph.weights import Codes, Kind, float_weights, load, replace_by_codes, replace_by_half
from edgec.quantize.algorithms import algorithm_of
from edgec.quantize.scheme import Scheme

if TYPE_CHECKING:
    from edgec.quantize.tensor import QuantizedTensor

T = TypeVar("T")
R = TypeVar("R")
Choose = Callable[[ir.Value, Kind], Scheme | str]


def needs_stats(chosen: Scheme | str) -> bool:
    """Say whether weights that are stored so are quantized better after calibration."""
    return isinstance(chosen, Scheme) and algorithm_of(chosen).NEEDS != "nothing"


def quantize_weights(
    model: ir.Model,
    choose: Choose,
    store: Store,
    tick: Callable[[str], object],
    known: Callable[[str], Codes | None] = lambda _: None,
) -> ir.Model:
    """Replace the float weights of `model` as `choose` says, and return `model`.

    Args:
        model: a canonical graph with lazy float weights; changed in place.
        choose: for each weight a scheme, or "fp16" to store it as float16, or "fp32" to leave it.
        store: where the codes go.
        tick: called with the name of each weight when it is done.
        known: gives the codes of a weight that was quantized before, by its name; others are quantized now, by what
            they are alone.
    """
    weights = [(value, kind, choose(value, kind)) for value, kind in float_weights(model.graph)]
    for (value, kind, _), stored in one_ahead(lambda weight: _store_form(*weight, known), weights):
        if isinstance(stored, Codes):
            replace_by_codes(model.graph, value, kind, stored, store)
        elif stored is not None:
            replace_by_half(model.graph, value, kind, stored, store)
        tick(str(value.name))
    store.flush()
    return model


def _store_form(
    value: ir.Value, kind: Kind, chosen: Scheme | str, known: Callable[[str], Codes | None]
) -> Codes | NDArray[np.float32] | None:
    """Return the codes of a weight, its floats where they are stored as float16, or None where it stays."""
    if isinstance(chosen, Scheme):
        if codes := known(str(value.name)):
            return codes
        return as_codes(algorithm_of(chosen).quantize(torch.from_numpy(load(value, kind)), None, chosen))
    return load(value, kind) if chosen == "fp16" else None


def as_codes(tensor: "QuantizedTensor") -> Codes:
    """Return a quantized matrix as the graph takes it."""
    zeros = None if tensor.zero_points is None else tensor.zero_points.numpy()
    return Codes(tensor.codes.numpy(), tensor.scales.numpy(), zeros, tensor.scheme, tensor.global_scale)


def one_ahead(function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[T, R]]:
    """Yield (item, function(item)) in order; the next one is worked on meanwhile, and no more than that."""
    with ThreadPoolExecutor(1) as worker:
        following = [worker.submit(function, item) for item in items[:1]]
        for number, item in enumerate(items, 1):
            result = following.pop().result()
            following += [worker.submit(function, after) for after in items[number : number + 1]]
            yield item, result
