"""The lowered graph must compute what the canonical graph computes, with the same integers."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from random_models import save_random

from edgec.backends.onnx_cpu.codes import read_codes
from edgec.backends.onnx_cpu.files import ALL_LOGITS_FILE
from edgec.backends.onnx_cpu.logits import last_logits_only
from edgec.backends.onnx_cpu.lower import lower
from edgec.checkpoint.open import open_checkpoint
from edgec.evaluate.integers import check_integers
from edgec.evaluate.streamed import stream
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe
from edgec.graph.store import Store, unpack_nibbles
from edgec.graph.weights import stored_codes
from edgec.graph.write import DATA_FILE, write_weights
from edgec.quantize.scheme import Scheme
from edgec.quantize.weights import quantize_weights

STORAGES = [
    "fp32",
    "fp16",
    *(Scheme("int4", g) for g in (16, 32, 64, 128, 256)),
    Scheme("int4", None),
    Scheme("int4", 32, symmetric=False),
    Scheme("int4", 64, symmetric=False),
    Scheme("int4", 128, symmetric=False),
    Scheme("int4", None, symmetric=False),
    Scheme("int8", None),
    Scheme("int8", 32),
    Scheme("int8", None, symmetric=False),
]


def canonical(folder, storage, store_path, **changes):
    checkpoint = open_checkpoint(folder)
    model = emit(describe(checkpoint), checkpoint, checkpoint.read, 128)
    with Store(store_path) as store:
        quantize_weights(model, lambda *_: storage, store, lambda _: None)
    return model


def run(path, ids, past=0, cache=None, heads=2, dim=16):
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {"input_ids": ids, "attention_mask": np.ones((len(ids), past + ids.shape[1]), np.int64)}
    for value in session.get_inputs():
        if value.name.startswith("past"):
            feed[value.name] = cache[value.name] if cache else np.zeros((len(ids), heads, 0, dim), np.float32)
    names = [value.name for value in session.get_outputs()]
    found = dict(zip(names, session.run(None, feed), strict=True))
    cache = {n.replace("present", "past_key_values"): v for n, v in found.items() if n.startswith("present")}
    return found["logits"], cache


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def llama(request, make_llama, tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("lower") / "llama", tie_word_embeddings=request.param)


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_same_logits_as_the_canonical_graph(llama, storage, tmp_path):
    model = canonical(llama, storage, tmp_path / "weights.bin")
    ids = np.random.default_rng(0).integers(0, 300, (2, 40))
    reference = stream(model, tmp_path)
    expected = np.concatenate(list(reference.logits(reference.hidden(ids)))).reshape(2, 40, -1)
    lowered = lower(model, accuracy_level=1)
    (tmp_path / "artifact").mkdir()
    write_weights(lowered, tmp_path / "artifact", lambda _: None)
    ir.save(lowered, tmp_path / "artifact" / "model.onnx")
    ir.save(last_logits_only(lowered), tmp_path / "artifact" / "last.onnx")
    found, cache = run(tmp_path / "artifact" / "model.onnx", ids[:, :33])
    assert np.abs(found - expected[:, :33]).max() < 2e-5 * expected.std()
    found, _ = run(tmp_path / "artifact" / "model.onnx", ids[:, 33:34], 33, cache)
    assert np.abs(found[:, 0] - expected[:, 33]).max() < 2e-5 * expected.std()
    last, _ = run(tmp_path / "artifact" / "last.onnx", ids[:, :33])
    assert last.shape[1] == 1
    assert np.abs(last[:, 0] - expected[:, 32]).max() < 2e-5 * expected.std()


def test_last_logits_are_those_of_the_last_kept_token_of_each_row(llama, tmp_path):
    lowered = lower(canonical(llama, "fp32", tmp_path / "weights.bin"), accuracy_level=1)
    write_weights(lowered, tmp_path, lambda _: None)
    ir.save(lowered, tmp_path / "all.onnx")
    ir.save(last_logits_only(lowered), tmp_path / "last.onnx")
    ids = np.random.default_rng(1).integers(0, 300, (2, 12))
    mask = np.ones((2, 12), np.int64)
    mask[1, 7:] = 0  # the second prompt has 7 tokens and is padded on the right
    zeros = np.zeros((2, 2, 0, 16), np.float32)
    past = {f"past_key_values.{i}.{k}": zeros for i in range(3) for k in ("key", "value")}
    feed = {"input_ids": ids, "attention_mask": mask, **past}
    full, last = (
        ort.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"]).run(["logits"], feed)[0]
        for name in ("all.onnx", "last.onnx")
    )
    assert np.allclose(last[:, 0], full[[0, 1], [11, 6]], atol=1e-6)


@pytest.mark.parametrize("storage", [s for s in STORAGES if isinstance(s, Scheme)], ids=str)
def test_the_integers_of_the_artifact_are_those_of_the_canonical_graph(tiny_llama, storage, tmp_path):
    model = canonical(tiny_llama, storage, tmp_path / "weights.bin")
    stored = {s.name: s for s in (stored_codes(n) for n in model.graph if n.op_type == "DequantizeLinear")}
    lowered = lower(model, accuracy_level=4)
    wide = next(n for n in lowered.graph if n.op_type == "MatMulNBits" and n.name == "layers.1.attention.q+k+v")
    packed = wide.inputs[1].const_value.numpy()
    rows, blocks, size = packed.shape
    shape = (rows, blocks * size * 8 // storage.bits)
    codes = (unpack_nibbles(packed.reshape(-1), shape) if storage.bits == 4 else packed.reshape(shape))[:, :64]
    expected = np.concatenate(
        [stored[f"model.layers.1.self_attn.{n}_proj.weight"].codes().astype(np.int16) for n in "qkv"]
    )
    assert np.array_equal(codes.astype(np.int16) + storage.low, expected)


def test_operators_are_the_fused_ones(tiny_llama, tmp_path):
    lowered = lower(canonical(tiny_llama, Scheme("int4", 32), tmp_path / "weights.bin"), accuracy_level=4)
    count = Counter(node.op_type for node in lowered.graph)
    # 3 layers of QKV, output, gate + up, down; and the output matrix
    assert count["MatMulNBits"] == 3 * 4 + 1
    assert count["GroupQueryAttention"] == 3
    assert count["GatherBlockQuantized"] == 1
    assert count["RMSNormalization"] == 7
    assert count["Attention"] == count["DequantizeLinear"] == count["RotaryEmbedding"] == 0
    assert [v.name for v in lowered.graph.inputs][:2] == ["input_ids", "attention_mask"]


def test_tied_weights_are_written_once(llama, tmp_path):
    lowered = lower(canonical(llama, Scheme("int4", 32), tmp_path / "weights.bin"), accuracy_level=4)
    write_weights(lowered, tmp_path, lambda _: None)
    places = {n: (v.const_value.offset, v.const_value.length) for n, v in lowered.graph.initializers.items()
              if hasattr(v.const_value, "offset")}  # fmt: skip
    table = places["model.embed_tokens.weight.table"]
    head = next(n for n in lowered.graph if n.name == "lm_head").inputs[1].name
    tied = "lm_head" not in head
    assert (places[head] == table) is tied


def written(model, folder):
    """Write what `model` is lowered to for exact mode; return the folder."""
    folder.mkdir()
    lowered = lower(model, accuracy_level=1)
    write_weights(lowered, folder, lambda _: None)
    ir.save(lowered, folder / ALL_LOGITS_FILE)
    return folder


@pytest.fixture(scope="module")
def ragged(make_llama, tmp_path_factory):
    """A model whose inputs, 192 and 320, are whole blocks of 64 but not of 128."""
    folder = tmp_path_factory.mktemp("ragged") / "llama"
    return make_llama(folder, hidden_size=192, intermediate_size=320, vocab_size=500)


@pytest.mark.parametrize("symmetric", [True, False])
def test_larger_groups_never_make_a_larger_artifact(ragged, symmetric, tmp_path):
    sizes = []
    for group in (16, 32, 64, 128, 256):
        model = canonical(ragged, Scheme("int4", group, symmetric), tmp_path / f"{group}.bin")
        sizes.append((written(model, tmp_path / str(group)) / DATA_FILE).stat().st_size)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] == sizes[3] == sizes[4]  # all in blocks of 64


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", ["int4", "int8"])
def test_a_group_that_does_not_divide_the_inputs_is_written_in_smaller_blocks(ragged, dtype, symmetric, tmp_path):
    model = canonical(ragged, Scheme(dtype, 128, symmetric), tmp_path / "weights.bin")
    folder = written(model, tmp_path / "artifact")
    nodes = [n for n in ir.load(folder / ALL_LOGITS_FILE).graph if n.domain == "com.microsoft"]
    widths = {n.attributes["block_size"].as_int() for n in nodes if "block_size" in n.attributes}
    assert widths == {64}
    assert check_integers(model, read_codes(folder)).different == ()
    ids = np.random.default_rng(0).integers(0, 300, (1, 40))
    reference = stream(model, tmp_path)
    expected = np.concatenate(list(reference.logits(reference.hidden(ids))))
    found, _ = run(folder / ALL_LOGITS_FILE, ids, dim=48)
    assert np.abs(found - expected).max() < 2e-5 * expected.std()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "scheme", [Scheme("int4", 32), Scheme("int4", 32, symmetric=False), Scheme("int8", None)], ids=str
)
def test_a_table_that_no_block_divides_is_padded_and_written_once(scheme, tied, tmp_path):
    save_random("qwen3", tmp_path / "source", hidden_size=72, max_position_embeddings=128, tie_word_embeddings=tied)
    model = canonical(tmp_path / "source", scheme, tmp_path / "weights.bin")
    folder = written(model, tmp_path / "artifact")
    graph = ir.load(folder / ALL_LOGITS_FILE).graph
    head = next(n for n in graph if n.name == "lm_head").inputs[1].const_value
    table = next(n for n in graph if n.op_type == "GatherBlockQuantized").inputs[0].const_value
    assert (table.offset == head.offset) is tied
    assert table.length == head.length == 97 * 96 * scheme.bits // 8
    assert check_integers(model, read_codes(folder)).different == ()
    ids = np.random.default_rng(0).integers(0, 97, (1, 40))
    reference = stream(model, tmp_path)
    expected = np.concatenate(list(reference.logits(reference.hidden(ids))))
    found, _ = run(folder / ALL_LOGITS_FILE, ids)
    assert np.abs(found - expected).max() < 2e-5 * expected.std()


def test_lowering_leaves_the_canonical_graph_alone(tiny_llama, tmp_path):
    model = canonical(tiny_llama, Scheme("int4", 32), tmp_path / "weights.bin")
    before = [(node.op_type, node.name) for node in model.graph]
    lower(model, accuracy_level=4)
    assert [(node.op_type, node.name) for node in model.graph] == before


def test_sums_stay_apart_from_layer_norms(tmp_path):
    save_random("gpt2", tmp_path / "gpt2", n_positions=128)
    lowered = lower(canonical(tmp_path / "gpt2", Scheme("int8", None), tmp_path / "weights.bin"), accuracy_level=4)
    norms = [node for node in lowered.graph if node.op_type == "LayerNormalization"]
    assert norms
    assert {norm.inputs[0].producer().op_type for norm in norms} == {"Sum"}
