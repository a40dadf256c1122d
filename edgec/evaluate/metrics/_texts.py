"""Outputs that are texts: token ids, or scores of tokens."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
        raise UsageError("the model has no tokenizer: its output cannot be read as text")
    is_scores = values.dtype.kind == "f" and values.ndim == 3
    if not is_scores and (values.dtype.kind not in "iu" or values.ndim != 2):
        raise UsageError(f"an output of {values.dtype} {values.shape} is no text: it takes (n, tokens, vocabulary)")
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
        raise UsageError("the metric needs texts as labels")
    return list(zip(texts(part.values, part.valid, setting), part.labels, strict=True))


def decoder_of(
    files: Mapping[str, bytes], vocabulary: Sequence[str] = ()
) -> tuple[Callable[[Sequence[int]], str], int | None]:
    """Return what turns token ids into text, and the token that may be the blank of CTC.

    Args:
        files: the tokenizer's, name -> content: tokenizer.json, or the vocab.json of a CTC model.
        vocabulary: tokens by id, where the model has no tokenizer; "" or one like "<pad>" is the blank.

    Returns:
        The blank is the token for padding (Wav2Vec2); None where there is none.

    Raises:
        BundleError: the files cannot be read.
    """
    try:
        config = json.loads(files.get(TOKENIZER_CONFIG, b"{}"))
        tokens = {str(name): int(index) for name, index in json.loads(files.get(VOCABULARY, b"{}")).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise BundleError(f"the tokenizer's files cannot be read: {error}") from error
    tokens = {token: index for index, token in enumerate(vocabulary)} or tokens
    pad = config.get("pad_token", "<pad>")
    pad = pad.get("content", "") if isinstance(pad, dict) else pad
    if TOKENIZER in files and not vocabulary:
        tokenizer = Tokenizer.from_files(files)
        return tokenizer.decode, tokens.get(pad)
    if not tokens:
        raise BundleError("the model has neither a tokenizer nor a vocabulary: its output cannot be read as text")
    space = config.get("word_delimiter_token", "|")
    names = {index: "" if token.startswith("<") and token.endswith(">") else token for token, index in tokens.items()}

    def decode(ids: Sequence[int]) -> str:
        return " ".join("".join(names.get(index, "") for index in ids).replace(space, " ").split())

    return decode, tokens.get(pad, tokens.get(""))
