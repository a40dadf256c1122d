"""Text for measuring quality and for calibration, cut into windows of tokens."""

import hashlib
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgec.errors import UsageError
from edgec.generate.tokenizer import Tokenizer

PYTHON_DOCS = "python-docs"
"""English prose and examples; the text, and so its sha256, is that of the Python version."""

Purpose = Literal["evaluation", "calibration"]

# Text beyond this is not even tokenised; ordinary text has about 4 characters for each token.
_CHARACTERS_PER_TOKEN = 64


class Corpus(msgspec.Struct, frozen=True):
    """Windows of one text.

    Args:
        name: of the file, or of a text that edgec knows.
        sha256: of the whole text.
        windows: token ids (n, window); each row is a context of its own.
    """

    name: str
    sha256: str
    windows: NDArray[np.int64]


def load_corpus(
    text: Path | str, tokenizer: Tokenizer, *, tokens: int, window: int, purpose: Purpose = "evaluation"
) -> Corpus:
    """Cut a UTF-8 text into windows that do not overlap.

    Windows for evaluation are the first ones, one after the other; those for calibration lie far apart, for variety.
    A tokenizer that marks the beginning of a text does so for each window.

    Args:
        text: a file, or "python-docs": the language reference that every Python carries.
        tokenizer: the model's.
        tokens: how many tokens, at most; what does not fill a window is left out.
        window: tokens in a window, its mark included.
        purpose: of "python-docs", evaluation and calibration see different parts.

    Raises:
        UsageError: the file cannot be read, is not UTF-8, or is shorter than a window.

    Source: llama.cpp, `llama-perplexity`: a text is one stream, and the mark of a beginning starts each window.
    """
    window = min(window, tokens)
    if window < 2:
        raise UsageError(f"a window of {window} tokens predicts nothing", hint="use at least 2")
    content = read_text(text, purpose)
    try:
        characters = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"the text is not UTF-8: {error.reason} at byte {error.start}", where=str(text)) from error
    ids = tokenizer.encode(characters[: tokens * _CHARACTERS_PER_TOKEN], special=False)
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    step = window - len(start)
    count = min(len(ids) // step, tokens // window)
    if count == 0:
        raise UsageError(
            f"the text has {len(ids)} tokens, a window takes {step}",
            where=str(text),
            hint="give a longer text, or a smaller window",
        )
    stride = step if purpose == "evaluation" else len(ids) // count
    rows = [start + ids[i * stride : i * stride + step] for i in range(count)]
    return Corpus(Path(text).name, hashlib.sha256(content).hexdigest(), np.array(rows, np.int64))


def read_text(text: Path | str, purpose: Purpose = "evaluation") -> bytes:
    """Return the bytes of a file, or of the part of "python-docs" that serves a purpose.

    Raises:
        UsageError: the file cannot be read.
    """
    if text == PYTHON_DOCS:
        return _python_docs(purpose)
    try:
        return Path(text).read_bytes()
    except OSError as error:
        raise UsageError(f"the text cannot be read: {error.strerror}", where=str(text)) from error


def _python_docs(purpose: Purpose) -> bytes:
    from pydoc_data.topics import topics

    # The last fifth, by name, is for calibration, without what it repeats of the rest.
    evaluation = "\n\n".join(topics[name] for name in sorted(topics) if name < "t")
    if purpose == "evaluation":
        return evaluation.encode()
    seen = set(evaluation.split("\n\n"))
    last = "\n\n".join(topics[name] for name in sorted(topics) if name >= "t")
    return "\n\n".join(paragraph for paragraph in last.split("\n\n") if paragraph not in seen).encode()
