"""Text for measuring quality, cut into windows of tokens."""

import hashlib
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgec.errors import UsageError
from edgec.generate.tokenizer import Tokenizer

PYTHON_DOCS = "python-docs"
"""English prose and examples; the text, and so its sha256, is that of the Python version."""

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


def load_corpus(text: Path | str, tokenizer: Tokenizer, *, tokens: int, window: int) -> Corpus:
    """Cut the first tokens of a UTF-8 text into windows that do not overlap.

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
    if window < 2:
        raise UsageError(f"a window of {window} tokens predicts nothing", hint="use at least 2")
    content = _python_docs() if text == PYTHON_DOCS else _read(Path(text))
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
    rows = [start + ids[i * step : (i + 1) * step] for i in range(count)]
    return Corpus(Path(text).name, hashlib.sha256(content).hexdigest(), np.array(rows, np.int64))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"the text cannot be read: {error.strerror}", where=str(path)) from error


def _python_docs() -> bytes:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics)).encode()
