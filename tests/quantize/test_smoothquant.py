"""SmoothQuant's scale: the paper's equation, and what it is for."""

import pytest
import torch

from edgec.calibrate.stats import Stats
from edgec.quantize.fold import Fold
from edgec.quantize.scheme import Scheme
from edgec.quantize.transforms.smoothquant import scale, smooth


def layer(seed=0, cols=24):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(50, cols, generator=generator) * torch.logspace(-1, 2, cols)
    weights = [torch.randn(rows, cols, generator=generator) for rows in (8, 16)]
    return x, weights


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.85, 1.0])
def test_equation_4_of_the_paper(alpha):
    x, weights = layer()
    found = smooth(x.abs().amax(0), weights, alpha)
    assert found.dtype == torch.float32
    for j in range(x.shape[1]):  # s_j = max(|X_j|)^alpha / max(|W_j|)^(1 - alpha)
        of_x, of_w = max(abs(v) for v in x[:, j].tolist()), max(abs(v) for w in weights for v in w[:, j].tolist())
        assert found[j].item() == pytest.approx(of_x**alpha / of_w ** (1 - alpha), rel=1e-6)


def test_half_makes_activations_and_weights_equally_large():
    x, weights = layer()
    found = smooth(x.abs().amax(0), weights, 0.5)
    torch.testing.assert_close((x / found).abs().amax(0), torch.cat([w * found for w in weights]).abs().amax(0))


def test_int8_with_one_scale_for_all_inputs_costs_less():
    def rounded(t):
        scale = t.abs().max() / 127
        return (t / scale).round() * scale

    def cost(scale):
        error = sum(((rounded(x / scale) - x / scale) @ (w * scale).T).square().mean() for w in weights)
        return error.item()

    x, weights = layer()
    assert cost(smooth(x.abs().amax(0), weights)) < 0.2 * cost(torch.ones(x.shape[1]))


def test_dead_inputs_keep_their_size():
    x, weights = layer()
    x[:, 3] = 0
    for weight in weights:
        weight[:, 5] = 0
    x[:, 7], weights[0][:, 7], weights[1][:, 7] = 0, 0, 0
    found = smooth(x.abs().amax(0), weights)
    assert found[[3, 5, 7]].tolist() == [1, 1, 1]


def test_scales_stay_in_reach_of_float16():
    found = smooth(torch.tensor([1e30, 1e-30, 1.0]), [torch.tensor([[1e-30, 1e30, 1.0]])])
    assert found.tolist() == [2.0**12, 2.0**-12, 1]


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_alpha_is_a_share(alpha):
    with pytest.raises(ValueError, match="alpha is from 0 to 1"):
        smooth(torch.ones(2), [torch.ones(2, 2)], alpha)


def test_heads_that_share_values_share_scales():
    x, (weight, _) = layer()
    fold = Fold(("v",), repeat=2, run=6)  # 2 x 2 heads of 6
    found = scale([(weight, Scheme("int8", None))], Stats(torch.ones(24), largest=x.abs().amax(0)), fold)
    assert found.shape == (12,)
    for j, s in enumerate(found.tolist()):
        head, number = divmod(j, 6)
        both = [12 * head + number, 12 * head + 6 + number]
        assert s == pytest.approx((x[:, both].abs().max() / weight[:, both].abs().max()).sqrt().item(), rel=1e-6)
