"""Importance-weighted scale search: against llama.cpp's routines written out for one group, and rounding to nearest."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.calibrate.stats import Stats
from edgec.quantize.algorithms import kquant, rtn
from edgec.quantize.scheme import Scheme

SCHEMES = [
    Scheme("int4", 32), Scheme("int4", 32, symmetric=False), Scheme("int3", 64), Scheme("int3", 32, symmetric=False),
    Scheme("int8", None), Scheme("int8", 128, symmetric=False), Scheme("int4", None, symmetric=False),
]  # fmt: skip
BITS = [3, 4, 8]
KINDS = ["normal", "heavy", "real"]
COLS = 90


def matrix(kind, rows=80, cols=32):
    """Return weights; "real" ones have columns of different sizes and a few outliers, as language models have."""
    random = np.random.default_rng(len(kind))
    if kind == "normal":
        w = random.standard_normal((rows, cols))
    elif kind == "heavy":
        w = random.standard_t(3, (rows, cols))
    else:
        w = random.standard_normal((rows, cols)) * np.exp(0.4 * random.standard_normal(cols))
        w[random.random((rows, cols)) < 0.01] *= 6
    return torch.from_numpy((0.03 * w).astype(np.float32))


def stats(cols=COLS, seed=1):
    return Stats(torch.from_numpy(np.exp(2 * np.random.default_rng(seed).standard_normal(cols)).astype(np.float32)))


def counts(x, importance, double=1):
    """Return the weights of the errors of one row, as `quantize_row_q4_0_impl` (or, doubled, `_q4_K_impl`) has them."""
    sigma2 = double * sum(v * v for v in x) / len(x)
    return [q * math.sqrt(sigma2 + v * v) for q, v in zip(importance, x, strict=True)]


def make_qx_quants(x, nmax, qw, positive=False):
    """Return scale and codes of one group; `positive` has nmax - 1 stand for the largest weight, not -nmax."""
    largest = max(x, key=abs)
    base = nmax - 1 if positive else nmax
    sign = 1 if positive else -1

    def tried(tenths):
        iscale = sign * (base + 0.1 * tenths) / largest
        codes = [max(-nmax, min(nmax - 1, round(iscale * v))) for v in x]
        sumlx = sum(w * v * c for w, v, c in zip(qw, x, codes, strict=True))
        return codes, sumlx, sum(w * c * c for w, c in zip(qw, codes, strict=True))

    codes, sumlx, suml2 = tried(0)
    scale = sumlx / suml2 if suml2 else 0.0
    best = scale * sumlx
    for tenths in range(-9, 10):
        if tenths == 0:
            continue
        other, sumlx, suml2 = tried(tenths)
        if suml2 > 0 and sumlx * sumlx > best * suml2:
            codes, scale = other, sumlx / suml2
            best = scale * sumlx
    return scale, codes


def make_qkx3_quants(x, nmax, weights, rmin=-0.9, rdelta=0.05, nstep=36):
    """Return scale, minimum and codes of one group."""
    low, high = min(*x, 0), max(x)
    sum_w, sum_x = sum(weights), sum(w * v for w, v in zip(weights, x, strict=True))
    scale = (high - low) / nmax

    def rounded(iscale):
        return [max(0, min(nmax, round(iscale * (v - low)))) for v in x]

    def error(scale, low, codes):
        return sum(w * (scale * c + low - v) ** 2 for w, c, v in zip(weights, codes, x, strict=True))

    codes = rounded(1 / scale)
    best = error(scale, low, codes)
    for step in range(nstep + 1):
        other = rounded((rmin + rdelta * step + nmax) / (high - low))
        sum_l = sum(w * c for w, c in zip(weights, other, strict=True))
        sum_l2 = sum(w * c * c for w, c in zip(weights, other, strict=True))
        sum_xl = sum(w * c * v for w, c, v in zip(weights, other, x, strict=True))
        determinant = sum_w * sum_l2 - sum_l * sum_l
        if determinant <= 0:
            continue
        this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        if this_min > 0:
            this_min, this_scale = 0.0, sum_xl / sum_l2
        current = error(this_scale, this_min, other)
        if current < best:
            best, codes, scale, low = current, other, this_scale, this_min
    return scale, low, codes


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", KINDS)
class TestReference:
    def test_symmetric_scales(self, bits, kind):
        w, importance = matrix(kind), stats(32).importance
        scheme = Scheme(f"int{bits}", 32)
        weights = kquant.error_weights(w, importance / importance.max(), scheme)
        found = kquant.symmetric_scale(w.T.contiguous(), weights.T.contiguous(), scheme)
        same, ours, theirs = 0, 0.0, 0.0
        for x, count, scale in zip(w.double(), weights.double(), found.double(), strict=True):
            nmax, positive = -scheme.low, bool(x.max() > -x.min())
            qw = counts(x.tolist(), (importance / importance.max()).tolist())
            assert qw == pytest.approx(count.tolist(), rel=1e-4)
            expected, expected_codes = make_qx_quants(x.tolist(), nmax, qw, positive)
            # llama.cpp's k-quants round again with the scale that was found.
            codes, again = ((x / s).round().clamp(-nmax, nmax - 1) for s in (scale, expected))
            same += torch.equal(codes, again)
            ours += (count * (x - scale * codes) ** 2).sum()
            theirs += (count * (x - expected * torch.tensor(expected_codes)) ** 2).sum()
        assert same >= 0.97 * len(w)
        assert ours <= 1.01 * theirs

    def test_asymmetric_scales(self, bits, kind):
        w, importance = matrix(kind), stats(32).importance
        scheme = Scheme(f"int{bits}", 32, symmetric=False)
        weights = kquant.error_weights(w, importance, scheme)
        scales, minima = kquant.asymmetric_scale(w.T.contiguous(), weights.T.contiguous(), scheme.high)
        same, ours, theirs = 0, 0.0, 0.0
        for x, count, scale, low in zip(w.double(), weights.double(), scales.double(), minima.double(), strict=True):
            qw = counts(x.tolist(), (importance / importance.max()).tolist(), double=2)
            expected, expected_low, expected_codes = make_qkx3_quants(x.tolist(), scheme.high, qw)
            codes = ((x - low) / scale).round().clamp(0, scheme.high)
            again = ((x - expected_low) / expected).round().clamp(0, scheme.high)
            same += torch.equal(codes, again)
            ours += (count * (x - scale * codes - low) ** 2).sum()
            theirs += (count * (x - expected * torch.tensor(expected_codes) - expected_low) ** 2).sum()
        # The largest weight is half-way between codes in one step, and each step starts from the best one before it.
        assert same >= 0.97 * len(w)
        assert ours <= 1.01 * theirs


def errors(q, w, known):
    """Return the error of each group that the algorithm minimises, in float64."""
    scheme, cols = q.scheme, w.shape[1]
    importance = torch.ones(cols) if known is None else known.importance
    width = scheme.group or cols
    each = kquant.error_weights(w.double(), importance.double(), scheme) * (q.dequantize().double() - w.double()) ** 2
    padded = torch.nn.functional.pad(each, (0, scheme.groups(cols) * width - cols))
    return padded.view(len(w), -1, width).sum(-1)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 150), st.sampled_from(SCHEMES), st.integers(0, 2**31),
    st.sampled_from([1e-3, 1.0, 1e4]), st.booleans(),
)  # fmt: skip
def test_no_group_is_worse_than_rounding_to_nearest(rows, cols, scheme, seed, size, calibrated):
    w = torch.from_numpy((size * np.random.default_rng(seed).standard_t(4, (rows, cols))).astype(np.float32))
    known = stats(cols, seed) if calibrated else None
    found, nearest = (errors(a.quantize(w, known, scheme), w, known) for a in (kquant, rtn))
    assert (found <= nearest * (1 + 1e-4) + 1e-30).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_outputs_are_nearer_than_with_rounding_to_nearest(scheme):
    w, known = matrix("real", 64, COLS), stats()
    found, nearest = (
        (known.importance * (a.quantize(w, known, scheme).dequantize() - w) ** 2).sum() for a in (kquant, rtn)
    )
    assert found < 0.95 * nearest


@pytest.mark.parametrize("kind", KINDS)
def test_whole_zero_points_keep_most_of_what_float_minima_gain(kind):
    w, known, scheme = matrix(kind, 64), stats(32), Scheme("int4", 32, symmetric=False)
    weights = kquant.error_weights(w, known.importance, scheme)
    scale, low = (found[:, None] for found in kquant.asymmetric_scale(w.T.contiguous(), weights.T.contiguous(), 15))
    free = (weights * (w - low - scale * ((w - low) / scale).round().clamp(0, 15)) ** 2).sum()
    found, nearest = (errors(a.quantize(w, known, scheme), w, known).sum() for a in (kquant, rtn))
    assert free < found < 0.8 * nearest


def test_unimportant_inputs_are_clipped_for_important_ones():
    w = matrix("normal", 1)
    w[0, 3] = 1.0
    scheme, importance = Scheme("int4", 32), torch.ones(32)
    importance[3] = 1e-6
    found = kquant.quantize(w, Stats(importance), scheme)
    assert found.codes[0, 3] == 7
    assert found.scales.item() < 0.3 * rtn.quantize(w, None, scheme).scales.item()


def test_the_mixture_is_that_of_q4_k_m():
    # llama.cpp's rule for 30 layers: 3 first, 4 last (7 * 30 // 8 = 26), every third of the others.
    layers = [layer for layer in range(30) if kquant.mixture(layer, 30, "mlp.down")]
    assert layers == [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29]
    assert layers == [layer for layer in range(30) if kquant.mixture(layer, 30, "attention.v")]
    assert not any(kquant.mixture(layer, 30, "attention.q") for layer in range(30))
    assert [layer for layer in range(4) if kquant.mixture(layer, 4, "mlp.down")] == [2, 3]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_number_of_threads_changes_nothing(scheme):
    w, known = matrix("heavy", 300, 512), stats(512)
    before, found = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(kquant.quantize(w, known, scheme))
    torch.set_num_threads(before)
    assert torch.equal(found[0].codes, found[1].codes)
    assert torch.equal(found[0].scales, found[1].scales)
