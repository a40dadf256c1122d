"""Every family against transformers, on tiny random models in float32: logits within 1e-4."""

import dataclasses
import json

import numpy as np
import onnx_ir as ir
import pytest

from edgec.checkpoint.open import open_checkpoint
from edgec.errors import CheckpointError
from edgec.frontends.families import describe, families
from edgec.graph.blocks import cut

TOLERANCE = 1e-4
ROPE = ("llama", "smollm3", "mistral", "qwen2", "qwen3", "gemma2", "olmo2", "granite", "gpt_neox")
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn-attention-factor": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "attention_factor": 0.9,
        "beta_fast": 16.0, "beta_slow": 2.0,
    },
}  # fmt: skip


def ids(length=24, batch=2, seed=0):
    return np.random.default_rng(seed).integers(3, 97, (batch, length))


def close(found, expected):
    assert np.isfinite(found).all()
    assert expected.std() > 0.05, "logits this small would hide mistakes"
    assert np.abs(found - expected).max() <= TOLERANCE


def test_every_family_is_tested(kind):
    assert kind in families()


def test_no_family_is_untested():
    from_files = set(families())
    assert from_files == {"llama", "smollm3", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "gpt2",
                          "gpt_neox", "olmo2", "granite"}  # fmt: skip


def test_prompt(pair, kind):
    p = pair(kind)
    close(p.run(ids()), p.reference(ids()))


def test_through_the_cache(pair, kind):
    p = pair(kind)
    close(p.run(ids(), pieces=(15, 1, 1, 5, 1, 1)), p.reference(ids()))


def test_left_padding(pair, kind):
    p = pair(kind)
    mask = np.ones((2, 24), np.int64)
    mask[1, :9] = 0
    expected = p.reference(ids(), mask)
    for pieces in ((24,), (18, 1, 5)):
        found = p.run(ids(), mask, pieces)
        assert np.isfinite(found).all()
        close(found[0], expected[0])
        close(found[1, 9:], expected[1, 9:])


@pytest.mark.parametrize("kind", [*sorted(families())])
def test_untied_and_tied_embeddings(pair, kind):
    for tied in (True, False):
        p = pair(kind, tie_word_embeddings=tied)
        assert p.decoder.tied is tied
        close(p.run(ids()), p.reference(ids()))


WINDOWS = {
    "mistral": {"sliding_window": 7},
    "qwen2": {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 2},
    "phi3": {"sliding_window": 7},
    "gemma2": {"sliding_window": 7},
    "gemma3_text": {"sliding_window": 7},
}


@pytest.mark.parametrize("kind", sorted(WINDOWS))
def test_prompt_longer_than_the_sliding_window(pair, kind):
    p = pair(kind, **WINDOWS[kind])
    assert 7 in [layer.attention.window for layer in p.decoder.layers]
    expected = p.reference(ids(30))
    close(p.run(ids(30)), expected)
    close(p.run(ids(30), pieces=(20, 1, 1, 8)), expected)
    wide = pair(kind, **{**WINDOWS[kind], "sliding_window": 64})
    assert np.abs(wide.run(ids(30)) - expected).max() > TOLERANCE, "the window made no difference"


@pytest.mark.parametrize("scaling", sorted(SCALINGS))
@pytest.mark.parametrize("kind", ROPE)
def test_rope_scaling(pair, kind, scaling):
    theta = 500000.0 if scaling == "llama3" else 10000.0
    fraction = {"partial_rotary_factor": 0.5} if kind == "gpt_neox" else {}
    p = pair(kind, rope_parameters={"rope_theta": theta, **SCALINGS[scaling], **fraction})
    close(p.run(ids(40)), p.reference(ids(40)))


def test_gemma3_scales_only_the_full_layers(pair):
    nested = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    p = pair("gemma3_text", rope_parameters=nested)
    close(p.run(ids(40)), p.reference(ids(40)))


def test_phi3_rotates_a_part_of_each_head(pair):
    p = pair("phi3", rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5})
    close(p.run(ids()), p.reference(ids()))


def test_phi3_longrope_within_its_original_context(pair):
    factors = {"short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [3.0] * 8}
    p = pair(
        "phi3",
        original_max_position_embeddings=32,
        rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, **factors},
    )
    assert p.decoder.context_length == 32
    close(p.run(ids(30)), p.reference(ids(30)))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
        ("llama", {"num_key_value_heads": 4}),
        ("llama", {"num_key_value_heads": 1}),
        ("mistral", {"head_dim": 8}),
        ("qwen3", {"attention_bias": True}),
        ("granite", {"attention_bias": True, "mlp_bias": True}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", {"scale_attn_weights": False}),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("gpt_neox", {"attention_bias": False}),
        ("gpt_neox", {"hidden_act": "relu"}),
        ("smollm3", {"no_rope_layers": [1, 0, 0, 1]}),
        ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
        ("gemma3_text", {"layer_types": ["full_attention", *["sliding_attention"] * 6]}),
    ],
    ids=str,
)
def test_variants(pair, kind, changes):
    p = pair(kind, **changes)
    close(p.run(ids()), p.reference(ids()))


def rewritten(pair, folder, kind, drop=(), **changes):
    """Return the checkpoint of `kind` with another config.json: `drop` removed, `changes` set."""
    p = pair(kind)
    for path in p.checkpoint.path.iterdir():
        if path.suffix in (".json", ".safetensors"):
            (folder / path.name).write_bytes(path.read_bytes())
    config = {k: v for k, v in json.loads((folder / "config.json").read_text()).items() if k not in drop}
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return open_checkpoint(folder)


@pytest.mark.parametrize(
    ("kind", "old"),
    [
        ("llama", {"rope_theta": 10000.0, "rope_scaling": None, "torch_dtype": "float32"}),
        ("qwen2", {"rope_theta": 10000.0, "use_mrope": False}),
        ("phi3", {"rope_theta": 10000.0, "rope_scaling": None}),
        ("gpt_neox", {"rotary_emb_base": 10000, "rotary_pct": 0.25}),
        ("gemma2", {"rope_theta": 10000.0, "hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid"}),
        ("gemma3_text", {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "sliding_window_pattern": 6}),
    ],
    ids=str,
)
def test_the_spelling_of_transformers_4_means_the_same(pair, tmp_path, kind, old):
    checkpoint = rewritten(pair, tmp_path, kind, drop=("rope_parameters", "dtype", "layer_types"), **old)
    assert describe(checkpoint) == pair(kind).decoder


def test_old_scaling_spelling(pair, tmp_path):
    checkpoint = rewritten(
        pair,
        tmp_path,
        "llama",
        drop=("rope_parameters",),
        rope_theta=1e4,
        rope_scaling={"type": "linear", "factor": 3.0},
    )
    new = pair("llama", rope_parameters={"rope_theta": 1e4, "rope_type": "linear", "factor": 3.0})
    assert describe(checkpoint) == new.decoder


def test_gpt2_names_without_prefix(pair, tmp_path):
    p = pair("gpt2")
    bare = {name.removeprefix("transformer."): info for name, info in p.checkpoint.tensors.items()}
    decoder = describe(dataclasses.replace(p.checkpoint, tensors=bare))
    assert decoder.embedding == "wte.weight"
    assert decoder.layers[0].attention.q.weight == "h.0.attn.c_attn.weight"


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("llama", {"model_type": "lama"}, "lama"),
        ("llama", {"future_attention": True}, "future_attention"),
        ("llama", {"hidden_act": "mish"}, "mish"),
        ("llama", {"pretraining_tp": 2}, "pretraining_tp"),
        ("llama", {"hidden_size": "64"}, "hidden_size"),
        ("llama", {"num_key_value_heads": 3}, "key-value heads"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "factor"),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "trick": 1}}, "trick"),
        ("llama", {"quantization_config": {"bits": 4}}, "already quantized"),
        ("phi3", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "linear"),
        ("smollm3", {"use_sliding_window": True}, "use_sliding_window"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma2", {"layer_types": ["chunked_attention"] * 3}, "layer_types"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types"),
    ],
    ids=str,
)
def test_what_would_change_the_mathematics_is_refused_by_name(pair, tmp_path, kind, changes, message):
    with pytest.raises(CheckpointError, match=message):
        describe(rewritten(pair, tmp_path, kind, **changes))


def test_a_missing_key_is_named(pair, tmp_path):
    with pytest.raises(CheckpointError, match="intermediate_size"):
        describe(rewritten(pair, tmp_path, "llama", drop=("intermediate_size",)))


def test_only_standard_operators(pair, kind):
    p = pair(kind)
    assert {node.domain for node in p.model.graph} == {""}
    onnx = pytest.importorskip("onnx")
    onnx.checker.check_model(ir.to_proto(p.model), full_check=True)


def test_blocks_follow_the_layers(pair, kind):
    p = pair(kind)
    names = [block.name for block in cut(p.model)]
    layers = [f"layers.{i}.{part}" for i in range(len(p.decoder.layers)) for part in ("attention", "mlp")]
    assert names == ["mask", "embedding", *layers, "head"]
