"""Every family through quantization and lowering: the artifact computes what its canonical graph computes."""

import json

import numpy as np
import pytest
import torch
import transformers

from edgec.backends.onnx_cpu.compile import MODEL_FILE, compile_decoder, write_exact
from edgec.backends.onnx_cpu.files import ALL_LOGITS_FILE
from edgec.backends.onnx_cpu.session import OnnxCpuSession
from edgec.checkpoint.open import open_checkpoint
from edgec.evaluate.streamed import stream
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe, families
from edgec.graph.store import Store
from edgec.quantize.scheme import Scheme
from edgec.quantize.weights import quantize_weights
from edgec.spec.load import load_profile, load_target
from edgec.spec.plan import resolve

SIZES = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXTRA = {
    "mistral": {"sliding_window": 9},
    "qwen2": {"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {"head_dim": 16},
    "phi3": {"sliding_window": 9},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 9},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 9, "num_hidden_layers": 6},
    "gpt_neox": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}},
    "granite": {"attention_multiplier": 0.3, "residual_multiplier": 0.7, "logits_scaling": 2.0},
}
GPT2_NAMES = {
    "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions", "intermediate_size": "n_inner",
}  # fmt: skip


def save_random(kind, folder, **changes):
    settings = {**SIZES, **EXTRA.get(kind, {}), **changes}
    if kind == "gpt2":
        settings = {GPT2_NAMES.get(k, k): v for k, v in settings.items()}
    if kind in ("gpt2", "gpt_neox"):
        del settings["num_key_value_heads"]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **settings))
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight + 0.3 * torch.randn_like(weight) if weight.ndim == 1 else 4 * weight)
    model.save_pretrained(folder)


def exact_error(folder, tmp_path, storage):
    """Return the largest difference of a logit, in standard deviations, over a prompt and decoded tokens."""
    checkpoint = open_checkpoint(folder)
    decoder = describe(checkpoint)
    plan = resolve(checkpoint, decoder, load_target("cpu"), load_profile("int4"))
    model = emit(decoder, checkpoint, checkpoint.read, plan.context_length)
    with Store(tmp_path / "weights.bin") as store:
        quantize_weights(model, lambda *_: storage, store, lambda _: None)
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    lowered = compile_decoder(model, decoder, plan, checkpoint.config, {}, artifact, lambda _: None)
    ids = np.random.default_rng(0).integers(3, 97, (1, 40))
    reference = stream(model, tmp_path)
    expected = np.concatenate(list(reference.logits(reference.hidden(ids))))
    session = OnnxCpuSession(artifact, model_file=write_exact(lowered, artifact))
    found = np.concatenate([session.step(ids[:, a:b])[0] for a, b in ((0, 30), (30, 31), (31, 39), (39, 40))])
    return np.abs(found - expected).max() / expected.std()


@pytest.mark.parametrize("storage", [Scheme("int4", 32), Scheme("int8", None), "fp32"], ids=str)
@pytest.mark.parametrize("kind", sorted(families()))
def test_exact_mode(kind, storage, tmp_path):
    save_random(kind, tmp_path / "source")
    assert exact_error(tmp_path / "source", tmp_path, storage) < 1e-4


@pytest.mark.parametrize("tied", [True, False])
def test_untied_and_tied(tied, tmp_path):
    save_random("qwen2", tmp_path / "source", tie_word_embeddings=tied)
    assert exact_error(tmp_path / "source", tmp_path, Scheme("int4", 32, symmetric=False)) < 1e-4


@pytest.mark.parametrize("fraction", [0.25, 0.5])
def test_partly_rotated_heads(fraction, tmp_path):
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": fraction}
    save_random("gpt_neox", tmp_path / "source", rope_parameters=rope, hidden_size=256)
    assert exact_error(tmp_path / "source", tmp_path, Scheme("int4", 32)) < 1e-4


@pytest.mark.parametrize("kind", sorted(families()))
def test_last_logits_and_configuration(kind, tmp_path):
    save_random(kind, tmp_path / "source")
    exact_error(tmp_path / "source", tmp_path, Scheme("int4", 32))
    artifact = tmp_path / "artifact"
    ids = np.random.default_rng(0).integers(3, 97, (1, 20))
    last = OnnxCpuSession(artifact, model_file=MODEL_FILE).step(ids)
    everything = OnnxCpuSession(artifact, model_file=ALL_LOGITS_FILE).step(ids)
    assert last.shape == (1, 1, 97)
    assert np.allclose(last[:, 0], everything[:, -1], atol=1e-4 * everything.std())
    model = json.loads((artifact / "genai_config.json").read_text())["model"]
    assert model["vocab_size"] == 97
    assert model["eos_token_id"] == 2
