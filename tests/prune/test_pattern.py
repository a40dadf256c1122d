"""Patterns as text and numbers, and which scores they keep."""

import math

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_matrices import normal

from edgec.prune.methods import keep_mask, masked
from edgec.prune.pattern import Pattern
from edgec.quantize.algorithms import gptq, rtn
from edgec.quantize.scheme import Scheme

PATTERNS = [Pattern.parse(text) for text in ("0%", "10%", "50%", "90%", "2:4", "4:8", "1:3")]


def naive(scores, pattern, per):
    """Return the mask, one group of weights that compete after the other."""
    rows, cols = scores.shape
    flat, keep = scores.flatten().tolist(), [False] * (rows * cols)
    if pattern.block is not None:
        width = pattern.block[1]
        starts = [(row * cols + at, min(width, cols - at)) for row in range(rows) for at in range(0, cols, width)]
    else:
        starts = [(0, rows * cols)] if per == "matrix" else [(row * cols, cols) for row in range(rows)]
    for start, count in starts:
        best = sorted(range(start, start + count), key=lambda at: (-flat[at], at))
        if pattern.block is not None:
            stays = math.ceil(count * pattern.block[0] / pattern.block[1])
        else:
            stays = count - math.ceil(count * pattern.sparsity - 0.5)
        for at in best[:stays]:
            keep[at] = True
    return torch.tensor(keep).view(rows, cols)


class TestText:
    @pytest.mark.parametrize("text", ["0%", "50%", "12.5%", "7%", "99.9%", "2:4", "4:8", "1:16"])
    def test_there_and_back(self, text):
        pattern = Pattern.parse(text)
        assert str(pattern) == text
        assert msgspec.json.decode(msgspec.json.encode(pattern), type=Pattern) == pattern

    def test_means(self):
        assert Pattern.parse("50%") == Pattern(0.5)
        assert Pattern.parse("2:8") == Pattern(0.75, (2, 8))

    @pytest.mark.parametrize("text", ["100%", "-5%", "nan%", "0.5", "", "4:4", "0:4", "5:4", "0:0", "2:4:8", "½%"])
    def test_that_is_none(self, text):
        with pytest.raises(ValueError, match="is no "):
            Pattern.parse(text)

    @pytest.mark.parametrize(("sparsity", "block"), [(1.0, None), (-0.1, None), (math.nan, None), (0.6, (2, 4))])
    def test_numbers_that_are_none(self, sparsity, block):
        with pytest.raises(ValueError, match="share of"):
            Pattern(sparsity, block)


@pytest.mark.parametrize(
    ("text", "count", "stays"),
    [
        *(("2:4", count, stays) for count, stays in enumerate([0, 1, 1, 2, 2, 3, 3, 4, 4])),
        *(("4:8", count, stays) for count, stays in enumerate([0, 1, 1, 2, 2, 3, 3, 4, 4])),
        *(("1:4", count, stays) for count, stays in enumerate([0, 1, 1, 1, 1, 2])),
        *(("50%", count, stays) for count, stays in enumerate([0, 1, 1, 2, 2, 3])),
        ("10%", 4, 4),
        ("10%", 5, 5),
        ("10%", 6, 5),
        ("90%", 3, 0),
    ],
)
def test_how_many_stay(text, count, stays):
    assert Pattern.parse(text).kept(count) == stays


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 10**9).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1))))
def test_a_share_of_whole_weights_is_that_many(drawn):
    size, zeros = drawn
    assert Pattern(zeros / size).kept(size) == size - zeros


@pytest.mark.parametrize("per", ["row", "matrix"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
class TestMask:
    @pytest.mark.parametrize("shape", [(7, 24), (5, 13), (3, 2), (1, 1), (4, 3)], ids=str)
    def test_as_the_naive_loop(self, pattern, per, shape):
        few = torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(1)).float()
        for scores in (normal(*shape), few, few - 1):
            assert torch.equal(keep_mask(scores, pattern, per), naive(scores, pattern, per))

    @pytest.mark.parametrize("value", [0.0, -0.0, 0.37, math.inf])
    def test_of_equal_scores_the_first_stay(self, pattern, per, value):
        scores = torch.full((3, 10), value)
        keep = keep_mask(scores, pattern, per)
        assert torch.equal(keep, naive(scores, pattern, per))
        if pattern.block is None and per == "row":
            assert torch.equal(keep, (torch.arange(10) < pattern.kept(10)).expand(3, 10))

    def test_zeros_go_first(self, pattern, per):
        scores = torch.ones((4, 24))
        scores[1] = 0  # a whole row
        scores[:, 5] = 0
        keep = keep_mask(scores, pattern, per)
        assert torch.equal(keep, naive(scores, pattern, per))
        if pattern.sparsity >= 0.5:
            assert not keep[[0, 2, 3], 5].any()

    @pytest.mark.parametrize("shape", [(0, 8), (4, 0), (0, 0)], ids=str)
    def test_nothing(self, pattern, per, shape):
        keep = keep_mask(torch.zeros(shape), pattern, per)
        assert keep.shape == shape
        assert keep.dtype == torch.bool

    def test_nan(self, pattern, per):
        scores = normal(4, 10)
        scores[2, 3] = math.nan
        with pytest.raises(ValueError, match="a score is NaN"):
            keep_mask(scores, pattern, per)


@pytest.mark.parametrize(
    "scheme",
    [
        *(
            Scheme(dtype, group, symmetric)
            for dtype in ("int4", "int8")
            for group in (32, None)
            for symmetric in (0, 1)
        ),
        Scheme("fp8", None),
        Scheme("nvfp4", 16),
    ],
    ids=str,
)
def test_masked_weights_are_exactly_0_and_the_others_as_before(scheme):
    weight = normal(6, 70) - 0.5  # zero points that are not 0
    tensor = rtn.quantize(weight, None, scheme)
    keep = normal(6, 70, seed=1) > 0
    found = masked(tensor, keep)
    assert found.codes.dtype == tensor.codes.dtype
    assert torch.equal(found.dequantize(), tensor.dequantize().where(keep, 0))
    assert tensor.dequantize()[~keep].any()


def test_masking_what_is_rounded_to_nearest_changes_nothing():
    keep = keep_mask(normal(6, 64).abs(), Pattern.parse("2:4"), "row")
    tensor = gptq.quantize(normal(6, 64).where(keep, 0), None, Scheme("int4", 32, symmetric=False))
    assert torch.equal(masked(tensor, keep).codes, tensor.codes)
