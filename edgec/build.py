"""The straight line from a checkpoint to a bundle."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec import __version__
from edgec.backends.backend import Backend, Job, get_backend
from edgec.build_calibration import check_device, device_of, planned_text
from edgec.build_prune import Left, evidence, pruning_of, race, shrink
from edgec.build_ranges import has_ranges, with_ranges
from edgec.bundle.manifest import ARTIFACT, PLAN, finish
from edgec.bundle.stage import staged
from edgec.calibrate.cache import cache_dir
from edgec.calibrate.dataset import Dataset
from edgec.calibrate.overlap import check_overlap
from edgec.calibrate.ranges import measure_clips
from edgec.checkpoint.model import Checkpoint
from edgec.evaluate.corpus import Corpus
from edgec.evaluate.integers import check_integers
from edgec.evaluate.streamed import Streamed
from edgec.evaluate.verify import blame, broken_bounds, check_exact, compare
from edgec.frontends.architecture import Decoder
from edgec.generate.tokenizer import Tokenizer
from edgec.graph.blocks import cut
from edgec.graph.store import Store
from edgec.graph.weights import matrix_name
from edgec.measure.fingerprint import fingerprint
from edgec.measure.latency import DecoderLatency, measure_decoder
from edgec.measure.memory import peak_rss_bytes, peak_rss_of_children_bytes
from edgec.quantize.block import Recipe
from edgec.quantize.results import Results
from edgec.quantize.sequential import quantize_model
from edgec.quantize.transforms import ROTATION
from edgec.quantize.weights import needs_stats, quantize_weights
from edgec.report.model import Blame, EvaluationText, Report, Stage, Verification
from edgec.report.page import page
from edgec.spec.plan import Plan, encode_plan
from edgec.spec.target import Target

Tick = Callable[[str], object]
Say = Callable[[str, int], Tick]
"""Announce a stage by its name and number of steps; returns what to call after each step."""

# Packages that decide the bytes of every artifact.
_WRITERS = ("edgec", "numpy", "onnx", "onnx-ir", "torch")
_LATENCY = {"prompt_tokens": 64, "new_tokens": 32, "repeats": 3, "warmup": 1}


def build(
    checkpoint: Checkpoint,
    decoder: Decoder,
    target: Target,
    plan: Plan,
    out: Path,
    *,
    corpus: Corpus | None,
    say: Say,
    ignored: frozenset[str] = frozenset(),
) -> Report:
    """Build, verify and measure the bundle `out`; it appears whole, or not at all.

    Args:
        checkpoint: the opened checkpoint.
        decoder: its description.
        target: the device.
        plan: the resolved plan for all three.
        out: the directory to make.
        corpus: the text to measure quality on; None leaves the bundle unverified and unmeasured, as its report says.
        say: told of each stage.
        ignored: keys of config.json that the user declared harmless.

    Returns:
        The report, also when its verification failed: the bundle is then written too, for a look at it.

    Raises:
        EdgecError: the checkpoint is refused, the output cannot be written, or the text of calibration cannot be used,
            changed since it was planned with, or is also that of evaluation; or there is no GPU to calibrate on.
    """
    dataset = _dataset(checkpoint.tokenizer_files(), plan, corpus)
    stages: list[Stage] = []
    backend = get_backend(plan.backend)
    with no_collection(), staged(out) as folder:
        scratch, artifact = folder / "scratch", folder / ARTIFACT
        scratch.mkdir()
        artifact.mkdir()
        with stage(stages, "open"):
            tokenizer_files = checkpoint.tokenizer_files()
            left = dense = Left(checkpoint, decoder, None)
        if plan.slim is not None:
            with stage(stages, "prune"):
                left = shrink(dense, plan, _windows(dataset), ignored, say("prune", 0))
        canonical, results = left.graph(plan), None
        if plan.sparse is not None or (dataset is not None and _is_calibrated(plan)):
            with stage(stages, "calibrate"):
                results = _calibrate(canonical, left, _windows(dataset), plan, say("calibrate", 0))
                results.put_floats(canonical)
        with stage(stages, "quantize"), Store(scratch / "weights.bin") as store:
            tick = say("quantize", _count_weights(left.decoder))
            known = results.codes if results else lambda _: None
            quantize_weights(canonical, lambda value, _: plan.storage_of(matrix_name(value)), store, tick, known)
        shipped = canonical
        if dataset is not None and has_ranges(plan):
            with stage(stages, "find ranges"):
                shipped = with_ranges(canonical, plan, partial(_find_clips, canonical, dataset, scratch, say))
        with stage(stages, "compile"):
            tick = say("compile", 0)
            job = Job(shipped, left.decoder, plan, target, left.checkpoint.config, tokenizer_files)
            remarks = backend.compile_decoder(job, artifact, tick)
        (folder / PLAN).write_bytes(encode_plan(plan))
        verification = latency = pruning = None
        not_run = backend.not_run(artifact)
        if corpus is not None:
            with stage(stages, "verify"):
                graphs = _Graphs(dense.graph(plan, ()), left.graph(plan), canonical, shipped)
                verification = _verify(graphs, backend, plan, corpus, scratch, artifact, say)
        runs = corpus is not None and not_run is None
        if runs:
            with stage(stages, "measure"):
                latency = _measure(backend, artifact, plan, say)
        if plan.slim is not None or plan.sparse is not None:
            with stage(stages, "compare with dense"):
                pruning = evidence(dense, left, canonical, target, plan)
                if runs:
                    pruning = msgspec.structs.replace(pruning, measured=race(dense, target, plan, artifact, scratch))
        _remove_scratch(scratch)
        report = Report(
            edgec=__version__,
            plan_sha256=plan.sha256(),
            stages=tuple(stages),
            size_bytes={path.name: path.stat().st_size for path in sorted(artifact.iterdir())},
            text=_text(corpus),
            verification=verification,
            latency=latency,
            not_run=not_run,
            remarks=(*(dataset.remarks if dataset else ()), *(results.remarks if results else ()), *remarks),
            environment=fingerprint(),
            pruning=pruning,
        )
        finish(folder, report, page(plan, report), plan.source.files, (*_WRITERS, *backend.PACKAGES))
    return report


@contextmanager
def no_collection() -> Iterator[None]:
    """Switch Python's cycle collector off: graphs live to the end, and scanning them takes a sixth of a build."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def stage(stages: list[Stage], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    stages.append(Stage(name, time.perf_counter() - start, max(peak_rss_bytes(), peak_rss_of_children_bytes())))


def _count_weights(decoder: Decoder) -> int:
    per_layer = sum(7 if layer.mlp.gate else 6 for layer in decoder.layers)
    return per_layer + (1 if decoder.tied else 2)


def _dataset(tokenizer_files: dict[str, bytes], plan: Plan, corpus: Corpus | None) -> Dataset | None:
    """Return what to calibrate on, None where algorithms look at weights alone."""
    weighs = _is_calibrated(plan) or (plan.slim is not None and plan.slim.reads_text)
    if plan.calibration is None or not (weighs or has_ranges(plan)):
        return None
    if weighs:
        check_device(plan)
    tokenizer = Tokenizer.from_files(tokenizer_files)
    dataset = planned_text(plan, tokenizer)
    shared = () if corpus is None else check_overlap(dataset, corpus, tokenizer)
    return msgspec.structs.replace(dataset, remarks=(*dataset.remarks, *shared))


def _windows(dataset: Dataset | None) -> NDArray[np.int64] | None:
    return None if dataset is None else dataset.windows


def _is_calibrated(plan: Plan) -> bool:
    """Say whether weights become 0, or are quantized better, by what flows through the model."""
    sparse = plan.sparse is not None and plan.sparse.reads_text
    return sparse or bool(_scalings(plan)) or any(map(needs_stats, plan.storages()))


def _scalings(plan: Plan) -> tuple[str, ...]:
    return tuple(name for name in plan.transforms if name != ROTATION)


def _calibrate(model: ir.Model, left: Left, windows: NDArray[np.int64] | None, plan: Plan, tick: Tick) -> Results:
    """Prune and quantize the weights with what the text shows; what is on disk already is not done again."""
    source, steps = left.key(plan), plan.calibration.steps if plan.calibration else 0
    pruning = pruning_of(model, plan, windows, source, tick)
    recipe = Recipe(source, plan.storage_of, _scalings(plan), device_of(plan), steps, pruning)
    return quantize_model(model, windows, recipe, cache_dir() / "calibration", tick)


def _find_clips(
    canonical: ir.Model, dataset: Dataset, scratch: Path, say: Say, parts: Mapping[str, int], method: str
) -> Mapping[str, NDArray[np.float64]]:
    return measure_clips(canonical, parts, dataset.windows, scratch, method=method, tick=say("find ranges", 0))


class _Graphs(NamedTuple):
    """The model as it came, what is left of it, the same quantized, and with rounded activations and cache."""

    source: ir.Model
    floats: ir.Model
    canonical: ir.Model
    shipped: ir.Model


def _verify(
    graphs: _Graphs,
    backend: Backend,
    plan: Plan,
    corpus: Corpus,
    scratch: Path,
    artifact: Path,
    say: Say,
) -> Verification:
    windows, length = corpus.windows, corpus.windows.shape[1]
    quantized = Streamed(cut(graphs.canonical), scratch)
    original = Streamed(cut(graphs.source), scratch)
    tick = say("verify", len(original.blocks) + len(windows))

    open_session = partial(backend.open_session, artifact, max_length=length)
    integers = check_integers(graphs.shipped, backend.read_codes(artifact), backend.read_scales(artifact))
    exact = check_exact(partial(open_session, "exact"), quantized, windows[0], plan.verify.max_logit_error)
    found = compare(original, partial(open_session, "evaluate"), windows, tick)
    failures = broken_bounds(integers, exact, found, plan.verify)
    guilty: tuple[Blame, ...] = ()
    if failures:
        # Blocks of a rotated or slimmer model fit those of its own floats.
        guilty = blame(Streamed(cut(graphs.floats), scratch), cut(graphs.shipped), windows, say("find the cause", 8))
    return Verification(integers, exact, found, failures, guilty)


def _text(corpus: Corpus | None) -> EvaluationText | None:
    if corpus is None:
        return None
    return EvaluationText(corpus.name, corpus.sha256, corpus.windows.size, len(corpus.windows))


def _measure(backend: Backend, artifact: Path, plan: Plan, say: Say) -> DecoderLatency:
    say("measure", 0)
    length = min(plan.context_length, _LATENCY["prompt_tokens"] + _LATENCY["new_tokens"])
    new = min(_LATENCY["new_tokens"], length // 2)
    session = backend.open_session(artifact, "generate", max_length=length)
    return measure_decoder(session, **{**_LATENCY, "prompt_tokens": length - new, "new_tokens": new})


def _remove_scratch(scratch: Path) -> None:
    for path in scratch.iterdir():
        path.unlink()
    scratch.rmdir()
