"""Samples, each an array without an axis for samples, as a network takes them: some at once, along one axis."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgec.calibrate.arrays import Batch
from edgec.errors import UsageError
from edgec.frontends.network import Port

Axis = int | str | None
"""What the ports of a network call the axis of samples, or its size where that is fixed; None: there is no such axis,
and each run takes one sample."""

_STATES = {"state", "states", "hidden", "cell", "h", "c", "hx", "cx", "h0", "c0", "hn", "cn"}
_KINDS = {"b": "booleans", "i": "integers", "u": "integers", "f": "floats"}


class Shape(msgspec.Struct, frozen=True):
    """One input of each sample.

    Args:
        sizes: of its axes; None stands for one that differs from run to run.
        dtype: of its numbers.
    """

    sizes: tuple[int | None, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Fit:
    """How the inputs of samples become what a network takes.

    Args:
        ports: inputs of the network that the samples have.
        axes: of each of those, where its axis of samples is; None where it has none.
        states: inputs that start as zeros.
        axis: what the axis of samples is called.
        batch: samples in one run.
        must_be_full: whether every run takes as many.
    """

    ports: tuple[Port, ...]
    axes: tuple[int | None, ...]
    states: tuple[Port, ...]
    axis: Axis
    batch: int
    must_be_full: bool

    def feed(self, rows: Batch, where: str) -> Batch:
        """Return the inputs of one run.

        Args:
            rows: input -> (n, ...), with n at most `batch`.
            where: for messages.

        Raises:
            UsageError: a number is NaN or does not fit its type, or an input without an axis of samples differs
                from sample to sample.
        """
        count = len(next(iter(rows.values())))
        given = {
            port.name: _arranged(rows[port.name], port, axis, f"{where}: {port.name}")
            for port, axis in zip(self.ports, self.axes, strict=True)
        }
        zeros = {
            port.name: np.zeros([count if isinstance(size, str) else size for size in port.shape], port.dtype)
            for port in self.states
        }
        return given | zeros

    @property
    def remarks(self) -> tuple[str, ...]:
        """Return what the user should know."""
        return tuple(f"the samples have no {port.name!r}: this state starts as zeros" for port in self.states)


def fit(ports: Sequence[Port], shapes: Mapping[str, Shape], *, batch: int, where: str) -> Fit:
    """Find how samples become what a network takes.

    An input that the samples lack starts as zeros where it is a float and one of the words of its name is "state",
    "hidden", "cell", or the h, c, h0, c0 and the like of a recurrent net; others are refused.

    Args:
        ports: the inputs of the network.
        shapes: input -> what the samples have of it.
        batch: samples in one run, where the network leaves that open.
        where: the samples come from, for messages.

    Raises:
        UsageError: names, shapes or types are not those of the network.
    """
    known = {port.name for port in ports}
    if others := [name for name in shapes if name not in known]:
        raise UsageError(
            f"the model has no input {others[0]!r}: it takes {listed(ports)}",
            where=where,
            hint="name arrays like the inputs, and leave others out",
        )
    given = tuple(port for port in ports if port.name in shapes)
    states = tuple(port for port in ports if port.name not in shapes)
    if lacking := [port for port in states if not is_state(port)] or (states if not given else ()):
        raise UsageError(
            f"the samples have no {lacking[0].name!r}: the model takes {listed(ports)}",
            where=where,
            hint="give an .npz file with an array for each input, all with the samples along their first axes",
        )
    axis = _axis(given, shapes)
    axes = tuple(_place(port, shapes[port.name], axis, where) for port in given)
    for port in states:
        if any(isinstance(size, str) and at != axis_of(port, axis) for at, size in enumerate(port.shape)):
            raise UsageError(
                f"the samples have no {port.name!r}, whose size {shown(port.shape)} is open",
                where=where,
                hint=f"give it too, or state its sizes with --input {port.name}:{port.dtype}[...]",
            )
    size = batch if isinstance(axis, str) else axis or 1
    return Fit(given, axes, states, axis, size, must_be_full=not isinstance(axis, str))


def is_state(port: Port) -> bool:
    """Return whether a recurrent network could carry this input from one run to the next, going by its name."""
    words = re.split(r"[^a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", port.name).lower())
    return np.dtype(port.dtype).kind == "f" and not _STATES.isdisjoint(words)


def axis_of(port: Port, axis: Axis) -> int | None:
    """Return which axis of an input or output is that of samples; None where there is none."""
    if axis in port.shape:
        return port.shape.index(axis)
    named = [at for at, size in enumerate(port.shape) if isinstance(size, str)]
    return named[0] if named and axis is not None else None


def _axis(ports: Sequence[Port], shapes: Mapping[str, Shape]) -> Axis:
    """Return what the axis of samples is called: the first axis of an input that has one more than its samples."""
    first = [port.shape[0] for port in ports if len(port.shape) == len(shapes[port.name].sizes) + 1]
    return next((size for size in first if isinstance(size, str)), first[0] if first else None)


def _place(port: Port, found: Shape, axis: Axis, where: str) -> int | None:
    is_whole = len(port.shape) == len(found.sizes) and not (isinstance(axis, str) and axis in port.shape)
    at = None if is_whole else axis_of(port, axis)
    sizes = [size for index, size in enumerate(port.shape) if index != at]
    fits = len(sizes) == len(found.sizes) and all(
        isinstance(wanted, str) or wanted == size for wanted, size in zip(sizes, found.sizes, strict=True)
    )
    if not fits:
        raise UsageError(
            f"{port.name!r} takes {shown(port.shape)}, each sample has {shown(found.sizes)}",
            where=where,
            hint="samples lie along one axis more than each of them has"
            if len(sizes) != len(found.sizes)
            else "give samples of the sizes that the model takes",
        )
    wanted = np.dtype(port.dtype)
    if _KINDS.get(wanted.kind) != _KINDS.get(found.dtype.kind):
        raise UsageError(
            f"{port.name!r} takes {port.dtype}, the samples are {found.dtype}",
            where=where,
            hint=f"save the array as {port.dtype}",
        )
    return at


def _arranged(rows: NDArray[Any], port: Port, axis: int | None, where: str) -> NDArray[Any]:
    with np.errstate(over="ignore"):  # told below
        cast = rows.astype(port.dtype)
    if cast.dtype.kind in "iu" and not np.array_equal(cast, rows):
        raise UsageError(
            f"a number does not fit {port.dtype}", where=where, hint="correct that sample, or leave it out"
        )
    if cast.dtype.kind == "f" and (np.isnan(rows).any() or not np.array_equal(np.isinf(cast), np.isinf(rows))):
        raise UsageError(
            f"a number is NaN, or does not fit {port.dtype}", where=where, hint="correct that sample, or leave it out"
        )
    if axis is not None:
        return np.ascontiguousarray(np.moveaxis(cast, 0, axis))
    if (cast != cast[:1]).any():
        raise UsageError(
            f"the model takes one {port.shape} for all samples of a run, and they differ",
            where=where,
            hint="use batches of one sample",
        )
    return np.asarray(cast[0])


def listed(ports: Sequence[Port]) -> str:
    """Return inputs in words, such as `image float32 (batch, 3, 224, 224)`."""
    return ", ".join(f"{port.name} {port.dtype} {shown(port.shape)}" for port in ports)


def shown(sizes: Sequence[int | str | None]) -> str:
    """Return sizes in words; None is any."""
    return f"({', '.join('any' if size is None else str(size) for size in sizes)})"
