"""Inputs that are always the same number, such as the sample rate of a model that takes several."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.errors import UsageError
from edgec.frontends.network import Network, Port


def fix_inputs(network: Network, settings: Sequence[str]) -> Network:
    """Return a network some of whose inputs are constants; what they decide is folded when the graph is fused.

    Args:
        network: its graph is changed in place.
        settings: `name=number` of each; every element of the input is that number.

    Raises:
        UsageError: there is no such input, the number is none, or a size of the input is open.
    """
    ports = {port.name: port for port in network.inputs}
    values = {str(value.name): value for value in network.model.graph.inputs}
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in ports:
            raise UsageError(f"the model has no input '{name}'", hint=f"its inputs: {', '.join(ports)}")
        value, array = values[name], _array(ports.pop(name), text)
        network.model.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=name)
        network.model.graph.register_initializer(value)
    remarks = (*network.remarks, f"always the same: {', '.join(settings)}")
    return dataclasses.replace(network, inputs=tuple(ports.values()), fixed=tuple(settings), remarks=remarks)


def _array(port: Port, text: str) -> NDArray[Any]:
    sizes = [size for size in port.shape if isinstance(size, int)]
    if len(sizes) < len(port.shape):
        raise UsageError(f"input '{port.name}' has open sizes {list(port.shape)}, so it is no constant")
    try:
        number = float(text)
    except ValueError:
        raise UsageError(f"'{text}' is no number", where=port.name, hint=f"such as --fix {port.name}=16000") from None
    with np.errstate(all="ignore"):  # told below
        array = np.full(sizes, number).astype(port.dtype)
    if not np.isfinite(array).all() or (array.dtype.kind != "f" and (array != number).any()):
        raise UsageError(f"{text} is no {port.dtype}", where=port.name)
    return array
