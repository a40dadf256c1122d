"""Ranges of a decoder's activations: streaming against transformers."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers
from random_models import save_random

from edgec.calibrate.ranges import measure_clips
from edgec.checkpoint.model import read_finite
from edgec.checkpoint.open import open_checkpoint
from edgec.errors import CheckpointError
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe
from edgec.quantize.activations import multiplied
from edgec.quantize.cache import cached

TOKENS = np.random.default_rng(0).integers(3, 97, (3, 40))


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
