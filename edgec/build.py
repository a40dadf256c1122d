"""The straight line from a checkpoint to a bundle."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec
import onnx_ir as ir

from edgec import __version__
from edgec.backends.backend import Backend, Job, get_backend
from edgec.bundle.manifest import ARTIFACT, MANIFEST, PLAN, REPORT, REPORT_PAGE, make_manifest, versions
from edgec.bundle.stage import staged
from edgec.calibrate.importance import measure_importance
from edgec.calibrate.stats import Stats
from edgec.checkpoint.model import Checkpoint, read_finite
from edgec.errors import UsageError
from edgec.evaluate.corpus import Corpus, load_corpus
from edgec.evaluate.integers import check_integers
from edgec.evaluate.streamed import Streamed
from edgec.evaluate.verify import blame, broken_bounds, check_exact, compare
from edgec.frontends.architecture import Decoder
from edgec.frontends.decoder import emit
from edgec.generate.tokenizer import Tokenizer
from edgec.graph.blocks import cut
from edgec.graph.store import Store
from edgec.graph.weights import Kind
from edgec.measure.fingerprint import fingerprint
from edgec.measure.latency import DecoderLatency, measure_decoder
from edgec.measure.memory import peak_rss_bytes, peak_rss_of_children_bytes
from edgec.quantize.weights import needs_stats, quantize_weights
from edgec.report.model import EvaluationText, Report, Stage, Verification
from edgec.report.page import page
from edgec.spec.operation import Storage
from edgec.spec.plan import CalibrationText, Plan, encode_plan
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

    Returns:
        The report, also when its verification failed: the bundle is then written too, for a look at it.

    Raises:
        EdgecError: the checkpoint is refused, the output cannot be written, or the texts of calibration and evaluation
            are the same.
    """
    calibration = _calibration(plan, corpus)
    stages: list[Stage] = []
    backend = get_backend(plan.backend)
    with _no_collection(), staged(out) as folder:
        scratch, artifact = folder / "scratch", folder / ARTIFACT
        scratch.mkdir()
        artifact.mkdir()
        with _stage(stages, "open"):
            tokenizer_files = checkpoint.tokenizer_files()
            source = _emit(decoder, checkpoint, plan)
        stats: dict[str, Stats] = {}
        if calibration is not None:
            with _stage(stages, "calibrate"):
                stats = _calibrate(source, tokenizer_files, calibration, scratch, say)
        with _stage(stages, "quantize"), Store(scratch / "weights.bin") as store:
            tick = say("quantize", _count_weights(decoder))
            canonical = quantize_weights(_emit(decoder, checkpoint, plan), _choice(plan), store, tick, stats)
        with _stage(stages, "compile"):
            tick = say("compile", 0)
            job = Job(canonical, decoder, plan, target, checkpoint.config, tokenizer_files)
            remarks = backend.compile_decoder(job, artifact, tick)
        (folder / PLAN).write_bytes(encode_plan(plan))
        verification = latency = None
        not_run = backend.not_run(artifact)
        if corpus is not None:
            with _stage(stages, "verify"):
                verification = _verify(source, canonical, backend, plan, corpus, scratch, artifact, say)
        if corpus is not None and not_run is None:
            with _stage(stages, "measure"):
                latency = _measure(backend, artifact, plan, say)
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
            remarks=remarks,
            environment=fingerprint(),
        )
        (folder / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
        (folder / REPORT_PAGE).write_text(page(plan, report))
        manifest = make_manifest(folder, plan.source.files, versions((*_WRITERS, *backend.PACKAGES)))
        (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    return report


@contextmanager
def _no_collection() -> Iterator[None]:
    """Switch Python's cycle collector off: graphs live to the end, and scanning them takes a sixth of a build."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def _stage(stages: list[Stage], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    stages.append(Stage(name, time.perf_counter() - start, max(peak_rss_bytes(), peak_rss_of_children_bytes())))


def _emit(decoder: Decoder, checkpoint: Checkpoint, plan: Plan) -> ir.Model:
    return emit(decoder, checkpoint, lambda name: read_finite(checkpoint, name), plan.context_length)


def _count_weights(decoder: Decoder) -> int:
    per_layer = sum(7 if layer.mlp.gate else 6 for layer in decoder.layers)
    return per_layer + (1 if decoder.tied else 2)


def _calibration(plan: Plan, corpus: Corpus | None) -> CalibrationText | None:
    """Return the text to calibrate on, None where algorithms look at weights alone."""
    if plan.calibration is None or not (needs_stats(plan.weights) or needs_stats(plan.embedding)):
        return None
    if corpus is not None and plan.calibration.sha256 == corpus.sha256:
        raise UsageError(
            "the text of calibration is the one that quality is measured on",
            where=plan.calibration.text,
            hint="measure on another text, with --eval-text",
        )
    return plan.calibration


def _calibrate(
    source: ir.Model, tokenizer_files: dict[str, bytes], text: CalibrationText, scratch: Path, say: Say
) -> dict[str, Stats]:
    tokenizer = Tokenizer.from_files(tokenizer_files)
    corpus = load_corpus(text.text, tokenizer, tokens=text.tokens, window=text.window, purpose="calibration")
    return measure_importance(source, corpus.windows, scratch, say("calibrate", 0))


def _choice(plan: Plan) -> Callable[[ir.Value, Kind], Storage]:
    """Return what the plan says about each weight: tables and output matrices follow `embedding`."""

    def choose(value: ir.Value, kind: Kind) -> Storage:
        is_head = any(use.node.name == "lm_head" for use in value.uses())
        return plan.embedding if kind == "table" or is_head else plan.weights

    return choose


def _verify(
    source: ir.Model,
    canonical: ir.Model,
    backend: Backend,
    plan: Plan,
    corpus: Corpus,
    scratch: Path,
    artifact: Path,
    say: Say,
) -> Verification:
    windows, length = corpus.windows, corpus.windows.shape[1]
    quantized = Streamed(cut(canonical), scratch)
    original = Streamed(cut(source), scratch)
    tick = say("verify", len(original.blocks) + len(windows))

    open_session = partial(backend.open_session, artifact, max_length=length)
    integers = check_integers(canonical, backend.read_codes(artifact))
    exact = check_exact(partial(open_session, "exact"), quantized, windows[0], plan.verify.max_logit_error)
    shipped = compare(original, partial(open_session, "evaluate"), windows, tick)
    failures = broken_bounds(integers, exact, shipped, plan.verify)
    guilty = blame(original, quantized.blocks, windows, say("find the cause", 8)) if failures else ()
    return Verification(integers, exact, shipped, failures, guilty)


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
