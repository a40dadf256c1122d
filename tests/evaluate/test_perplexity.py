import numpy as np
import pytest

from edgec.evaluate.perplexity import perplexity, token_log_likelihoods

VOCAB = 11
WINDOWS = np.random.default_rng(0).integers(0, VOCAB, (3, 300))


class Bigrams:
    """A `Session` that knows only the last token: its log-likelihoods can be read off a table."""

    vocab_size, max_length, batch = VOCAB, 300, 1
    table = np.random.default_rng(1).normal(20, 3, (VOCAB, VOCAB)).astype(np.float32)

    def __init__(self) -> None:
        self.length = 250  # as an earlier use leaves it

    def step(self, input_ids: np.ndarray) -> np.ndarray:
        self.length += input_ids.shape[1]
        assert self.length <= self.max_length
        return self.table[input_ids]

    def reset(self, batch: int = 1) -> None:
        assert batch == 1
        self.length = 0

    def reorder(self, rows: np.ndarray) -> None:
        raise AssertionError(rows)

    def rewind(self, length: int) -> None:
        raise AssertionError(length)


def test_reads_off_the_table():
    table = Bigrams.table.astype(np.float64)
    logs = table - np.log(np.exp(table).sum(axis=1, keepdims=True))
    expected = logs[WINDOWS[:, :-1], WINDOWS[:, 1:]]
    np.testing.assert_allclose(token_log_likelihoods(Bigrams(), WINDOWS), expected, atol=1e-5)
    seen = []
    found = perplexity(Bigrams(), WINDOWS, seen.append)
    assert found.perplexity == pytest.approx(np.exp(-expected.mean()), rel=1e-5)
    assert found.perplexity_se == pytest.approx(
        found.perplexity * expected.std(ddof=1) / np.sqrt(expected.size), rel=1e-5
    )
    assert found.tokens == 3 * 299
    assert seen == ["window 0", "window 1", "window 2"]
