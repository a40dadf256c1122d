import numpy as np
import pytest
import torch
from torch import nn

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 6, 6)).astype(np.float32)
W = RNG.standard_normal((2, 3, 3, 3)).astype(np.float32)


def _same():
    return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 4, 3, stride=2, padding=1)), torch.randn(2, 3, 6, 6)


def test_padding_goes_into_the_convolution(export, fused, operators, names):
    model, inputs = export(_same)
    fusions = fused(model, inputs)
    assert operators(model) == ["Conv"]
    assert list(model.graph[0].attributes.get_ints("pads")) == [1, 1, 2, 2]
    assert "pads" in names(fusions)


def test_named_axes_are_understood(parse, fused, operators):
    model = parse(
        "agraph (float[2,3,6,6] x) => (float[] y) { p = Pad(x, n, , axes) y = Conv(p, w) }",
        n=np.array([1, 2]), axes=np.array([-1]), w=W,
    )  # fmt: skip
    fused(model, (X,))
    assert list(model.graph[0].attributes.get_ints("pads")) == [0, 1, 0, 2]


REFUSED = {
    "it does not pad with a constant": ('Pad<mode = "reflect">(x, n)', {"n": [0, 0, 1, 1, 0, 0, 1, 1]}),
    "it does not pad with zeros": ("Pad(x, n, v)", {"n": [0, 0, 1, 1, 0, 0, 1, 1], "v": np.array(1, np.float32)}),
    "it pads batch or channels": ("Pad(x, n)", {"n": [1, 0, 0, 0, 0, 0, 0, 0]}),
    "it crops": ("Pad(x, n)", {"n": [0, 0, -1, 0, 0, 0, 0, 0]}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refuses(parse, fused, operators, reasons, reason):
    call, constants = REFUSED[reason]
    model = parse(
        f"agraph (float[2,3,6,6] x) => (float[] y) {{ p = {call} y = Conv(p, w) }}",
        w=W,
        **{name: np.array(value) for name, value in constants.items()},
    )
    fusions = fused(model, (X,))
    assert operators(model) == ["Pad", "Conv"]
    assert reasons(fusions, "pads") == [reason]


def test_padding_that_depends_on_the_size_is_refused(parse, fused, reasons):
    model = parse(
        'agraph (float[2,3,6,6] x) => (float[] y) { p = Pad(x, n) y = Conv<auto_pad = "SAME_UPPER">(p, w) }',
        n=np.array([0, 0, 1, 1, 0, 0, 1, 1]), w=W,
    )  # fmt: skip
    assert reasons(fused(model, (X,)), "pads") == ["the convolution's own padding depends on its input"]
