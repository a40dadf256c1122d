import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.quantize.algorithms.rtn import quantize
from edgec.quantize.scheme import Scheme

SCHEMES = [
    Scheme("int4", 32), Scheme("int4", 16, symmetric=False), Scheme("int4", None), Scheme("int4", 256),
    Scheme("int8", None), Scheme("int8", 128, symmetric=False), Scheme("int4", None, symmetric=False),
]  # fmt: skip


def weight(rows=7, cols=90, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, cols)).astype(np.float32))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_codes_are_nearest_and_in_range(scheme):
    w = weight()
    q = quantize(w, None, scheme)
    assert q.codes.dtype == (torch.int8 if scheme.symmetric else torch.uint8)
    assert q.scales.shape == (7, scheme.groups(90))
    assert (q.scales > 0).all()
    width = scheme.group or 90
    step = q.scales.repeat_interleave(width, 1)[:, :90]
    error = (q.dequantize() - w).abs()
    # Half a step from the weight; a zero point that was rounded may add another half at the ends of the range.
    # Rounding the scale to float16 moves the ends of the range by at most 2^-11 of it.
    slack = 2**-11 * (scheme.high - scheme.low)
    assert (error <= step * ((0.5001 if scheme.symmetric else 1.0001) + slack)).all()
    assert torch.equal(q.scales, q.scales.half().float())


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_matches_the_equations_written_out_in_float64(scheme):
    w = weight(rows=3, cols=70, seed=1)
    q = quantize(w, None, scheme)
    width = scheme.group or 70
    for row in range(3):
        for group in range(scheme.groups(70)):
            piece = w[row, group * width : (group + 1) * width].double().numpy()
            top, bottom = max(piece.max(), 0), min(piece.min(), 0)
            if scheme.symmetric:
                scale, zero = max(top / scheme.high, bottom / scheme.low), 0
            else:
                scale = (top - bottom) / scheme.high
                zero = round(-bottom / scale)
            scale = float(np.float16(scale))
            zero = zero and round(-bottom / scale)
            codes = np.clip(np.round(piece / scale) + zero, scheme.low, scheme.high)
            found = q.codes[row, group * width : (group + 1) * width].numpy()
            assert q.scales[row, group].item() == scale
            assert np.abs(found - codes).max() <= 1  # ties may fall to the other side in float32
            assert (found == codes).mean() > 0.95


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_zero_rows_equal_rows_and_one_column(scheme):
    w = torch.zeros(4, 40)
    w[1] = 3.0
    w[2] = -0.25
    q = quantize(w, None, scheme)
    assert torch.equal(q.scales[0], torch.ones_like(q.scales[0]))
    assert torch.equal(q.dequantize()[0], w[0])
    assert torch.allclose(q.dequantize(), w, rtol=1e-3)
    assert torch.allclose(quantize(w[:, :1], None, scheme).dequantize(), w[:, :1], rtol=1e-3)


@pytest.mark.parametrize("size", [1e-44, 1e-9, 1e5, 1e38])
def test_scales_outside_float16_stay_finite_and_positive(size):
    q = quantize(torch.full((1, 32), size), None, Scheme("int4", 32))
    assert 0 < q.scales.item() <= 65504
    assert torch.isfinite(q.dequantize()).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 300), st.sampled_from(SCHEMES), st.integers(0, 2**31))
def test_any_shape_keeps_the_error_bound_and_more_bits_never_hurt(rows, cols, scheme, seed):
    w = weight(rows, cols, seed)
    error = (quantize(w, None, scheme).dequantize() - w).square().mean()
    finer = Scheme("int8", scheme.group, scheme.symmetric)
    # Scales are rounded to float16, whose smallest numbers are 2^-24 apart.
    rounded_scales = (2**-11 * w.abs() + finer.high * 2**-25).square().mean()
    assert (quantize(w, None, finer).dequantize() - w).square().mean() <= error + rounded_scales


def test_what_the_largest_float16_scale_does_not_reach_is_clipped():
    w = torch.tensor([[1e6, -1e6, 4e5, 0.0]])
    assert quantize(w, None, Scheme("int4", 4)).dequantize().tolist() == [[7 * 65504, -8 * 65504, 6 * 65504, 0]]
    # From the lowest weight up there are 15 steps, and none of them is above zero.
    zeros = quantize(w, None, Scheme("int4", 4, symmetric=False)).dequantize()
    assert zeros.tolist() == [[0, -15 * 65504, 0, 0]]
    inside = torch.tensor([[7 * 65504.0, -8 * 65504.0]])
    assert torch.equal(quantize(inside, None, Scheme("int4", 2)).dequantize(), inside)
