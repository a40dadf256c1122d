"""The pass that quantizes the weights of a canonical graph, one at a time, into a file."""

from collections.abc import Callable
from importlib import import_module

import onnx_ir as ir

from edgec.graph.store import Store
from edgec.graph.weights import Codes, Kind, float_weights, load, replace_by_codes, replace_by_half
from edgec.quantize.scheme import Scheme

Choose = Callable[[ir.Value, Kind], Scheme | str]


def quantize_weights(model: ir.Model, choose: Choose, store: Store, tick: Callable[[str], object]) -> ir.Model:
    """Replace the float weights of `model` as `choose` says, and return `model`.

    Args:
        model: a canonical graph with lazy float weights; changed in place.
        choose: for each weight a scheme, or "fp16" to store it as float16, or "fp32" to leave it.
        store: where the integers go.
        tick: called with the name of each weight when it is done.
    """
    import torch

    for value, kind in list(float_weights(model.graph)):
        name = str(value.name)
        chosen = choose(value, kind)
        if chosen == "fp16":
            replace_by_half(model.graph, value, kind, load(value, kind), store)
        elif isinstance(chosen, Scheme):
            algorithm = import_module(f"edgec.quantize.algorithms.{chosen.algorithm}")
            tensor = algorithm.quantize(torch.from_numpy(load(value, kind)), None, chosen)
            zeros = None if tensor.zero_points is None else tensor.zero_points.numpy()
            codes = Codes(tensor.codes.numpy(), tensor.scales.numpy(), zeros, chosen)
            replace_by_codes(model.graph, value, kind, codes, store)
        tick(name)
    store.flush()
    return model
