"""Smaller checkpoints: transformers loads them, and they compute what the whole model does without those parts."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
import transformers
from msgspec.structs import replace as replace_fields
from random_models import opener, save_random
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models
from torch_logits import torch_logits

from edgec.checkpoint.export import write_huggingface
from edgec.checkpoint.open import open_checkpoint
from edgec.errors import CheckpointError, PlanError
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe, families
from edgec.graph.blocks import cut
from edgec.prune.keep import Keep, Shares, Sizes, check, first, full, sizes
from edgec.prune.slim import slim
from edgec.quantize.matrix import matrices

IDS = np.random.default_rng(0).integers(3, 97, (2, 24))
FIXED = ("gpt2", "gpt_neox")  # their heads share the hidden size
LAYERS = {"gemma3_text": (0, 2, 5), "smollm3": (0, 3)}
MORE = {"smollm3": {"num_hidden_layers": 4}}


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    def save(kind, folder, **changes):
        eps = {} if kind in FIXED else {"rms_norm_eps": 1e-12}  # see `slim` on the epsilon of norms
        save_random(kind, folder, **{**eps, **MORE.get(kind, {}), **changes})
        Tokenizer(models.BPE()).save(str(folder / "tokenizer.json"))

    return opener(tmp_path_factory, save)


def some(generator, size, count):
    return tuple(sorted(generator.choice(size, count, replace=False).tolist()))


def keep_some(decoder, layers=None, *, hidden=True):
    """Return some of everything: other units and groups in each layer."""
    generator, there = np.random.default_rng(1), full(decoder)
    layers = layers or (there.layers - 1,)
    groups, width = (3, 48) if decoder.family in FIXED else (1, 40)
    return Keep(
        layers,
        tuple(some(generator, there.mlp, 24) for _ in layers),
        tuple(some(generator, there.groups, groups if hidden or decoder.family not in FIXED else 4) for _ in layers),
        some(generator, there.hidden, width if hidden else there.hidden),
    )


def graph(checkpoint):
    decoder = describe(checkpoint)
    return emit(decoder, checkpoint, checkpoint.read, decoder.context_length)


def transformers_logits(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.from_numpy(IDS), use_cache=False).logits.numpy()


def close(found, expected, tolerance):
    assert expected.std() > 0.05, "logits this small would hide mistakes"
    assert np.abs(found - expected).max() <= tolerance


@pytest.mark.parametrize("kind", sorted(families()))
def test_transformers_loads_it_and_computes_the_same(kind, random_model, tmp_path):
    checkpoint, decoder = random_model(kind)
    keep = keep_some(decoder, LAYERS.get(kind))
    smaller = slim(checkpoint, decoder, keep)
    assert full(describe(smaller)) == keep.sizes
    write_huggingface(smaller, tmp_path / "out")
    written = open_checkpoint(tmp_path / "out")
    assert describe(written) == describe(smaller)
    assert set(written.tensors) == set(smaller.tensors)
    close(torch_logits(graph(smaller), IDS), transformers_logits(tmp_path / "out"), 1e-4)


@pytest.mark.parametrize("kind", ["llama", "phi3", "gpt2"])
def test_through_the_cache(kind, random_model, tmp_path):
    checkpoint, decoder = random_model(kind)
    smaller = slim(checkpoint, decoder, keep_some(decoder))
    model = graph(smaller)
    ir.save(model, tmp_path / "model.onnx")
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    feed = {
        value.name: np.zeros((len(IDS), value.shape[1], 0, value.shape[3]), np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past")
    }
    found = []
    for piece in (slice(0, 15), slice(15, 16), slice(16, 24)):
        positions = np.broadcast_to(np.arange(24)[piece], IDS[:, piece].shape)
        known = {
            "input_ids": IDS[:, piece],
            "attention_mask": np.ones_like(IDS)[:, : piece.stop],
            "position_ids": positions,
        }
        feed |= {v.name: known[v.name] for v in session.get_inputs() if v.name in known}
        outputs = dict(zip([v.name for v in session.get_outputs()], session.run(None, feed), strict=True))
        found.append(outputs.pop("logits"))
        feed |= {name.replace("present", "past_key_values"): value for name, value in outputs.items()}
    close(np.concatenate(found, axis=1), torch_logits(model, IDS), 1e-4)


def zeroed(model, decoder, keep):
    """Return the weights of the whole model in which what does not stay is 0, by their names."""
    nodes = {node.name: node for node in model.graph}
    weights = {m.node: m.weight for block in cut(model) for m in matrices(block)}
    changed = {}

    def change(name, axis, gone):
        weight = changed.setdefault(name, np.array(model.graph.initializers[name].const_value.numpy()))
        weight[(slice(None),) * axis + (gone,)] = 0

    def without(there, kept, size=1):
        return [i * size + j for i in range(there) if i not in kept for j in range(size)]

    there, attention = full(decoder), decoder.layers[0].attention
    hidden = without(there.hidden, keep.hidden)
    change(weights["embedding"], 1, hidden)
    if decoder.position_embedding:
        change(decoder.position_embedding, 1, hidden)
    for layer in range(there.layers):
        place = keep.layers.index(layer) if layer in keep.layers else None
        per_group = attention.heads // attention.kv_heads * attention.head_dim
        for unit, rows in (
            ("attention.o", without(there.groups, keep.groups[place] if place is not None else (), per_group)),
            ("mlp.down", without(there.mlp, keep.mlp[place] if place is not None else ())),
        ):
            name = f"layers.{layer}.{unit}"
            change(weights[name], 0, rows)
            change(weights[name], 1, hidden)
            if f"{name}.bias" in nodes:
                change(nodes[f"{name}.bias"].inputs[1].name, 0, hidden if place is not None else slice(None))
        if attention.q_norm and attention.q_norm.size > attention.head_dim:  # the mean is over the heads that stay
            for part, size in (("q", per_group), ("k", attention.head_dim)):
                change(
                    weights[f"layers.{layer}.attention.{part}"], 1, without(there.groups, keep.groups[place or 0], size)
                )
                gains = nodes[f"layers.{layer}.attention.{part}_norm"].inputs[1]
                changed[gains.name] = gains.const_value.numpy() * (keep.sizes.groups / there.groups) ** 0.5
    return {name: torch.from_numpy(weight) for name, weight in changed.items()}


@pytest.mark.parametrize("kind", sorted(families()))
def test_it_computes_what_the_whole_model_does_with_the_rest_at_zero(kind, random_model):
    checkpoint, decoder = random_model(kind)
    # LayerNorm subtracts a mean over all dimensions, and where heads share the hidden size they go with it.
    keep = keep_some(decoder, LAYERS.get(kind), hidden=kind not in FIXED)
    whole = graph(checkpoint)
    expected = torch_logits(whole, IDS, zeroed(whole, decoder, keep))
    close(torch_logits(graph(slim(checkpoint, decoder, keep)), IDS), expected, 1e-5)


@pytest.mark.parametrize("kind", FIXED)
def test_heads_that_share_the_hidden_size_are_cut_out_of_fused_matrices(kind, random_model):
    checkpoint, decoder = random_model(kind)
    keep = keep_some(decoder)
    before, after = ({m.node: w for m, w in weights(graph(c))} for c in (checkpoint, slim(checkpoint, decoder, keep)))
    hidden, (groups,), (inner,) = list(keep.hidden), keep.groups, keep.mlp
    values = [group * 16 + i for group in groups for i in range(16)]
    for node, inputs, outputs in (
        *((f"attention.{part}", hidden, values) for part in "qkv"),
        ("attention.o", values, hidden),
        ("mlp.up", hidden, list(inner)),
        ("mlp.down", list(inner), hidden),
    ):
        expected = before[f"layers.{keep.layers[0]}.{node}"][np.ix_(inputs, outputs)]
        np.testing.assert_array_equal(after[f"layers.0.{node}"], expected)


def weights(model):
    return [(m, block.weights[m.weight].numpy()) for block in cut(model) for m in matrices(block)]


@pytest.mark.parametrize("kind", sorted(families()))
def test_to_keep_everything_changes_nothing(kind, random_model):
    checkpoint, decoder = random_model(kind)
    same = slim(checkpoint, decoder, first(decoder, full(decoder)))
    assert same.config == checkpoint.config
    assert dict(same.tensors) == dict(checkpoint.tensors)
    for name in checkpoint.tensors:
        np.testing.assert_array_equal(same.read(name), checkpoint.read(name), strict=True)


@pytest.mark.parametrize("kind", sorted(families()))
def test_layers_that_stay_are_what_they_were(kind, random_model):
    checkpoint, decoder = random_model(kind)
    layers = LAYERS.get(kind, (1,))
    there = full(decoder)
    keep = replace_fields(first(decoder, replace_fields(there, layers=len(layers))), layers=layers)
    smaller = describe(slim(checkpoint, decoder, keep))
    for new, old in zip(smaller.layers, (decoder.layers[index] for index in layers), strict=True):
        assert (new.attention.window, new.attention.rope) == (old.attention.window, old.attention.rope)


def test_windows_of_qwen2_follow_from_a_number_of_layers(random_model):
    checkpoint, decoder = random_model("qwen2", num_hidden_layers=4, max_window_layers=2)
    older = replace(checkpoint, config={k: v for k, v in checkpoint.config.items() if k != "layer_types"})
    keep = replace_fields(first(decoder, replace_fields(full(decoder), layers=3)), layers=(1, 2, 3))
    for source in (checkpoint, older):
        config = slim(source, describe(source), keep).config
        assert config["layer_types"] == ["full_attention", "sliding_attention", "sliding_attention"]
        assert (config["num_hidden_layers"], config["max_window_layers"]) == (3, 1)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_groups_of_heads_stay_whole(kv_heads, random_model):
    checkpoint, decoder = random_model("llama", num_attention_heads=4, num_key_value_heads=kv_heads)
    groups = (kv_heads - 1,)
    keep = replace_fields(first(decoder, replace_fields(full(decoder), groups=1)), groups=(groups, groups))
    smaller = slim(checkpoint, decoder, keep)
    heads = 4 // kv_heads
    attention = describe(smaller).layers[0].attention
    assert (attention.heads, attention.kv_heads, attention.head_dim) == (heads, 1, 16)
    name = "model.layers.1.self_attn.{}_proj.weight"
    for part, size in (("q", 16 * heads), ("k", 16), ("v", 16)):
        expected = checkpoint.read(name.format(part))[-size:]
        np.testing.assert_array_equal(smaller.read(name.format(part)), expected)
    np.testing.assert_array_equal(smaller.read(name.format("o")), checkpoint.read(name.format("o"))[:, -16 * heads :])


def test_files_and_tokenizer_are_the_source_s_and_nothing_is_read_before_it_is_asked_for(random_model):
    checkpoint, decoder = random_model("llama")
    asked = []

    def load(name):
        asked.append(name)
        return checkpoint.load(name)

    smaller = slim(replace(checkpoint, load=load), decoder, keep_some(decoder))
    assert smaller.fingerprint() == checkpoint.fingerprint()
    assert smaller.tokenizer_files() == checkpoint.tokenizer_files()
    assert asked == []
    name = "model.layers.0.mlp.down_proj.weight"
    assert smaller.read(name).shape == smaller.tensors[name].shape == (40, 24)
    assert asked == ["model.layers.1.mlp.down_proj.weight"]


def test_tensors_of_no_use_are_left_out(random_model, tmp_path):
    checkpoint, decoder = random_model("llama", tie_word_embeddings=True)
    save_random("llama", tmp_path, tie_word_embeddings=True)
    tensors = load_file(tmp_path / "model.safetensors")
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    extra["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_file(tensors | extra, tmp_path / "model.safetensors")
    smaller = slim(open_checkpoint(tmp_path), decoder, keep_some(decoder))
    assert set(smaller.tensors) == set(slim(checkpoint, decoder, keep_some(decoder)).tensors)


def test_a_checkpoint_without_one_of_its_tensors_is_refused(random_model):
    checkpoint, decoder = random_model("llama")
    tensors = {name: info for name, info in checkpoint.tensors.items() if "layers.0.mlp.up" not in name}
    with pytest.raises(CheckpointError, match="has no tensor"):
        slim(replace(checkpoint, tensors=tensors), decoder, keep_some(decoder))


def test_a_llama_whose_heads_do_not_divide_its_hidden_size_is_a_mistral(random_model, tmp_path):
    checkpoint, decoder = random_model("llama", num_key_value_heads=4)
    keep = first(decoder, replace_fields(full(decoder), groups=3))
    smaller = slim(checkpoint, decoder, keep)
    assert smaller.config["model_type"] == "mistral"
    write_huggingface(smaller, tmp_path / "out")
    whole = graph(checkpoint)
    expected = torch_logits(whole, IDS, zeroed(whole, decoder, keep))
    close(transformers_logits(tmp_path / "out"), expected, 1e-4)
    close(torch_logits(graph(smaller), IDS), expected, 1e-5)


LONGROPE = {
    "original_max_position_embeddings": 32,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [3.0] * 8,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "changes", "smaller", "message"),
    [
        ("gpt2", {}, {"groups": 3}, "cannot say that its heads have 16 dimensions"),
        ("gpt_neox", {}, {"hidden": 48}, "cannot say that its heads have 16 dimensions"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, {"layers": 1}, "keeps its attention scale"),
        ("gemma2", {"num_key_value_heads": 4}, {"groups": 3}, r"heads \(3\) do not divide its hidden size \(64\)"),
        ("llama", {"num_key_value_heads": 4, "attention_bias": True}, {"groups": 3}, "transformers does not load"),
        ("phi3", LONGROPE, {"groups": 1}, "LongRoPE"),
    ],
)
def test_what_a_config_cannot_say_is_refused(kind, changes, smaller, message, random_model):
    checkpoint, decoder = random_model(kind, **changes)
    keep = first(decoder, replace_fields(full(decoder), **smaller))
    if "layers" in smaller:
        keep = replace_fields(keep, layers=(1,))
    with pytest.raises(PlanError, match=message) as error:
        slim(checkpoint, decoder, keep)
    assert error.value.where
    assert error.value.hint


WHOLE = Sizes(layers=2, mlp=80, groups=2, hidden=64)


@pytest.mark.parametrize(
    ("shares", "multiple", "expected"),
    [
        (Shares(), 64, WHOLE),
        (Shares(layers=0.5, heads=0.5), 64, replace_fields(WHOLE, layers=1, groups=1)),
        (Shares(mlp=0.25), 16, replace_fields(WHOLE, mlp=64)),  # 60 is nearest to 64
        (Shares(mlp=0.25), 1, replace_fields(WHOLE, mlp=60)),
        (Shares(mlp=0.05), 32, replace_fields(WHOLE, mlp=64)),  # 76 is nearest to 64 of what there is
        (Shares(heads=0.2), 64, WHOLE),  # 1.6 groups are nearest to 2
        (Shares(hidden=0.9), 8, replace_fields(WHOLE, hidden=8)),
    ],
)
def test_sizes_are_the_nearest_that_may_be(shares, multiple, expected, random_model):
    _, decoder = random_model("llama")
    assert sizes(decoder, shares, multiple) == expected


@pytest.mark.parametrize(
    ("shares", "where"),
    [
        (Shares(layers=1.0), "layers"),
        (Shares(layers=0.8), "layers"),
        (Shares(heads=0.9), "heads"),
        (Shares(heads=-0.1), "heads"),
        (Shares(mlp=float("nan")), "mlp"),
        (Shares(mlp=0.8), "mlp"),
        (Shares(hidden=0.6), "hidden"),
    ],
)
def test_shares_that_leave_nothing_are_refused(shares, where, random_model):
    _, decoder = random_model("llama")
    with pytest.raises(PlanError) as error:
        sizes(decoder, shares, 64)
    assert error.value.where == where
    assert error.value.hint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": (), "mlp": (), "groups": ()}, "none of the 2 layers"),
        ({"layers": (1, 0)}, "not 2 ascending numbers from 0 to 1"),
        ({"groups": ((0,), ())}, "none of the 2 groups"),
        ({"groups": ((0, 2), (0, 1))}, "not 2 ascending numbers from 0 to 1"),
        ({"mlp": ((0, 1), (0, 1, 2))}, "different numbers of inner units"),
        ({"mlp": ((0, 1),)}, "chosen for 1"),
        ({"hidden": (0, 0)}, "not 2 ascending numbers from 0 to 63"),
        ({"hidden": (-1, 0)}, "not 2 ascending"),
    ],
)
def test_what_is_no_selection_is_refused(changes, message, random_model):
    checkpoint, decoder = random_model("llama")
    keep = replace_fields(first(decoder, full(decoder)), **changes)
    with pytest.raises(PlanError, match=message):
        check(keep, decoder)
    with pytest.raises(PlanError, match=message):
        slim(checkpoint, decoder, keep)
    with pytest.raises(PlanError):
        first(decoder, replace_fields(full(decoder), groups=3))
