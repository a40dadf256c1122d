"""What a calibration text consists of, and a sample of it that is the same on every machine."""

import heapq
import unicodedata
from hashlib import blake2b

import msgspec
import numpy as np
from numpy.typing import NDArray

# What a token counts for where there is no text: documents of tokens and of text are sampled alike.
_CHARACTERS_OF_A_TOKEN = 16


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation; other keys that a file has are left out."""

    role: str
    content: str


class Text(msgspec.Struct, frozen=True):
    """A text, or a piece of one; `ends` says whether it ends here. `place` is a file, or a file and a line."""

    place: str
    text: str
    ends: bool


class Chat(msgspec.Struct, frozen=True):
    """A conversation, for the chat template."""

    place: str
    messages: tuple[Message, ...]


class Tokens(msgspec.Struct, frozen=True):
    """A piece of a stream of token ids (n,)."""

    place: str
    ids: NDArray[np.int64]


class Window(msgspec.Struct, frozen=True):
    """Token ids (window,) that are a context of their own, taken as they are."""

    place: str
    ids: NDArray[np.int64]


Document = Text | Chat | Tokens | Window


def normalise(text: str) -> str:
    """Return `text` in Unicode's composed form (NFC), with line feeds alone, and without a byte order mark."""
    return unicodedata.normalize("NFC", text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n"))


def keyed_hash(content: bytes, seed: int) -> int:
    """Return 128 bits that depend on the content and the seed alone: a private order of all contents."""
    return int.from_bytes(blake2b(content, key=seed.to_bytes(8, "little"), digest_size=16).digest(), "little")


class Sample:
    """A uniform sample of the different documents in a stream, in one pass.

    Documents stand in the order of a hash of what they say (whitespace aside), and the first ones are kept, as many as
    hold `budget` characters. So equal documents count once, the order in which documents come changes nothing, and
    memory is bounded by `budget` and two documents, however long the stream is.

    Args:
        seed: decides the order, 0 to 2**64 - 1.
        budget: in characters; a token counts for 16.

    Source: Cohen and Kaplan, "Summarizing Data using Bottom-k Sketches", PODC 2007.
    """

    def __init__(self, seed: int, budget: int) -> None:
        self._seed, self._budget = seed, budget
        self._kept: list[tuple[int, int, Document]] = []  # the last of the order on top
        self._keys: set[int] = set()
        self._size = self._seen = 0

    def add(self, document: Document) -> None:
        """Look at one more document."""
        content = _content(document)
        key = keyed_hash(content, self._seed)
        if not content or key in self._keys:
            return
        self._seen += 1
        self._keys.add(key)
        heapq.heappush(self._kept, (-key, self._seen, document))
        self._size += _size(document)
        while self._size - _size(self._kept[0][2]) >= self._budget:
            last, _, dropped = heapq.heappop(self._kept)
            self._keys.remove(-last)
            self._size -= _size(dropped)

    def documents(self) -> list[Document]:
        """Return what was kept, in the order in which it came: pieces of one text follow one another."""
        return [document for _, _, document in sorted(self._kept, key=lambda kept: kept[1])]


def _content(document: Document) -> bytes:
    """Return what makes a document different from others; nothing for an empty one."""
    match document:
        case Text():
            return _fold(document.text)
        case Chat():
            folded = [(_fold(message.role), _fold(message.content)) for message in document.messages]
            return msgspec.json.encode(folded) if any(content for _, content in folded) else b""
        case _:
            return document.ids.astype("<i8").tobytes()


def _fold(text: str) -> bytes:
    return " ".join(text.split()).encode()


def _size(document: Document) -> int:
    match document:
        case Text():
            return len(document.text)
        case Chat():
            return sum(len(message.content) for message in document.messages)
        case _:
            return _CHARACTERS_OF_A_TOKEN * len(document.ids)
