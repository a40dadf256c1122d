import warnings

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

RNG = np.random.default_rng(0)
MASK = RNG.random((2, 5)) > 0.3


class _Padding(nn.Module):
    """What transformers writes for a mask of padding."""

    def forward(self, mask):
        rows, columns = torch.arange(mask.shape[0])[:, None, None, None], torch.arange(mask.shape[1])
        seen = mask.to(torch.bool)[rows, columns[None, None, None, :]]
        return (columns[None, None, :, None] >= 0) & seen


def test_fires_on_what_torch_writes(canonical, fused, operators):
    sizes = {0: torch.export.Dim("rows"), 1: torch.export.Dim("columns")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Padding(), (torch.from_numpy(MASK).to(torch.int64),), dynamo=True, dynamic_shapes=(sizes,), verbose=False
        )
    model = canonical(ir.serde.deserialize_model(program.model_proto))
    fused(model, (MASK.astype(np.int64),))
    assert sorted(operators(model)) == ["Cast", "Concat", "Expand", "Shape", "Unsqueeze"]
    fused(model, (np.ones((3, 7), np.int64),))


LOOKUP = """agraph (bool[b,s] m) => (bool[] y) <int64[b] i, int64[s] j> {
    rows = Shape<start = 0, end = 1>(m)
    columns = Shape<start = 1, end = 2>(m)
    row = Squeeze(rows, zeros)
    column = Squeeze(columns, zeros)
    i = Range(zero, row, one)
    j = Range(zero, column, one)
    i4 = Unsqueeze(i, last)
    j4 = Unsqueeze(j, first)
    full = Concat<axis = 0>(rows, ones, ones, columns)
    ie = Expand(i4, full)
    je = Expand(j4, full)
    i5 = Unsqueeze(ie, four)
    j5 = Unsqueeze(je, four)
    at = Concat<axis = -1>(i5, j5)
    g = GatherND(m, at)
    y = Not(g)
}"""
CONSTANTS = {
    "zero": np.array(0),
    "one": np.array(1),
    "two": np.array(2),
    "zeros": np.array([0]),
    "ones": np.array([1]),
    "four": np.array([4]),
    "first": np.array([0, 1, 2]),
    "last": np.array([1, 2, 3]),
}


def _parsed(parse, text):
    return parse(text, **{name: data for name, data in CONSTANTS.items() if f"({name}," in text or f", {name}" in text})


def test_open_sizes_stay_open(parse, fused, operators):
    model = _parsed(parse, LOOKUP)
    fused(model, (MASK,))
    assert operators(model) == ["Unsqueeze", "Not"]
    fused(model, (MASK[:1, :3].copy(),))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Range(zero, row, one)", "Range(zero, row, two)"),
        ("Concat<axis = -1>(i5, j5)", "Concat<axis = -1>(j5, i5)"),
        ("Range(zero, column, one)", "Neg(jj) jj = Range(zero, column, one)"),
        ("GatherND(m, at)", "GatherND(n, at)"),
    ],
)
def test_other_lookups_stay(parse, fused, operators, old, new):
    if "Neg" in new:
        new = "Range(zero, column, one) j = Neg(jj)"
        text = LOOKUP.replace("j = Range(zero, column, one)", f"jj = {new}")
    else:
        text = LOOKUP.replace(old, new)
    text = text.replace("g = GatherND(n", "n = Concat<axis = 0>(m, m) g = GatherND(n")
    model = _parsed(parse, text)
    square = MASK[:, :2].copy()
    fused(model, (square,))
    assert "GatherND" in operators(model)


def test_a_condition_that_can_be_false_stays(parse, fused, operators):
    model = _parsed(
        parse,
        """agraph (bool[b,s] m) => (bool[] y, bool[] z) <int64[s] j> {
            columns = Shape<start = 1, end = 2>(m)
            column = Squeeze(columns, zeros)
            j = Range(zero, column, one)
            ge = GreaterOrEqual(j, one)
            y = And(m, ge)
            all = GreaterOrEqual(j, zero)
            z = And(all, m)
        }""",
    )
    fused(model, (MASK,))
    assert operators(model).count("And") == 1
    assert operators(model).count("GreaterOrEqual") == 1
