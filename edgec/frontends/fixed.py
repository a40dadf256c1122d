"""Inputs that are always the same number, such as a sample rate, and sizes that are always the same."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.errors import UsageError
from edgec.frontends.network import Network, Port
from edgec.frontends.trace_inputs import parse_arguments
from edgec.frontends.traced_graph import rename_sizes


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
        name, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(
                f"--fix {setting} says no number", where=name, hint=f"write it behind the name: --fix {name}=16000"
            )
        if name not in ports:
            raise UsageError(f"the model has no input '{name}'", hint=f"its inputs: {', '.join(ports)}")
        value, array = values[name], _array(ports.pop(name), text)
        network.model.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=name)
        network.model.graph.register_initializer(value)
    remarks = (*network.remarks, f"always the same: {', '.join(settings)}")
    return dataclasses.replace(
        network, inputs=tuple(ports.values()), fixed=(*network.fixed, *settings), remarks=remarks
    )


def fix_sizes(network: Network, inputs: Iterable[str]) -> Network:
    """Return a network with sizes that its file leaves open, wherever it uses their names.

    Args:
        network: its graph is changed in place.
        inputs: such as `audio:float32[1,512]`; names leave a size open.

    Raises:
        UsageError: an input is not written like that, or is not what the model takes.
    """
    sizes: dict[str, int] = {}
    ports = {port.name: port for port in network.inputs}
    for wanted in parse_arguments(inputs):
        port = ports.get(wanted.name)
        if port is None:
            raise UsageError(f"the model has no input '{wanted.name}'", hint=f"its inputs: {', '.join(ports)}")
        pairs = [(has, size) for has, size in zip(port.shape, wanted.shape, strict=False) if isinstance(size, int)]
        odd = any(isinstance(has, int) and has != size for has, size in pairs)
        if odd or len(port.shape) != len(wanted.shape) or port.dtype != wanted.dtype:
            raise UsageError(
                f"'{port.name}' is {port.dtype}[{', '.join(map(str, port.shape))}] in the model",
                where=f"--input {wanted.name}",
                hint="state numbers for its open sizes alone; all else stays as the file has it",
            )
        sizes |= {has: size for has, size in pairs if isinstance(has, str)}
    rename_sizes(network.model, {name: str(size) for name, size in sizes.items()})
    sized = {port.name: _sized(port, sizes) for port in network.inputs}
    for value in network.model.graph.inputs:  # sizes that the file leaves without a name have one in ports alone
        value.shape = ir.Shape(sized[str(value.name)].shape)
    return dataclasses.replace(
        network,
        inputs=tuple(sized.values()),
        outputs=tuple(_sized(port, sizes) for port in network.outputs),
        fixed=(*network.fixed, *(f"{name}={size}" for name, size in sorted(sizes.items()))),
    )


def _sized(port: Port, sizes: Mapping[str, int]) -> Port:
    shape = tuple(size if isinstance(size, int) else sizes.get(size, size) for size in port.shape)
    return Port(port.name, port.dtype, shape)


def _array(port: Port, text: str) -> NDArray[Any]:
    sizes = [size for size in port.shape if isinstance(size, int)]
    if len(sizes) < len(port.shape):
        raise UsageError(
            f"input '{port.name}' has open sizes [{', '.join(map(str, port.shape))}], so it is no constant",
            where=f"--fix {port.name}",
            hint=f"state its sizes first: --input {port.name}:{port.dtype}[...]",
        )
    try:
        number = float(text)
    except ValueError:
        raise UsageError(f"'{text}' is no number", where=port.name, hint=f"such as --fix {port.name}=16000") from None
    with np.errstate(all="ignore"):  # told below
        array = np.full(sizes, number).astype(port.dtype)
    if not np.isfinite(array).all() or (array.dtype.kind != "f" and (array != number).any()):
        raise UsageError(f"{text} is no {port.dtype}", where=f"--fix {port.name}", hint="give a number that fits it")
    return array
