"""Refuse to calibrate on what quality is measured on."""

from collections.abc import Iterator
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from edgec.calibrate.dataset import Dataset
from edgec.errors import UsageError
from edgec.evaluate.corpus import Corpus
from edgec.generate.tokenizer import Tokenizer

SPAN = 50
"""Tokens in a row that two texts do not share by chance."""

MAX_SHARE = 0.01

# Spans of fewer different tokens are rules, rows of dots and empty tables: they do say the same by chance.
_MIN_DIFFERENT = 8

_HINT = "measure on another text, with --eval-text, or calibrate on another one"


def check_overlap(dataset: Dataset, evaluation: Corpus, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Refuse a calibration text that has spans of the evaluation's windows in more than 1 % of its own.

    A span is 50 tokens in a row, or what fits into the windows where those are shorter; spans of fewer than 8 different
    tokens do not count. Evaluation's windows are taken for one stream, so that spans across their edges count too.
    Documents that are shorter than a span are not found. Memory: about 100 bytes for each token of evaluation.

    Returns:
        A remark, where fewer windows have one.

    Raises:
        UsageError: they share a file, or too many windows have such a span; names one, and where it lies.

    Source: Lee et al., "Deduplicating Training Data Makes Language Models Better", ACL 2022, for 50 tokens; Brown et
        al., "Language Models are Few-Shot Learners", 2020, appendix C, for counting a text with one shared span.
    """
    if evaluation.sha256 in dataset.sha256.values():
        name = next(name for name, sha256 in dataset.sha256.items() if sha256 == evaluation.sha256)
        raise UsageError("the text of calibration is the one that quality is measured on", where=name, hint=_HINT)
    marks = 0 if tokenizer.bos_id is None else 1
    width = min(SPAN, dataset.windows.shape[1] - marks, evaluation.windows.shape[1] - marks)
    known = set(_hashes(evaluation.windows[:, marks:].reshape(-1), width))
    shared = []
    for place, window in zip(dataset.places, dataset.windows[:, marks:].tolist(), strict=True):
        found_at = (at for at, digest in enumerate(_hashes(np.array(window), width)) if digest in known)
        spans = (window[at : at + width] for at in found_at)
        span = next((span for span in spans if len(set(span)) >= min(_MIN_DIFFERENT, width)), None)
        shared += [] if span is None else [(place, tokenizer.decode(span))]
    if not shared:
        return ()
    place, example = shared[0]
    found = f"{len(shared)} of {len(dataset.windows)} windows of calibration share {width} tokens in a row with"
    if len(shared) > MAX_SHARE * len(dataset.windows):
        raise UsageError(
            f"{found} the text that quality is measured on, {evaluation.name}: {example!r}", where=place, hint=_HINT
        )
    return (f"{found} {evaluation.name}, such as {example!r}",)


def _hashes(stream: NDArray[np.int64], width: int) -> Iterator[bytes]:
    """Yield a hash of each span in a stream (n,)."""
    data, size = stream.tobytes(), stream.itemsize
    for first in range(len(stream) - width + 1):
        yield blake2b(data[first * size : (first + width) * size], digest_size=16).digest()
