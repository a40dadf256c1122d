"""Outputs that are texts: token ids, or scores of tokens."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgec.errors import BundleError, UsageError
from edgec.evaluate.metrics import Part, Setting
from edgec.generate.tokenizer import TOKENIZER, TOKENIZER_CONFIG, Tokenizer

VOCABULARY = "vocab.json"


def texts(values: NDArray[Any], valid: NDArray[np.bool_] | None, setting: Setting) -> list[str]:
    """Return the text of each sample: ids (n, tokens), or the ids with the highest scores (n, tokens, vocabulary).

    Where there is a blank, tokens that repeat are put together and blanks left out (greedy decoding of CTC).

    Raises:
        UsageError: the output is neither, or it is not known what tokens mean.

    Source: Graves et al., "Connectionist Temporal Classification", ICML 2006: best path decoding.
    """
    if setting.decode is None:
        raise UsageError(
            "the model has no tokenizer: its output cannot be read as text",
            hint="give a directory with tokenizer.json, or vocab.json for speech; or a module:function of your own",
        )
    is_scores = values.dtype.kind == "f" and values.ndim == 3
    if not is_scores and (values.dtype.kind not in "iu" or values.ndim != 2):
        raise UsageError(
            f"an output of {values.dtype} {values.shape} is no text: it takes (n, tokens, vocabulary)",
            hint="NAME@OUTPUT looks at another output",
        )
    if is_scores and values.shape[2] < setting.vocabulary:
        raise UsageError(
            f"the output has {values.shape[2]} numbers for each position, the tokenizer {setting.vocabulary} tokens: "
            "it is no text",
            hint="NAME@OUTPUT looks at another output",
        )
    ids = values.argmax(axis=2) if is_scores else values
    rows = [row if valid is None else row[kept] for row, kept in zip(ids, ids if valid is None else valid, strict=True)]
    if setting.blank is not None:
        rows = [row[np.diff(row, prepend=-1) != 0] for row in rows]
        rows = [row[row != setting.blank] for row in rows]
    return [setting.decode(row.tolist()) for row in rows]


def predicted_and_right(part: Part, setting: Setting) -> list[tuple[str, str]]:
    """Return the text of each sample and the one that is right.

    Raises:
        UsageError: the labels are no texts, or the output is none.
    """
    if not isinstance(part.labels, list):
        raise UsageError(
            "the metric needs texts as labels", hint="give .jsonl with `text` and `target`, or `audio` and `text`"
        )
    return list(zip(texts(part.values, part.valid, setting), part.labels, strict=True))


class Decoder(NamedTuple):
    """What turns token ids into text, how many tokens it knows, and the blank of CTC."""

    decode: Callable[[Sequence[int]], str]
    vocabulary: int
    blank: int | None


def decoder_of(files: Mapping[str, bytes], *, ctc: bool) -> Decoder:
    """Return what turns token ids into text.

    Args:
        files: of the tokenizer, name -> content: tokenizer.json, or the vocab.json of a model for speech.
        ctc: whether outputs are for CTC, whose blank is the token for padding (Wav2Vec2); else there is none.

    Raises:
        BundleError: the files cannot be read, or lack what this takes.
    """
    try:
        config = json.loads(files.get(TOKENIZER_CONFIG, b"{}"))
        tokens = {str(name): int(index) for name, index in json.loads(files.get(VOCABULARY, b"{}")).items()}
        pad = config.get("pad_token", "<pad>")
    except (ValueError, AttributeError, TypeError) as error:
        raise BundleError(f"the tokenizer's files cannot be read: {error}") from error
    pad = pad.get("content", "") if isinstance(pad, dict) else str(pad)
    if tokens and (ctc or TOKENIZER not in files):
        space = str(config.get("word_delimiter_token", "|"))
        found = Decoder(_spelled(tokens, space), max(tokens.values()) + 1, tokens.get(pad))
    elif TOKENIZER in files:
        tokenizer = Tokenizer.from_files(files)
        found = Decoder(tokenizer.decode, tokenizer.vocabulary, tokenizer.token_id(pad))
    else:
        raise BundleError("the model has neither a tokenizer nor a vocabulary: its output cannot be read as text")
    if ctc and found.blank is None:
        raise BundleError(f"the tokenizer has no token {pad!r}, the blank of CTC", hint="name it as its pad_token")
    return found if ctc else found._replace(blank=None)


def _spelled(tokens: Mapping[str, int], space: str) -> Callable[[Sequence[int]], str]:
    """Return what joins the tokens of a vocabulary, without those like "<pad>"."""
    names = {index: "" if token.startswith("<") and token.endswith(">") else token for token, index in tokens.items()}

    def decode(ids: Sequence[int]) -> str:
        return " ".join("".join(names.get(index, "") for index in ids).replace(space, " ").split())

    return decode
