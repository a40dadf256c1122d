"""GPTQ, beside the loop of its paper and repository written out again, and on what goes wrong with Hessians."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from random_matrices import correlated, normal, seen

from edgec.calibrate.stats import Stats
from edgec.quantize.algorithms import gptq, mse, rtn
from edgec.quantize.scheme import Scheme

SCHEMES = [
    Scheme(dtype, group, symmetric)
    for dtype in ("int4", "int3")
    for symmetric in (True, False)
    for group in (64, 128, None)
]
INT4 = Scheme("int4", 64)


def short(scheme):
    return f"{scheme.dtype}-{scheme.group or 'channel'}{'' if scheme.symmetric else '-zeros'}"


def objective(weight, rounded, stats):
    change = (weight - rounded).double()
    return float(((change @ stats.hessian.double()) * change).sum())


def as_in_the_repository(weight, hessian, scales, zeros, scheme, percdamp=0.01, blocksize=128):
    """Return codes and the weights as they were when each was rounded, with act-order and static groups.

    In float64; scales and zero points (rows, groups) are given where the repository finds them from the weights.
    """
    w, h = weight.double().clone(), hessian.double().clone()
    rows, cols = w.shape
    size = scheme.group or cols
    perm = torch.argsort(h.diagonal(), descending=True, stable=True)
    w, h = w[:, perm], h[perm][:, perm]
    h += percdamp * h.diagonal().mean() * torch.eye(cols, dtype=torch.float64)
    hinv = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    codes, before = torch.zeros_like(w), torch.zeros_like(w)
    for i1 in range(0, cols, blocksize):
        i2 = min(i1 + blocksize, cols)
        block_errors = torch.zeros((rows, i2 - i1), dtype=torch.float64)
        for i in range(i1, i2):
            group = int(perm[i]) // size
            scale, zero = scales[:, group].double(), zeros[:, group].double()
            before[:, i] = w[:, i]
            codes[:, i] = torch.clamp(torch.round(w[:, i] / scale) + zero, scheme.low, scheme.high)
            error = (w[:, i] - (codes[:, i] - zero) * scale) / hinv[i, i]
            w[:, i:i2] -= torch.outer(error, hinv[i, i:i2])
            block_errors[:, i - i1] = error
        w[:, i2:] -= block_errors @ hinv[i1:i2, i2:]
    back = torch.argsort(perm)
    return codes[:, back], before[:, back]


def literal(weight, stats, found):
    zeros = torch.zeros_like(found.scales) if found.zero_points is None else found.zero_points
    return as_in_the_repository(weight, stats.hessian, found.scales, zeros, found.scheme)


def dequantized(codes, like):
    return replace(like, codes=codes.to(like.codes.dtype)).dequantize()


@pytest.mark.parametrize("cols", [256, 200])
@pytest.mark.parametrize("scheme", SCHEMES, ids=short)
def test_the_loop_of_the_repository(scheme, cols):
    weight, stats = normal(16, cols), seen(correlated(300, cols))
    found = gptq.quantize(weight, stats, scheme)
    codes, before = literal(weight, stats, found)
    same = (found.codes == codes).all(1)
    # What float32 puts on the other side of a tie changes what comes after it in its row.
    assert same.float().mean() >= 0.9
    theirs = objective(weight, dequantized(codes, found), stats)
    assert objective(weight, found.dequantize(), stats) == pytest.approx(theirs, rel=0.01)
    torch.testing.assert_close(
        gptq.compensated(weight, stats, found)[same].double(), before[same], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("scheme", [INT4, Scheme("int3", None, symmetric=False)], ids=short)
def test_beats_rounding_each_weight_alone(scheme, seed):
    weight, stats = normal(12, 160, seed=seed), seen(correlated(400, 160, seed=10 * seed))
    nearest, searched, found = (
        objective(weight, algorithm.quantize(weight, stats, scheme).dequantize(), stats)
        for algorithm in (rtn, mse, gptq)
    )
    assert found < 0.6 * searched < 0.6 * nearest


def test_is_no_worse_than_the_package():
    """On the numbers of bench/quality/references/gptq.py."""
    reference = json.loads((Path(__file__).parent / "data/gptqmodel.json").read_text())["errors"]
    random = np.random.default_rng(0)
    weight = random.standard_normal((48, 256))
    mixed = random.standard_normal((512, 256)) @ random.standard_normal((256, 256)) / 256**0.5
    inputs = (mixed + random.standard_normal((512, 1))) * np.exp(random.standard_normal(256))
    weight, inputs = (torch.from_numpy(each.astype(np.float32)) for each in (weight, inputs))
    stats = seen(inputs)
    for scheme in SCHEMES:
        name = f"{scheme.dtype}/{scheme.group or -1}/{'symmetric' if scheme.symmetric else 'zeros'}"
        found = objective(weight, gptq.quantize(weight, stats, scheme).dequantize(), stats)
        assert found <= 1.01 * reference[name] * objective(weight, torch.zeros_like(weight), stats)


def test_inputs_that_have_nothing_in_common_leave_nothing_to_make_up_for():
    weight = normal(12, 160)
    importance = torch.exp(normal(160, seed=5))
    stats = Stats(importance, hessian=torch.diag(importance))
    found = gptq.quantize(weight, stats, INT4)
    assert torch.equal(found.codes, mse.quantize(weight, stats, INT4).codes)
    torch.testing.assert_close(gptq.compensated(weight, stats, found), weight)


def test_any_number_of_threads_gives_the_same_bytes():
    weight, stats = normal(16, 300), seen(correlated(600, 300))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            tensor = gptq.quantize(weight, stats, INT4)
            found.append((tensor.codes, tensor.scales, gptq.compensated(weight, stats, tensor)))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


class TestDeadInputs:
    def inputs(self):
        return correlated(400, 160) * (torch.arange(160) % 3 > 0)

    def test_are_rounded_to_nearest(self):
        weight, stats = normal(12, 160), seen(self.inputs())
        found = gptq.quantize(weight, stats, INT4)
        scale = found.scales.repeat_interleave(64, 1)[:, :160]
        nearest = torch.round(weight / scale).clamp(-8, 7)
        assert torch.equal(found.codes[:, ::3].float(), nearest[:, ::3])
        torch.testing.assert_close(gptq.compensated(weight, stats, found)[:, ::3], weight[:, ::3])

    def test_do_not_decide_about_scales(self):
        stats = seen(self.inputs())
        weight = normal(12, 160)
        small = weight * (torch.arange(160) % 3 > 0)
        found, without = (objective(w, gptq.quantize(w, stats, INT4).dequantize(), stats) for w in (weight, small))
        assert found == pytest.approx(without, rel=0.1)


@pytest.mark.parametrize("size", [0.0, 1e-6, 1e-3, 1e-2])
def test_inputs_that_hardly_ever_occur_do_not_decide_about_scales(size):
    inputs, weight = normal(300, 64, seed=1), normal(8, 64)
    inputs[:, 5] *= size
    weight[:, 5] = 30.0
    stats = seen(inputs)
    found, alone = (
        objective(weight, f(weight, stats, INT4).dequantize(), stats) for f in (gptq.quantize, mse.quantize)
    )
    assert found < 0.95 * alone


def test_inputs_too_small_for_a_hessian_are_rounded_as_by_mse():
    stats = Stats(torch.full((160,), 1e-45), hessian=torch.zeros((160, 160)))  # sums of squares are in float64
    found = gptq.quantize(normal(12, 160), stats, INT4)
    assert torch.equal(found.codes, mse.quantize(normal(12, 160), stats, INT4).codes)


class TestHessians:
    @pytest.mark.parametrize(
        "inputs",
        [correlated(20, 160), correlated(1, 160), normal(50, 1) * normal(1, 160, seed=1)],
        ids=["fewer tokens than inputs", "one token", "rank one"],
    )
    def test_singular(self, inputs):
        weight, stats = normal(12, 160), seen(inputs)
        nearest = objective(weight, rtn.quantize(weight, None, INT4).dequantize(), stats)
        found = gptq.quantize(weight, stats, INT4)
        assert objective(weight, found.dequantize(), stats) < 0.2 * nearest
        assert gptq.compensated(weight, stats, found).isfinite().all()

    def test_zero(self):
        weight, stats = normal(12, 160), seen(torch.zeros(5, 160))
        found = gptq.quantize(weight, stats, INT4)
        assert torch.equal(found.codes, mse.quantize(weight, stats, INT4).codes)
        assert torch.equal(gptq.compensated(weight, stats, found), weight)

    @pytest.mark.parametrize("size", [2.0**-100, 2.0**100])  # about 1e-30, 1e30
    def test_of_any_size(self, size):
        weight, stats = normal(12, 160), seen(correlated(400, 160))
        sized = Stats(stats.importance * size, hessian=stats.hessian * size)
        found, expected = (gptq.quantize(weight, each, INT4) for each in (sized, stats))
        assert torch.equal(found.codes, expected.codes)
        assert torch.equal(found.scales, expected.scales)

    def test_damping_grows_until_it_is_enough(self):
        hessian = seen(correlated(100, 40)).hessian
        mean = hessian.diagonal().mean()
        smallest = torch.linalg.eigvalsh(hessian)[0]
        bent = hessian - (smallest + 0.05 * mean) * torch.eye(40)
        factor = gptq.inverse_factor(bent).double()
        damped = bent + 0.1 * bent.diagonal().mean() * torch.eye(40)
        torch.testing.assert_close(torch.linalg.inv(factor.T @ factor).float(), damped, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("hessian", [-torch.eye(40), torch.diag(torch.arange(40) - 30.0)], ids=["minus", "mixed"])
    def test_not_positive_definite(self, hessian):
        with pytest.raises(ValueError, match="not positive definite"):
            gptq.quantize(normal(4, 40), Stats(torch.ones(40), hessian=hessian), INT4)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_not_finite(self, bad):
        hessian = seen(correlated(100, 40)).hessian
        hessian[3, 5] = hessian[5, 3] = bad
        with pytest.raises(ValueError, match="hessian is not finite"):
            Stats(torch.ones(40), hessian=hessian)
