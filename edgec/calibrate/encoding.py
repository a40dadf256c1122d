"""Texts as token ids, padded to one length."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Engine

from edgec.calibrate.arrays import Batch
from edgec.errors import BundleError, UsageError
from edgec.generate.tokenizer import TOKENIZER, TOKENIZER_CONFIG

INPUTS = ("input_ids", "attention_mask", "token_type_ids")

_MIN_WINDOW = 8


class Encoder:
    """Turns texts into token ids.

    Args:
        files: the tokenizer's, name -> content.
        window: tokens in a text, at most, with those that the tokenizer puts around it; longer ones are cut.
        length: tokens that the network takes, where that is fixed.

    Raises:
        UsageError: the window is too small.
        BundleError: the tokenizer cannot be read.
    """

    def __init__(self, files: Mapping[str, bytes], window: int, length: int | None = None) -> None:
        window = min(window, length or window)
        if window < _MIN_WINDOW:
            raise UsageError(f"a window of {window} tokens is too small", hint=f"use at least {_MIN_WINDOW}")
        try:
            self._engine = Engine.from_str(files[TOKENIZER].decode())
            config = json.loads(files.get(TOKENIZER_CONFIG, b"{}"))
        except Exception as error:  # the tokenizers package raises bare Exception
            raise BundleError(f"the tokenizer cannot be read: {error!r}", where=TOKENIZER) from error
        self._length = length
        self._padding = _padding(self._engine, config)
        # Padding each text alone keeps the tokenizer off its thread pool, which complains of processes started later.
        self._engine.no_padding()
        self._engine.enable_truncation(window)

    def encode(self, texts: Sequence[tuple[str, str | None]]) -> Batch:
        """Return input_ids, attention_mask and token_type_ids, (n, tokens) int64, as long as the longest text.

        Args:
            texts: each with the text that it goes with, if there is one.
        """
        found = [self._engine.encode(text, pair) for text, pair in texts]
        length = self._length or max(1, *map(len, found))
        for encoding in found:
            encoding.pad(length, **self._padding)
        rows = ([e.ids for e in found], [e.attention_mask for e in found], [e.type_ids for e in found])
        return {name: np.array(ids, np.int64) for name, ids in zip(INPUTS, rows, strict=True)}


def _padding(engine: Engine, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the tokenizer pads; tokenizer_config.json says it where tokenizer.json does not."""
    if engine.padding:
        return {name: engine.padding[name] for name in ("direction", "pad_id", "pad_type_id", "pad_token")}
    token = config.get("pad_token")
    token = token.get("content") if isinstance(token, dict) else token
    found = engine.token_to_id(token) if isinstance(token, str) else None
    side = "left" if config.get("padding_side") == "left" else "right"
    # What is masked may be any token: 0 serves where nobody says.
    return {"direction": side, "pad_id": found or 0, "pad_type_id": 0, "pad_token": token or ""}
