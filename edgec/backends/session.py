"""What every backend's running decoder looks like to generation, evaluation and measurement."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


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
