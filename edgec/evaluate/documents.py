"""Text for comparing two models: passages from all over it, and the document that each token comes from."""

import codecs
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgec.calibrate.text_samples import read_jsonl
from edgec.errors import UsageError
from edgec.evaluate.corpus import CHARACTERS_PER_TOKEN, PYTHON_DOCS, PYTHON_SOURCE, python_documents, start_of_window
from edgec.generate.tokenizer import Tokenizer

# A heading of the first level, as in WikiText: " = Robert Boulter = ".
_HEADING = re.compile(r"^ *= [^=\n]+ = *$", re.MULTILINE)
# What parts documents in plain text: a form feed, or two blank lines.
_GAP = re.compile(r"\f|\n(?:[ \t\r]*\n){2,}")
# Fewer gaps than that may be anything.
_PARTS = 8

_BYTES_OF_A_CHARACTER = 4


class Passages(msgspec.Struct, frozen=True):
    """Windows from all over a text.

    Args:
        name: of the file, or of a text that edgec knows.
        sha256: of the whole text.
        windows: token ids (n, window); each row is a context of its own.
        documents: the number of the document that each of those tokens comes from, (n, window).
        remarks: what the user should know.
    """

    name: str
    sha256: str
    windows: NDArray[np.int64]
    documents: NDArray[np.int64]
    remarks: tuple[str, ...] = ()


class _Line(msgspec.Struct, frozen=True):
    text: str


def load_passages(text: Path | str, tokenizer: Tokenizer, *, tokens: int, window: int) -> Passages:
    """Cut a UTF-8 text into windows, and take some of them, evenly spread.

    So few tokens come from many documents, and tell more than as many tokens of a few documents, which depend on each
    other. Documents are the topics of "python-docs", the modules of "python-source", the
    lines of a .jsonl file, and in other files what headings as in WikiText (` = Title = `), form feeds or two blank
    lines part; without those each window counts as one.

    Documents follow one another, and windows do not heed where they end. A tokenizer that marks the beginning of a text
    does so for each window. At most 64 characters for each token wanted are read (and one line of a .jsonl file), from
    the beginning: what follows them in a longer text would take minutes to tokenize.

    Args:
        text: a file, "python-docs" or "python-source".
        tokenizer: the model's.
        tokens: how many, at most; what does not fill a window is left out.
        window: tokens in a window, its mark included.

    Raises:
        UsageError: the file cannot be read, is not UTF-8, or is shorter than a window.
    """
    window = min(window, tokens)
    start = start_of_window(tokenizer, window)
    documents, sha256, parted = _read(text, tokens * CHARACTERS_PER_TOKEN)
    encoded = [tokenizer.encode(document, special=False) for document in documents]
    ids = np.array([token for each in encoded for token in each], np.int64)
    numbers = np.repeat(np.arange(len(encoded)), [len(each) for each in encoded])
    step = window - len(start)
    there, wanted = len(ids) // step, tokens // window
    if there == 0:
        raise UsageError(
            f"the text has {len(ids)} tokens, a window takes {step}",
            where=str(text),
            hint="give a longer text, or a smaller window",
        )
    count = min(there, wanted)
    rows = (np.arange(count) * there // count)[:, None] * step + np.arange(step)
    windows = np.hstack([np.tile(np.array(start, np.int64), (count, 1)), ids[rows]])
    places = np.hstack([numbers[rows[:, : len(start)]], numbers[rows]])
    if not parted:
        places = np.repeat(np.arange(count), window).reshape(count, window)
    name = Path(text).name
    return Passages(name, sha256, windows, places, tuple(_remarks(name, count, wanted, window, parted=parted)))


def _remarks(name: str, count: int, wanted: int, window: int, *, parted: bool) -> Iterator[str]:
    if not parted:
        yield f"nothing in {name} says where a document ends: each window counts as one"
    if count < wanted:
        yield f"{name} has {count * window} of the {wanted * window} tokens wanted"


def _read(text: Path | str, characters: int) -> tuple[Sequence[str], str, bool]:
    """Return documents, the SHA-256 of the whole text, and whether they are more than one text cut nowhere."""
    if str(text) in {PYTHON_DOCS, PYTHON_SOURCE}:
        documents = [f"{document}\n\n" for document in python_documents(str(text))]
        whole = "".join(documents)
        return list(_first(documents, characters)), hashlib.sha256(whole.encode()).hexdigest(), True
    try:
        with Path(text).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            if str(text).lower().endswith(".jsonl"):
                lines = (f"{line.text}\n\n" for _, line in read_jsonl(str(text), file, _Line) if line.text.strip())
                return list(_first(lines, characters)), sha256, True
            content = _decode(file, characters, str(text))
    except OSError as error:
        raise UsageError(f"the text cannot be read: {error.strerror}", where=str(text)) from error
    found = split_documents(content)
    return found, sha256, len(found) > 1


def _first(documents: Iterator[str] | Sequence[str], characters: int) -> Iterator[str]:
    """Yield documents until they have so many characters; the last one is cut there."""
    for document in documents:
        yield document[:characters]
        characters -= len(document)
        if characters <= 0:
            return


def _decode(file: IO[bytes], characters: int, where: str) -> str:
    """Return the first characters of a UTF-8 file, without a byte order mark."""
    data = file.read(_BYTES_OF_A_CHARACTER * characters)
    try:
        # What was read may end within a character.
        return codecs.getincrementaldecoder("utf-8-sig")().decode(data, final=not file.read(1))[:characters]
    except UnicodeDecodeError as error:
        raise UsageError(f"the text is not UTF-8: {error.reason} at byte {error.start}", where=where) from error


def split_documents(text: str) -> list[str]:
    """Return the documents of a plain text, or the whole text where nothing parts it.

    Two headings or more decide, else form feeds and gaps of two blank lines, if they part it into 8 documents or more.
    Blank documents are left out; the others together are the text.
    """
    headings = [match.start() for match in _HEADING.finditer(text)]
    if len(headings) > 1:
        return _pieces(text, headings)
    parts = _pieces(text, [match.end() for match in _GAP.finditer(text)])
    return parts if len(parts) >= _PARTS else [text]


def _pieces(text: str, cuts: list[int]) -> list[str]:
    pieces = (text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True))
    return [piece for piece in pieces if piece.strip()]
