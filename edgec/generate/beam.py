"""Search for the most likely text with beams."""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from edgec.backends.session import Session
from edgec.errors import UsageError

Floats = NDArray[np.float64]


def beam_search(
    session: Session,
    prompt_ids: Sequence[int],
    *,
    beams: int,
    max_new_tokens: int,
    eos_ids: Collection[int] = (),
    length_penalty: float = 1.0,
) -> list[int]:
    """Return the new tokens of the best text found; the token that ends it is not one of them.

    A text's score is its log-likelihood divided by its number of new tokens (the end token counts) to the power
    `length_penalty`. The search ends when no open text can beat the best ended one, after `max_new_tokens`, or where
    the session's cache does.

    Raises:
        UsageError: the prompt is empty or does not fit the session, or there is nothing to search for.
    """
    if not prompt_ids or beams < 1 or max_new_tokens < 1:
        raise UsageError("beam search needs a prompt, at least one beam, and at least one new token")
    session.reset(1)
    logits = session.step(np.array([prompt_ids], np.int64))[:, -1]
    longest = min(max_new_tokens, session.max_length - session.length + 1)
    ends = list(eos_ids)
    totals, texts = np.zeros(1), np.empty((1, 0), np.int64)
    best_score, best = -np.inf, np.empty(0, np.int64)
    for length in range(1, longest + 1):
        scores = totals[:, None] + _log_softmax(logits)
        if ends:
            row = int(scores[:, ends].max(axis=1).argmax())
            score = scores[row, ends].max() / length**length_penalty
            if score > best_score:
                best_score, best = score, texts[row]
            scores[:, ends] = -np.inf
        rows, tokens, totals = _most_likely(scores, beams)
        texts = np.concatenate((texts[rows], tokens[:, None]), axis=1)
        # A text's log-likelihood only falls: the best that an open text can do is to keep it to the greatest length.
        if not totals.size or totals[0] / max(length**length_penalty, longest**length_penalty) <= best_score:
            break
        if length < longest:
            session.reorder(rows)
            logits = session.step(tokens[:, None])[:, -1]
    else:
        best = texts[0]
    return [int(token) for token in best]


def _log_softmax(logits: NDArray[np.float32]) -> Floats:
    centred = logits.astype(np.float64)
    centred -= centred.max(axis=1, keepdims=True)
    centred -= np.log(np.exp(centred).sum(axis=1, keepdims=True))
    return centred


def _most_likely(scores: Floats, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Return rows, tokens and values of the greatest finite scores (rows, vocab), the greatest first."""
    flat = scores.ravel()
    count = min(count, int(np.isfinite(flat).sum()))
    chosen = np.argpartition(-flat, max(count - 1, 0))[:count]
    chosen = chosen[np.argsort(-flat[chosen], kind="stable")]
    rows, tokens = np.divmod(chosen, scores.shape[1])
    return rows, tokens, flat[chosen]
