"""Documents from files of each kind, one after the other, with a few of them in memory."""

import codecs
from collections.abc import Iterator
from functools import partial
from pathlib import PurePath
from typing import IO, NoReturn

import msgspec
import numpy as np

from edgec.calibrate.documents import Chat, Document, Message, Text, Tokens, Window, normalise
from edgec.calibrate.npy import open_npy, open_npz
from edgec.errors import UsageError

SUFFIXES = ("", ".txt", ".md", ".jsonl", ".npy", ".npz")
MAX_LINE_BYTES = 16 << 20

_SHOWN = 3
_ROWS_AT_ONCE = 256


class Limits(msgspec.Struct, frozen=True):
    """What documents are cut to, and checked against.

    Args:
        window: tokens in one window; longer texts are cut into pieces of about four windows.
        vocabulary: one more than the largest token id.
        has_template: whether the model has a chat template.
    """

    window: int
    vocabulary: int
    has_template: bool

    @property
    def piece(self) -> int:
        """Return the size of a piece in characters."""
        return max(4096, 16 * self.window)


def check_suffix(name: str) -> None:
    """Refuse files of a kind that is not known.

    Raises:
        UsageError: it is none of `SUFFIXES`.
    """
    if PurePath(name).suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"a calibration text ends in {', '.join(SUFFIXES[1:])} or in nothing, for plain text",
            where=name,
            hint="name it after what it holds",
        )


def read_documents(name: str, file: IO[bytes], limits: Limits) -> Iterator[Document]:
    """Yield the documents of a file, by the kind that its suffix tells.

    Memory is bounded by the longest line of a .jsonl file (at most 16 MiB), and elsewhere by a piece.

    Args:
        name: for messages, and for its suffix.
        file: at its beginning; can be read from anywhere.
        limits: what to cut to.

    Raises:
        UsageError: something in it cannot be used; says where.
    """
    match PurePath(name).suffix.lower():
        case ".jsonl":
            return _read_jsonl(name, file, limits)
        case ".npy" | ".npz":
            return _read_tokens(name, file, limits)
        case _:
            return _read_plain(name, file, limits.piece)


def _read_plain(name: str, file: IO[bytes], piece: int) -> Iterator[Text]:
    """Yield pieces that follow one another; they end where a line ends, if lines are short."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    block = _block(file, piece)
    while block:
        following = _block(file, piece)
        try:
            text = decoder.decode(block, final=not following)
        except UnicodeDecodeError as error:
            line += error.object.count(b"\n", 0, error.start)
            raise UsageError(f"the text is not UTF-8: {error.reason}", where=f"{name}:{line}") from error
        yield Text(name, normalise(text), not following)
        line += block.count(b"\n")
        block = following


def _block(file: IO[bytes], size: int) -> bytes:
    return file.read(size) + file.readline(size)


class _Line(msgspec.Struct, frozen=True):
    text: str | msgspec.UnsetType = msgspec.UNSET
    messages: tuple[Message, ...] | msgspec.UnsetType = msgspec.UNSET


def _read_jsonl(name: str, file: IO[bytes], limits: Limits) -> Iterator[Document]:
    """Yield what each line holds; lines that hold nothing useful are told together, at the end of the file."""
    decode = msgspec.json.Decoder(_Line).decode
    problems: list[tuple[int, str]] = []
    count = 0
    for number, raw in enumerate(iter(partial(file.readline, MAX_LINE_BYTES + 1), b""), 1):
        place = f"{name}:{number}"
        if len(raw) > MAX_LINE_BYTES:
            raise UsageError(f"the line has more than {MAX_LINE_BYTES >> 20} MiB", where=place)
        if not (stripped := raw.removeprefix(codecs.BOM_UTF8).strip()):
            continue
        try:
            yield from _documents(place, decode(stripped), limits)
        except (ValueError, RecursionError) as error:  # ValueError: not JSON, not as asked for, or not UTF-8
            count += 1
            problems += [(number, _reason(error))] if count <= _SHOWN else []
    if problems:
        _refuse(name, problems, count)


def _documents(place: str, line: _Line, limits: Limits) -> Iterator[Document]:
    match line:
        case _Line(str(text), msgspec.UNSET):
            text = normalise(text)
            cuts = range(0, max(len(text), 1), limits.piece)
            return (Text(place, text[i : i + limits.piece], i == cuts[-1]) for i in cuts)
        case _Line(msgspec.UNSET, tuple(messages)) if messages:
            if not limits.has_template:
                raise ValueError("it holds `messages`, and the model has no chat template: give it as `text`")
            return iter([Chat(place, tuple(Message(turn.role, normalise(turn.content)) for turn in messages))])
        case _:
            raise ValueError("it must hold either `text` or `messages`, and at least one message")


def _reason(error: Exception) -> str:
    return f"it is not UTF-8: {error.reason}" if isinstance(error, UnicodeDecodeError) else str(error)


def _refuse(name: str, problems: list[tuple[int, str]], count: int) -> NoReturn:
    shown = "; ".join(f"line {number}: {reason}" for number, reason in problems)
    more = f"; and {count - len(problems)} more" if count > len(problems) else ""
    raise UsageError(
        f"{count} {'line' if count == 1 else 'lines'} of the calibration text cannot be used: {shown}{more}",
        where=f"{name}:{problems[0][0]}",
        hint='each line is an object, {"text": "..."} or {"messages": [{"role": "...", "content": "..."}, ...]}',
    )


def _read_tokens(name: str, file: IO[bytes], limits: Limits) -> Iterator[Tokens | Window]:
    """Yield the rows of an array (n, window), or pieces of a stream (n,)."""
    if name.lower().endswith(".npz"):
        arrays = open_npz(file, name)
        array = arrays.get("input_ids") or (next(iter(arrays.values())) if len(arrays) == 1 else None)
        if array is None:
            raise UsageError(
                f"the file holds {len(arrays)} arrays and none is called input_ids: {', '.join(arrays)}", where=name
            )
    else:
        size_bytes = file.seek(0, 2)
        file.seek(0)
        array = open_npy(file, size_bytes, name)
    if array.dtype.kind not in "iu" or len(array.shape) > 2:
        raise UsageError(f"{array.dtype} {array.shape} are no token ids", where=array.where, hint="store integers")
    if len(array.shape) == 2 and array.shape[1] != limits.window:
        raise UsageError(
            f"the file holds windows of {array.shape[1]} tokens, calibration takes {limits.window}",
            where=array.where,
            hint="set `window` in [calibration], within the model's context, or store one stream of tokens",
        )
    is_stream = len(array.shape) == 1
    for block in array.blocks(4 * limits.window if is_stream else _ROWS_AT_ONCE):
        outside = block[(block < 0) | (block >= limits.vocabulary)]
        if outside.size:
            raise UsageError(
                f"token {outside[0]} is outside of the vocabulary of {limits.vocabulary}", where=array.where
            )
        ids = block.astype(np.int64)
        yield from [Tokens(name, ids)] if is_stream else (Window(name, row) for row in ids)
