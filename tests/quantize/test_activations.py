"""The passes that round activations and the cache: against arithmetic, on the canonical graph of a random model."""

import numpy as np
import pytest
from random_models import save_random

from edgec.calibrate import ranges
from edgec.calibrate.ranges import measure_clips
from edgec.checkpoint.open import open_checkpoint
from edgec.evaluate.streamed import stream
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe
from edgec.graph.store import Store
from edgec.quantize.activations import activation_scales, leave_float, multiplied, quantize_activations, scale_of
from edgec.quantize.cache import cached, quantize_cache
from edgec.quantize.scheme import Scheme
from edgec.quantize.weights import quantize_weights

TOKENS = np.random.default_rng(0).integers(3, 97, (2, 24))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Return the canonical graph of a random Llama with int8 weights, and its folder."""
    folder = tmp_path_factory.mktemp("llama")
    save_random("llama", folder / "model")
    checkpoint = open_checkpoint(folder / "model")
    model = emit(describe(checkpoint), checkpoint, checkpoint.read, 64)
    with Store(folder / "weights.bin") as store:
        quantize_weights(model, lambda *_: Scheme("int8", None), store, lambda _: None)
    return model, folder


def logits(model, folder):
    runner = stream(model, folder, 1)
    return np.concatenate(list(runner.logits(runner.hidden(TOKENS))))


def matrices(model):
    return {n.name for n in model.graph if n.op_type == "MatMul" and n.name.startswith("layers.")}


def nodes(model):
    return [(n.op_type, n.name, [v and v.name for v in n.inputs]) for n in model.graph]


@pytest.mark.parametrize(("low", "high"), [(-12.7, 12.7), (-12.8, 1), (0, 12.7), (-12.8, 12.7)])
def test_a_range_just_fits(low, high):
    assert scale_of(low, high) == pytest.approx(0.1, rel=2**-11)


def test_scales_are_positive_float16_numbers():
    assert scale_of(0, 0) == 1
    for clip in np.random.default_rng(0).lognormal(0, 5, 100):
        scale = scale_of(-clip, clip)
        assert scale == np.float32(np.float16(scale)) > 0
    assert scale_of(-1e-30, 1e-30) > 0
    assert np.isfinite(scale_of(-1e30, 1e30))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_ranges_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="a range from"):
        scale_of(-1, bad)


def test_matmuls_of_one_input_share_its_scale(llama):
    model, _ = llama
    found = {
        name: {node.name.rpartition(".")[2] for node in found}
        for name, found in multiplied(model, matrices(model)).items()
    }
    for layer in (0, 1):
        assert found[f"layers.{layer}.attention_norm"] == {"q", "k", "v"}
        assert found[f"layers.{layer}.attention"] == {"o"}
        assert found[f"layers.{layer}.mlp_norm"] == {"gate", "up"}
        assert found[f"layers.{layer}.mlp.gated"] == {"down"}
    assert len(found) == 8


def test_the_graph_computes_with_rounded_inputs(llama):
    """One matmul, by hand: what goes in is clipped and rounded, half to even."""
    model, folder = llama
    before, name = nodes(model), "layers.0.attention_norm"
    quantized = quantize_activations(model, {"layers.0.attention.v"}, {name: (-1.0, 1.0)})
    assert nodes(model) == before
    scale = activation_scales(quantized.graph)
    assert scale == {name: (scale_of(-1, 1),)}
    parts = {name: 1, f"{name}.dequantize": 1, "layers.0.attention.v": 1}
    seen = {}

    def run(graph):
        class Keep(ranges._Recorder):
            def _run(self, block, values):
                made = super()._run(block, values)
                seen.update({k: v for k, v in made.items() if k in parts})
                return made

        Keep(ranges.cut(graph), parts, folder, 1).hidden(TOKENS)

    run(quantized)
    step = np.float32(scale[name][0])
    expected = np.clip(np.rint(seen[name] / step), -128, 127) * step
    np.testing.assert_array_equal(seen[f"{name}.dequantize"], expected)
    assert np.abs(seen[name]).max() > 1


def test_fine_scales_change_little_and_coarse_ones_much(llama):
    model, folder = llama
    floats, names = logits(model, folder), matrices(model)
    clips = measure_clips(model, dict.fromkeys(multiplied(model, names), 1), TOKENS, folder, method="minmax")

    def error(times):
        ranges = {name: (-clip * times, clip * times) for name, (clip,) in clips.items()}
        return np.abs(logits(quantize_activations(model, names, ranges), folder) - floats).mean() / floats.std()

    assert 0 < error(1) < 0.1
    assert error(1) < error(4) < error(16)
    assert error(0.2) > error(1)  # clipped


def test_without_rounding_it_is_the_graph_that_it_was(llama):
    model, folder = llama
    names = matrices(model)
    ranges = dict.fromkeys(multiplied(model, names), (-1.0, 1.0))
    clips = {name: np.ones(heads) for name, heads in cached(model).items()}
    quantized = quantize_cache(quantize_activations(model, names, ranges), clips)
    assert len(activation_scales(quantized.graph)) == 8 + 4
    assert np.abs(logits(quantized, folder) - logits(model, folder)).max() > 0
    leave_float(quantized.graph)
    np.testing.assert_array_equal(logits(quantized, folder), logits(model, folder))


def test_a_value_without_a_range_is_an_error(llama):
    model, _ = llama
    with pytest.raises(KeyError):
        quantize_activations(model, {"layers.0.mlp.down"}, {})


def test_the_cache_has_one_scale_for_each_head(llama):
    model, folder = llama
    parts = cached(model)
    assert parts == {f"layers.{i}.attention.{n}": 2 for i in (0, 1) for n in ("k_rope", "v")}
    clips = measure_clips(model, parts, TOKENS, folder, method="minmax")
    scales = activation_scales(quantize_cache(model, clips).graph)
    assert len(scales) == 4
    for layer in (0, 1):
        for part, value in (("key", "k_rope"), ("value", "v")):
            expected = [scale_of(-c, c) for c in clips[f"layers.{layer}.attention.{value}"]]
            assert scales[f"layers.{layer}.attention.{part}"] == tuple(np.repeat(expected, 16))
    floats = logits(model, folder)
    assert 0 < np.abs(logits(quantize_cache(model, clips), folder) - floats).mean() < 0.02 * floats.std()
