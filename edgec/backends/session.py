"""What every backend's running decoder looks like to generation, evaluation and measurement."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgec.errors import UsageError


class Session(Protocol):
    """A decoder with a key-value cache; all rows of a batch are equally long.

    Attributes:
        vocab_size: number of logits for each token.
        max_length: the most tokens that the cache takes.
        batch: number of rows.
        length: tokens now in the cache.
    """

    vocab_size: int
    max_length: int
    batch: int
    length: int

    def step(self, input_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append tokens (batch, new) to the cache and return their logits (batch, new, vocab).

        An artifact that is made for generation may give the logits of the last token only: (batch, 1, vocab).

        Raises:
            UsageError: the cache would exceed `max_length`, or an id is outside the vocabulary.
        """
        ...

    def reset(self, batch: int = 1) -> None:
        """Forget everything, and take `batch` rows from now on."""
        ...

    def reorder(self, rows: NDArray[np.int64]) -> None:
        """Make cache row i what row `rows[i]` was; the number of rows may change."""
        ...

    def rewind(self, length: int) -> None:
        """Forget all tokens after the first `length`."""
        ...


PROMPT = 512
"""A longer prompt is run in pieces of so many tokens: what attention keeps of a piece does not grow with its square."""


def in_pieces(
    run: Callable[[NDArray[np.int64]], NDArray[np.float32]], input_ids: NDArray[np.int64], *, last_only: bool
) -> NDArray[np.float32]:
    """Run tokens (batch, new) piece by piece; return the logits of all, or those of the last piece."""
    pieces = [run(input_ids[:, start : start + PROMPT]) for start in range(0, input_ids.shape[1], PROMPT)]
    return pieces[-1] if last_only or len(pieces) == 1 else np.concatenate(pieces, axis=1)


def check_length(max_length: int | None, context: int, artifact: Path) -> int:
    """Return how many tokens a session's cache takes: `max_length`, or the artifact's whole context.

    Raises:
        UsageError: it is more than the context.
    """
    if max_length is not None and not 1 <= max_length <= context:
        raise UsageError(f"the model takes 1 to {context} tokens, not {max_length}", where=str(artifact))
    return max_length or context


def check_batch(batch: int) -> None:
    """Make sure that a batch has a row.

    Raises:
        UsageError: it has none.
    """
    if batch < 1:
        raise UsageError(f"a batch has at least one row, not {batch}")


def check_rewind(session: Session, length: int) -> None:
    """Make sure that `session` holds the tokens that it is to go back to.

    Raises:
        UsageError: it does not.
    """
    if not 0 <= length <= session.length:
        raise UsageError(f"cannot go back to {length} tokens: the cache holds {session.length}")


def token_feed(session: Session, input_ids: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Return the canonical graph's inputs, but for the cache, that append tokens (batch, new) to a session."""
    total = session.length + input_ids.shape[1]
    return {
        "input_ids": np.ascontiguousarray(input_ids, np.int64),
        "attention_mask": np.ones((session.batch, total), np.int64),
        "position_ids": np.tile(np.arange(session.length, total), (session.batch, 1)),
    }


def check_ids(session: Session, input_ids: NDArray[np.int64], artifact: Path) -> None:
    """Make sure that `session` can take these tokens; runtimes do not check ids in every kernel that gathers.

    Raises:
        UsageError: it cannot.
    """
    if input_ids.ndim != 2 or input_ids.shape[0] != session.batch or input_ids.shape[1] == 0:
        raise UsageError(f"token ids have shape {input_ids.shape}, expected ({session.batch}, 1 or more)")
    total = session.length + input_ids.shape[1]
    if total > session.max_length:
        raise UsageError(
            f"{total} tokens do not fit the cache of {session.max_length}",
            where=str(artifact),
            hint="shorten the prompt, or generate fewer tokens",
        )
    low, high = int(input_ids.min()), int(input_ids.max())
    if low < 0 or high >= session.vocab_size:
        raise UsageError(
            f"token {low if low < 0 else high} is not in the vocabulary of {session.vocab_size}",
            where=str(artifact),
            hint="use the tokenizer of this model",
        )
