"""How good a network is, and how far from its float model, on the same samples."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgec.calibrate.arrays import Batch
from edgec.calibrate.ports import Axis, axis_of
from edgec.calibrate.samples import Samples
from edgec.errors import CheckpointError, RegressionError, UsageError
from edgec.evaluate.fidelity import Changed, Fidelity, Tracker, changes, finite, largest
from edgec.evaluate.metrics import Finishing, Metric, Part, Setting, Stats, metric_of, split
from edgec.evaluate.paired import interval, mcnemar
from edgec.frontends.network import Port

_MASK = "attention_mask"


class MetricQuality(msgspec.Struct, frozen=True):
    """A metric of both models.

    Args:
        name: of the metric.
        output: that it looks at.
        samples: how many.
        higher_is_better: which way is better.
        reference: its value for the float model; None where it is not defined, or infinite.
        test: its value for the other one.
        difference: test - reference.
        low: where the difference begins with 95 % confidence, by a paired bootstrap; None where that is not defined,
            as for a single sample.
        high: where it ends.
        p_value: for metrics that count right predictions, one for each sample: the chance of such a difference between
            equally good models (McNemar's exact test); else None.
    """

    name: str
    output: str
    samples: int
    higher_is_better: bool
    reference: float | None
    test: float | None
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None = None


class NetworkQuality(msgspec.Struct, frozen=True):
    """A network against its float model.

    Args:
        samples: compared.
        metrics: as asked for.
        outputs: of the network.
        changed: the samples that changed most: those with another prediction first, then by distance.
    """

    samples: int
    metrics: tuple[MetricQuality, ...]
    outputs: tuple[Fidelity, ...]
    changed: tuple[Changed, ...]


def compare(
    reference: Iterable[Batch],
    test: Iterable[Batch],
    samples: Samples,
    metrics: Sequence[str],
    *,
    ports: Sequence[Port],
    setting: Setting | None = None,
    seed: int = 0,
) -> NetworkQuality:
    """Compare the outputs of two networks.

    Outputs are looked at as they come: what is kept are a few numbers for each sample and metric (`retrieval` keeps the
    embeddings).

    Args:
        reference: outputs of the float model, for each of `samples.batches()`.
        test: outputs of the other model, alike.
        samples: what they were computed from.
        metrics: names, or the user's "module:function"; "name@output" looks at another output than the first.
        ports: outputs of the network.
        setting: what outputs mean.
        seed: of the intervals.

    Raises:
        UsageError: there is no such metric or output, or the labels or outputs are not what the metric is about.
        CheckpointError: the float model computes NaN.
        RegressionError: the other one computes NaN, or infinite numbers elsewhere than the float model.
        MissingRuntimeError: a metric needs a package.
    """
    setting = setting or Setting()
    wanted = [_wanted(name, ports) for name in dict.fromkeys(metrics)]
    outputs = {port.name: Tracker(port.name) for port in ports}
    changed: list[tuple[bool, Changed]] = []
    for first, part in _parts(samples, reference, test, ports):
        for each in wanted:
            each.add(part, setting)
        for name, output in outputs.items():
            output.add(replace(part, output=name), setting)
        main = replace(part, output=wanted[0].output if wanted else ports[0].name)
        changed = largest([*changed, *changes(main, first, samples.places, setting)])
    return NetworkQuality(
        samples=samples.count,
        metrics=tuple(each.result(setting, seed) for each in wanted),
        outputs=tuple(output.result() for output in outputs.values()),
        changed=tuple(each for _, each in changed),
    )


class _Wanted:
    """A metric, and what it needs to know of the samples so far."""

    def __init__(self, name: str, metric: Metric, output: str) -> None:
        self.output = output
        self._name, self._metric = name, metric
        self._reference: list[Stats] = []
        self._test: list[Stats] = []

    def add(self, part: Part, setting: Setting) -> None:
        if self._metric.NEEDS_LABELS and part.labels is None:
            raise UsageError(
                f"the metric {self._name!r} needs labels, and the samples have none",
                hint="give samples with labels, or use `agreement`, `cosine` or `retrieval`",
            )
        part = replace(part, output=self.output)
        self._reference.append(self._metric.per_sample(replace(part, outputs=part.reference), setting))
        self._test.append(self._metric.per_sample(part, setting))

    def result(self, setting: Setting, seed: int) -> MetricQuality:
        both = [np.concatenate(stats) for stats in (self._reference, self._test)]
        if isinstance(self._metric, Finishing):
            both = [self._metric.finish(stats, setting) for stats in both]
        reference, test = both
        once = np.ones((1, len(test)))
        values = [float(self._metric.total(stats, once)[0]) for stats in both]
        bounds = interval(reference, test, self._metric.total, seed=seed)
        is_single = self._metric.IS_FLAG and bool((test[:, 1] == 1).all())
        return MetricQuality(
            name=self._name,
            output=self.output,
            samples=len(test),
            higher_is_better=self._metric.HIGHER_IS_BETTER,
            reference=finite(values[0]),
            test=finite(values[1]),
            difference=finite(values[1] - values[0]),
            low=bounds[0] if bounds else None,
            high=bounds[1] if bounds else None,
            p_value=mcnemar(reference[:, 0] == 1, test[:, 0] == 1) if is_single else None,
        )


def _wanted(name: str, ports: Sequence[Port]) -> _Wanted:
    metric, output = split(name)
    known = [port.name for port in ports]
    if output is not None and output not in known:
        raise UsageError(f"the model has no output {output!r}: it has {', '.join(known)}", where=name)
    return _Wanted(name, metric_of(metric), output or known[0])


def _parts(
    samples: Samples, reference: Iterable[Batch], test: Iterable[Batch], ports: Sequence[Port]
) -> Iterator[tuple[int, Part]]:
    """Yield the number of the first sample of each run, and its outputs, samples first."""
    first = 0
    for (feed, labels), *both in zip(samples.batches(), reference, test, strict=True):
        count = min(samples.batch, samples.count - first)
        expected, values = ({port.name: _rows(made, port, samples.axis, count) for port in ports} for made in both)
        for port in ports:
            _check(port.name, expected[port.name], values[port.name], samples.places[first : first + count])
        mask = feed.get(_MASK)
        if mask is not None:
            mask = mask.astype(bool) if mask.ndim == 2 and len(mask) == count else None
        yield first, Part(values, expected, ports[0].name, labels, mask)
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


def _check(name: str, expected: NDArray[Any], values: NDArray[Any], places: Sequence[str]) -> None:
    """Refuse what is no number: it would be lost in means."""
    if values.shape != expected.shape:
        raise UsageError(f"the output {name!r} has shape {values.shape}, that of the float model {expected.shape}")
    if values.dtype.kind != "f":
        return
    if found := _found(np.isnan(expected), places):
        raise CheckpointError(f"the float model computes NaN {found}", where=name)
    with np.errstate(invalid="ignore"):  # infinite - infinite
        is_odd = np.isnan(values) | ((np.isinf(values) | np.isinf(expected)) & (values != expected))
    if found := _found(is_odd, places):
        raise RegressionError(
            f"the model computes NaN, or infinite numbers elsewhere than the float model, {found}",
            where=name,
            hint="leave the layers in float whose ranges are too wide",
        )


def _found(odd: Any, places: Sequence[str]) -> str:
    """Return for which samples something is so, (n, ...) bool; empty where it is not."""
    rows = np.flatnonzero(np.asarray(odd).reshape(len(places), -1).any(axis=1))
    return f"for {len(rows)} of {len(places)} samples, first {places[rows[0]]}" if len(rows) else ""
