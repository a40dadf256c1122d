"""Text for measuring quality, cut into windows of tokens."""

import hashlib
import sysconfig
from collections.abc import Iterator
from importlib.abc import InspectLoader
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgec.errors import UsageError
from edgec.generate.tokenizer import Tokenizer

PYTHON_DOCS = "python-docs"
"""English prose and examples; the text, and so its sha256, is that of the Python version."""

PYTHON_SOURCE = "python-source"
"""Code: modules of Python's own library, for evaluation alone; like "python-docs" it is that of the Python version."""

Purpose = Literal["evaluation", "calibration"]

# Of middling size, and there since Python 3.11 on every platform.
_MODULES = (
    "base64 bdb bz2 calendar cmd code codecs codeop colorsys compileall contextlib copy copyreg csv dis filecmp "
    "fileinput fnmatch fractions ftplib functools genericpath getopt getpass gettext glob graphlib gzip hashlib heapq "
    "hmac io linecache lzma mimetypes modulefinder netrc ntpath numbers operator os pkgutil platform plistlib poplib "
    "posixpath pprint profile pstats py_compile pyclbr queue quopri random reprlib rlcompleter runpy sched selectors "
    "shelve shlex socket socketserver stat string stringprep symtable tabnanny tempfile textwrap timeit tokenize trace "
    "traceback tracemalloc types uuid warnings wave weakref webbrowser zipapp"
)

# Topics from here on are for calibration.
_CALIBRATION = "s"

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
        text: a file; "python-docs", the language reference that every Python carries; or "python-source", its library.
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
    """Return the bytes of a file, of the part of "python-docs" that serves a purpose, or of "python-source".

    Raises:
        UsageError: the file cannot be read, or this Python lacks its library's source.
    """
    if str(text) == PYTHON_DOCS:
        return _python_docs(purpose)
    if str(text) == PYTHON_SOURCE and purpose == "evaluation":
        return "\n\n".join(python_documents(PYTHON_SOURCE)).encode()
    try:
        return Path(text).read_bytes()
    except OSError as error:
        raise UsageError(f"the text cannot be read: {error.strerror}", where=str(text)) from error


def python_documents(name: str) -> list[str]:
    """Return the documents of a text that every Python carries, without what calibration reads.

    Args:
        name: "python-docs", whose topics do not repeat a paragraph of an earlier one here; or "python-source", whose
            modules are whole.

    Raises:
        UsageError: this Python lacks its library's source.
    """
    found = list(_topics() if name == PYTHON_DOCS else _modules())
    if not found:
        raise UsageError(f"this Python carries no text {name!r}", where=name, hint="name a file")
    return found


def _topics() -> Iterator[str]:
    from pydoc_data.topics import topics

    seen: set[str] = set()
    for name in sorted(name for name in topics if name < _CALIBRATION):
        fresh = [paragraph for paragraph in topics[name].split("\n\n") if paragraph not in seen]
        seen.update(fresh)
        if fresh:
            yield "\n\n".join(fresh)


def _modules() -> Iterator[str]:
    for name in _MODULES.split():
        # Not whatever module of this name comes first on the path.
        spec = PathFinder.find_spec(name, [sysconfig.get_path("stdlib")])
        source = spec.loader.get_source(name) if spec and isinstance(spec.loader, InspectLoader) else None
        if source:
            yield source


def _python_docs(purpose: Purpose) -> bytes:
    from pydoc_data.topics import topics

    def paragraphs(first: str, end: str) -> list[str]:
        return "\n\n".join(topics[name] for name in sorted(topics) if first <= name < end).split("\n\n")

    # Evaluation reads from the front. What it reaches after a quarter of a million characters (some 60,000 tokens) and
    # what follows is for calibration, without what that repeats: enough for 32,000 tokens.
    if purpose == "evaluation":
        return "\n\n".join(paragraphs("", "t")).encode()
    seen = set(paragraphs("", _CALIBRATION))
    return "\n\n".join(paragraph for paragraph in paragraphs(_CALIBRATION, "~") if paragraph not in seen).encode()
