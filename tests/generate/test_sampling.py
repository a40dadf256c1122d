import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgec.errors import UsageError
from edgec.generate.sampling import GREEDY, Sampling, choose, distribution

LOGITS = hnp.arrays(np.float32, st.integers(1, 12), elements=st.floats(-8, 8, width=16))


def by_definition(logits: np.ndarray, sampling: Sampling) -> dict[int, float]:
    """Temperature, then the k most likely, then the smallest set that reaches p."""
    weights = {i: float(np.exp(float(x) / sampling.temperature)) for i, x in enumerate(logits)}
    ranked = sorted(weights, key=lambda i: (-logits[i], i))[: sampling.top_k]
    total = sum(weights[i] for i in ranked)
    kept, reached = [], 0.0
    for i in ranked:
        kept.append(i)
        reached += weights[i] / total
        if reached >= sampling.top_p:
            break
    total = sum(weights[i] for i in kept)
    return {i: weights[i] / total for i in kept}


@given(
    LOGITS,
    st.floats(0.3, 3),
    st.none() | st.integers(1, 15),
    # Sums of powers of 2 land on round bounds, where rounding decides; these bounds they do not hit.
    st.sampled_from([0.0123, 0.3141, 0.5772, 0.9137, 1.0]),
)
def test_distribution_is_the_definition(logits: np.ndarray, temperature: float, top_k: int | None, top_p: float):
    sampling = Sampling(temperature, top_k, top_p)
    tokens, probabilities = distribution(logits, sampling)
    expected = by_definition(logits, sampling)
    if top_p < 1:  # at exactly 1 the last tokens are below float64's resolution of the sum
        assert tokens.tolist() == list(expected)
    np.testing.assert_allclose(probabilities, [expected.get(t, 0) for t in tokens.tolist()], rtol=1e-9, atol=1e-12)


def test_draws_follow_the_distribution():
    logits = np.array([0.5, 2.0, -1.0, 1.5, 1.0], np.float32)
    sampling = Sampling(0.8, 4, 0.95)
    rng = np.random.default_rng(1)
    draws = 20_000
    counts = np.bincount([choose(logits, sampling, rng) for _ in range(draws)], minlength=5)
    for token, expected in enumerate(by_definition(logits, sampling).get(i, 0) for i in range(5)):
        assert abs(counts[token] - draws * expected) <= 5 * np.sqrt(draws * expected * (1 - expected))


def test_greedy_takes_the_first_of_the_most_likely():
    assert choose(np.array([1, 3, 3, 2], np.float32), GREEDY, np.random.default_rng(0)) == 1


@pytest.mark.parametrize("temperature", [1e-3, 1e-30])
def test_a_small_temperature_is_nearly_greedy(temperature: float):
    logits = np.array([-80, 90, 89], np.float32)
    tokens, probabilities = distribution(logits, Sampling(temperature))
    assert tokens[0] == 1
    assert probabilities[0] == 1


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ((-1,), "temperature"),
        ((float("inf"),), "temperature"),
        ((float("nan"),), "temperature"),
        ((1, 0), "top-k"),
        ((1, None, 0), "top-p"),
        ((1, None, 1.1), "top-p"),
        ((1, None, float("nan")), "top-p"),
    ],
)
def test_refuses_impossible_values(values: tuple, word: str):
    with pytest.raises(UsageError, match=word):
        Sampling(*values)
