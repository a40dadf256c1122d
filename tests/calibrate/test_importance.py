"""What flows into each matrix: against hooks on transformers' modules."""

import numpy as np
import pytest
import torch
import transformers
from random_models import save_random
from safetensors.numpy import load_file, save_file

from edgec.calibrate.importance import measure_importance
from edgec.checkpoint.model import read_finite
from edgec.checkpoint.open import open_checkpoint
from edgec.errors import CheckpointError
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe

TOKENS = np.random.default_rng(0).integers(3, 97, (3, 40))


def measure(folder, scratch, **options):
    checkpoint = open_checkpoint(folder)
    decoder = describe(checkpoint)
    model = emit(decoder, checkpoint, lambda name: read_finite(checkpoint, name), 64)
    return measure_importance(model, TOKENS, scratch, **options)


@torch.no_grad()
def hook_inputs(folder):
    """Return the mean square of each input of each Linear, in float64, by the name of its weight."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = {}

    def hook(name):
        def keep(_, inputs):
            found[f"{name}.weight"] = inputs[0].double().square().mean((0, 1)).numpy()

        return keep

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(hook(name))
    model(torch.from_numpy(TOKENS))
    return found


# olmo2 multiplies what comes from other blocks, phi3 cuts one tensor into several matrices.
@pytest.mark.parametrize("kind", ["llama", "olmo2", "phi3"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_equals_hooks_on_transformers(kind, tied, tmp_path):
    save_random(kind, tmp_path / "model", tie_word_embeddings=tied)
    expected = hook_inputs(tmp_path / "model")
    if tied:
        expected["model.embed_tokens.weight"] = expected.pop("lm_head.weight")
    found = measure(tmp_path / "model", tmp_path)
    parts = {name: next(source for source in expected if name.startswith(source)) for name in found}
    assert set(parts.values()) == set(expected)
    for name, source in parts.items():
        importance = found[name].importance
        assert importance.dtype == torch.float32
        np.testing.assert_allclose(importance.numpy(), expected[source], rtol=1e-4)
    assert not list(tmp_path.glob("*.onnx"))


def test_the_number_of_threads_changes_nothing(tiny_llama, tmp_path):
    first, *others = (measure(tiny_llama, tmp_path, threads=threads) for threads in (1, 2, 3, 0))
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(first[name].importance, other[name].importance) for name in first)


def test_each_block_is_reported(tiny_llama, tmp_path):
    blocks = []
    measure(tiny_llama, tmp_path, tick=blocks.append)
    layers = [f"layers.{layer}.{part}" for layer in range(3) for part in ("attention", "mlp")]
    assert blocks == ["mask", "embedding", *layers, "head"]


def test_numbers_that_overflow_are_refused(make_llama, tmp_path):
    folder = make_llama(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] *= np.float32(1e38)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="not finite") as error:
        measure(folder, tmp_path)
    assert error.value.where == "layers.1.mlp"
