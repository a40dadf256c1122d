import itertools

import numpy as np
import pytest

from edgec.errors import UsageError
from edgec.generate.beam import beam_search
from edgec.generate.loop import generate

PROMPT = [2, 0]
VOCAB, HORIZON = 4, 4


def scored(model, eos: set[int], penalty: float) -> dict[tuple[int, ...], float]:
    """Every text that ends, or that fills the horizon, with its score."""
    found = {}
    for length in range(1, HORIZON + 1):
        for tokens in itertools.product(range(model.vocab_size), repeat=length):
            ends = tokens[-1] in eos
            if eos & set(tokens[:-1]) or not (ends or length == HORIZON):
                continue
            total = 0.0
            for i, token in enumerate(tokens):
                logits = model.logits([*PROMPT, *tokens[:i]]).astype(np.float64)
                total += logits[token] - np.log(np.exp(logits).sum())
            text, score = tokens[:-1] if ends else tokens, total / length**penalty
            found[text] = max(score, found.get(text, -np.inf))
    return found


@pytest.mark.parametrize("penalty", [-0.5, 0.0, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("eos", [set(), {1}, {1, 3}])
@pytest.mark.parametrize("seed", range(8))
def test_enough_beams_find_the_best_text(table_model, seed: int, eos: set[int], penalty: float):
    model = table_model(VOCAB, seed=seed)
    scores = scored(model, eos, penalty)
    options = {"max_new_tokens": HORIZON, "eos_ids": eos, "length_penalty": penalty}
    assert tuple(beam_search(model, PROMPT, beams=VOCAB**HORIZON, **options)) == max(scores, key=scores.__getitem__)
    # The best is worth finding: one beam misses it for some of these models.
    few = tuple(beam_search(model, PROMPT, beams=2, **options))
    assert scores[few] <= max(scores.values())


def test_more_beams_find_what_greedy_misses(table_model):
    models = [table_model(VOCAB, seed=seed) for seed in range(8)]
    best = [beam_search(model, PROMPT, beams=64, max_new_tokens=HORIZON) for model in models]
    assert any(b != list(generate(m, PROMPT, max_new_tokens=HORIZON)) for b, m in zip(best, models, strict=True))


def test_one_beam_without_an_end_is_greedy(table_model):
    model = table_model(30)
    expected = list(generate(model, PROMPT, max_new_tokens=10))
    assert beam_search(model, PROMPT, beams=1, max_new_tokens=10) == expected


def test_stops_where_the_cache_does(table_model):
    model = table_model(VOCAB, max_length=4)
    expected = beam_search(table_model(VOCAB), PROMPT, beams=3, max_new_tokens=3)
    assert beam_search(model, PROMPT, beams=3, max_new_tokens=9) == expected


def test_a_vocabulary_of_ends_gives_an_empty_text(table_model):
    assert beam_search(table_model(2), [0], beams=2, max_new_tokens=3, eos_ids={0, 1}) == []


@pytest.mark.parametrize("values", [{"beams": 0}, {"max_new_tokens": 0}, {"prompt_ids": []}])
def test_refuses_to_search_for_nothing(table_model, values: dict):
    with pytest.raises(UsageError, match="at least one"):
        beam_search(table_model(3), **{"prompt_ids": [0], "beams": 1, "max_new_tokens": 1, **values})
