"""Outputs of networks, run by run, as metrics see them: samples first, and checked."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.calibrate.arrays import Batch
from edgec.calibrate.ports import Axis, axis_of
from edgec.calibrate.samples import Samples
from edgec.errors import CheckpointError, RegressionError, UsageError
from edgec.evaluate.metrics import Part
from edgec.frontends.network import Port

_MASK = "attention_mask"
_LOOK = "look at these samples, and at the model in float: it was not changed"


def parts(
    samples: Samples, ports: Sequence[Port], test: Iterable[Batch], reference: Iterable[Batch] | None
) -> Iterator[tuple[int, Part]]:
    """Yield the number of the first sample of each run, and its outputs, samples first.

    Args:
        samples: what the outputs were computed from.
        ports: outputs of the network.
        test: for each of `samples.batches()`.
        reference: those of the float model, alike; None where it is not at hand.

    Raises:
        UsageError: outputs of both models, or outputs and samples, do not fit together.
        CheckpointError: the float model computes NaN, or nothing but infinite numbers.
        RegressionError: the other one computes NaN, or infinite numbers elsewhere than the float model.
    """
    first = 0
    both = ((made, None) for made in test) if reference is None else zip(test, reference, strict=True)
    for (feed, labels), (made, floats) in zip(samples.batches(), both, strict=True):
        count = min(samples.batch, samples.count - first)
        places = samples.places[first : first + count]
        values = {port.name: _rows(made, port, samples.axis, count) for port in ports}
        expected = None
        if floats is not None:
            expected = {port.name: _rows(floats, port, samples.axis, count) for port in ports}
        for name, array in values.items():
            _check(name, array, None if expected is None else expected[name], places)
        mask = feed.get(_MASK)
        if mask is not None:
            mask = mask.astype(bool) if mask.ndim == 2 and len(mask) == count else None
        yield first, Part(values, expected, ports[0].name, labels, mask, places)
        first += count


def _rows(made: Batch, port: Port, axis: Axis, count: int) -> NDArray[Any]:
    """Return an output with its samples first."""
    values = np.asarray(made[port.name])
    at = axis_of(port, axis)
    at = 0 if at is None or at >= values.ndim else at
    if values.ndim and values.shape[at] == count:
        return np.moveaxis(values, at, 0)
    if count == 1:
        return values[None]
    raise UsageError(
        f"the output {port.name!r} has shape {values.shape} for {count} samples",
        hint="compare with batches of one sample",
    )


def _check(name: str, values: NDArray[Any], expected: NDArray[Any] | None, places: Sequence[str]) -> None:
    """Refuse what is no number: it would be lost in means."""
    if expected is not None and values.shape != expected.shape:
        raise UsageError(f"the output {name!r} has shape {values.shape}, that of the float model {expected.shape}")
    if values.dtype.kind != "f":
        return
    is_odd = np.isnan(values)
    if expected is not None:
        if found := _found(np.isnan(expected), places):
            raise CheckpointError(f"the float model computes NaN {found}", where=name, hint=_LOOK)
        if found := _found(np.isinf(expected), places, every=True):
            raise CheckpointError(
                f"the float model computes nothing but infinite numbers {found}: there is no distance from those",
                where=name,
                hint=_LOOK,
            )
        is_odd |= (np.isinf(values) | np.isinf(expected)) & (values != expected)
    if found := _found(is_odd, places):
        raise RegressionError(
            f"the model computes NaN, or infinite numbers elsewhere than the float model, {found}",
            where=name,
            hint="leave the layers in float whose ranges are too wide",
        )


def _found(odd: NDArray[np.bool_], places: Sequence[str], *, every: bool = False) -> str:
    """Return for which samples something is so, (n, ...) bool, in some or all numbers; empty where it is not."""
    each = odd.reshape(len(places), -1)
    rows = np.flatnonzero(each.all(axis=1) & (each.shape[1] > 0) if every else each.any(axis=1))
    return f"for {len(rows)} of {len(places)} samples, first {places[rows[0]]}" if len(rows) else ""
