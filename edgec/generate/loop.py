"""Generate a text token by token."""

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from edgec.backends.session import Session
from edgec.errors import UsageError
from edgec.generate.sampling import GREEDY, Sampling, choose


def generate(
    session: Session,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    seed: int | None = None,
    eos_ids: Collection[int] = (),
) -> Iterator[int]:
    """Yield new tokens as they are chosen; the token that ends the text is not one of them.

    Args:
        session: used for one row, from its beginning.
        prompt_ids: at least one token.
        max_new_tokens: generation also ends where the session's cache does.
        sampling: how to choose.
        seed: the same seed gives the same tokens.
        eos_ids: tokens that end the text.

    Raises:
        UsageError: the prompt is empty, or does not fit the session.
    """
    if not prompt_ids:
        raise UsageError("the prompt is empty", hint="give at least one token: this model adds none of its own")
    rng = np.random.default_rng(seed)
    session.reset(1)
    logits = session.step(np.array([prompt_ids], np.int64))
    for left in reversed(range(max_new_tokens)):
        token = choose(logits[0, -1], sampling, rng)
        if token in eos_ids:
            return
        yield token
        if left == 0 or session.length == session.max_length:
            return
        logits = session.step(np.array([[token]], np.int64))
