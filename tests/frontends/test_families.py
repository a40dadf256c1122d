"""Every family against transformers, on tiny random models in float32: logits within 1e-4."""

import dataclasses
import json

import numpy as np
import onnx_ir as ir
import pytest
import transformers

from edgec.checkpoint.model import TensorInfo
from edgec.checkpoint.open import open_checkpoint
from edgec.errors import CheckpointError
from edgec.frontends.decoder import emit
from edgec.frontends.decoder_tensors import check_tensors
from edgec.frontends.families import describe
from edgec.graph.blocks import cut

TOLERANCE = 1e-4
ROPE = ("llama", "smollm3", "mistral", "qwen2", "qwen3", "gemma2", "olmo2", "granite", "gpt_neox")
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn-attention-factor": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "attention_factor": 0.9,
        "beta_fast": 16.0, "beta_slow": 2.0,
    },
    "yarn-mscale": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 1.0,
        "mscale_all_dim": 0.5, "truncate": False,
    },
    "yarn-beyond-the-last-dimension": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 2.0,
    },
}  # fmt: skip


def ids(length=24, batch=2, seed=0):
    return np.random.default_rng(seed).integers(3, 97, (batch, length))


def close(found, expected):
    assert np.isfinite(found).all()
    assert expected.std() > 0.05, "logits this small would hide mistakes"
    assert np.abs(found - expected).max() <= TOLERANCE


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


def test_untied_and_tied_embeddings(pair, kind):
    for tied in (True, False):
        p = pair(kind, tie_word_embeddings=tied)
        assert p.decoder.tied is tied
        close(p.run(ids()), p.reference(ids()))


WINDOWS = {
    "smollm3": {"sliding_window": 7, "use_sliding_window": True},
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
    mask = np.ones((2, 30), np.int64)
    mask[1, :9] = 0
    close(p.run(ids(30), mask, (20, 1, 9))[1, 9:], p.reference(ids(30), mask)[1, 9:])
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


def test_longrope_limits_the_context_in_every_family(pair):
    factors = {"short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [3.0] * 8}
    original = {"original_max_position_embeddings": 32, "attention_factor": 1.2}
    p = pair("llama", rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, **factors, **original})
    assert p.decoder.context_length == 32
    close(p.run(ids(32)), p.reference(ids(32)))


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
        ("gpt2", {"reorder_and_upcast_attn": True, "intermediate_size": None}),
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
        (
            "gpt_neox",
            {"rope_theta": 10000, "rotary_emb_base": 10000, "partial_rotary_factor": 0.25, "rotary_pct": 0.25},
        ),
        ("smollm3", {"rope_theta": 2000000.0, "pretraining_tp": 2, "max_window_layers": 28, "no_rope_layers": None}),
        ("mistral", {"rope_theta": 10000.0, "sliding_window": None, "head_dim": None}),
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


def test_gpt2_names_without_prefix(pair):
    p = pair("gpt2")
    bare = {name.removeprefix("transformer."): info for name, info in p.checkpoint.tensors.items()}
    old = dataclasses.replace(p.checkpoint, tensors=bare)
    decoder = describe(old)
    assert decoder.embedding == "wte.weight"
    check_tensors(decoder, old)


@pytest.mark.parametrize("name", ["embed_out.weight", "lm_head.weight"])
def test_both_names_of_the_gpt_neox_head(pair, name):
    p = pair("gpt_neox")
    head = p.decoder.head.weight
    tensors = {name if key == head else key: info for key, info in p.checkpoint.tensors.items()}
    renamed = dataclasses.replace(p.checkpoint, tensors=tensors)
    assert describe(renamed).head.weight == name
    check_tensors(describe(renamed), renamed)


def test_absent_keys_mean_what_they_mean_in_transformers(pair, kind):
    needed = {"vocab_size": 97, "hidden_size": 256, "num_hidden_layers": 7, "num_attention_heads": 32}
    needed["intermediate_size"] = 80
    if kind == "gpt2":
        needed = {"vocab_size": 97, "n_embd": 256, "n_layer": 7, "n_head": 32}
    full = transformers.AutoConfig.for_model(kind, **needed).to_dict()
    assert set(full) > set(needed)
    checkpoint = pair(kind).checkpoint
    with_defaults = describe(dataclasses.replace(checkpoint, config=full))
    assert describe(dataclasses.replace(checkpoint, config={"model_type": kind, **needed})) == with_defaults


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("llama", {"model_type": "lama"}, "lama"),
        ("llama", {"future_attention": True}, "future_attention"),
        ("llama", {"hidden_act": "mish"}, "mish"),
        ("llama", {"hidden_size": "64"}, "hidden_size"),
        ("llama", {"num_key_value_heads": 3}, "key-value heads"),
        ("llama", {"model_type": ["llama"]}, "architecture"),
        ("llama", {"model_type": None}, "model_type"),
        ("llama", {"hidden_size": True}, "hidden_size"),
        ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ("llama", {"attention_bias": "false"}, "attention_bias"),
        ("llama", {"sliding_window": 8}, "sliding_window"),
        ("llama", {"rope_parameters": [1]}, "rope_parameters"),
        ("llama", {"rope_parameters": {"rope_theta": "1e4"}}, "rope_theta"),
        ("llama", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("llama", {"rope_scaling": {"type": "ntk", "factor": 2.0}}, "ntk"),
        ("phi3", {"rope_parameters": {"type": "su", "short_factor": [1.0], "long_factor": [1.0]}}, "short_factor"),
        ("phi3", {"lm_head_bias": True}, "lm_head_bias"),
        ("mistral", {"attention_bias": True}, "attention_bias"),
        ("qwen2", {"use_mrope": True}, "use_mrope"),
        ("gemma2", {"sliding_window": None}, "sliding windows"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma3_text", {"rope_parameters": {"rope_type": "linear", "factor": 8.0}}, "rope_type"),
        ("gpt2", {"n_head": 3}, "3 attention heads"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("gpt_neox", {"rope_theta": 500.0}, "rope_theta"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "factor"),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "trick": 1}}, "trick"),
        ("llama", {"quantization_config": {"bits": 4}}, "already quantized"),
        ("phi3", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "linear"),
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers"),
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


def test_an_unknown_architecture_comes_with_the_known_ones(pair, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        describe(rewritten(pair, tmp_path, "llama", model_type="qwen_2"))
    assert "did you mean 'qwen2'?" in caught.value.hint
    assert "gemma3_text" in caught.value.hint


def test_a_key_that_the_user_declares_harmless_is_ignored(pair, tmp_path):
    scaling = {"rope_theta": 10000.0, "rope_type": "default", "trick": 1}
    checkpoint = rewritten(pair, tmp_path, "llama", future_attention=True, rope_parameters=scaling)
    assert describe(checkpoint, frozenset({"future_attention", "trick"})) == pair("llama").decoder


K_PROJ = "model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (None, "no tensor"),
        (TensorInfo(K_PROJ, "F32", (64, 64)), r"\(64, 64\).*\(32, 64\)"),
        (TensorInfo(K_PROJ, "I8", (32, 64)), "already quantized"),
    ],
    ids=["missing", "shape", "int8"],
)
def test_a_tensor_that_does_not_fit_is_named(pair, info, message):
    p = pair("llama")
    others = {name: each for name, each in p.checkpoint.tensors.items() if name != K_PROJ}
    damaged = dataclasses.replace(p.checkpoint, tensors=others | ({K_PROJ: info} if info else {}))
    with pytest.raises(CheckpointError, match=f"{K_PROJ}.*{message}|{message}.*{K_PROJ}"):
        emit(p.decoder, damaged, damaged.read, 64)


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
