"""`edgec eval`: measure the quality of a bundle on a text."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli._console import json_option, print_json, print_table, progress
from edgec.errors import require

if TYPE_CHECKING:
    from edgec.evaluate.corpus import Corpus
    from edgec.evaluate.divergence import Divergence


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), metavar="BUNDLE")
@click.option("--eval-text", type=click.Path(path_type=Path), metavar="FILE", help="UTF-8 text, documents apart by blank lines.")
@click.option("--source", metavar="CHECKPOINT", help="Compare with this checkpoint, token by token.")
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
    ignore_config: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure the perplexity of BUNDLE in shipped mode.

    With --source also its perplexity ratio, KL divergence and top-1 agreement against the checkpoint that it was built
    from; that needs the `build` extra.
    """
    from edgec.bundle.artifact import find_artifact, read_plan
    from edgec.evaluate.corpus import load_corpus
    from edgec.generate.tokenizer import Tokenizer

    if source:
        require("onnx_ir", "build")
    artifact = find_artifact(bundle)
    plan = read_plan(bundle)
    bounds = plan.verify
    corpus = load_corpus(
        eval_text or bounds.text,
        Tokenizer.from_directory(artifact),
        tokens=tokens or bounds.tokens,
        window=min(window or bounds.window, plan.context_length),
    )
    result: Any
    with progress() as bar:
        task = bar.add_task("evaluate", total=None)
        tick = lambda _: bar.advance(task)  # noqa: E731
        if source:
            result = _against_source(artifact, source, corpus, ignore_config, plan.context_length, tick)
        else:
            result = _alone(artifact, corpus, tick)
    summary = {"text": corpus.name, "text_sha256": corpus.sha256, "windows": len(corpus.windows)}
    if as_json:
        print_json({**summary, "result": result})
    else:
        print_table(("", "value", "standard error"), _rows(result), title=f"{corpus.name}: {result.tokens} predictions")
