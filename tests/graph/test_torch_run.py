"""Blocks in torch compute what they do in ONNX Runtime, and gradients are those of finite differences."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from random_models import save_random
from torch_logits import torch_logits, weights_of

from edgec.checkpoint.open import open_checkpoint
from edgec.evaluate.streamed import stream
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe, families
from edgec.graph import torch_run
from edgec.graph.blocks import cut
from edgec.graph.torch_run import TorchBlock

IDS = np.random.default_rng(0).integers(3, 97, (3, 30))


def model_of(folder, kind, **changes):
    save_random(kind, folder, **changes)
    checkpoint = open_checkpoint(folder)
    return emit(describe(checkpoint), checkpoint, checkpoint.read, 64)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return model_of(tmp_path_factory.mktemp("llama"), "llama")


VARIANTS = [
    *((kind, {}) for kind in sorted(families())),
    ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 24}),
    ("llama", {"num_key_value_heads": 1}),
    ("gpt_neox", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}}),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("granite", {"embedding_multiplier": 3.0, "tie_word_embeddings": True}),
    ("gemma2", {"tie_word_embeddings": False, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.0}),
    ("smollm3", {"num_hidden_layers": 4}),  # its fourth layer has no rotary embedding
]


@pytest.mark.parametrize(("kind", "changes"), VARIANTS, ids=lambda value: value if isinstance(value, str) else None)
def test_logits_are_those_of_onnx_runtime(kind, changes, tmp_path):
    model = model_of(tmp_path, kind, **changes)
    run = stream(model, tmp_path, threads=1)
    expected = np.concatenate(list(run.logits(run.hidden(IDS))))
    found = torch_logits(model, IDS)
    assert expected.std() > 0.05, "logits this small would hide mistakes"
    assert np.abs(found.reshape(expected.shape) - expected).max() <= 1e-4


def inputs_of(block, generator):
    """Return random inputs of a block, float64 so that finite differences say something."""
    hidden = torch.randn((2, 12, 64), generator=generator, dtype=torch.float64)
    mask = torch.ones((1, 1, 12, 12), dtype=torch.bool).tril()
    known = {"position_ids": torch.arange(12)[None]}
    names = [name for name in block.inputs if not name.startswith("past_key_values.")]
    return {name: known.get(name, mask if name.startswith("mask") else hidden) for name in names}


# What a gradient flows through: rotary embedding and silu; soft cap, norms of heads; LayerNorm, gelu and biases.
@pytest.mark.parametrize("name", ["layers.0.attention", "layers.0.mlp"])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_gradients_are_finite_differences(kind, name, tmp_path):
    block = next(block for block in cut(model_of(tmp_path, kind)) if block.name == name)
    runner, generator = TorchBlock(block), torch.Generator().manual_seed(0)
    (output,) = (value for value in block.outputs if not value.startswith("present."))
    values = inputs_of(block, generator)
    weights = {key: weight.double().requires_grad_() for key, weight in weights_of(block).items()}
    towards = torch.randn((2, 12, 64), generator=generator, dtype=torch.float64)

    def loss(weights):
        return (runner.run(values, weights, [output])[output] * towards).sum()

    gradients = torch.autograd.grad(loss(weights), list(weights.values()))
    assert len(gradients) >= 3
    for (key, weight), gradient in zip(weights.items(), gradients, strict=True):
        step = 1e-5 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            change = loss({**weights, key: weight + step}) - loss({**weights, key: weight - step})
        assert change.item() / 2 == pytest.approx((gradient * step).sum().item(), rel=1e-4, abs=1e-11), key


def test_only_what_is_asked_for_is_computed(llama, monkeypatch):
    block = next(block for block in cut(llama) if block.name == "layers.0.attention")
    runner, values = TorchBlock(block), inputs_of(block, torch.Generator().manual_seed(0))
    weights = {name: weight.double() for name, weight in weights_of(block).items()}
    counts = dict.fromkeys(torch_run._OPERATORS, 0)

    def counted(name, operator):
        def run(*args):
            counts[name] += 1
            return operator(*args)

        return run

    operators = {name: counted(name, operator) for name, operator in torch_run._OPERATORS.items()}
    monkeypatch.setattr(torch_run, "_OPERATORS", operators)
    (hidden,) = (value for name, value in values.items() if value.ndim == 3)
    (name,) = (name for name, value in values.items() if value is hidden)
    assert runner.run(values, weights, [name])[name] is hidden
    assert not any(counts.values())

    kept = ["layers.0.attention_norm", "layers.0.attention.v"]
    needed = {key: weight for key, weight in weights.items() if "layernorm" in key or "v_proj" in key}
    made = runner.run(values, needed, kept)  # without the other weights
    assert list(made) == kept
    assert {name: count for name, count in counts.items() if count} == {"RMSNormalization": 1, "MatMul": 1}
    everything = runner.run(values, weights, [*kept, "layers.0.attention_residual"])
    assert all(torch.equal(made[name], everything[name]) for name in kept)


def test_weights_and_values_are_left_alone(llama):
    block = next(block for block in cut(llama) if block.name == "layers.0.mlp")
    values = inputs_of(block, torch.Generator().manual_seed(0))
    weights = {name: weight.double() for name, weight in weights_of(block).items()}
    before = {name: tensor.clone() for name, tensor in {**values, **weights}.items()}
    first, second = (TorchBlock(block).run(values, weights, block.outputs) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in block.outputs)
    assert {**values, **weights}.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in {**values, **weights}.items())


def test_an_operator_without_a_torch_form_is_refused(llama):
    block = next(block for block in cut(llama) if block.name == "layers.0.mlp")
    model = block.model.clone()
    node = next(node for node in model.graph if node.op_type == "Sigmoid")
    node.op_type = "HardSigmoid"
    with pytest.raises(NotImplementedError, match=r"layers\.0\.mlp: no torch form of HardSigmoid"):
        TorchBlock(replace(block, model=model))
