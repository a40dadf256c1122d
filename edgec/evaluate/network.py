"""How good a network is, and how far from its float model, on the same samples."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import msgspec
import numpy as np

from edgec.calibrate.arrays import Batch
from edgec.calibrate.samples import Samples
from edgec.evaluate.fidelity import Changed, Fidelity, Tracker, changes, finite, largest
from edgec.evaluate.metrics import Setting, Stats
from edgec.evaluate.paired import interval, mcnemar
from edgec.evaluate.parts import parts
from edgec.evaluate.wanted import Wanted, wanted_metrics
from edgec.frontends.network import Port


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
        metrics: names, or the user's "module:function"; "name@output" looks at another output than the first, and
            "name:0.5" makes two classes of a single score, here and where changes are looked for.
        ports: outputs of the network.
        setting: what outputs mean.
        seed: of the intervals.

    Raises:
        UsageError: there is no such metric or output, or the labels or outputs are not what the metric is about.
        CheckpointError: the float model computes NaN, or nothing but infinite numbers.
        RegressionError: the other one computes NaN, or infinite numbers elsewhere than the float model.
        MissingRuntimeError: a metric needs a package.
    """
    setting = setting or Setting()
    wanted = wanted_metrics(metrics, ports)
    known = {port.name: setting for port in ports} | {
        each.output: each.fitted(setting) for each in wanted if each.threshold is not None
    }
    outputs = {port.name: Tracker(port.name) for port in ports}
    stats: list[tuple[list[Stats], list[Stats]]] = [([], []) for _ in wanted]
    changed: list[tuple[bool, Changed]] = []
    for first, part in parts(samples, ports, test, reference):
        assert part.reference is not None
        floats = replace(part, outputs=part.reference)
        for each, (before, after) in zip(wanted, stats, strict=True):
            before.append(each.per_sample(floats, setting))
            after.append(each.per_sample(part, setting))
        for name, output in outputs.items():
            output.add(replace(part, output=name), known[name])
        main = replace(part, output=wanted[0].output if wanted else ports[0].name)
        changed = largest([*changed, *changes(main, first, samples.places, known[main.output])])
    return NetworkQuality(
        samples=samples.count,
        metrics=tuple(_quality(*each, setting, seed) for each in zip(wanted, stats, strict=True)),
        outputs=tuple(output.result() for output in outputs.values()),
        changed=tuple(each for _, each in changed),
    )


def measure(
    outputs: Iterable[Batch],
    samples: Samples,
    metrics: Sequence[str],
    *,
    ports: Sequence[Port],
    setting: Setting | None = None,
) -> dict[str, float | None]:
    """Return the metrics of a network whose float model is not at hand; None where one is not defined.

    Args:
        outputs: for each of `samples.batches()`.
        samples: what they were computed from.
        metrics: as for `compare`, but for those that compare with the float model.
        ports: outputs of the network.
        setting: what outputs mean.

    Raises:
        UsageError: as for `compare`, and where a metric takes the float model.
        RegressionError: the network computes NaN.
        MissingRuntimeError: a metric needs a package.
    """
    setting = setting or Setting()
    wanted = wanted_metrics(metrics, ports, alone=True)
    stats: list[list[Stats]] = [[] for _ in wanted]
    for _, part in parts(samples, ports, outputs, None):
        for each, found in zip(wanted, stats, strict=True):
            found.append(each.per_sample(part, setting))
    return {
        each.name: finite(each.total(each.finish(found, setting))) for each, found in zip(wanted, stats, strict=True)
    }


def check_metrics(
    run: Callable[[Iterable[Batch]], Iterable[Batch]],
    samples: Samples,
    metrics: Sequence[str],
    *,
    ports: Sequence[Port],
    setting: Setting,
) -> None:
    """Make sure, before the work, that metrics fit the outputs of the first run and the labels of all samples.

    Args:
        run: gives the float model's outputs for inputs.
        samples: to measure on.
        metrics: as for `compare`.
        ports: outputs of the network.
        setting: what outputs mean.

    Raises:
        UsageError: there is no such metric or output, or the labels or outputs are not what the metric is about.
        CheckpointError: the float model computes NaN, or nothing but infinite numbers.
        MissingRuntimeError: a metric needs a package.
    """
    wanted = wanted_metrics(metrics, ports)
    if not wanted:
        return
    made = next(iter(run(samples.inputs())))
    _, part = next(parts(samples, ports, [made], [made]))
    for each in wanted:
        found = each.per_sample(part, setting)
        # As if all samples were like these: some metrics take more than a few.
        each.total(each.finish([np.resize(found, (samples.count, found.shape[1]))], setting))
    judging = [each for each in wanted if each.metric.NEEDS_LABELS]
    if not isinstance(part.labels, np.ndarray) or not judging:
        return
    first = 0
    for _, labels in samples.batches():
        assert isinstance(labels, np.ndarray)
        # Any sample's outputs will do to look at labels.
        like = {name: np.repeat(values[:1], len(labels), axis=0) for name, values in part.outputs.items()}
        places = samples.places[first : first + len(labels)]
        for each in judging:
            each.per_sample(
                replace(part, outputs=like, reference=like, labels=labels, mask=None, places=places), setting
            )
        first += len(labels)


def _quality(wanted: Wanted, stats: tuple[list[Stats], list[Stats]], setting: Setting, seed: int) -> MetricQuality:
    reference, test = (wanted.finish(each, setting) for each in stats)
    values = [wanted.total(each) for each in (reference, test)]
    bounds = interval(reference, test, wanted.metric.total, seed=seed)
    is_single = wanted.metric.IS_FLAG and bool((test[:, 1] == 1).all())
    return MetricQuality(
        name=wanted.name,
        output=wanted.output,
        samples=len(test),
        higher_is_better=wanted.metric.HIGHER_IS_BETTER,
        reference=finite(values[0]),
        test=finite(values[1]),
        difference=finite(values[1] - values[0]),
        low=bounds[0] if bounds else None,
        high=bounds[1] if bounds else None,
        p_value=mcnemar(reference[:, 0] == 1, test[:, 0] == 1) if is_single else None,
    )
