"""How sparse each matrix gets, beside the mask of all at once, and beside trying everything."""

import math
from itertools import product

import pytest
import torch
from random_matrices import normal

from edgec.prune.allocation import by_sensitivity, global_magnitude, outlier_ratio, owl, uniform
from edgec.prune.methods import keep_mask, magnitude
from edgec.prune.pattern import Pattern


def mean(shares, sizes):
    return sum(shares[name] * sizes[name] for name in shares) / sum(sizes.values())


def test_uniform():
    assert uniform(["a", "b"], 0.3) == {"a": 0.3, "b": 0.3}


MODELS = {
    "of different sizes": [normal(20, 30), 0.3 * normal(7, 50, seed=1), 2 * normal(40, 9, seed=2)],
    "few values": [normal(20, 30).round(), normal(30, 8, seed=1).round()],
    "equal weights": [torch.full((4, 9), 0.5), torch.full((3, 5), -0.5)],
    "zeros": [torch.zeros(4, 9), -torch.zeros(3, 5), normal(6, 6)],
    "near each other": [1 + normal(20, 30) * 1e-6, -1 + normal(30, 8, seed=1) * 1e-6],
    "subnormal": [1e-42 * normal(20, 30), 1e-44 * normal(5, 5, seed=1)],
    "nothing at all": [torch.zeros(0, 4), normal(6, 6), torch.zeros(4, 0)],
    "turned": [normal(30, 20).T, normal(8, 8, seed=1)],
}


@pytest.mark.parametrize("target", [0.0, 1e-6, 0.1, 0.5, 0.7])
@pytest.mark.parametrize("name", MODELS)
class TestGlobalMagnitude:
    def test_drops_the_smallest_weights_of_all(self, name, target):
        weights = dict(enumerate(MODELS[name]))
        shares = global_magnitude({key: lambda key=key: weights[key] for key in weights}, target)
        together = torch.cat([weight.flatten() for weight in weights.values()])[None]
        expected = keep_mask(together.abs(), Pattern(target), "matrix").split([w.numel() for w in weights.values()], 1)
        for key, keep in zip(weights, expected, strict=True):
            found = magnitude.prune(weights[key], None, Pattern(shares[key])).keep
            if keep.any() or not keep.numel():
                assert torch.equal(found.flatten(), keep[0])
            else:
                assert found.sum() == 1

    def test_reads_each_matrix_twice_at_most(self, name, target):
        reads = []

        def read(number):
            reads.append(number)
            return MODELS[name][number]

        numbers = range(len(MODELS[name]))
        global_magnitude({str(n): lambda n=n: read(n) for n in numbers}, target)
        assert all(reads.count(number) <= 2 for number in numbers)


def test_a_global_threshold_needs_numbers():
    with pytest.raises(ValueError, match="weight is not finite"):
        global_magnitude({"a": lambda: torch.tensor([[1.0, math.nan]])}, 0.5)


def test_matrices_larger_than_a_piece(monkeypatch):
    weights = {"a": normal(40, 50), "b": 0.5 * normal(30, 20, seed=1)}
    readers = {name: weights[name].clone for name in weights}
    expected = global_magnitude(readers, 0.6)
    monkeypatch.setattr("edgec.prune.allocation._PIECE", 77)
    assert global_magnitude(readers, 0.6) == expected


class TestOwl:
    def test_outliers_are_counted_in_a_layer_as_a_whole(self):
        weights, inputs = [normal(6, 40), 3 * normal(9, 30, seed=1)], [normal(40, seed=2), normal(30, seed=3)]
        scores = [(w.double().abs() * x.double().abs()).flatten() for w, x in zip(weights, inputs, strict=True)]
        for times in (5.0, 3.0):
            expected = (torch.cat(scores) > times * torch.cat(scores).mean()).double().mean()
            found = outlier_ratio([(w, x.square()) for w, x in zip(weights, inputs, strict=True)], times)
            assert found == pytest.approx(float(expected))
            assert 0 < found < 0.2

    def test_no_weights_have_no_outliers(self):
        assert outlier_ratio([(torch.zeros(0, 4), torch.ones(4))]) == 0

    def test_more_outliers_less_zeros(self):
        ratios = {"a": 0.01, "b": 0.05, "c": 0.02, "d": 0.021}
        sizes = {"a": 100, "b": 300, "c": 50, "d": 70}
        shares = owl(ratios, sizes, 0.7, lam=0.1)
        assert mean(shares, sizes) == pytest.approx(0.7, abs=1e-12)
        assert sorted(shares, key=shares.get) == sorted(ratios, key=lambda name: -ratios[name])
        assert max(abs(share - 0.7) for share in shares.values()) == pytest.approx(0.1)
        # Straight line, as in the paper: S_i is a + b * (1 - D_i).
        slope = (shares["a"] - shares["b"]) / (ratios["b"] - ratios["a"])
        assert shares["c"] - shares["b"] == pytest.approx(slope * (ratios["b"] - ratios["c"]))

    def test_equal_layers(self):
        equal = {str(n): 0.1 for n in range(7)}  # whose mean is another number in floats
        assert owl(equal, {name: 3 + int(name) for name in equal}, 0.5) == dict.fromkeys(equal, 0.5)
        assert owl({}, {}, 0.5) == {}

    @pytest.mark.parametrize("target", [0.05, 0.95])
    def test_an_interval_that_is_too_wide(self, target):
        with pytest.raises(ValueError, match="not all in"):
            owl({"a": 0.1}, {"a": 3}, target)


class TestSensitivity:
    CANDIDATES = (0.0, 0.3, 0.5, 0.8)
    SIZES = {"a": 100, "b": 300, "c": 50, "d": 170}  # noqa: RUF012
    LOSSES = {  # noqa: RUF012
        "a": (0.0, 0.02, 0.05, 0.9),
        "b": (0.0, 0.01, 0.03, 0.1),
        "c": (0.0, 0.4, 0.9, 3.0),
        "d": (0.0, 0.05, 0.04, math.inf),
    }

    @pytest.mark.parametrize("target", [0.0, 0.3, 0.5, 0.55])
    def test_the_best_of_all(self, target):
        def loss(choice):
            return sum(self.LOSSES[name][self.CANDIDATES.index(share)] for name, share in choice.items())

        found = by_sensitivity(self.LOSSES, self.CANDIDATES, self.SIZES, target)
        assert mean(found, self.SIZES) >= target - 1e-9
        choices = (dict(zip(self.SIZES, each, strict=True)) for each in product(self.CANDIDATES, repeat=4))
        best = min(loss(choice) for choice in choices if mean(choice, self.SIZES) >= target)
        assert loss(found) == pytest.approx(best, abs=1e-9)
        assert found["c"] <= found["b"]

    def test_the_same_for_all_is_within_reach(self):
        sizes = {str(n): 7 + 3 * n for n in range(30)}
        losses = dict.fromkeys(sizes, (0.1,))
        assert by_sensitivity(losses, [0.7], sizes, 0.7) == dict.fromkeys(sizes, 0.7)

    @pytest.mark.parametrize("target", [0.7, 0.99])
    def test_out_of_reach(self, target):
        with pytest.raises(ValueError, match="no choice"):
            by_sensitivity({"a": (0.0, 1.0), "b": (0.0, math.inf)}, [0.0, 0.9], {"a": 1, "b": 1}, target)

    @pytest.mark.parametrize("bad", [math.nan, -0.1])
    def test_losses_that_are_none(self, bad):
        with pytest.raises(ValueError, match="negative or NaN"):
            by_sensitivity({"a": (0.0, bad)}, [0.0, 0.5], {"a": 1}, 0.3)
