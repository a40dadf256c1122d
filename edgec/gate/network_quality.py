"""Whether a network, a model that is no decoder, is worse than another on the same samples."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edgec.backends.backend import backend_of
from edgec.backends.network import NetworkSession, NetworkSettings, read_network_settings
from edgec.bundle.open import find_artifact
from edgec.calibrate.samples import Samples, load_samples
from edgec.errors import BundleError, CheckpointError, RegressionError, UsageError, require
from edgec.evaluate.metrics import Setting, Stats
from edgec.evaluate.parts import parts
from edgec.evaluate.setting import read_text_files, setting_of
from edgec.evaluate.wanted import Wanted, wanted_metrics
from edgec.frontends.network import Port
from edgec.gate.bounds import Bounds
from edgec.gate.network_findings import judge_samples
from edgec.gate.result import Finding
from edgec.gate.settings import Quality, QualityBound

Tick = Callable[[str], object]


@dataclass(frozen=True)
class _Pair:
    """Both networks, ready to run, and what their outputs mean."""

    sessions: Sequence[NetworkSession]  # the baseline's, the candidate's
    ports: Sequence[Port]
    setting: Setting
    tick: Tick


def compare_networks(
    candidate: Path,
    baseline: Path,
    quality: Quality,
    *,
    bounds: Mapping[str, QualityBound],
    confidence: float = 0.95,
    seed: int = 0,
    tick: Tick = lambda _: None,
) -> tuple[tuple[Finding, ...], tuple[str, ...], dict[str, str]]:
    """Return what was found on each set of samples, remarks, and each set's SHA-256 in hex, by name.

    There is nothing of each where the gate file names neither samples nor metrics.

    Both bundles run as they ship, one sample at a time, on what the baseline makes of the samples. Metrics that compare
    with a float model compare with the baseline. See `edgec.gate.network_findings` for intervals.

    Args:
        candidate: a bundle or an artifact.
        baseline: another.
        quality: names data, and how many samples of each.
        bounds: metric -> what it may lose, in its own unit.
        confidence: of intervals, two-sided: either verdict may be wrong in (1 - confidence) / 2 of gates.
        seed: of samples and intervals.
        tick: called after each sample.

    Raises:
        UsageError: data without metrics or metrics without data; the models take or give different things; the samples
            or metrics are not for them.
        BundleError: a bundle cannot be read, or the baseline computes NaN.
        MissingRuntimeError: a runtime, or a package that the metric or the interval takes, is not installed.
    """
    if not (quality.data or bounds):
        return (), ("quality was not compared: the gate file names no data and no metrics for such models",), {}
    if not quality.data:
        raise UsageError("nothing says what to measure quality on", where="quality.data", hint="name samples")
    if not bounds:
        raise UsageError("nothing says what to measure", where="quality.metrics", hint="name a metric, such as top1")
    if of_itself := [name for name in bounds if name.partition("@")[0] == "snr_db"]:
        raise UsageError(
            f"{of_itself[0]} cannot be gated: of the baseline beside itself it is infinite",
            where="quality.metrics",
            hint="bound cosine instead, or a metric of the model's task",
        )
    require("scipy", "gate")
    artifacts = [find_artifact(path) for path in (baseline, candidate)]
    settings, texts = read_network_settings(artifacts[0]), read_text_files(artifacts[0])
    _check_alike(settings, read_network_settings(artifacts[1]))
    wanted = wanted_metrics(bounds, settings.outputs)
    load = partial(
        load_samples, network_ports=settings.inputs, samples=quality.samples, seed=seed, batch=1, tokenizer_files=texts,
        pictures=settings.pictures, labels=settings.labels, audio=settings.audio, purpose="evaluation",
    )  # fmt: skip
    data = {name: load(name) for name in quality.data}
    backends = [backend_of(artifact) for artifact in artifacts]
    sessions = [each.open_network(artifact, "shipped") for each, artifact in zip(backends, artifacts, strict=True)]
    pair = _Pair(sessions, settings.outputs, setting_of(settings.labels, settings.task, texts), tick)
    limits = Bounds(bounds, confidence, len(data) * len(wanted))
    names = [samples.name for samples in data.values()]
    placed = {samples.name if names.count(samples.name) == 1 else name: samples for name, samples in data.items()}
    findings = [
        each for where, samples in placed.items() for each in _judge(pair, samples, wanted, limits, where, seed)
    ]
    remarks = [each.not_run(artifact) for each, artifact in zip(backends, artifacts, strict=True)]
    if texts != read_text_files(artifacts[1]):
        remarks.append("the bundles' tokenizers differ: both models got the tokens of the baseline's")
    remarks += [remark for samples in data.values() for remark in samples.remarks]
    hashes = {where: samples.sha256 for where, samples in placed.items()}
    return tuple(findings), tuple(dict.fromkeys(remark for remark in remarks if remark)), hashes


def _check_alike(baseline: NetworkSettings, candidate: NetworkSettings) -> None:
    """Refuse models whose outputs on the same samples say nothing about each other."""

    def ports(some: Iterable[Port]) -> list[tuple[str, str]]:
        return sorted((port.name, port.dtype) for port in some)

    for what, mine, other in (
        ("inputs", ports(candidate.inputs), ports(baseline.inputs)),
        ("outputs", ports(candidate.outputs), ports(baseline.outputs)),
        ("classes", candidate.labels, baseline.labels),
        ("ways to take pictures", candidate.pictures, baseline.pictures),
        ("ways to take sound", candidate.audio, baseline.audio),
    ):
        if mine != other:
            raise UsageError(
                f"the models have different {what}: {mine}, baseline {other}",
                hint="compare bundles of the same model, or leave out quality with `quality = false`",
            )


def _judge(
    pair: _Pair, samples: Samples, wanted: Sequence[Wanted], bounds: Bounds, where: str, seed: int
) -> list[Finding]:
    try:
        stats = _collect(pair, samples, wanted)
    except RegressionError as error:
        note = f"{error.where}: the candidate computes NaN, or infinite numbers where the baseline does not"
        found = partial(Finding, group="quality", where=where, verdict="fail", note=note)
        return [found(metric=each.name) for each in wanted]
    except CheckpointError as error:
        what = error.what.replace("the float model", "the baseline")
        raise BundleError(what, where=error.where, hint="look at these samples") from error
    return [
        judge_samples(each, *both, bounds, where=where, seed=seed) for each, both in zip(wanted, stats, strict=True)
    ]


def _collect(pair: _Pair, samples: Samples, wanted: Sequence[Wanted]) -> list[tuple[Stats, Stats]]:
    """Return what each metric needs to know of each sample: of the baseline, and of the candidate."""
    stats: list[tuple[list[Stats], list[Stats]]] = [([], []) for _ in wanted]
    expected, found = (map(session.run, samples.inputs()) for session in pair.sessions)
    for first, part in parts(samples, pair.ports, found, expected):
        assert part.reference is not None
        floats = dataclasses.replace(part, outputs=part.reference)
        for each, (before, after) in zip(wanted, stats, strict=True):
            before.append(each.per_sample(floats, pair.setting))
            after.append(each.per_sample(part, pair.setting))
        pair.tick(f"sample {first}")
    return [
        (each.finish(before, pair.setting), each.finish(after, pair.setting))
        for each, (before, after) in zip(wanted, stats, strict=True)
    ]
