"""Text for measuring quality, cut into windows of tokens."""

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

CHARACTERS_PER_TOKEN = 64
"""Text beyond this is not even tokenised; ordinary text has about 4 characters for each token."""


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


def load_corpus(text: Path | str, tokenizer: Tokenizer, *, tokens: int, window: int) -> Corpus:
    """Cut the beginning of a UTF-8 text into windows, one after the other.

    A tokenizer that marks the beginning of a text does so for each window.

    Args:
        text: a file, or "python-docs": the language reference that every Python carries.
        tokenizer: the model's.
        tokens: how many tokens, at most; what does not fill a window is left out.
        window: tokens in a window, its mark included.

    Raises:
        UsageError: the file cannot be read, is not UTF-8, or is shorter than a window.

    Source: llama.cpp, `llama-perplexity`: a text is one stream, and the mark of a beginning starts each window.
    """
    window = min(window, tokens)
    start = start_of_window(tokenizer, window)
    content = read_text(text)
    try:
        characters = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"the text is not UTF-8: {error.reason} at byte {error.start}", where=str(text)) from error
    ids = tokenizer.encode(characters[: tokens * CHARACTERS_PER_TOKEN], special=False)
    step = window - len(start)
    count = min(len(ids) // step, tokens // window)
    if count == 0:
        raise UsageError(
            f"the text has {len(ids)} tokens, a window takes {step}",
            where=str(text),
            hint="give a longer text, or a smaller window",
        )
    rows = [start + ids[i * step : (i + 1) * step] for i in range(count)]
    return Corpus(Path(text).name, hashlib.sha256(content).hexdigest(), np.array(rows, np.int64))


def start_of_window(tokenizer: Tokenizer, window: int) -> list[int]:
    """Return the tokens that begin each window: the mark of a beginning, where the tokenizer has one.

    Raises:
        UsageError: a window of so many tokens predicts nothing.
    """
    if window < 2:
        raise UsageError(f"a window of {window} tokens predicts nothing", hint="use at least 2")
    return [] if tokenizer.bos_id is None else [tokenizer.bos_id]


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

    def paragraphs(first: str, end: str) -> list[str]:
        return "\n\n".join(topics[name] for name in sorted(topics) if first <= name < end).split("\n\n")

    # Evaluation reads from the front. What it reaches after a quarter of a million characters (some 60,000 tokens) and
    # what follows is for calibration, without what that repeats: enough for 32,000 tokens.
    if purpose == "evaluation":
        return "\n\n".join(paragraphs("", "t")).encode()
    seen = set(paragraphs("", "s"))
    return "\n\n".join(paragraph for paragraph in paragraphs("s", "~") if paragraph not in seen).encode()
