"""Count what the values of a network are while it runs on samples, in bounded memory."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from edgec.calibrate.arrays import Batch
from edgec.calibrate.histogram import Histogram
from edgec.calibrate.run import check_batch, find_values, inputs_of, open_model
from edgec.errors import CheckpointError, EdgecError, UsageError

_BUDGET_BYTES = 256 << 20


def observe(
    model: ir.Model,
    names: Collection[str],
    batches: Iterable[Batch],
    *,
    threads: int = 0,
    tick: Callable[[str], object] = lambda _: None,
    budget_bytes: int = _BUDGET_BYTES,
) -> dict[str, Histogram]:
    """Count the numbers of some values of a network, as they are for samples.

    In memory are the weights (three times), a batch, what the network needs to run, the values that are counted at
    once, and the counts. As many samples run at once as fit the budget with their counted values. Where those of one
    do not, the network runs several times, and each time some of them are counted.

    Args:
        model: not changed.
        names: inputs, and outputs of nodes that are not in subgraphs.
        batches: taken one at a time; samples lie along the first axis, if the model leaves the size of that open.
        threads: of ONNX Runtime; 0 takes all cores.
        tick: called with the number of batches so far.
        budget_bytes: for counted values; a single one of a single sample may be larger.

    Raises:
        UsageError: there are no samples, they are not what the model takes, or are not finite.
        CheckpointError: the model cannot be run, or computes something that is not finite.
        ValueError: there is no such value.
    """
    inputs = {str(value.name) for value in inputs_of(model)}
    histograms = {name: Histogram() for name in names}
    tap = _Tap(model, [name for name in histograms if name not in inputs], threads, budget_bytes)
    number = 0
    for number, batch in enumerate(batches, 1):
        check_batch(model, batch)
        for name in histograms.keys() & inputs:
            _count(
                histograms[name], batch[name], UsageError("the samples have numbers that are not finite", where=name)
            )
        for name, array in tap.values(batch):
            _count(
                histograms[name], array, CheckpointError("the model computes numbers that are not finite", where=name)
            )
        tick(str(number))
    if not number:
        raise UsageError("there are no samples to run the model on")
    return histograms


def _count(histogram: Histogram, array: NDArray[Any], refusal: EdgecError) -> None:
    try:
        histogram.add(array)
    except ValueError as error:
        raise refusal from error


class _Tap:
    """Gives values of a network, no more at once than fit a budget."""

    def __init__(self, model: ir.Model, names: Sequence[str], threads: int, budget_bytes: int) -> None:
        self._inputs = inputs_of(model)
        self._budget_bytes = budget_bytes
        self._measure = _measure(model, names, threads)
        # One session at a time: each has its copy of the weights.
        self._open = lru_cache(maxsize=1)(lambda group: open_model(model, group, threads))
        self._plans: dict[tuple[tuple[int, ...], ...], tuple[int, list[tuple[str, ...]]]] = {}

    def values(self, batch: Batch) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield each value, or pieces of it that have some of the samples each."""
        samples = self._samples(batch)
        one = _part(batch, 0, 1) if samples else batch
        shapes = tuple(array.shape for array in one.values())
        if shapes not in self._plans:
            self._plans[shapes] = self._plan(one)
        at_once, groups = self._plans[shapes]
        for group in groups:
            call = self._open(group)
            for start in range(0, samples or 1, at_once):
                yield from call(_part(batch, start, start + at_once) if samples else batch).items()

    def _samples(self, batch: Batch) -> int:
        """Return how many samples a batch has; 0 where they cannot be told apart."""
        if any(value.shape is None or not value.shape or isinstance(value.shape[0], int) for value in self._inputs):
            return 0
        counts = {len(array) for array in batch.values()}
        return counts.pop() if len(counts) == 1 else 0

    def _plan(self, one: Batch) -> tuple[int, list[tuple[str, ...]]]:
        """Return how many samples may run at once, and groups of values, for samples of the shapes of this one."""
        groups: list[tuple[str, ...]] = []
        sizes_bytes = self._measure(one)
        for name, size_bytes in sizes_bytes.items():
            if groups and size_bytes + sum(sizes_bytes[other] for other in groups[-1]) <= self._budget_bytes:
                groups[-1] += (name,)
            else:
                groups.append((name,))
        return max(1, self._budget_bytes // max(1, sum(sizes_bytes.values()))), groups


def _part(batch: Batch, start: int, stop: int) -> Batch:
    return {name: array[start:stop] for name, array in batch.items()}


def _measure(model: ir.Model, names: Sequence[str], threads: int) -> Callable[[Batch], dict[str, int]]:
    """Return what runs the model on a batch without keeping the values, and returns how many bytes each has."""
    if not names:
        return lambda _: {}
    sizing = model.clone()
    item_bytes = {}
    for name, value in zip(names, find_values(sizing.graph, names), strict=True):
        node = ir.node("Size", [value], name=f"size of {name}")
        node.outputs[0].name = node.name
        sizing.graph.append(node)
        item_bytes[name] = 4 if value.dtype is None else int(value.dtype.itemsize)
    call = open_model(sizing, [f"size of {name}" for name in names], threads)
    return lambda batch: {
        name: int(size) * item_bytes[name] for name, size in zip(names, call(batch).values(), strict=True)
    }
