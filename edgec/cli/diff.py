"""`edgec diff`: compare two models layer by layer."""

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli._console import json_option, print_json, print_table, say
from edgec.errors import RegressionError, UsageError, require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgec.backends.backend import Mode
    from edgec.evaluate.corpus import Corpus
    from edgec.evaluate.layers import Comparison, Side
    from edgec.report.model import Integers

_EXACT_MIN_SNR_DB = 60.0
_NAMES_SHOWN = 5


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--exact", is_flag=True, help="Compare with float32 activations and cache, not as they ship.")
@click.option(
    "--min-snr",
    type=float,
    metavar="DB",
    help="The least that a layer's signal-to-noise ratio may be.  [default: 60 for two artifacts with --exact]",
)
@click.option("--max-kl", type=float, metavar="NATS", help="The most that the mean KL divergence may be.")
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE", help="UTF-8 text.  [default: python-docs]")
@click.option("--tokens", type=click.IntRange(min=3), default=256, show_default=True, help="How many tokens.")
@click.option("--ignore-config", multiple=True, metavar="KEY", help="As for build, for a checkpoint.")
@json_option
def command(
    a: str,
    b: str,
    exact: bool,
    min_snr: float | None,
    max_kl: float | None,
    text: Path | None,
    tokens: int,
    ignore_config: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compare B with A, the reference, layer by layer, and find where they part.

    Each is a bundle, an artifact, or a checkpoint (which always runs in float32). Exit code 1 means that a bound is
    broken.
    """
    require("onnx_ir", "build")
    from edgec.evaluate.integers import compare_integers
    from edgec.evaluate.layers import compare_layers, open_side

    sides = [open_side(path, frozenset(ignore_config)) for path in (a, b)]
    for side in sides:
        if side.note:
            say(f"{side.path}: {side.note}")
    reference, test = sides
    corpus = _corpus(reference, test, text, tokens)
    window = corpus.windows[:1]
    mode: Mode = "exact" if exact else "evaluate"
    layers = compare_layers(reference.trace(window, mode), test.trace(window, mode), window)
    integers = None
    if reference.codes and test.codes and len(layers.states) > 1:  # other tools' artifacts have logits alone
        integers = compare_integers(reference.codes(), test.codes())
        if exact and min_snr is None:
            min_snr = _EXACT_MIN_SNR_DB
    failures = _failures(layers, min_snr, max_kl)
    if as_json:
        print_json(_document(sides, mode, corpus, layers, integers, failures))
    else:
        _print(sides, mode, corpus, layers, integers)
    if failures:
        raise RegressionError("; ".join(failures), where=b)


def _corpus(reference: "Side", test: "Side", text: Path | None, tokens: int) -> "Corpus":
    """Return one window of text that both models tokenise alike, at most as long as the shorter context."""
    from edgec.evaluate.corpus import PYTHON_DOCS, load_corpus

    window = min(tokens, reference.context_length, test.context_length)
    a, b = (
        load_corpus(text or PYTHON_DOCS, side.tokenizer, tokens=window, window=window) for side in (reference, test)
    )
    if a.windows.tolist() != b.windows.tolist():
        raise UsageError(
            f"the tokenizers of '{reference.path}' and '{test.path}' split {a.name} differently",
            hint="compare two builds of one checkpoint",
        )
    return a


def _failures(layers: "Comparison", min_snr: float | None, max_kl: float | None) -> list[str]:
    """Return a sentence for each bound that is broken."""
    failures = []
    if min_snr is not None and (state := layers.first_below(min_snr)):
        failures.append(
            f"{state.name} is the first layer that diverges: {state.snr_db:.1f} dB (allowed at least {min_snr:g})"
        )
    mean_kl = layers.predictions.mean_kl
    if max_kl is not None and not mean_kl <= max_kl:  # a NaN breaks the bound
        failures.append(f"mean KL divergence is {mean_kl:.2e} (allowed at most {max_kl:g})")
    return failures


def _document(
    sides: list["Side"],
    mode: str,
    corpus: "Corpus",
    layers: "Comparison",
    integers: "Integers | None",
    failures: list[str],
) -> Any:
    import msgspec

    drop = layers.largest_drop()
    document = {
        **{name: {"kind": s.kind, "path": s.path, "note": s.note} for name, s in zip("ab", sides, strict=True)},
        "mode": mode,
        "text": corpus.name,
        "text_sha256": corpus.sha256,
        "tokens": corpus.windows.shape[1],
        "states": layers.states,
        "largest_drop": drop and {"name": drop[0].name, "db": drop[1]},
        "predictions": layers.predictions,
        "integers": integers,
        "failures": failures,
    }
    return _finite(msgspec.to_builtins(document, enc_hook=str))


def _finite(value: Any) -> Any:
    """Return `value` for JSON, which has no infinity: null is the ratio where nothing differs, or what is no number."""
    match value:
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case float() if not isfinite(value):
            return None
    return value


def _print(sides: list["Side"], mode: str, corpus: "Corpus", layers: "Comparison", integers: "Integers | None") -> None:
    rows = [(s.name, f"{s.snr_db:.1f}", f"{s.max_error:.3g}", f"{s.cosine:.6f}") for s in layers.states]
    print_table(("value", "SNR dB", "max error", "cosine"), rows)
    shipped = "float32 activations" if mode == "exact" else "as they ship"
    predictions = layers.predictions
    summary = [(name, f"{side.kind} {side.path}") for name, side in zip("AB", sides, strict=True)]
    summary.append(("compared", f"{corpus.windows.shape[1]} tokens of {corpus.name}, {shipped}"))
    if (drop := layers.largest_drop()) and drop[1] > 0:
        summary.append(("largest drop", f"{drop[0].name}, by {drop[1]:.1f} dB"))
    summary += [
        ("KL divergence", f"{predictions.mean_kl:.2e} +- {predictions.mean_kl_se:.1e} nats"),
        ("top-1 agreement", f"{100 * predictions.top1_agreement:.2f} %"),
    ]
    if integers:
        summary.append(("integers", f"{integers.weights} weights, {_same(integers.different)}"))
    print_table(("", ""), summary)


def _same(different: "Sequence[str]") -> str:
    if not different:
        return "all the same"
    more = len(different) - _NAMES_SHOWN
    names = ", ".join(different[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
    return f"{len(different)} not the same: {names}"
