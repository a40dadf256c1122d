"""The straight line from a network to a bundle."""

import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir

from edgec import __version__
from edgec.backends.backend import Backend, Integers8, NetworkJob, get_backend
from edgec.build import Say, no_collection, stage
from edgec.build_network_prune import dense_plan, evidence, make_sparse, race, shrink
from edgec.build_speed import Trial
from edgec.bundle.manifest import ARTIFACT, PLAN, finish
from edgec.bundle.stage import staged
from edgec.calibrate.arrays import Batch
from edgec.calibrate.ports import axis_of
from edgec.calibrate.run import run
from edgec.calibrate.samples import Samples
from edgec.evaluate.fidelity import broken_bounds
from edgec.evaluate.metrics import Setting, judges
from edgec.evaluate.network import NetworkQuality, check_metrics, compare
from edgec.evaluate.setting import TEXT_FILES, setting_of
from edgec.frontends.network import Network, Port
from edgec.fuse.result import Fusions
from edgec.graph.integers import grids_of, network_codes, without_rounding
from edgec.graph.store import Store
from edgec.measure.fingerprint import fingerprint
from edgec.measure.paired import paired_ms, ratio_interval
from edgec.quantize.equalize import equalize
from edgec.quantize.network import Quantized, Rounding, left_float, quantize_static
from edgec.quantize.qdq import halve_weights, quantize_network
from edgec.quantize.smooth import smooth
from edgec.report.model import Integers, Stage
from edgec.report.network import Agreement, NetworkReport, NetworkVerification, Speed
from edgec.report.network_channels import BesideDense
from edgec.report.network_page import network_page
from edgec.spec.load import THIS_MACHINE
from edgec.spec.network_plan import NetworkPlan
from edgec.spec.network_resolve import placement_of
from edgec.spec.plan import encode_plan
from edgec.spec.target import Target

_WRITERS = ("edgec", "numpy", "onnx", "onnx-ir", "onnxscript", "torch")
# Exact mode: what is left is the order in which floats are added.
_EXACT_BOUND = 1e-3
_EXACT_SAMPLES = 8
_PAIRS = 40


def build_network(
    network: Network,
    fusions: Fusions,
    target: Target,
    plan: NetworkPlan,
    out: Path,
    *,
    calibration: Samples | None,
    evaluation: Samples | None,
    metrics: tuple[str, ...],
    say: Say,
) -> NetworkReport:
    """Build, verify and measure the bundle `out`; it appears whole, or not at all.

    Args:
        network: in canonical form, fused.
        fusions: what fused.
        target: the device.
        plan: the resolved plan.
        out: the directory to make.
        calibration: samples for static activations, channels and zeros; None where the plan has none.
        evaluation: samples to measure quality on; None leaves the bundle unverified and unmeasured, as its report says.
        metrics: names of what to measure besides the agreement with the float model.
        say: told of each stage.

    Returns:
        The report, also when its verification failed: the bundle is then written too, for a look at it.

    Raises:
        EdgecError: the samples cannot be used, the model computes something that is not finite, the output cannot be
            written, or the vendor's compiler refuses the graph.
    """
    stages: list[Stage] = []
    backend = get_backend(plan.backend)
    setting = setting_of(network.labels, network.task, network.tokenizer_files)
    if evaluation is not None:
        check_metrics(partial(run, network.model), evaluation, metrics, ports=network.outputs, setting=setting)
    with no_collection(), staged(out) as folder:
        scratch, artifact = folder / "scratch", folder / ARTIFACT
        scratch.mkdir()
        artifact.mkdir()
        left = network
        pruned: tuple[str, ...] = ()
        if plan.channels is not None:
            with stage(stages, "prune"):
                say("prune", 0)
                left = shrink(network, plan, calibration, scratch / "pruned.bin")
        if plan.sparse is not None:
            with stage(stages, "zeros"):
                tick = say("zeros", len(plan.sparse.layers))
                left, pruned = make_sparse(left, plan, calibration, scratch / "sparse.bin", tick)
        with stage(stages, "quantize"):
            made = _quantize(left, target, plan, calibration, scratch, say)
        with stage(stages, "compile"):
            say("compile", 0)
            remarks = backend.compile_network(NetworkJob(made.model, left, plan, target), artifact)
            _write_texts(network, artifact)
        (folder / PLAN).write_bytes(encode_plan(plan))
        not_run = backend.not_run(artifact)
        verification = speed = pruning = None
        if evaluation is not None:
            with stage(stages, "verify"):
                verification = _verify(network, made.model, backend, plan, artifact, evaluation, metrics, setting, say)
        if plan.channels is not None or plan.sparse is not None:
            pruning = evidence(left, made.model, plan, target)
        if evaluation is not None and not_run is None:
            with stage(stages, "measure"):
                speed = _measure(network, target, plan, backend, artifact, scratch, evaluation, say)
            if pruning is not None:
                with stage(stages, "compare with dense"):
                    measured = _race(network, target, plan, made, calibration, evaluation, artifact, scratch, say)
                pruning = msgspec.structs.replace(pruning, measured=measured)
        shutil.rmtree(scratch)
        report = NetworkReport(
            edgec=__version__,
            plan_sha256=plan.sha256(),
            stages=tuple(stages),
            size_bytes={path.name: path.stat().st_size for path in sorted(artifact.iterdir())},
            fused=fusions.fused,
            kept_float=left_float(made, plan.int8),
            evaluation=None if evaluation is None else f"{evaluation.count} samples of {evaluation.name}",
            verification=verification,
            speed=speed,
            pruning=pruning,
            environment=fingerprint(),
            not_run=not_run,
            remarks=(*network.remarks, *_remarks(calibration, evaluation), *pruned, *made.remarks, *remarks),
        )
        finish(folder, report, network_page(plan, report), plan.source.files, (*_WRITERS, *backend.PACKAGES))
    return report


def _write_texts(network: Network, artifact: Path) -> None:
    for name in TEXT_FILES:
        if name in network.tokenizer_files:
            (artifact / name).write_bytes(network.tokenizer_files[name])


def _quantize(
    network: Network, target: Target, plan: NetworkPlan, calibration: Samples | None, scratch: Path, say: Say
) -> Quantized:
    """Return the canonical graph as the plan stores it."""
    wishes, model = plan.wishes, network.model
    with Store(scratch / "weights.bin") as store:
        if wishes.weights == "fp32":
            return Quantized(model, {}, None)
        if wishes.weights == "fp16":
            return Quantized(halve_weights(model, store), {}, None)
        if not wishes.is_static:
            placement = placement_of(model, plan)
            tick = say("quantize", len(placement.weights))
            made = quantize_network(model, placement, {}, store, algorithm=wishes.algorithm, tick=tick)
            return Quantized(made, {}, placement)
    assert calibration is not None
    model, remarks = _scale_channels(model, plan, calibration)
    rounding = Rounding(
        range=wishes.range,
        algorithm=wishes.algorithm,
        grids=plan.grids,
        correct_bias=wishes.correct_bias,
        min_cosine=wishes.verify.min_cosine,
        min_snr_db=wishes.verify.min_snr_db,
        keep_float=wishes.keep_float,
    )
    place = partial(placement_of, model, plan)
    tick = say("calibrate and quantize", 0)
    find_slow = None
    if wishes.fast and target.name == THIS_MACHINE:
        feed, _ = _first(calibration, network.inputs, 1)
        find_slow = Trial(network, plan, target, get_backend(plan.backend), scratch, feed).find_slow
    quantized = quantize_static(model, network.outputs, place, rounding, calibration, scratch, tick, find_slow)
    return replace(quantized, remarks=remarks)


def _scale_channels(model: ir.Model, plan: NetworkPlan, calibration: Samples) -> tuple[ir.Model, tuple[str, ...]]:
    """Return a copy of the float graph whose channels are easier to round, and what was done to them."""
    model, remarks = model.clone(), []
    if plan.wishes.equalize and (pairs := [pair for pair in equalize(model) if pair.refused is None]):
        remarks.append(f"channels between {len(pairs)} pairs of layers were equalized")
    if plan.wishes.smooth:
        found = smooth(model, placement_of(model, plan), calibration.inputs(), symmetric=plan.grids == "signed")
        if found:
            folded = sum(each.folded for each in found)
            remarks.append(f"channels were scaled in front of {len(found)} products, {folded} of them by a norm")
    return model, tuple(remarks)


def _remarks(*samples: Samples | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(remark for some in samples if some is not None for remark in some.remarks))


def _verify(
    network: Network,
    quantized: ir.Model,
    backend: Backend,
    plan: NetworkPlan,
    artifact: Path,
    evaluation: Samples,
    metrics: tuple[str, ...],
    setting: Setting,
    say: Say,
) -> NetworkVerification:
    tick = say("verify", 0)
    integers = check_network_integers(quantized, backend.read_integers(artifact))
    exact = _check_exact(quantized, network, backend, artifact, evaluation)
    session = backend.open_network(artifact, "shipped")

    def ticking(outputs: Iterable[Batch]) -> Iterator[Batch]:
        for output in outputs:
            tick("batch")
            yield output

    quality = compare(
        ticking(run(network.model, evaluation.inputs())),
        map(session.run, evaluation.inputs()),
        evaluation,
        metrics,
        ports=network.outputs,
        setting=setting,
    )
    failures = _broken_bounds(integers, exact, quality, plan)
    return NetworkVerification(integers, exact, quality, failures)


def check_network_integers(canonical: ir.Model, found: Integers8) -> Integers:
    """Compare every int8 weight and every grid of `canonical` with what a backend read back from its artifact."""
    weights = {name: (codes, scales) for name, codes, scales in network_codes(canonical.graph)}
    grids = grids_of(canonical.graph)
    different = [
        name
        for name in sorted({*weights, *found.weights})
        if name not in weights
        or name not in found.weights
        or not np.array_equal(weights[name][0], found.weights[name][0])
        or not np.array_equal(weights[name][1], found.weights[name][1])
    ]
    different += [name for name in sorted({*grids, *found.grids}) if grids.get(name) != found.grids.get(name)]
    return Integers(len(weights), tuple(different), len(grids))


def _check_exact(
    quantized: ir.Model, network: Network, backend: Backend, artifact: Path, evaluation: Samples
) -> Agreement:
    """Compare outputs without rounded activations: what is left is the order in which floats are added."""
    reference = quantized.clone()
    without_rounding(reference.graph)
    session = backend.open_network(artifact, "exact")
    if evaluation.batch < _EXACT_SAMPLES:
        runs = math.ceil(_EXACT_SAMPLES / evaluation.batch)
        feeds, samples = list(islice(evaluation.inputs(), runs)), min(runs * evaluation.batch, evaluation.count)
    else:
        few, samples = _first(evaluation, network.inputs, _EXACT_SAMPLES)
        feeds = [few]
    sides = list(run(reference, feeds)), [session.run(feed) for feed in feeds]
    error = relative = 0.0
    for name in (port.name for port in network.outputs if np.dtype(port.dtype).kind == "f"):
        array, found = (np.concatenate([made[name].ravel() for made in side], dtype=float) for side in sides)
        with np.errstate(invalid="ignore"):  # infinite - infinite
            apart = float(np.where(found == array, 0, np.abs(found - array)).max(initial=0))
        apart = apart if np.isfinite(apart) else float("inf")  # a NaN would be lost in max
        numbers = array[np.isfinite(array)]
        spread = float(numbers.std() or np.abs(numbers).max()) if numbers.size else 0.0
        error, relative = max(error, apart), max(relative, apart / (spread or 1.0))
    return Agreement(error, relative, samples, _EXACT_BOUND)


def _first(samples: Samples, ports: Sequence[Port], count: int) -> tuple[Batch, int]:
    """Return the inputs of the first samples, where the network leaves open how many there are, and their number."""
    batch, _ = next(samples.batches())
    taken = min(samples.batch, samples.count)
    if not isinstance(samples.axis, str) or taken <= count:
        return batch, taken
    axes = {port.name: axis_of(port, samples.axis) for port in ports}
    few = range(count)
    return {name: array if axes[name] is None else array.take(few, axes[name]) for name, array in batch.items()}, count


def _broken_bounds(integers: Integers, exact: Agreement, quality: NetworkQuality, plan: NetworkPlan) -> tuple[str, ...]:
    """Return a sentence for each bound that is broken; a NaN breaks each."""
    found = []
    bounds = plan.verify
    if integers.different:
        found.append(
            f"{len(integers.different)} of {integers.weights + integers.activations} weights and activations are not "
            f"the integers of the canonical graph (first: {integers.different[0]})"
        )
    if not exact.passed:
        found.append(
            f"exact mode: outputs differ from the canonical graph by {exact.relative_error:.2e} standard deviations "
            f"(allowed {exact.bound:.0e})"
        )
    found += broken_bounds(quality.outputs, bounds.min_cosine, bounds.min_snr_db)
    for metric in quality.metrics:
        if not judges(metric.name):
            continue
        loss = None if metric.difference is None else metric.difference * (-1 if metric.higher_is_better else 1)
        if loss is not None and not loss <= bounds.max_drop:
            found.append(f"{metric.name} is worse by {loss:.4f} (allowed at most {bounds.max_drop:g})")
    return tuple(found)


def _measure(
    network: Network,
    target: Target,
    plan: NetworkPlan,
    backend: Backend,
    artifact: Path,
    scratch: Path,
    evaluation: Samples,
    say: Say,
) -> Speed:
    """Time the artifact beside the float network, compiled for the same backend, on one sample."""
    say("measure", 0)
    plain = msgspec.structs.replace(plan.wishes, weights="fp32")
    folder = scratch / "float"
    folder.mkdir()
    backend.compile_network(
        NetworkJob(network.model, network, msgspec.structs.replace(plan, wishes=plain), target), folder
    )
    feed, _ = _first(evaluation, network.inputs, 1)
    shipped, floats = (backend.open_network(path, "shipped") for path in (artifact, folder))
    times = paired_ms(partial(floats.run, feed), partial(shipped.run, feed), pairs=_PAIRS)
    ratio, low, high = ratio_interval(times[:, 0], times[:, 1])
    float_ms, latency_ms = np.median(times, axis=0).tolist()
    shapes = {name: array.shape for name, array in feed.items()}
    return Speed(latency_ms, float_ms, ratio, low, high, shapes)


def _race(
    network: Network,
    target: Target,
    plan: NetworkPlan,
    made: Quantized,
    calibration: Samples | None,
    evaluation: Samples,
    artifact: Path,
    scratch: Path,
    say: Say,
) -> BesideDense:
    """Time the artifact beside the dense network, which is quantized the same way, on one sample."""
    folder = scratch / "dense"
    folder.mkdir()
    dense = dense_plan(plan, frozenset(made.kept_float))
    quantized = _quantize(network, target, dense, calibration, folder, say)
    out = folder / ARTIFACT
    out.mkdir()
    _write_texts(network, out)
    feed, _ = _first(evaluation, network.inputs, 1)
    return race(artifact, NetworkJob(quantized.model, network, dense, target), out, feed)
