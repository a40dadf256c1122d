"""Intervals from rounds and turns."""

import numpy as np
import pytest
from scipy.stats import t

from edgec.gate.statistics import contrasts, hierarchical, noise, quantile

PAIR = np.array([-1.0, 1.0])
CANDIDATE = np.array([-0.5, -0.5, 1.0])


def rounds(rng, count, turns=8, process=1.0, turn=1.0, shift=0.0):
    """Return logarithms of two variants; the second is `shift` larger."""
    shared = rng.normal(0, 5, (count, turns, 1))
    own = rng.normal(0, process, (count, 1, 2)) + rng.normal(0, turn, (count, turns, 2))
    return list(shared + own + np.array([0.0, shift]))


def test_the_centre_is_the_mean_of_medians_of_turns_without_what_they_share():
    found = [np.array([[1.0, 1.5], [9.0, 9.5], [4.0, 5.5]]), np.array([[0.0, 0.7], [1.0, 1.7], [2.0, 2.7]])]
    # Centred, the first round has medians -0.25 and 0.25, the second -0.35 and 0.35.
    assert contrasts(found, PAIR) == pytest.approx([0.5, 0.7])
    assert hierarchical(found, PAIR).centre == pytest.approx(0.6)


def test_what_all_processes_share_does_not_matter():
    rng = np.random.default_rng(0)
    found = rounds(rng, 6)
    moved = [each + rng.normal(0, 100, (8, 1)) for each in found]
    assert hierarchical(moved, PAIR).centre == pytest.approx(hierarchical(found, PAIR).centre)


@pytest.mark.parametrize(("process", "turn"), [(0.0, 1.0), (0.3, 1.0), (1.0, 1.0), (1.0, 0.3)])
@pytest.mark.parametrize("count", [6, 15])
def test_intervals_hold_the_truth(process, turn, count):
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        found = hierarchical(rounds(rng, count, process=process, turn=turn, shift=0.5), PAIR, resamples=1000)
        held += found.low(0.025) <= 0.5 <= found.high(0.025)
    assert 0.9 <= held / 200 <= 0.99  # 0.95 +- 0.015


@pytest.mark.parametrize("count", [6, 12])
def test_intervals_hold_the_truth_of_a_candidate_that_is_noisier_than_its_baselines(count):
    rng = np.random.default_rng(4)
    wrong = 0
    for _ in range(400):
        found = [rng.normal(0, (1, 1, 3)) + rng.normal(0, 0.5, (8, 3)) for _ in range(count)]
        estimate = hierarchical(found, CANDIDATE, resamples=1000)
        wrong += abs(estimate.centre) > estimate.high(0.025) - estimate.centre
    assert wrong / 400 <= 0.07  # 0.05 +- 0.011


def test_one_odd_value_among_equal_ones_says_little():
    """Such as a peak of memory that is one page larger in one round of six."""
    found = [np.array([[0.0, 0.0, 5e-5 * (number == 3)]]) for number in range(6)]
    estimate = hierarchical(found, CANDIDATE)
    assert -1e-3 < estimate.low(0.001) < 0 < estimate.high(0.001) < 1e-3


def test_one_odd_round_does_not_say_that_anything_can_be():
    rng = np.random.default_rng(7)
    found = [rng.normal(0, 1e-4, (1, 3)) + np.array([0.0, 0.0, 0.3 * (number == 3)]) for number in range(6)]
    estimate = hierarchical(found, CANDIDATE)
    assert estimate.stretch == 2
    assert -0.25 < estimate.low(0.025) < 0 < 0.05 < estimate.high(0.025) < 0.35


def test_spikes_do_not_shift_the_mean_of_two_baselines_beside_one_candidate():
    rng = np.random.default_rng(2)
    found = [rng.normal(0, 0.01, (8, 3)) + np.where(rng.random((8, 3)) < 0.2, 0.5, 0.0) for _ in range(400)]
    centre = contrasts(found, CANDIDATE)
    assert abs(centre.mean()) < 3 * centre.std() / 20


def test_one_value_of_a_process_is_one_turn():
    rng = np.random.default_rng(3)
    found = [rng.normal(0, 1, (1, 2)) for _ in range(200)]
    estimate = hierarchical(found, PAIR)
    differences = np.array([each[0, 1] - each[0, 0] for each in found])
    assert estimate.centre == pytest.approx(differences.mean())
    assert estimate.error == pytest.approx(differences.std(ddof=1) / np.sqrt(200))
    assert estimate.stretch == pytest.approx(1, abs=0.1)


def test_what_never_changes_has_no_error():
    found = hierarchical([np.array([[2.0, 2.5]])] * 5, PAIR)
    assert (found.low(1e-6), found.high(1e-6)) == (0.5, 0.5)


def test_equal_variants_tell_of_the_noise_of_a_contrast():
    found = [np.array([[x, -x, 0.0]]) for x in (1.0, -1.0, 2.0, -2.0, 0.5, -0.5)]
    # Two baselines differ by 2x, which has the variance 2; one beside the mean of two has 1.5.
    expected = pytest.approx(0.75 * np.var([2, -2, 4, -4, 1, -1], ddof=1))
    assert noise(found, CANDIDATE, np.array([-1.0, 1.0, 0.0])) == expected


def test_quantiles_are_those_of_student():
    assert quantile(5, 0.025) == pytest.approx(t.ppf(0.975, 5))
    assert quantile(10, 1e-6) == pytest.approx(t.ppf(1 - 1e-6, 10))


def test_equal_seeds_give_equal_intervals():
    found = rounds(np.random.default_rng(4), 6)
    assert hierarchical(found, PAIR, seed=3) == hierarchical(found, PAIR, seed=3) != hierarchical(found, PAIR, seed=4)


def test_turns_are_drawn_within_rounds():
    """Where rounds say the same, but not their turns, intervals are others."""
    medians = np.random.default_rng(5).normal(0, 1, (6, 1))
    noise = np.random.default_rng(6).normal(0, 5, (6, 4, 1))
    shapes = (np.concatenate([-size * noise, np.zeros((6, 1, 1)), size * noise], axis=1) for size in (0.0, 1.0))
    still, moving = (
        hierarchical([np.hstack([-each / 2, each / 2]) for each in shape + medians[:, None]], PAIR) for shape in shapes
    )
    assert (still.centre, still.error) == (pytest.approx(moving.centre), pytest.approx(moving.error))
    assert abs(still.stretch / moving.stretch - 1) > 0.05
