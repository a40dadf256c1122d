"""Every algorithm that rounds one matrix, on inputs of every kind that has something wrong with it."""

import math
import pkgutil
from importlib import import_module

import pytest
import torch
from random_matrices import normal, some_dead

from edgec.calibrate.stats import Stats
from edgec.quantize import algorithms
from edgec.quantize.algorithms import hqq, kquant, rtn
from edgec.quantize.scheme import Scheme

FILES = [file.name for file in pkgutil.iter_modules(algorithms.__path__) if not file.name.startswith("_")]
MODULES = {name: import_module(f"{algorithms.__name__}.{name}") for name in FILES}
# They round the matrices of a block together, and have tests of their own.
OF_BLOCKS = {"autoround"}
NAMES = [name for name in FILES if name not in OF_BLOCKS]
SCHEMES = [
    Scheme(dtype, group, symmetric)
    for dtype in ("int3", "int4", "int8")
    for symmetric in (True, False)
    for group in (32, 64, 128, None)
]
COLS = 70


def short(scheme):
    return f"{scheme.dtype}-{scheme.group or 'channel'}{'' if scheme.symmetric else '-zeros'}"


def seen(inputs):
    """Return the statistics of inputs (tokens, cols)."""
    return Stats(inputs.square().mean(0), inputs.abs().amax(0), inputs.T @ inputs / len(inputs))


def correlated(tokens, cols):
    return normal(tokens, cols, seed=1) @ normal(cols, cols, seed=2) / math.sqrt(cols) + normal(tokens, 1, seed=3)


STATS = {
    "none": None,
    "correlated": seen(correlated(200, COLS)),
    "fewer tokens than inputs": seen(correlated(9, COLS)),
    "one token": seen(correlated(1, COLS)),
    "rank one": seen(normal(50, 1) * normal(1, COLS, seed=1)),
    "dead inputs": seen(some_dead(correlated(200, COLS))),
    "a dead group": seen(correlated(200, COLS) * (torch.arange(COLS) >= 32)),
    "only dead inputs": seen(torch.zeros(20, COLS)),
    "tiny inputs": seen(1e-15 * correlated(200, COLS)),
    "huge inputs": seen(1e15 * correlated(200, COLS)),
}
SIZES = {"whole groups": 128, "ragged": 150, "fewer than a group": 5, "a single one": 1}
ROWS = {
    "zero": torch.zeros(COLS),
    "negative zero": -torch.zeros(COLS),
    "equal": torch.full((COLS,), 0.37),
    "equal and negative": torch.full((COLS,), -0.37),
    "positive": normal(COLS).abs() + 1,
    "negative": -normal(COLS).abs() - 1,
    "a huge outlier": normal(COLS).index_fill(0, torch.tensor([40]), -1e6),
    "only an outlier": torch.eye(COLS)[3],
    "tiny": 1e-30 * normal(COLS),
    "subnormal": 1e-44 * normal(COLS).sign(),
    "huge": 1e30 * normal(COLS),
    "the largest": torch.finfo(torch.float32).max * normal(COLS).sign(),
    "ordinary": normal(COLS),
}


def check(w, stats, name, scheme):
    """Quantize, check what every result must be, and return it."""
    found = MODULES[name].quantize(w, stats, scheme)
    groups = scheme.groups(w.shape[1])
    assert found.codes.shape == w.shape
    assert found.codes.dtype == (torch.int8 if scheme.symmetric else torch.uint8)
    assert found.codes.min() >= scheme.low
    assert found.codes.max() <= scheme.high
    assert found.scales.shape == (len(w), groups)
    assert torch.equal(found.scales, found.scales.half().float())
    assert ((found.scales > 0) & found.scales.isfinite()).all()
    assert (found.zero_points is None) == scheme.symmetric
    if found.zero_points is not None:
        assert found.zero_points.shape == (len(w), groups)
        assert found.zero_points.dtype == torch.uint8
        assert found.zero_points.max() <= scheme.high
    assert found.dequantize().isfinite().all()
    return found


def squares(w, found, counts):
    return (found.dequantize().double() - w.double()).square() * counts


OBJECTIVES = {
    "mse": lambda w, found, stats: squares(w, found, w.double() ** 2 if stats is None else stats.importance.double()),
    "hqq": lambda w, found, _: (found.dequantize().double() - w.double()).abs() ** hqq.POWER,
    "kquant": lambda w, found, stats: squares(
        w, found, kquant.error_weights(w.double(), torch.ones(1) if stats is None else stats.importance, found.scheme)
    ),
}
"""What an algorithm makes the sum of, over a group, no larger than rounding to nearest does, where it promises so."""


def no_worse_than_rtn(w, stats, name, found):
    each, nearest = (OBJECTIVES[name](w, q, stats) for q in (found, rtn.quantize(w, None, found.scheme)))
    starts = range(0, w.shape[1], found.scheme.group or w.shape[1])
    for start, stop in zip(starts, [*starts[1:], w.shape[1]], strict=True):
        ours, theirs = each[:, start:stop].sum(1), nearest[:, start:stop].sum(1)
        assert (ours <= theirs * (1 + 1e-4)).all()


def test_the_others_round_blocks():
    assert {name for name in FILES if MODULES[name].NEEDS == "block"} == OF_BLOCKS & set(FILES)


@pytest.mark.parametrize("scheme", SCHEMES, ids=short)
@pytest.mark.parametrize("name", NAMES)
class TestResult:
    def test_any_number_of_inputs(self, name, scheme):
        for cols in SIZES.values():
            w, stats = normal(4, cols), seen(correlated(300, cols))
            found = check(w, stats, name, scheme)
            # No error is beyond a few steps: nothing was left out.
            step = found.scales.repeat_interleave(scheme.group or cols, 1)[:, :cols]
            assert (found.dequantize() - w).abs().max() <= 0.5 * w.abs().max() + step.max()

    def test_any_statistics(self, name, scheme):
        w = normal(4, COLS)
        for stats in STATS.values():
            found = check(w, stats, name, scheme)
            if name in OBJECTIVES:
                no_worse_than_rtn(w, stats, name, found)
        again = MODULES[name].quantize(w, stats, scheme)
        assert torch.equal(found.codes, again.codes)
        assert torch.equal(found.scales, again.scales)

    def test_any_weights(self, name, scheme):
        w = torch.stack(list(ROWS.values()))
        for stats in (None, STATS["dead inputs"]):
            found = check(w, stats, name, scheme)
            assert not found.dequantize()[:2].any()
            assert torch.equal(found.scales[:2], torch.ones_like(found.scales[:2]))
            if name in OBJECTIVES:
                no_worse_than_rtn(w, stats, name, found)


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_matrices_without_inputs_are_refused(name, calibrated):
    with pytest.raises(ValueError, match="no inputs"):
        MODULES[name].quantize(torch.zeros(4, 0), seen(torch.zeros(7, 0)) if calibrated else None, Scheme("int4", 32))


@pytest.mark.parametrize("scheme", [Scheme("fp8", None), Scheme("nvfp4", 16)], ids=short)
def test_floats_without_inputs_are_refused(scheme):
    with pytest.raises(ValueError, match="no inputs"):
        rtn.quantize(torch.zeros(4, 0), None, scheme)


@pytest.mark.parametrize("name", NAMES)
def test_a_matrix_without_outputs_has_no_codes(name):
    assert MODULES[name].quantize(torch.zeros(0, COLS), None, Scheme("int4", 32)).codes.shape == (0, COLS)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_not_finite_are_refused(name, bad):
    w = normal(4, COLS)
    w[2, 5] = bad
    with pytest.raises(ValueError, match="weight is not finite"):
        MODULES[name].quantize(w, STATS["correlated"], Scheme("int4", 32))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", [name for name in NAMES if MODULES[name].NEEDS != "nothing"])
def test_statistics_that_are_not_finite_are_refused(name, bad):
    inputs = correlated(200, COLS)
    inputs[7, 5] = bad
    with pytest.raises(ValueError, match="is not finite"):
        MODULES[name].quantize(normal(4, COLS), seen(inputs), Scheme("int4", 32))
