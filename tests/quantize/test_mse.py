"""Scale search: against its equations in float64, against every float16 scale, and where there is nothing to search."""

import numpy as np
import pytest
import torch

from edgec.calibrate.stats import Stats
from edgec.quantize.algorithms import mse, rtn
from edgec.quantize.scheme import Scheme

SCHEMES = [
    Scheme("int4", 32), Scheme("int4", 16, symmetric=False), Scheme("int4", None), Scheme("int4", 256),
    Scheme("int8", None), Scheme("int8", 128, symmetric=False), Scheme("int4", None, symmetric=False),
]  # fmt: skip
ROWS, COLS = 9, 90


def weight(seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_t(4, (ROWS, COLS)).astype(np.float32))


def stats(seed=1):
    return Stats(torch.from_numpy(np.exp(2 * np.random.default_rng(seed).standard_normal(COLS)).astype(np.float32)))


def importance_of(w, known):
    return w.double() ** 2 if known is None else known.importance.double().expand_as(w)


def errors(q, w, known):
    """Return the weighted squared error of each group, in float64."""
    width, cols = q.scheme.group or w.shape[1], w.shape[1]
    each = importance_of(w, known) * (q.dequantize().double() - w.double()) ** 2
    padded = torch.nn.functional.pad(each, (0, q.scheme.groups(cols) * width - cols))
    return padded.view(len(w), -1, width).sum(-1)


def search_in_float64(x, importance, scheme):
    """Return the error of one group with the scale that suits the codes of its range best."""
    top, bottom = max(x.max(), 0), min(x.min(), 0)
    steps = scheme.high - scheme.low

    def half(scale):
        return float(np.float16(scale))

    def codes(scale, zero):
        return np.clip(np.round(x / scale), scheme.low - zero, scheme.high - zero)

    def error(scale, code):
        return (importance * (x - scale * code) ** 2).sum()

    def centre(scale, offset):
        return 0 if scheme.symmetric else np.clip(np.round(offset - (top + bottom) / 2 / scale), 0, steps)

    if scheme.symmetric:
        wide, first = 2 * max(top, -bottom), half(max(top / scheme.high, bottom / scheme.low))
        zero = 0
    else:
        wide, first = top - bottom, half((top - bottom) / steps)
        zero = np.clip(np.round(-bottom / first), 0, steps)
    found = [(error(first, codes(first, zero)), first, zero)]
    for share in mse._RANGES:
        start = half(wide / steps / share)
        zero = centre(start, steps / 2)
        q = codes(start, zero)
        fitted = half((importance * q * x).sum() / (importance * q**2).sum())
        found.append((error(fitted, q), fitted, zero))
    _, scale, zero = min(found)
    return error(scale, codes(scale, zero))


@pytest.mark.parametrize("known", [None, stats()], ids=["no stats", "stats"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_finds_what_its_equations_find_in_float64(scheme, known):
    w = weight()
    q = mse.quantize(w, known, scheme)
    assert q.codes.dtype == (torch.int8 if scheme.symmetric else torch.uint8)
    assert q.codes.min() >= scheme.low
    assert q.codes.max() <= scheme.high
    assert torch.equal(q.scales, q.scales.half().float())
    found, importance, width = errors(q, w, known), importance_of(w, known).numpy(), scheme.group or COLS
    expected = [
        [
            search_in_float64(
                w[row, start : start + width].double().numpy(), importance[row, start : start + width], scheme
            )
            for start in range(0, COLS, width)
        ]
        for row in range(ROWS)
    ]
    assert found.numpy() == pytest.approx(np.array(expected), rel=1e-3)


def test_is_near_the_best_of_all_float16_scales():
    w, known, scheme = weight(), stats(), Scheme("int4", 32)
    found = errors(mse.quantize(w, known, scheme), w, known)
    nearest = errors(rtn.quantize(w, None, scheme), w, known)
    best = torch.full_like(found, torch.inf)
    scales = torch.arange(2**15 - 2**10, dtype=torch.int16).view(torch.float16).double()
    padded = torch.nn.functional.pad(w, (0, 6)).double().view(-1, 32)
    importance = torch.nn.functional.pad(known.importance, (0, 6)).double().expand(ROWS, 96).reshape(-1, 32)
    largest = padded.abs().amax().item()
    for scale in scales[(scales > largest / 80) & (scales < largest / 5)]:
        codes = torch.round(padded / scale).clamp(-8, 7)
        error = (importance * (padded - scale * codes) ** 2).sum(-1).view(ROWS, -1)
        best = torch.minimum(best, error)
    assert (found >= best * (1 - 1e-6)).all()
    assert found.sum() < 1.1 * best.sum()
    assert nearest.sum() > 1.4 * best.sum()


@pytest.mark.parametrize("known", [None, stats()], ids=["no stats", "stats"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_never_worse_than_rounding_to_nearest(scheme, known):
    for size in (1.0, 1e-4, 1e4):
        w = size * weight(seed=2)
        found, nearest = (errors(a.quantize(w, known, scheme), w, known) for a in (mse, rtn))
        assert (found <= nearest * (1 + 1e-5)).all()
        assert found.sum() < nearest.sum()


@pytest.mark.parametrize("known", [None, stats()], ids=["no stats", "stats"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_zero_rows_equal_rows_and_one_column(scheme, known):
    w = torch.zeros(4, COLS)
    w[1] = 3.0
    w[2] = -0.25
    q = mse.quantize(w, known, scheme)
    assert torch.equal(q.scales[0], torch.ones_like(q.scales[0]))
    assert torch.equal(q.dequantize()[0], w[0])
    assert torch.allclose(q.dequantize(), w, rtol=1e-3)
    one = None if known is None else Stats(known.importance[:1])
    assert torch.allclose(mse.quantize(w[:, :1], one, scheme).dequantize(), w[:, :1], rtol=1e-3)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_inputs_that_are_always_zero_do_not_count(scheme):
    w = weight()
    silent = mse.quantize(w, Stats(torch.zeros(COLS)), scheme)
    nearest = rtn.quantize(w, None, scheme)
    assert torch.equal(silent.codes, nearest.codes)
    assert torch.equal(silent.scales, nearest.scales)
    first = Stats(torch.eye(COLS)[0])
    width = scheme.group or COLS
    only, every = errors(mse.quantize(w, first, scheme), w, first), errors(nearest, w, first)
    assert (only[:, 0] <= every[:, 0] * (1 + 1e-5)).all()
    assert torch.equal(mse.quantize(w, first, scheme).codes[:, width:], nearest.codes[:, width:])


@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-9, 1e5, 1e38])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_extreme_weights_and_importances_stay_finite(scheme, size):
    for importance in (1e-38, 1e38):
        q = mse.quantize(torch.full((1, COLS), size), Stats(torch.full((COLS,), importance)), scheme)
        assert ((q.scales > 0) & (q.scales <= 65504)).all()
        assert torch.isfinite(q.dequantize()).all()


def test_only_the_ratios_of_importances_matter():
    w, known = weight(), stats()
    scaled = mse.quantize(w, Stats(known.importance * 2.0**40), Scheme("int4", 32))
    assert torch.equal(scaled.codes, mse.quantize(w, known, Scheme("int4", 32)).codes)


@pytest.mark.parametrize("dtype", ["fp8", "nvfp4"])
def test_small_floats_are_rounded_to_nearest_only(dtype):
    with pytest.raises(ValueError, match='algorithm = "rtn"'):
        Scheme(dtype, 16 if dtype == "nvfp4" else None, algorithm="mse")
