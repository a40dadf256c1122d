"""Text to token ids and back, from the files of a checkpoint or an artifact; nothing in them is executed."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer as Engine

from edgec.errors import BundleError
from edgec.generate.chat import ChatTemplate

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"

# What a decoder writes where bytes are not, or not yet, UTF-8.
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

_A_CERTAIN_DAY = datetime(2025, 1, 1)  # noqa: DTZ001  the same everywhere


class Tokenizer:
    """A tokenizer.

    Args:
        engine: what tokenizer.json describes.
        config: what tokenizer_config.json holds.
        chat_template: Jinja source, if there is one.
    """

    def __init__(self, engine: Engine, config: Mapping[str, Any], chat_template: str | None = None) -> None:
        self._engine = engine
        self._tokens = {name: _content(value) for name, value in config.items() if name.endswith("_token")}
        self._chat_template = chat_template or _default_template(config.get("chat_template"))
        bos = engine.token_to_id(self._tokens.get("bos_token", ""))
        self.bos_id: int | None = bos if engine.encode("a").ids[:1] == [bos] else None
        """The token that marks the beginning of a text, if this tokenizer adds one."""
        self.eos_id: int | None = engine.token_to_id(self._tokens.get("eos_token", ""))
        """The token that ends a text, if there is one."""

    @cached_property
    def vocabulary(self) -> int:
        """One more than the largest token id."""
        return max(self._engine.get_vocab().values(), default=-1) + 1

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` and `conversation` can be called."""
        return self._chat_template is not None

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], where: str | None = None) -> Self:
        """Return the tokenizer that files (name -> content) describe.

        Raises:
            BundleError: tokenizer.json is missing, or a file is damaged.
        """
        if TOKENIZER not in files:
            raise BundleError(f"there is no {TOKENIZER}", where=where, hint="save the model with its fast tokenizer")
        try:
            engine = Engine.from_str(files[TOKENIZER].decode())
        except Exception as error:  # the tokenizers package raises bare Exception
            raise BundleError(f"{TOKENIZER} cannot be read: {error}", where=where) from error
        # A tokenizer may be saved with the truncation and padding of its training.
        engine.no_truncation()
        engine.no_padding()
        try:
            config = json.loads(files.get(TOKENIZER_CONFIG, b"{}"))
            template = files[CHAT_TEMPLATE].decode() if CHAT_TEMPLATE in files else None
        except ValueError as error:
            raise BundleError(f"the tokenizer's files cannot be read: {error}", where=where) from error
        if not isinstance(config, dict):
            raise BundleError(f"{TOKENIZER_CONFIG} holds no object", where=where)
        return cls(engine, config, template)

    @classmethod
    def from_directory(cls, directory: Path) -> Self:
        """Return the tokenizer of a checkpoint or artifact.

        Raises:
            BundleError: tokenizer.json is missing, or a file cannot be read.
        """
        names = (TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE)
        try:
            files = {name: (directory / name).read_bytes() for name in names if (directory / name).exists()}
        except OSError as error:
            raise BundleError(f"the tokenizer cannot be read: {error}", where=str(directory)) from error
        return cls.from_files(files, str(directory))

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return token ids; `special` adds what the tokenizer puts around a text."""
        return self._engine.encode(text, add_special_tokens=special).ids

    def token_id(self, token: str) -> int | None:
        """Return the id of a token, None where there is no such token."""
        return self._engine.token_to_id(token)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text, without special tokens."""
        return self._engine.decode(ids)

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the token ids of a conversation, ready for the assistant's answer.

        Args:
            messages: mappings with `role` and `content`.

        Raises:
            BundleError: the model has no chat template, or it cannot be rendered.
        """
        # The template writes the special tokens itself.
        return self.encode(self._template.render(messages, special_tokens=self._tokens), special=False)

    def conversation(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the token ids of a conversation that is over; the same every day, also where the template tells it.

        Args:
            messages: mappings with `role` and `content`.

        Raises:
            BundleError: the model has no chat template, or it cannot be rendered.
        """
        text = self._template.render(
            messages, special_tokens=self._tokens, add_generation_prompt=False, now=_A_CERTAIN_DAY
        )
        return self.encode(text, special=False)

    @cached_property
    def _template(self) -> ChatTemplate:
        if self._chat_template is None:
            raise BundleError("the model has no chat template", hint="use it without --chat")
        return ChatTemplate(self._chat_template)

    def stream(self) -> "TextStream":
        """Return a decoder for ids that arrive one by one."""
        return TextStream(self.decode)


class TextStream:
    """Turn ids into text as they arrive; what is emitted joins to the text of all ids.

    A token's text may depend on the tokens before it (spaces), and a character may take several tokens (bytes), so
    the last ids are decoded together, and nothing is emitted in the middle of a character.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._emitted_ids = 0

    def push(self, token: int) -> str:
        """Return the text that is complete with this token, often ''."""
        self._ids.append(token)
        text = self._pending()
        if text.endswith(_REPLACEMENT):
            return ""
        # The ids just emitted stay, as the context of the next ones.
        self._ids = self._ids[self._emitted_ids :] if text else self._ids
        self._emitted_ids = len(self._ids) if text else self._emitted_ids
        return text

    def flush(self) -> str:
        """Return what is left when no more ids come."""
        text = self._pending()
        self._ids, self._emitted_ids = [], 0
        return text

    def _pending(self) -> str:
        return self._decode(self._ids)[len(self._decode(self._ids[: self._emitted_ids])) :]


def _content(token: Any) -> str:
    """Return a special token's text: configs hold a string, or an object with `content`."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _default_template(value: Any) -> str | None:
    """Return the chat template of a tokenizer_config.json: a string, or a list of named ones."""
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None
