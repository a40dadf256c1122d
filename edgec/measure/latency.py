"""Time a running decoder."""

import time
from itertools import pairwise

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgec.backends.session import Session
from edgec.errors import UsageError
from edgec.measure.percentiles import percentiles


class DecoderLatency(msgspec.Struct, frozen=True):
    """Times of a decoder for one row; a percentile is over all decoded tokens of all repeats.

    Args:
        prompt_tokens: in the prompt.
        new_tokens: decoded after it in each repeat.
        repeats: how often.
        ttft_ms: from prompt to first token: median over the repeats.
        p50_ms: of one decoded token.
        p90_ms: of one decoded token; None of fewer than 64.
        p99_ms: of one decoded token; None of fewer than 662.
        prefill_tokens_per_s: prompt tokens over the median time to first token.
        decode_tokens_per_s: decoded tokens over their time, median over the repeats.
        ttft_samples_ms: one for each repeat.
        token_samples_ms: (repeats, new_tokens).
    """

    prompt_tokens: int
    new_tokens: int
    repeats: int
    ttft_ms: float
    p50_ms: float
    p90_ms: float | None
    p99_ms: float | None
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    ttft_samples_ms: tuple[float, ...]
    token_samples_ms: tuple[tuple[float, ...], ...]


def measure_decoder(
    session: Session,
    *,
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    repeats: int = 5,
    warmup: int = 1,
    seed: int = 0,
) -> DecoderLatency:
    """Time a prompt of random tokens and greedy decoding after it.

    Choosing the token is part of the time. The texts are the same for every session with the same vocabulary.

    Args:
        session: used for one row, from its beginning.
        prompt_tokens: at least 1.
        new_tokens: decoded tokens to time in each repeat, at least 1.
        repeats: at least 1.
        warmup: repeats before the first that counts.
        seed: of the prompts.

    Raises:
        UsageError: a count is too small, or the tokens do not fit the session.
    """
    if min(prompt_tokens, new_tokens, repeats) < 1 or warmup < 0:
        raise UsageError("measuring takes at least one prompt token, one new token and one repeat")
    rng = np.random.default_rng(seed)
    runs = [
        _time_once(session, rng.integers(session.vocab_size, size=(1, prompt_tokens)), new_tokens)
        for _ in range(warmup + repeats)
    ][warmup:]
    samples = np.array(runs)
    ttft, tokens = samples[:, 0], samples[:, 1:]
    p50, p90, p99 = percentiles(tokens)
    return DecoderLatency(
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeats=repeats,
        ttft_ms=float(np.median(ttft)),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        prefill_tokens_per_s=1e3 * prompt_tokens / float(np.median(ttft)),
        decode_tokens_per_s=1e3 / float(np.median(tokens.mean(axis=1))),
        ttft_samples_ms=tuple(ttft.tolist()),
        token_samples_ms=tuple(map(tuple, tokens.tolist())),
    )


def _time_once(session: Session, prompt: NDArray[np.int64], new_tokens: int) -> list[float]:
    """Return the time to the first token, and the time of each token after it, in ms."""
    session.reset(1)
    ids, times = prompt, [time.perf_counter()]
    for _ in range(1 + new_tokens):
        ids = session.step(ids)[:, -1].argmax(axis=1)[:, None]
        times.append(time.perf_counter())
    return [1e3 * (end - begin) for begin, end in pairwise(times)]
