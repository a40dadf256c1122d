import time

import numpy as np
import pytest

from edgec.errors import UsageError
from edgec.measure.latency import measure_decoder

PROMPT_S, TOKEN_S = 0.012, 0.003


class Paced:
    """A `Session` that takes a known time."""

    vocab_size, max_length, batch = 7, 10, 1

    def __init__(self) -> None:
        self.length = 0
        self.prompts: list[list[int]] = []

    def step(self, input_ids: np.ndarray) -> np.ndarray:
        time.sleep(TOKEN_S if self.length else PROMPT_S)
        if not self.length:
            self.prompts.append(input_ids[0].tolist())
        self.length += input_ids.shape[1]
        return np.eye(7, dtype=np.float32)[(input_ids + 1) % 7]

    def reset(self, batch: int = 1) -> None:
        self.length = 0

    def reorder(self, rows: np.ndarray) -> None:
        raise AssertionError(rows)

    def rewind(self, length: int) -> None:
        raise AssertionError(length)


def test_times_what_it_says():
    session = Paced()
    found = measure_decoder(session, prompt_tokens=6, new_tokens=4, repeats=3, warmup=2)
    assert (found.prompt_tokens, found.new_tokens, found.repeats) == (6, 4, 3)
    assert len(found.ttft_samples_ms) == 3
    assert np.shape(found.token_samples_ms) == (3, 4)
    assert min(found.ttft_samples_ms) >= 1e3 * PROMPT_S
    assert np.min(found.token_samples_ms) >= 1e3 * TOKEN_S
    assert found.ttft_ms == np.median(found.ttft_samples_ms)
    assert found.p50_ms == np.median(found.token_samples_ms)
    assert (found.p90_ms, found.p99_ms) == (None, None)  # of twelve tokens
    assert found.prefill_tokens_per_s == pytest.approx(6e3 / found.ttft_ms)
    assert found.decode_tokens_per_s == pytest.approx(1e3 / np.median(np.mean(found.token_samples_ms, axis=1)))
    assert len(session.prompts) == 5
    again = Paced()
    measure_decoder(again, prompt_tokens=6, new_tokens=1, repeats=1, warmup=0)
    assert again.prompts == session.prompts[:1]


@pytest.mark.parametrize("name", ["prompt_tokens", "new_tokens", "repeats"])
def test_refuses_to_measure_nothing(name: str):
    with pytest.raises(UsageError, match="at least one"):
        measure_decoder(Paced(), **{name: 0})
