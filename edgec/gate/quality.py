"""Whether a decoder predicts text worse than another: both on the same tokens, document by document.

Source: llama.cpp, `llama-perplexity --kl-divergence` (tools/perplexity): KL(baseline || candidate) of each token, the
ratio of perplexities from paired log-likelihoods, the share of tokens with the same most likely one. Errors are
clustered by document here, since tokens of one document are not independent.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgec.backends.backend import backend_of
from edgec.backends.session import Session
from edgec.bundle.open import find_decoder
from edgec.errors import BundleError, UsageError, require
from edgec.evaluate.divergence import compare_tokens
from edgec.evaluate.documents import Passages, load_passages
from edgec.gate.bounds import Bounds, allowed
from edgec.gate.result import Finding
from edgec.gate.settings import Quality, QualityBound
from edgec.gate.text_findings import METRICS, judge_text
from edgec.generate.tokenizer import Tokenizer

DEFAULT_BOUNDS = {"perplexity_ratio": QualityBound(margin=1.02)}
"""Where the gate file names no metrics; the others are reported."""

Tick = Callable[[str], object]

# Positions whose logits, of both models, are in memory at once.
_AT_ONCE = 128


def decoder_bounds(
    quality: Quality, own: Mapping[str, QualityBound] | None = None, target: str = ""
) -> dict[str, QualityBound]:
    """Return what a gate file lets decoders lose.

    Args:
        quality: of the file.
        own: bounds of the target, in place of those of the same name.
        target: its name.

    Raises:
        UsageError: it names another metric, or a ratio below 1.
    """
    bounds = {**(DEFAULT_BOUNDS if quality.metrics is None else quality.metrics), **(own or {})}
    for name, bound in bounds.items():
        place = f"targets.{target}.quality" if name in (own or {}) else "quality.metrics"
        if name not in METRICS:
            raise UsageError(
                f"there is no quality metric {name!r} for decoder language models",
                where=place,
                hint=f"use {', '.join(METRICS)}",
            )
        if name == "perplexity_ratio" and min(bound.margin, allowed(bound)) < 1:
            raise UsageError(
                f"the bound {min(bound.margin, allowed(bound)):g} is no ratio of perplexities that a gate could allow",
                where=f"{place}.{name}",
                hint="write 1.02 for two percent",
            )
    return bounds


def compare_decoders(
    candidate: Path,
    baseline: Path,
    quality: Quality,
    *,
    bounds: Mapping[str, QualityBound],
    confidence: float = 0.95,
    tick: Tick = lambda _: None,
) -> tuple[tuple[Finding, ...], tuple[str, ...], dict[str, str]]:
    """Return what was found of each text, remarks, and each text's SHA-256 in hex, by name.

    Both bundles run as they ship, side by side in this process; logits of 128 tokens are in memory at once.

    Args:
        candidate: a bundle or an artifact.
        baseline: another.
        quality: texts, tokens and window; the window is at most the shorter context of the two.
        bounds: of `decoder_bounds`; metrics without one are reported.
        confidence: of intervals, two-sided: either verdict may be wrong in (1 - confidence) / 2 of gates.
        tick: called after each window.

    Raises:
        UsageError: a text cannot be used, or the models take it apart in different ways.
        BundleError: a bundle cannot be read, or the baseline computes NaN or infinite numbers.
        MissingRuntimeError: a runtime or scipy is not installed.
    """
    require("scipy", "gate")
    artifacts = [find_decoder(path) for path in (baseline, candidate)]
    backends = [backend_of(artifact) for artifact in artifacts]
    contexts = [b.read_settings(artifact).context_length for b, artifact in zip(backends, artifacts, strict=True)]
    window = min(quality.window, *contexts)
    tokenizers = [Tokenizer.from_directory(artifact) for artifact in artifacts]
    texts = {text: _passages(text, tokenizers, quality.tokens, window) for text in quality.texts}
    if not texts:
        raise UsageError("nothing says what to compare the models on", where="quality.texts", hint="name a text")
    sessions = [
        b.open_session(artifact, "evaluate", max_length=window) for b, artifact in zip(backends, artifacts, strict=True)
    ]
    names = [passages.name for passages in texts.values()]
    limits = Bounds(bounds, confidence, len(texts) * len(bounds))
    findings: list[Finding] = []
    hashes = {}
    remarks = [b.not_run(artifact) for b, artifact in zip(backends, artifacts, strict=True)]
    if window < quality.window:
        remarks.append(f"windows are as long as the context: {window} tokens")
    chance = float(np.log(sessions[0].vocab_size))
    for text, passages in texts.items():
        tokens = compare_sessions(sessions[0], sessions[1], passages.windows, tick)
        documents = passages.documents[:, 1:].reshape(-1)
        windows = np.repeat(np.arange(len(passages.windows)), passages.windows.shape[1] - 1)
        where = passages.name if names.count(passages.name) == 1 else text
        hashes[where] = passages.sha256
        findings += judge_text(tokens, documents, windows, limits, where=where, chance=chance)
        remarks += passages.remarks
    return tuple(findings), tuple(dict.fromkeys(remark for remark in remarks if remark)), hashes


def _passages(text: str, tokenizers: Sequence[Tokenizer], tokens: int, window: int) -> Passages:
    expected, found = (load_passages(text, tokenizer, tokens=tokens, window=window) for tokenizer in tokenizers)
    if not np.array_equal(expected.windows, found.windows):
        raise UsageError(
            "the models have different tokenizers: their likelihoods cannot be compared token by token",
            where=text,
            hint="compare bundles of the same checkpoint",
        )
    if len(expected.windows) < 2:
        raise UsageError(
            f"a single window of {expected.windows.shape[1]} tokens decides nothing",
            where=text,
            hint="give more tokens, a longer text, or a smaller window",
        )
    return expected


def compare_sessions(
    baseline: Session, candidate: Session, windows: NDArray[np.int64], tick: Tick = lambda _: None
) -> NDArray[np.float64]:
    """Return `compare_tokens` of all predicted tokens of windows (n, tokens): (4, n * (tokens - 1)).

    Raises:
        UsageError: the vocabularies differ.
        BundleError: a session gives the last token's logits only, or the baseline computes NaN or infinite numbers.
    """
    found = []
    last = windows.shape[1] - 1
    for number, window in enumerate(windows):
        baseline.reset(1)
        candidate.reset(1)
        for start in range(0, last, _AT_ONCE):
            end = min(start + _AT_ONCE, last)
            logits = [session.step(window[None, start:end])[0] for session in (baseline, candidate)]
            if any(len(rows) != end - start for rows in logits):
                raise BundleError("the artifact gives the logits of the last token only: it cannot be evaluated")
            found.append(compare_tokens(logits[0], logits[1], window[start + 1 : end + 1]))
            if not np.isfinite(found[-1][0]).all():
                raise BundleError(
                    f"the baseline computes NaN or infinite numbers in window {number}: nothing compares with those",
                    hint="`edgec eval` measures it alone",
                )
        tick(f"window {number}")
    return np.concatenate(found, axis=1)
