"""Texts for a network, each a sample of its own."""

import codecs
import hashlib
import heapq
import io
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TypeVar, get_type_hints

import msgspec
import numpy as np

from edgec.calibrate.arrays import Batch, Labels
from edgec.calibrate.classes import classes_of
from edgec.calibrate.documents import Text, keyed_hash, normalise
from edgec.calibrate.encoding import INPUTS, Encoder
from edgec.calibrate.ports import Shape
from edgec.calibrate.readers import MAX_LINE_BYTES, Limits, read_documents
from edgec.calibrate.source import Source, in_slices
from edgec.errors import UsageError
from edgec.evaluate.corpus import CHARACTERS_PER_TOKEN, PYTHON_DOCS, Purpose, read_text
from edgec.frontends.network import Port

SUFFIXES = (".txt", ".md", ".jsonl")

# English has as many characters in a token: a passage of plain text about fills the window.
_CHARACTERS = 4

_T = TypeVar("_T")


class _Line(msgspec.Struct, frozen=True):
    text: str
    text_pair: str | None = None
    label: int | float | str | None = None
    target: str | None = None


_Texts = list[tuple[str, _Line]]
"""Each with its place."""


def text_source(
    name: str,
    ports: Sequence[Port],
    files: Mapping[str, bytes],
    labels: Sequence[str],
    *,
    samples: int,
    seed: int,
    window: int,
    purpose: Purpose,
) -> Source:
    """Choose texts; see `edgec.calibrate.samples.load_samples`.

    Plain text gives paragraphs, cut at ends of lines where they are longer than about a window. What is kept in memory
    are the texts that were chosen, with at most 64 characters for each token of the window.

    Raises:
        UsageError: the file cannot be read, a line is malformed, there is no text, or the model takes none.
        BundleError: the tokenizer cannot be read.
    """
    ids = next((port for port in ports if port.name == INPUTS[0]), None)
    if ids is None or not ids.shape or not files:
        lacks = "has no tokenizer" if ids is not None and ids.shape else f"has no input {INPUTS[0]!r}"
        raise UsageError(
            f"the model takes no text: it {lacks}",
            where=name,
            hint="give the directory of its checkpoint, with tokenizer.json, or token ids as .npz",
        )
    length = ids.shape[-1] if isinstance(ids.shape[-1], int) else None
    encoder = Encoder(files, window, length)
    texts, sha256 = _load(name, samples, seed, window, purpose)
    truth, remarks = _labels(texts, labels)
    wanted = [port.name for port in ports if port.name in INPUTS]

    def read(some: range) -> Batch:
        lines = [line for _, line in texts[some.start : some.stop]]
        encoded = encoder.encode([(line.text, line.text_pair) for line in lines])
        return {input_name: encoded[input_name] for input_name in wanted}

    return Source(
        where=name,
        sha256=sha256,
        shapes=dict.fromkeys(wanted, Shape((length,), np.dtype(np.int64))),
        places=[place for place, _ in texts],
        rows=in_slices(read, len(texts), truth),
        remarks=remarks,
    )


def read_jsonl(name: str, file: IO[bytes], kind: type[_T]) -> Iterator[tuple[str, _T]]:
    """Yield the objects of a .jsonl file, each with its place.

    Raises:
        UsageError: a line is not such an object.
    """
    decode = msgspec.json.Decoder(kind).decode
    fields = get_type_hints(kind)
    for number, raw in enumerate(iter(partial(file.readline, MAX_LINE_BYTES + 1), b""), 1):
        place = f"{name}:{number}"
        if len(raw) > MAX_LINE_BYTES:
            raise UsageError(f"the line has more than {MAX_LINE_BYTES >> 20} MiB", where=place)
        if not (stripped := raw.removeprefix(codecs.BOM_UTF8).strip()):
            continue
        try:
            yield place, decode(stripped)
        except (ValueError, RecursionError) as error:  # ValueError: not JSON, not as asked for, or not UTF-8
            raise UsageError(
                f"the line cannot be used: {error}",
                where=place,
                hint=f"each line is a JSON object with {', '.join(f'`{name}`' for name in fields)}",
            ) from error


def _load(name: str, samples: int, seed: int, window: int, purpose: Purpose) -> tuple[_Texts, str]:
    try:
        with io.BytesIO(read_text(name, purpose)) if name == PYTHON_DOCS else Path(name).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            is_lines = name.lower().endswith(".jsonl")
            read = _lines(name, file, window) if is_lines else _paragraphs(name, file, window)
            found = heapq.nsmallest(samples, enumerate(read), lambda item: _order(item[0], seed))
    except OSError as error:
        raise UsageError(
            f"the samples cannot be read: {error.strerror or error}", where=name, hint="check the file"
        ) from error
    if not found:
        raise UsageError("there is no text in it", where=name, hint="give a file with text")
    return [text for _, text in sorted(found, key=lambda item: item[0])], sha256


def _order(index: int, seed: int) -> int:
    return keyed_hash(index.to_bytes(8, "little"), seed)


def _paragraphs(name: str, file: IO[bytes], window: int) -> Iterator[tuple[str, _Line]]:
    plain = "" if name == PYTHON_DOCS else name
    number = 0
    for document in read_documents(plain, file, Limits(window, 0, has_template=False)):
        assert isinstance(document, Text)
        for paragraph in _cut(document.text, _CHARACTERS * window):
            number += 1
            yield f"{Path(name).name}: paragraph {number}", _Line(paragraph[: window * CHARACTERS_PER_TOKEN])


def _cut(text: str, size: int) -> Iterator[str]:
    """Yield the paragraphs of a text, in pieces that end with the first line beyond `size` characters."""
    lines: list[str] = []
    for line in [*text.split("\n"), ""]:
        if line.strip():
            lines.append(line)
        if lines and (not line.strip() or sum(map(len, lines)) >= size):
            yield "\n".join(lines)
            lines = []


def _lines(name: str, file: IO[bytes], window: int) -> Iterator[tuple[str, _Line]]:
    most = window * CHARACTERS_PER_TOKEN
    for place, line in read_jsonl(name, file, _Line):
        pair = None if line.text_pair is None else normalise(line.text_pair[:most])
        yield place, msgspec.structs.replace(line, text=normalise(line.text[:most]), text_pair=pair)


def _labels(texts: _Texts, labels: Sequence[str]) -> tuple[Labels | None, tuple[str, ...]]:
    """Return the labels, all of a kind, and remarks."""
    targets = [line.target for _, line in texts]
    given = [line.label for _, line in texts]
    truth = targets if any(target is not None for target in targets) else given
    if lacking := [place for (place, _), value in zip(texts, truth, strict=True) if value is None]:
        if len(lacking) < len(texts):
            raise UsageError(
                "the line has no label, and others have one", where=lacking[0], hint="give all lines one, or none"
            )
        return None, ()
    if truth is targets:
        return [str(target) for target in targets], ()
    if any(isinstance(value, float) for value in given) and not any(isinstance(value, str) for value in given):
        return np.array(given, np.float64), ()
    return classes_of([str(value) for value in given], [place for place, _ in texts], labels)
