"""`edgec eval`: measure the quality of a bundle on a text."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgec.cli import _network, _network_eval
from edgec.cli._console import json_option, print_json, print_table, progress, say
from edgec.errors import require

if TYPE_CHECKING:
    from edgec.evaluate.corpus import Corpus
    from edgec.evaluate.divergence import Divergence


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), metavar="BUNDLE")
@click.option("--eval-text", type=click.Path(path_type=Path), metavar="FILE", help="UTF-8 text.  [default: the plan's]")
@click.option(
    "--source", metavar="CHECKPOINT", help="Compare with this checkpoint, token by token or sample by sample."
)
@click.option("--eval-data", metavar="PATH", help="Samples to measure a network on.")
@_network.metric_option
@click.option("--samples", type=click.IntRange(min=1), help="How many, of a network.  [default: the plan's]")
@_network.source_options
@click.option("--tokens", type=click.IntRange(min=2), help="How many tokens.  [default: the plan's]")
@click.option("--window", type=click.IntRange(min=2), help="Tokens in one window.  [default: the plan's]")
@click.option("--ignore-config", multiple=True, metavar="KEY", help="As for build; with --source.")
@json_option
def command(
    bundle: Path,
    eval_text: Path | None,
    source: str | None,
    tokens: int | None,
    window: int | None,
    eval_data: str | None,
    metrics: tuple[str, ...],
    samples: int | None,
    task: str | None,
    inputs: tuple[str, ...],
    state: Path | None,
    fixed: tuple[str, ...],
    ignore_config: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure the quality of BUNDLE in shipped mode: perplexity, or for other models what --metric names.

    With --source also how far it is from the checkpoint that it was built from; that needs the `build` extra.
    """
    from edgec.backends.backend import backend_of
    from edgec.bundle.open import find_artifact, is_network_bundle, read_plan
    from edgec.evaluate.corpus import load_corpus
    from edgec.generate.tokenizer import Tokenizer

    if is_network_bundle(bundle):
        from edgec.frontends.source import NetworkOptions

        _network.refuse(
            "is for decoder language models", eval_text=eval_text, tokens=tokens, window=window,
            ignore_config=ignore_config,
        )  # fmt: skip
        options = NetworkOptions(task, inputs, state, fixed)
        _network_eval.evaluate(bundle, source, options, eval_data, metrics, samples, as_json=as_json)
        return
    _network.refuse(
        "is for other models than decoder language models", eval_data=eval_data, metric=metrics, samples=samples,
        task=task, input=inputs, state=state, fix=fixed,
    )  # fmt: skip
    if source:
        require("onnx_ir", "build")
    artifact, plan = find_artifact(bundle), read_plan(bundle)
    if note := backend_of(artifact).not_run(artifact):
        say(f"note: {note}")
    corpus = load_corpus(
        eval_text or plan.verify.text,
        Tokenizer.from_directory(artifact),
        tokens=tokens or plan.verify.tokens,
        window=min(window or plan.verify.window, plan.context_length),
    )
    with progress() as bar:
        step = bar.add_task("evaluate", total=None)

        def tick(_: str) -> None:
            bar.advance(step)

        if source:
            rows = _rows(_against_source(artifact, source, corpus, ignore_config, tick))
        else:
            rows = _alone(artifact, corpus, tick)
    if as_json:
        values = {name: {"value": value, "standard_error": error} for name, value, error in rows}
        print_json({"text": corpus.name, "text_sha256": corpus.sha256, "windows": len(corpus.windows), **values})
    else:
        title = f"{len(corpus.windows)} windows of {corpus.windows.shape[1]} tokens of {corpus.name}"
        print_table(("", "value", "standard error"), [(n, f"{v:.6g}", f"{e:.2g}") for n, v, e in rows], title=title)


Row = tuple[str, float, float]


def _alone(artifact: Path, corpus: "Corpus", tick: Callable[[str], None]) -> list[Row]:
    from edgec.backends.backend import backend_of
    from edgec.evaluate.perplexity import perplexity

    session = backend_of(artifact).open_session(artifact, "evaluate", max_length=corpus.windows.shape[1])
    result = perplexity(session, corpus.windows, tick)
    return [("perplexity", result.perplexity, result.perplexity_se)]


def _against_source(
    artifact: Path, source: str, corpus: "Corpus", ignore_config: tuple[str, ...], tick: Callable[[str], None]
) -> "Divergence":
    from functools import partial
    from tempfile import TemporaryDirectory

    from edgec.backends.backend import backend_of
    from edgec.checkpoint.model import read_finite
    from edgec.checkpoint.open import open_checkpoint
    from edgec.evaluate.streamed import Streamed
    from edgec.evaluate.verify import compare
    from edgec.frontends.decoder import emit
    from edgec.frontends.families import describe
    from edgec.graph.blocks import cut

    checkpoint = open_checkpoint(source)
    decoder = describe(checkpoint, frozenset(ignore_config))
    length = corpus.windows.shape[1]
    model = emit(decoder, checkpoint, lambda name: read_finite(checkpoint, name), length)
    with TemporaryDirectory(prefix="edgec-") as scratch:
        original = Streamed(cut(model), Path(scratch))
        open_session = partial(backend_of(artifact).open_session, artifact, "evaluate", max_length=length)
        return compare(original, open_session, corpus.windows, tick)


def _rows(result: "Divergence") -> list[Row]:
    return [
        ("perplexity", result.test_perplexity, result.test_perplexity_se),
        ("source_perplexity", result.reference_perplexity, result.reference_perplexity_se),
        ("perplexity_ratio", result.perplexity_ratio, result.perplexity_ratio_se),
        ("mean_kl", result.mean_kl, result.mean_kl_se),
        ("top1_agreement", result.top1_agreement, result.top1_agreement_se),
    ]
