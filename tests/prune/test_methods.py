"""Methods beside their papers' equations in float64, and on what goes wrong with weights and statistics."""

import math
import pkgutil
from importlib import import_module

import pytest
import torch
from random_matrices import correlated, normal, seen, some_dead

from edgec.calibrate.stats import Stats
from edgec.prune import methods
from edgec.prune.methods import keep_mask, magnitude, method_of, sparsegpt, wanda
from edgec.prune.pattern import Pattern
from edgec.quantize import pieces
from edgec.quantize.algorithms import gptq, mse, rtn
from edgec.quantize.scheme import Scheme

NAMES = [file.name for file in pkgutil.iter_modules(methods.__path__)]
PATTERNS = [Pattern.parse(text) for text in ("50%", "70%", "2:4", "4:8", "2:3")]
INT4, ZEROS = Scheme("int4", 32), Scheme("int4", 64, symmetric=False)
SCHEMES = [INT4, ZEROS, Scheme("int3", None), Scheme("int8", None)]


def objective(weight, changed, stats):
    change = (weight - changed).double()
    return float(((change @ stats.hessian.double()) * change).sum())


def direct(weight, stats, pattern, grid=None):
    """Return what the paper's equations give, in float64: the mask, and the weights.

    No factor and no updates: whenever weights are looked at, those of all inputs still to come are solved for, as the
    best that they can be with what is in front of them.
    """
    w, h = weight.double(), stats.hessian.double()
    cols = w.shape[1]
    h = h + torch.diag(torch.where(h.diagonal() == 0, h.diagonal().mean(), 0))
    h = h + 0.01 * stats.hessian.double().diagonal().mean() * torch.eye(cols, dtype=torch.float64)
    alone = torch.stack([torch.linalg.inv(h[i:, i:])[0, 0] for i in range(cols)])
    done, keep = torch.zeros_like(w), torch.zeros(w.shape, dtype=torch.bool)

    def now(i):
        """Return the weights from input i on."""
        pull = (done[:, :i] - w[:, :i]) @ h[:i, i:]
        return w[:, i:] - torch.linalg.solve(h[i:, i:], pull.T).T

    step = 128 if pattern.block is None else pattern.block[1]
    for i in range(cols):
        current = now(i)
        if i % step == 0:
            stop = min(i + step, cols)
            scores = current[:, : stop - i].square() / alone[i:stop] * (stats.importance[i:stop] > 0)
            keep[:, i:stop] = keep_mask(scores, pattern, "matrix")
        rounded = current[:, 0] if grid is None else nearest(current[:, 0], i, grid)
        done[:, i] = rounded * keep[:, i]
    return keep, done


def nearest(values, column, grid):
    group = column // (grid.scheme.group or grid.codes.shape[1])
    scale, zero = grid.scales[:, group].double(), 0.0
    if grid.zero_points is not None:
        zero = grid.zero_points[:, group].double()
    return (torch.clamp(torch.round(values / scale) + zero, grid.scheme.low, grid.scheme.high) - zero) * scale


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
class TestEquations:
    def test_magnitude(self, pattern):
        weight = normal(9, 41)
        found = magnitude.prune(weight, None, pattern)
        if pattern.block is None:
            order = weight.abs().flatten().argsort(descending=True)
            expected = torch.zeros(weight.numel(), dtype=torch.bool)
            expected[order[: pattern.kept(weight.numel())]] = True
            assert torch.equal(found.keep.flatten(), expected)
        assert torch.equal(found.weight, weight.where(found.keep, 0))

    def test_wanda(self, pattern):
        weight, inputs = normal(9, 41), correlated(300, 41)
        found = wanda.prune(weight, seen(inputs), pattern)
        norms = inputs.double().norm(dim=0)
        width = 41 if pattern.block is None else pattern.block[1]
        for row in range(9):
            for start in range(0, 41, width):
                scores = {j: abs(float(weight[row, j])) * float(norms[j]) for j in range(start, min(start + width, 41))}
                best = sorted(scores, key=scores.get, reverse=True)[: pattern.kept(len(scores))]
                assert {j for j in scores if found.keep[row, j]} == set(best)
        assert torch.equal(found.weight, weight.where(found.keep, 0))

    @pytest.mark.parametrize("dead", [False, True])
    def test_sparsegpt(self, pattern, dead):
        inputs = correlated(300, 150)
        weight, stats = normal(6, 150), seen(some_dead(inputs) if dead else inputs)
        found = sparsegpt.prune(weight, stats, pattern)
        keep, expected = direct(weight, stats, pattern)
        assert torch.equal(found.keep, keep)
        torch.testing.assert_close(found.weight.double(), expected, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("scheme", SCHEMES, ids=str)
    def test_sparsegpt_with_rounding(self, pattern, scheme):
        weight, stats = normal(16, 100), seen(correlated(300, 100))
        found, keep = sparsegpt.prune_and_quantize(weight, stats, pattern, scheme)
        expected_keep, expected = direct(weight, stats, pattern, found)
        same = torch.isclose(found.dequantize().double(), expected, rtol=1e-5, atol=1e-7).all(1)
        # What float32 puts on the other side of a tie changes what comes after it in its row.
        assert same.float().mean() >= 0.85
        assert (keep == expected_keep).float().mean() >= 0.99
        assert objective(weight, found.dequantize(), stats) == pytest.approx(
            objective(weight, expected, stats), rel=0.02
        )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_who_knows_more_loses_less(pattern, seed):
    weight, stats = normal(24, 200, seed=seed), seen(correlated(400, 200, seed=10 * seed))
    errors = [
        objective(weight, method.prune(weight, stats, pattern).weight, stats)
        for method in (sparsegpt, wanda, magnitude)
    ]
    assert errors[0] < 0.8 * errors[1] < 0.8 * errors[2]


@pytest.mark.parametrize("scheme", [INT4, ZEROS, Scheme("int3", 64)], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_rounding_in_the_same_pass_loses_less_than_rounding_what_is_left(pattern, scheme):
    errors = torch.zeros(3)
    for seed in range(3):
        weight, stats = normal(24, 200, seed=seed), seen(correlated(400, 200, seed=10 * seed))
        found, keep = sparsegpt.prune_and_quantize(weight, stats, pattern, scheme)
        assert not found.dequantize()[~keep].any()
        pruned = sparsegpt.prune(weight, stats, pattern).weight
        tensors = (found, mse.quantize(pruned, stats, scheme), rtn.quantize(pruned, stats, scheme))
        losses = torch.tensor([objective(weight, tensor.dequantize(), stats) for tensor in tensors])
        errors += losses / losses[0]
    assert errors[0] < 0.95 * errors[1]
    assert errors[0] < 0.85 * errors[2]


def test_inputs_that_have_nothing_in_common_leave_nothing_to_make_up_for():
    weight, importance = normal(12, 100), torch.exp(normal(100, seed=5))
    stats = Stats(importance, hessian=torch.diag(importance))
    found = sparsegpt.prune(weight, stats, Pattern(0.5))
    assert torch.equal(found.weight, weight.where(found.keep, 0))
    assert torch.equal(
        found.keep, keep_mask(weight.abs() * (importance + 0.01 * importance.mean()).sqrt(), Pattern(0.5), "matrix")
    )


def test_without_zeros_it_is_gptq_in_the_order_of_inputs():
    inputs = correlated(400, 100)
    inputs = inputs[:, inputs.square().mean(0).argsort(descending=True)]
    weight, stats = normal(12, 100), seen(inputs)
    found, keep = sparsegpt.prune_and_quantize(weight, stats, Pattern(0.0), INT4)
    assert keep.all()
    assert torch.equal(found.codes, gptq.quantize(weight, stats, INT4).codes)
    assert torch.equal(sparsegpt.prune(weight, stats, Pattern(0.0)).weight, weight)


@pytest.mark.parametrize("dtype", ["fp8", "nvfp4"])
def test_floats_are_rounded_afterwards(dtype):
    with pytest.raises(ValueError, match="rounded after pruning"):
        sparsegpt.prune_and_quantize(normal(4, 32), None, Pattern(0.5), Scheme(dtype, 16 if dtype == "nvfp4" else None))


class TestWithoutStatistics:
    @pytest.mark.parametrize("pattern", PATTERNS, ids=str)
    @pytest.mark.parametrize(
        "stats", [None, seen(torch.zeros(9, 40)), Stats(torch.zeros(40))], ids=["no", "0", "0 too"]
    )
    def test_weights_alone_decide(self, stats, pattern):
        weight = normal(6, 40)
        expected = magnitude.prune(weight, None, pattern)
        for method in (wanda, sparsegpt):
            found = method.prune(weight, stats, pattern)
            assert torch.equal(found.weight, expected.weight)
            assert torch.equal(found.keep, expected.keep)
        tensor, keep = sparsegpt.prune_and_quantize(weight, stats, pattern, ZEROS)
        assert torch.equal(keep, expected.keep)
        assert not tensor.dequantize()[~keep].any()

    def test_without_a_hessian_importance_decides(self):
        weight, stats = normal(6, 40), Stats(torch.exp(normal(40, seed=1)))
        assert torch.equal(
            sparsegpt.prune(weight, stats, Pattern(0.5)).keep, wanda.prune(weight, stats, Pattern(0.5)).keep
        )


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("method", [wanda, sparsegpt])
def test_inputs_that_never_occur_go_first(method, pattern):
    weight, stats = normal(6, 96) + 10, seen(some_dead(correlated(400, 96)))
    found = method.prune(weight, stats, pattern)
    dead = stats.importance == 0
    if pattern.block is None or pattern.block[1] == 3:  # those blocks have one each
        assert not found.keep[:, dead].any()
    else:  # up to three of four or eight
        assert found.keep[:, dead].float().mean() < 0.2
    assert torch.equal(found.weight[:, dead], weight[:, dead].where(found.keep[:, dead], 0))


COLS = 70
ROWS = {
    "zero": torch.zeros(COLS),
    "negative zero": -torch.zeros(COLS),
    "equal": torch.full((COLS,), 0.37),
    "a huge outlier": normal(COLS).index_fill(0, torch.tensor([40]), -1e6),
    "only an outlier": torch.eye(COLS)[3],
    "tiny": 1e-30 * normal(COLS),
    "huge": 1e30 * normal(COLS),
    "ordinary": normal(COLS),
}
STATS = {
    "none": None,
    "correlated": seen(correlated(200, COLS)),
    "fewer tokens than inputs": seen(correlated(9, COLS)),
    "one token": seen(correlated(1, COLS)),
    "rank one": seen(normal(50, 1) * normal(1, COLS, seed=1)),
    "dead inputs": seen(some_dead(correlated(200, COLS))),
    "a dead block": seen(correlated(200, COLS) * (torch.arange(COLS) >= 32)),
    "tiny inputs": seen(1e-15 * correlated(200, COLS)),
    "huge inputs": seen(1e15 * correlated(200, COLS)),
}


def check(name, weight, stats, pattern):
    """Prune, check what every result must be, and return it."""
    found = method_of(name).prune(weight, stats, pattern)
    assert found.weight.shape == found.keep.shape == weight.shape
    assert found.weight.dtype == torch.float32
    assert found.weight.is_contiguous()
    assert found.keep.dtype == torch.bool
    assert found.weight.isfinite().all()
    assert not found.weight[~found.keep].any()
    if pattern.block is not None:
        for start in range(0, weight.shape[1], pattern.block[1]):
            block = found.keep[:, start : start + pattern.block[1]]
            assert (block.sum(1) == pattern.kept(block.shape[1])).all()
    else:
        most = 0.5 * max(
            1, weight.shape[0], math.ceil(weight.shape[1] / 128)
        )  # of each row or 128 inputs, half a weight
        assert abs(float(found.keep.sum()) - (1 - pattern.sparsity) * weight.numel()) <= most
    return found


@pytest.mark.parametrize("pattern", [Pattern(0.0), Pattern(0.001), *PATTERNS[::2]], ids=str)
@pytest.mark.parametrize("name", NAMES)
class TestResult:
    def test_any_number_of_inputs(self, name, pattern):
        for cols in (1, 2, 3, 5, 128, 131):
            check(name, normal(5, cols), seen(correlated(300, cols)), pattern)

    def test_any_statistics(self, name, pattern):
        for stats in STATS.values():
            check(name, normal(5, COLS), stats, pattern)

    def test_any_weights(self, name, pattern):
        weight = torch.stack(list(ROWS.values()))
        for stats in (None, STATS["correlated"], STATS["dead inputs"]):
            check(name, weight, stats, pattern)

    def test_nothing(self, name, pattern):
        for shape in ((0, 8), (4, 0), (0, 0)):
            check(name, torch.zeros(shape), Stats(torch.ones(shape[1]), hessian=torch.eye(shape[1])), pattern)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_numbers_that_are_none(self, name, pattern, bad):
        weight = normal(4, 32)
        weight[2, 20] = bad
        for stats in (None, Stats(torch.ones(32), hessian=torch.eye(32))):
            with pytest.raises(ValueError, match="weight is not finite"):
                method_of(name).prune(weight, stats, pattern)

    @pytest.mark.usefixtures("three_threads")
    def test_the_number_of_threads_changes_nothing(self, name, pattern, monkeypatch):
        monkeypatch.setattr(pieces, "_ELEMENTS_AT_ONCE", 384)
        weight, stats, found = normal(70, 150), seen(correlated(300, 150)), []
        for at_once, threads in ((1, 1), (4, 3)):
            monkeypatch.setattr(pieces, "_AT_ONCE", at_once)
            torch.set_num_threads(threads)
            found.append(method_of(name).prune(weight, stats, pattern))
        assert torch.equal(found[0].weight, found[1].weight)
        assert torch.equal(found[0].keep, found[1].keep)
        assert torch.equal(weight, normal(70, 150))  # left alone


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("pattern", [Pattern(0.5), Pattern.parse("2:4")], ids=str)
def test_rounding_on_any_weights_and_statistics(pattern, scheme):
    # Scales, which are float16 numbers, are far too small for the others.
    weight = torch.stack([row for row in ROWS.values() if row.abs().max() <= 1e6])
    for stats in STATS.values():
        found, keep = sparsegpt.prune_and_quantize(weight, stats, pattern, scheme)
        assert found.codes.dtype == (torch.int8 if scheme.symmetric else torch.uint8)
        assert scheme.low <= found.codes.min() <= found.codes.max() <= scheme.high
        assert found.dequantize().isfinite().all()
        assert not found.dequantize()[~keep].any()


def test_rounding_does_not_depend_on_threads(monkeypatch):
    monkeypatch.setattr(pieces, "_ELEMENTS_AT_ONCE", 384)
    weight, stats, found = normal(70, 150), seen(correlated(300, 150)), []
    for at_once in (1, 4):
        monkeypatch.setattr(pieces, "_AT_ONCE", at_once)
        found.append(sparsegpt.prune_and_quantize(weight, stats, Pattern(0.5), INT4)[0].codes)
    assert torch.equal(*found)


@pytest.mark.parametrize("pattern", [Pattern(0.5), Pattern.parse("2:4")], ids=str)
def test_what_overflows_is_refused(pattern):
    weight, stats = torch.finfo(torch.float32).max * normal(4, 64).sign(), seen(correlated(200, 64))
    with pytest.raises(ValueError, match="what makes up for pruned weights is not finite"):
        sparsegpt.prune(weight, stats, pattern)
    with pytest.raises(ValueError, match="what makes up for pruned weights is not finite"):
        sparsegpt.prune_and_quantize(weight, stats, pattern, INT4)


def test_a_hessian_that_is_none():
    with pytest.raises(ValueError, match="not positive definite"):
        sparsegpt.prune(normal(4, 40), Stats(torch.ones(40), hessian=-torch.eye(40)), Pattern(0.5))


def test_methods_say_what_they_need():
    assert {name: method_of(name).NEEDS for name in NAMES} == {
        "magnitude": "nothing",
        "wanda": "importance",
        "sparsegpt": "hessian",
    }
    assert all(import_module(f"{methods.__name__}.{name}").__doc__ for name in NAMES)
