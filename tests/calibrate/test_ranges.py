"""Ranges of activations: histograms against numpy, clips against a search, streaming against transformers."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers
from random_models import save_random

from edgec.calibrate.ranges import Histogram, measure_clips
from edgec.checkpoint.model import read_finite
from edgec.checkpoint.open import open_checkpoint
from edgec.errors import CheckpointError
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe
from edgec.quantize.activations import multiplied
from edgec.quantize.cache import cached

METHODS = ("minmax", "percentile", "mse")
TOKENS = np.random.default_rng(0).integers(3, 97, (3, 40))


def filled(*pieces):
    histogram = Histogram()
    for piece in pieces:
        histogram.add(piece)
    return histogram


def heavy_tailed(seed, size=20_000):
    return np.random.default_rng(seed).standard_t(2, size).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_bins_that_doubled_count_what_bins_of_the_last_width_count(seed):
    x = heavy_tailed(seed) * 10.0 ** np.random.default_rng(seed).integers(-30, 30)
    pieces = np.array_split(x[np.argsort(np.abs(x))], 13)  # each one needs wider bins
    histogram = filled(*pieces)
    expected, _ = np.histogram(np.abs(x.astype(np.float64)), len(histogram.counts), (0, histogram.limit))
    np.testing.assert_array_equal(histogram.counts, expected)
    assert histogram.limit / 2 <= np.abs(x).max() < histogram.limit


def test_the_order_changes_nothing():
    x = heavy_tailed(0)
    pieces = np.array_split(x, 7)
    one, other = filled(x), filled(*pieces[::-1])
    np.testing.assert_array_equal(one.counts, other.counts)
    assert [one.range(m) for m in METHODS] == [other.range(m) for m in METHODS]


def test_a_power_of_two_is_no_edge():
    assert filled(np.array([1.0]), np.array([-2.0]), np.array([4.0])).counts.sum() == 3
    assert filled(np.array([1.0]), np.array([4.0])).counts.nonzero()[0].tolist() == [256, 1024]


def test_methods():
    x = heavy_tailed(1)
    histogram = filled(x)
    assert histogram.range("minmax") == np.abs(x).max()
    width = histogram.limit / len(histogram.counts)
    assert histogram.range("percentile") == pytest.approx(np.quantile(np.abs(x), 0.9999), abs=2 * width)


@pytest.mark.parametrize("numbers", [heavy_tailed(2), np.random.default_rng(3).normal(size=20_000), np.arange(100.0)])
def test_mse_costs_no_more_than_any_other_clip(numbers):
    def cost(clip):
        scale = clip / 127
        return np.square(numbers - np.clip(np.round(numbers / scale), -127, 127) * scale).mean()

    found = filled(numbers).range("mse")
    clips = np.abs(numbers).max() * np.linspace(0.01, 1, 200)
    assert cost(found) <= 1.01 * min(map(cost, clips))
    assert found <= np.abs(numbers).max()


def test_nothing_but_zeros():
    histogram = filled(np.zeros(10), np.zeros((2, 3)), np.zeros(0))
    assert [histogram.range(m) for m in METHODS] == [0, 0, 0]
    assert histogram.counts.sum() == 16
    histogram.add(np.array([3.0]))
    assert histogram.range("minmax") == 3
    assert histogram.counts[0] == 16


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="not finite"):
        filled(np.array([1.0, bad]))


def floats(folder):
    checkpoint = open_checkpoint(folder)
    return emit(describe(checkpoint), checkpoint, lambda name: read_finite(checkpoint, name), 64)


@torch.no_grad()
def hooked(folder):
    """Return max |x| of the input of each Linear, and max |v| of each head of its output, by its name."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    inputs, outputs = {}, {}

    def hook(name):
        def keep(_, taken, given):
            inputs[name] = float(taken[0].abs().max())
            if name.endswith("v_proj"):
                outputs[name] = given.unflatten(-1, (-1, 16)).abs().amax((0, 1, 3)).numpy()

        return keep

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(hook(name))
    model(torch.from_numpy(TOKENS))
    return inputs, outputs


# olmo2's matrices read what other blocks give.
def test_equals_hooks_on_transformers(tmp_path):
    save_random("olmo2", tmp_path / "model")
    model, (inputs, outputs) = floats(tmp_path / "model"), hooked(tmp_path / "model")
    matrices = {f"layers.{layer}.mlp.{name}" for layer in (0, 1) for name in ("gate", "down")}
    parts = {**dict.fromkeys(multiplied(model, matrices), 1), **cached(model)}
    clips = measure_clips(model, parts, TOKENS, tmp_path, method="minmax")
    assert clips.keys() == parts.keys()
    for name, (node,) in multiplied(model, matrices).items():
        module = f"model.{node.name!s}_proj"
        np.testing.assert_allclose(clips[name], [inputs[module]], rtol=1e-4)
    for layer in (0, 1):
        np.testing.assert_allclose(
            clips[f"layers.{layer}.attention.v"], outputs[f"model.layers.{layer}.self_attn.v_proj"], rtol=1e-4
        )
    assert not list(tmp_path.glob("*.onnx"))


def test_a_model_without_positions_in_its_layers(tmp_path):
    save_random("gpt2", tmp_path / "model")
    model = floats(tmp_path / "model")
    clips = measure_clips(model, {"layers.1.mlp_norm": 1}, TOKENS, tmp_path, method="minmax")
    alone = [measure_clips(model, {"layers.1.mlp_norm": 1}, row[None], tmp_path, method="minmax") for row in TOKENS]
    np.testing.assert_allclose(clips["layers.1.mlp_norm"], max(a["layers.1.mlp_norm"] for a in alone), rtol=1e-5)


def test_a_model_that_overflows_is_refused(tmp_path):
    save_random("llama", tmp_path / "model")
    model = floats(tmp_path / "model")
    value = next(node for node in model.graph if node.name == "layers.1.mlp.up").inputs[1]
    huge = np.full(tuple(value.shape), 3e38, np.float32)
    value.const_value = ir.LazyTensor(lambda: ir.tensor(huge), value.dtype, value.shape, name=value.name)
    with pytest.raises(CheckpointError, match="not finite") as error:
        measure_clips(model, {"layers.1.mlp.gated": 1}, TOKENS, tmp_path, method="mse")
    assert error.value.where == "layers.1.mlp.gated"
