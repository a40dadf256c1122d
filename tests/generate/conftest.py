"""A language model that is a table: each text has logits of its own."""

import zlib

import numpy as np
import pytest


class TableModel:
    """A `Session` whose logits depend on every token before, in a way that can be computed for any text at once."""

    def __init__(self, vocab_size: int, max_length: int = 64, seed: int = 0) -> None:
        self.vocab_size, self.max_length, self.seed = vocab_size, max_length, seed
        self.reset()

    def logits(self, tokens: list[int]) -> np.ndarray:
        key = zlib.crc32(bytes([self.seed, *tokens]))
        return 2 * np.random.default_rng(key).standard_normal(self.vocab_size, np.float32)

    @property
    def length(self) -> int:
        return len(self.rows[0])

    def step(self, input_ids: np.ndarray) -> np.ndarray:
        assert input_ids.shape[0] == self.batch
        assert self.length + input_ids.shape[1] <= self.max_length
        out = []
        for row, new in zip(self.rows, input_ids.tolist(), strict=True):
            out.append([])
            for token in new:
                row.append(token)
                out[-1].append(self.logits(row))
        return np.array(out)

    def reset(self, batch: int = 1) -> None:
        self.batch, self.rows = batch, [[] for _ in range(batch)]

    def reorder(self, rows: np.ndarray) -> None:
        self.rows = [list(self.rows[row]) for row in rows]
        self.batch = len(rows)

    def rewind(self, length: int) -> None:
        self.rows = [row[:length] for row in self.rows]


@pytest.fixture(scope="session")
def table_model() -> type[TableModel]:
    return TableModel
