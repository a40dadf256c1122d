import numpy as np
import pytest

from edgec.errors import UsageError
from edgec.generate.loop import generate
from edgec.generate.sampling import Sampling

PROMPT = [3, 1, 4]


def greedy(model, count: int) -> list[int]:
    tokens = list(PROMPT)
    for _ in range(count):
        tokens.append(int(np.argmax(model.logits(tokens))))
    return tokens[len(PROMPT) :]


def test_greedy_follows_the_most_likely_token(table_model):
    model = table_model(9)
    assert list(generate(model, PROMPT, max_new_tokens=12)) == greedy(model, 12)


def test_a_seed_repeats_a_text_and_another_does_not(table_model):
    model = table_model(50)
    texts = [list(generate(model, PROMPT, max_new_tokens=20, sampling=Sampling(1.0), seed=s)) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_stops_before_the_token_that_ends_a_text(table_model):
    model = table_model(9)
    whole = greedy(model, 12)
    end = whole[5]
    assert list(generate(model, PROMPT, max_new_tokens=12, eos_ids={end})) == whole[: whole.index(end)]


@pytest.mark.parametrize("max_length", [3, 4, 8])
def test_the_last_token_needs_no_room_in_the_cache(table_model, max_length: int):
    model = table_model(9, max_length)
    assert list(generate(model, PROMPT, max_new_tokens=12)) == greedy(model, max_length - len(PROMPT) + 1)


def test_tokens_come_one_by_one(table_model):
    model = table_model(9)
    tokens = generate(model, PROMPT, max_new_tokens=12)
    next(tokens)
    assert model.length == len(PROMPT)
    next(tokens)
    assert model.length == len(PROMPT) + 1


def test_refuses_an_empty_prompt(table_model):
    with pytest.raises(UsageError, match="empty"):
        next(generate(table_model(9), [], max_new_tokens=1))
