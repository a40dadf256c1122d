"""`edgec build`: checkpoint in, verified bundle out."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli import _network
from edgec.cli._console import json_option, print_json, print_table, progress, say
from edgec.cli.plan import DECODER_PROFILE, plan_options, resolve_plan
from edgec.errors import OutputError, RegressionError, require

if TYPE_CHECKING:
    from edgec.evaluate.corpus import Corpus
    from edgec.report.model import Integers, Report, Verification
    from edgec.spec.plan import Plan

# Of the whole divergence: what the worst group of layers alone must make to be blamed.
_EXPLAINS = 0.1


@click.command()
@plan_options
@_network.source_options
@_network.data_option
@click.option("--eval-data", metavar="PATH", help="Samples to measure a network on.  [default: text, if it takes it]")
@_network.metric_option
@click.option("--out", "-o", type=click.Path(path_type=Path), metavar="DIR", help="The bundle to make.")
@click.option("--eval-text", type=click.Path(path_type=Path), metavar="FILE", help="Text to measure quality on.")
@click.option("--no-verify", is_flag=True, help="Skip verification and measurement; the report says so.")
@json_option
def command(
    checkpoint: str,
    target: str,
    profile: str | None,
    backend: str | None,
    ignore_config: tuple[str, ...],
    no_fallback: bool,
    task: str | None,
    inputs: tuple[str, ...],
    state: Path | None,
    fixed: tuple[str, ...],
    calibration_data: str | None,
    eval_data: str | None,
    metrics: tuple[str, ...],
    out: Path | None,
    eval_text: Path | None,
    no_verify: bool,
    as_json: bool,
) -> None:
    """Compile CHECKPOINT into a verified bundle for a target.

    CHECKPOINT is a Hugging Face directory, a GGUF file or a hub id; for other models than decoder language models also
    an .onnx file, a .pt2 file, or package.module:factory, which is imported and called. The bundle appears whole or not
    at all. Exit code 1 means that it was built, but is outside the profile's bounds.
    """
    from edgec.backends.backend import get_backend
    from edgec.frontends.source import NetworkOptions, is_network

    if is_network(checkpoint, task):
        _network.refuse(
            "is for decoder language models", eval_text=eval_text, ignore_config=ignore_config, no_fallback=no_fallback
        )
        if no_verify:
            _network.refuse("measures nothing with --no-verify", metric=metrics)
        options = NetworkOptions(task, inputs, state, fixed)
        found = _network.resolve(checkpoint, target, profile or _network.PROFILE, backend, options, calibration_data)
        _build_network(found, checkpoint, out, eval_data, metrics, verify=not no_verify, as_json=as_json)
        return
    _network.refuse(
        "is for other models than decoder language models", calibration_data=calibration_data, eval_data=eval_data,
        metric=metrics, input=inputs, state=state, fix=fixed,
    )  # fmt: skip
    opened, decoder, device, plan, kernels = resolve_plan(
        checkpoint, target, profile or DECODER_PROFILE, backend, ignore_config, no_fallback
    )
    bundle = _bundle(out, opened.path.stem if opened.path.is_file() else opened.path.name, plan.target, plan.profile)
    require("torch", "build")
    require("onnx_ir", "build")
    get_backend(plan.backend).require_compiler(device)
    corpus = None if no_verify else evaluation_corpus(opened.tokenizer_files(), plan, eval_text)

    from edgec.build import build

    with progress() as bar:
        report = build(
            opened, decoder, device, plan, bundle,
            corpus=corpus, say=_announcer(bar), ignored=frozenset(ignore_config),
        )  # fmt: skip
    if as_json:
        print_json({"bundle": bundle, "plan": plan, "report": report})
    else:
        _show(plan, report)
        if kernels.fallbacks:
            say(f"{len(kernels.fallbacks)} operations fall back on {plan.target}: `edgec plan` says which, and why")
        say(f"bundle: {bundle}")
    if report.verification and report.verification.failures:
        raise RegressionError(
            "the bundle was built, but is outside its profile's bounds: " + "; ".join(report.verification.failures),
            where=str(bundle),
            hint=_advice(plan, report.verification),
        )


def _build_network(
    found: _network.Resolved,
    source: str,
    out: Path | None,
    eval_data: str | None,
    metrics: tuple[str, ...],
    *,
    verify: bool,
    as_json: bool,
) -> None:
    bundle = _bundle(out, Path(source.replace(":", ".")).stem, found.plan.target, found.plan.profile)
    with progress() as bar:
        report = _network.build(found, bundle, eval_data, metrics, _announcer(bar), verify=verify)
    if as_json:
        print_json({"bundle": bundle, "plan": found.plan, "report": report})
    else:
        from edgec.report.network import summary

        build = ", ".join(f"{stage.name} {stage.seconds:.1f} s" for stage in report.stages)
        memory = f"{max(stage.peak_rss_bytes for stage in report.stages) / 2**20:.0f} MiB"
        print_table(("", ""), [*summary(found.plan, report), ("build", build), ("peak memory", memory)])
        say(f"bundle: {bundle}")
    if report.verification and report.verification.failures:
        raise RegressionError(
            "the bundle was built, but is outside its profile's bounds: " + "; ".join(report.verification.failures),
            where=str(bundle),
            hint="remove less, train what is left (`edgec prune`), or allow for it"
            if found.plan.channels or found.plan.sparse
            else "try another range or `equalize`, let more nodes stay in float (`keep_float`), or allow for it",
        )


def _bundle(out: Path | None, name: str, target: str, profile: str) -> Path:
    """Return where the bundle goes; nothing is there yet."""
    bundle = out or Path(f"{name}-{target}-{profile}")
    if bundle.exists():
        raise OutputError(f"'{bundle}' exists already", hint="choose another name with --out, or remove it first")
    return bundle


def _announcer(bar: Any) -> Callable[[str, int], Callable[[str], object]]:
    def announce(stage: str, steps: int) -> Callable[[str], object]:
        task = bar.add_task(stage, total=steps or None)
        return lambda _: bar.advance(task)

    return announce


def _advice(plan: "Plan", verification: "Verification") -> str:
    if plan.slim is not None or plan.sparse is not None:
        return "remove less, or other parts, or train what is left (`edgec prune` writes it as a checkpoint)"
    worst = verification.blame[0]
    if worst.mean_kl < _EXPLAINS * verification.shipped.mean_kl:
        return "no weights explain it: the runtime's own activations or cache cost this; allow for it in the profile"
    return (
        f"quantizing {worst.group} hurts most (mean KL {worst.mean_kl:.4f} alone): "
        "give it more bits, or choose a profile with smaller groups"
    )


def evaluation_corpus(tokenizer_files: dict[str, bytes], plan: "Plan", text: Path | None) -> "Corpus":
    """Return the text that quality is measured on: `text`, or the one that the plan names."""
    from edgec.evaluate.corpus import load_corpus
    from edgec.generate.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_files(tokenizer_files)
    window = min(plan.verify.window, plan.context_length)
    return load_corpus(text or plan.verify.text, tokenizer, tokens=plan.verify.tokens, window=window)


def _integers(found: "Integers") -> str:
    if found.different:
        return f"{len(found.different)} of {found.weights} weights differ from the canonical graph"
    scales = f", and the scales of {found.activations} activations" if found.activations else ""
    return (
        f"{found.weights} weights as in the canonical graph, bit for bit{scales}"
        if found.weights
        else "no weights are integers"
    )


def _show(plan: "Plan", report: "Report") -> None:
    from edgec.report.page import prediction_rows, storage_rows, zeros_rows

    size = sum(report.size_bytes.values())
    rows = [
        *storage_rows(plan),
        ("size", f"{size / 2**20:.1f} MiB"),
        ("build", ", ".join(f"{s.name} {s.seconds:.1f} s" for s in report.stages)),
        ("peak memory", f"{max(s.peak_rss_bytes for s in report.stages) / 2**20:.0f} MiB"),
    ]
    if report.not_run is not None:
        rows.append(("not run here", report.not_run))
    rows += [("remark", remark) for remark in report.remarks]
    if report.verification is None:
        rows.append(("verification", "skipped"))
    else:
        shipped, exact = report.verification.shipped, report.verification.exact
        perplexity = f"{shipped.reference_perplexity:.3f} -> {shipped.test_perplexity:.3f}"
        ratio = f"{shipped.perplexity_ratio:.4f} +- {shipped.perplexity_ratio_se:.4f}"
        rows += [
            ("integers", _integers(report.verification.integers)),
            ("exact mode", f"logits within {exact.max_error:.1e} of the canonical graph"),
            ("perplexity", f"{perplexity}, ratio {ratio}"),
            ("KL divergence", f"{shipped.mean_kl:.5f} +- {shipped.mean_kl_se:.5f} nats"),
            ("top-1 agreement", f"{100 * shipped.top1_agreement:.2f} +- {100 * shipped.top1_agreement_se:.2f} %"),
        ]
    if report.pruning is not None:
        rows += prediction_rows(report.pruning.predicted, report.pruning.measured)
        rows += zeros_rows(report.pruning.zeros)
        rows += [] if report.pruning.measured else [("beside the dense model", "predicted, not measured")]
    if report.latency is not None:
        latency = report.latency
        speed = f"first token {latency.ttft_ms:.1f} ms, decode {latency.decode_tokens_per_s:.1f} tokens/s"
        rows.append(("speed here", speed))
    print_table(("", ""), rows)
