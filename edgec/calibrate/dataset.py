"""The tokens to calibrate on: from files of several kinds, deduplicated, and sampled the same on every machine."""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgec.calibrate.documents import Chat, Document, Sample, Text, Window, keyed_hash
from edgec.calibrate.readers import Limits, check_suffix, read_documents
from edgec.errors import BundleError, UsageError
from edgec.evaluate.corpus import CHARACTERS_PER_TOKEN, PYTHON_DOCS, read_text, start_of_window
from edgec.generate.tokenizer import Tokenizer


class Dataset(msgspec.Struct, frozen=True):
    """Windows to calibrate on.

    Args:
        name: of the files, without folders.
        sha256: of each file, by the path it was given as.
        windows: token ids (n, window); each row is a context of its own.
        places: of each window, the file it begins in, and the line in a .jsonl file.
        tokens_wanted: what was asked for.
        remarks: what the user should know.
    """

    name: str
    sha256: dict[str, str]
    windows: NDArray[np.int64]
    places: tuple[str, ...]
    tokens_wanted: int
    remarks: tuple[str, ...] = ()


def hash_files(names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of each calibration text, in hex, by its name; sorted by name.

    Raises:
        UsageError: a file cannot be read, or its suffix is not known.
    """
    found = {}
    for name in sorted(set(names)):
        with _open(name) as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def load_dataset(names: Iterable[str], tokenizer: Tokenizer, *, tokens: int, window: int, seed: int = 0) -> Dataset:
    """Sample windows from calibration texts.

    The suffix tells what a file holds: plain UTF-8 (.txt, .md, none); JSON lines with `text`, or with `messages` for
    the model's chat template (.jsonl); token ids, as one stream or as windows that are taken as they are (.npy, or
    .npz with one array or one called `input_ids`). "python-docs" is the calibration part of the text that every Python
    carries. Relative paths are relative to the working directory. Names and order of the files change nothing.

    A document is a conversation, or a piece of about four windows of a text or a stream. Texts are normalised to NFC
    and to line feeds. Equal documents (whitespace aside) count once, and so do equal windows. Documents are sampled,
    put one after the other as they lie in the files, with the token that ends a text behind each text, and cut into
    windows; windows are sampled from those. So a plain text gives windows of text as it is written, from everywhere in
    it. The token that begins a text begins each window. Conversations take place on 1 January 2025.

    Every choice is made by a keyed hash of what is chosen: the same files give the same bytes on every machine. Files
    are read through (a malformed line anywhere is refused), but at most 64 characters for each token wanted, and one
    document, are kept in memory and tokenised; a line of JSON has at most 16 MiB.

    Args:
        names: paths, or "python-docs".
        tokenizer: the model's.
        tokens: how many, at most; what does not fill a window is left out.
        window: tokens in a window, its mark included.
        seed: of the sample, 0 to 2**64 - 1.

    Raises:
        UsageError: a file cannot be read or used (says where, with the line), or all of them are shorter than a window.
    """
    window = min(window, tokens)
    start = start_of_window(tokenizer, window)
    sample = Sample(seed, tokens * CHARACTERS_PER_TOKEN)
    limits = Limits(window, tokenizer.vocabulary, tokenizer.has_chat_template)
    sha256 = hash_files(names)
    for name in sorted(sha256, key=sha256.__getitem__):  # by content: paths differ from machine to machine
        with _open(name) as file:
            for document in read_documents(name, file, limits):
                sample.add(document)
    rows, left = _cut(sample.documents(), tokenizer, start, window)
    if not rows:
        raise UsageError(
            f"the calibration text has {left} tokens, a window takes {window - len(start)}",
            where=", ".join(sha256),
            hint="give a longer text, or a smaller window",
        )
    # Equal windows have equal hashes, and count once.
    ordered = {keyed_hash(np.array(row, "<i8").tobytes(), seed): (place, row) for place, row in rows}
    chosen = [ordered[key] for key in sorted(ordered)[: tokens // window]]
    windows = np.array([row for _, row in chosen], np.int64)
    return Dataset(
        name=", ".join(Path(name).name for name in sha256),
        sha256=sha256,
        windows=windows,
        places=tuple(place for place, _ in chosen),
        tokens_wanted=tokens,
        remarks=_remarks(len(chosen), tokens // window, window),
    )


@contextmanager
def _open(name: str) -> Iterator[io.BufferedReader | io.BytesIO]:
    if name == PYTHON_DOCS:
        yield io.BytesIO(read_text(name, "calibration"))
        return
    check_suffix(name)
    try:
        if not Path(name).is_file():
            raise UsageError("the calibration text is missing, or is no file", where=name)
        with Path(name).open("rb") as file:
            yield file
    except OSError as error:
        raise UsageError(f"the calibration text cannot be read: {error.strerror or error}", where=name) from error


def _cut(
    documents: Sequence[Document], tokenizer: Tokenizer, start: list[int], window: int
) -> tuple[list[tuple[str, list[int]]], int]:
    """Return all windows with their places, and how many tokens are left over."""
    step = window - len(start)
    rows: list[tuple[str, list[int]]] = []
    rest: list[int] = []
    place = ""
    for document in documents:
        if isinstance(document, Window):
            rows.append((document.place, document.ids.tolist()))
            continue
        place = place if rest else document.place
        stream = rest + _encode(document, tokenizer)
        whole = len(stream) - len(stream) % step
        for first in range(0, whole, step):
            rows.append((place, start + stream[first : first + step]))
            place = document.place
        rest = stream[whole:]
    return rows, len(rest)


def _encode(document: Document, tokenizer: Tokenizer) -> list[int]:
    match document:
        case Text():
            end = [tokenizer.eos_id] if document.ends and tokenizer.eos_id is not None else []
            return [*tokenizer.encode(document.text, special=False), *end]
        case Chat():
            messages = [{"role": turn.role, "content": turn.content} for turn in document.messages]
            try:
                return tokenizer.conversation(messages)
            except BundleError as error:
                raise UsageError(error.what, where=document.place) from error
        case _:
            ids: list[int] = document.ids.tolist()
            return ids


def _remarks(found: int, wanted: int, window: int) -> tuple[str, ...]:
    if found == wanted:
        return ()
    return (f"calibration saw {found * window} tokens of the {wanted * window} wanted: its text has no more",)
