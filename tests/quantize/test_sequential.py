"""Models quantized block by block: what each matrix sees, what is done again, and what is written."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from random_models import save_random
from thinned import thinned
from torch_logits import torch_logits, weights_of

from edgec.checkpoint.open import open_checkpoint
from edgec.evaluate.streamed import stream
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe
from edgec.graph.blocks import cut
from edgec.graph.store import Store
from edgec.graph.weights import matrix_name
from edgec.quantize import block, sequential
from edgec.quantize.block import Recipe
from edgec.quantize.matrix import matrices
from edgec.quantize.results import read_result
from edgec.quantize.scheme import Scheme
from edgec.quantize.sequential import quantize_model
from edgec.quantize.transforms.quarot import rotate
from edgec.quantize.weights import quantize_weights

WINDOWS = np.random.default_rng(0).integers(3, 97, (4, 32))
OTHERS = np.random.default_rng(1).integers(3, 97, (4, 32))
GPTQ, MSE, RTN = (Scheme("int4", 32, symmetric=True, algorithm=name) for name in ("gptq", "mse", "rtn"))
PER_LAYER = 7


class Source:
    """A random checkpoint of two layers, and its graph."""

    def __init__(self, folder, kind="llama", **changes):
        self.folder = folder
        save_random(kind, folder, **changes)
        self.checkpoint = open_checkpoint(folder)
        self.decoder = describe(self.checkpoint)

    def emit(self):
        return emit(self.decoder, self.checkpoint, self.checkpoint.read, 64)


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    return Source(tmp_path_factory.mktemp("untied"), attention_bias=True, mlp_bias=True)


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return Source(tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)


def recipe(storage=GPTQ, scalings=(), source="model", **changes):
    """Return a recipe; a storage is one for all matrices, or by the end of their names, with "" for the others."""
    chosen = storage if isinstance(storage, dict) else {"": storage}

    def storage_of(node):
        return next(value for end, value in sorted(chosen.items(), reverse=True) if node.endswith(end))

    return Recipe(source, storage_of, scalings, **changes)


class Calls:
    """What algorithms were given, in order."""

    def __init__(self, monkeypatch):
        self.calls = calls = []
        algorithm_of = block.algorithm_of

        class Spy:
            def __init__(self, scheme):
                self.algorithm = algorithm_of(scheme)
                self.NEEDS = self.algorithm.NEEDS

            def quantize(self, weight, stats, scheme):
                calls.append((weight.clone(), stats))
                return self.algorithm.quantize(weight, stats, scheme)

        monkeypatch.setattr(block, "algorithm_of", Spy)

    def take(self):
        taken = self.calls[:]
        self.calls.clear()
        return taken


@pytest.fixture
def calls(monkeypatch):
    return Calls(monkeypatch)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def floats_in(folder):
    """Return the floats in the results of all blocks, as the graph has them."""
    results = [read_result(path) for path in folder.iterdir()]
    assert not any(result.floats.keys() & result.tensors.keys() for result in results)
    return {name: weight for result in results for name, weight in result.floats.items()}


def dequantized(codes):
    width = codes.scheme.group or codes.codes.shape[1]

    def wide(numbers):
        return np.repeat(numbers.astype(np.float32), width, axis=1)[:, : codes.codes.shape[1]]

    zeros = 0 if codes.zero_points is None else wide(codes.zero_points)
    return torch.from_numpy((codes.codes.astype(np.float32) - zeros) * wide(codes.scales))


def quantized_nodes(model):
    return [m for block in cut(model) for m in matrices(block)]


def input_of(model, name, ids):
    """Return what flows into a module of transformers' model, (tokens, cols)."""
    seen = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, 1)))
    with torch.no_grad():
        model(torch.from_numpy(ids))
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_each_matrix_sees_the_inputs_that_the_quantized_ones_before_it_give(kind, calls, tmp_path, request):
    source = request.getfixturevalue(kind)
    results = quantize_model(source.emit(), WINDOWS, recipe(), tmp_path)
    taken = calls.take()
    reference = transformers.AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float64).eval()

    def put(name):
        reference.get_submodule(name).weight.data = dequantized(results.codes(f"{name}.weight")).double()

    layers = [f"model.layers.{layer}" for layer in range(2)]
    shared = [["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["self_attn.o_proj"],
              ["mlp.gate_proj", "mlp.up_proj"], ["mlp.down_proj"]]  # fmt: skip
    groups = [[f"{layer}.{name}" for name in group] for layer in layers for group in shared]
    if kind == "untied":
        weight, stats = taken.pop(0)
        assert stats is None
        assert weight.shape == (97, 64)
        put("model.embed_tokens")
        groups.append(["lm_head"])
    else:
        weight, stats = taken.pop()
        assert stats.hessian is None
    for group in groups:
        x = input_of(reference, group[0], WINDOWS)
        hessian = x.T @ x / len(x)
        for name in group:
            weight, stats = taken.pop(0)
            assert torch.equal(weight.double(), reference.get_submodule(name).weight.data), name
            assert (stats.hessian - hessian).abs().max() < 1e-4 * hessian.abs().max(), name
            assert (stats.importance - hessian.diagonal()).abs().max() < 1e-4 * hessian.diagonal().max(), name
        for name in group:
            put(name)
    assert taken == []


def stop_after(count):
    """Return a tick that is interrupted after some blocks."""
    ticks = []

    def tick(name):
        ticks.append(name)
        if len(ticks) == count:
            raise KeyboardInterrupt

    return tick


# Blocks are mask, embedding, two of each layer, and the head.
@pytest.mark.parametrize(("blocks", "left", "scalings"), [(1, 1 + 2 * 7 + 1, ()), (3, 3 + 7 + 1, ("awq",)), (6, 1, ())])
def test_an_interrupted_run_goes_on(blocks, left, scalings, untied, calls, tmp_path):
    how = recipe(scalings=scalings)
    quantize_model(untied.emit(), WINDOWS, how, tmp_path / "whole")
    calls.take()
    with pytest.raises(KeyboardInterrupt):
        quantize_model(untied.emit(), WINDOWS, how, tmp_path / "parts", stop_after(blocks))
    calls.take()
    assert len(files(tmp_path / "parts")) == blocks
    quantize_model(untied.emit(), WINDOWS, how, tmp_path / "parts")
    assert len(calls.take()) == left
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    quantize_model(untied.emit(), WINDOWS, how, tmp_path / "parts")
    assert calls.take() == []


@pytest.mark.parametrize("block", [2, 6], ids=["in the middle", "at the end"])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda _: b""], ids=["cut", "empty"])
def test_a_broken_result_is_made_again(damage, block, untied, calls, tmp_path):
    order = []
    quantize_model(untied.emit(), WINDOWS, recipe(), tmp_path, lambda _: order.append(set(tmp_path.iterdir())))
    (path,) = order[block] - order[block - 1]
    before, made = files(tmp_path), len(calls.take())
    path.write_bytes(damage(path.read_bytes()))
    results = quantize_model(untied.emit(), WINDOWS, recipe(), tmp_path)
    assert 0 < len(calls.take()) < made
    assert files(tmp_path) == before
    assert results.codes("lm_head.weight") is not None


def test_only_what_depends_on_a_change_is_done_again(untied, calls, tmp_path):
    everything = 2 * PER_LAYER + 2

    def done(windows=WINDOWS, **changes):
        quantize_model(untied.emit(), windows, recipe(**changes), tmp_path)
        return len(calls.take())

    assert done() == everything
    assert done() == 0
    assert done(windows=OTHERS) == everything
    assert done(windows=WINDOWS.reshape(2, 64)) == everything
    assert done(source="another") == everything
    assert done(steps=100) == everything
    assert done(device="cpu:0") == everything
    assert done(scalings=("awq",)) == everything
    assert done(scalings=("smoothquant", "awq")) == everything
    assert done(storage={"": GPTQ, "layers.1.mlp.down": MSE}) == 3 + 1
    assert done(storage={"": GPTQ, "layers.1.attention.k": "fp16"}) == 3 + 3 + 1
    assert done(storage={"": GPTQ, "lm_head": MSE}) == 1
    assert done(storage={"": GPTQ, "embedding": MSE}) == everything
    assert done() == 0


# `sequential` sees other versions, the libraries themselves do not.
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cache", SimpleNamespace(key=sequential.cache.key, code_key=lambda: "edited")),
        ("torch", SimpleNamespace(**vars(torch) | {"__version__": "1.0"})),
        ("np", SimpleNamespace(**vars(np) | {"__version__": "1.0"})),
    ],
    ids=["edgec", "torch", "numpy"],
)
def test_other_code_does_everything_again(name, value, untied, calls, tmp_path, monkeypatch):
    quantize_model(untied.emit(), WINDOWS, recipe(), tmp_path)
    calls.take()
    monkeypatch.setattr(sequential, name, value)
    quantize_model(untied.emit(), WINDOWS, recipe(), tmp_path)
    assert len(calls.take()) == 2 * PER_LAYER + 2


FAMILIES = [
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"tie_word_embeddings": True}),
    ("gpt2", {}),
    ("gpt_neox", {}),
    ("phi3", {}),
    ("gemma3_text", {"num_hidden_layers": 2, "tie_word_embeddings": True}),
    ("olmo2", {}),
]


# Matrices that stay floats share inputs with others, and are where scales go.
@pytest.mark.parametrize(("kind", "changes", "some_floats"), thinned(FAMILIES, [False, True], keep=2))
def test_scaling_leaves_the_function_alone(kind, changes, some_floats, calls, tmp_path):
    scalings = ("smoothquant", "awq") if some_floats else ("awq",)
    floats = ("attention.k", "attention.v", "mlp.up") if some_floats else ()
    source = Source(tmp_path / "model", kind, **changes)
    model = source.emit()
    expected = torch_logits(model, OTHERS)
    how = recipe({"": MSE, **dict.fromkeys(floats, "fp16")}, scalings)
    results = quantize_model(model, WINDOWS, how, tmp_path / "results")
    found = [m for m in quantized_nodes(model) if not m.node.endswith(tuple(floats) or "none")]
    if source.decoder.tied:
        found = found[1:]
    scaled = {m.weight: m.turn(weight) for m, (weight, _) in zip(found, calls.take(), strict=True)}
    scaled |= floats_in(tmp_path / "results")
    assert np.abs(torch_logits(model, OTHERS, scaled) - expected).max() < 1e-4 * max(1, np.abs(expected).max())
    floats_before = {name: weight for block in cut(model) for name, weight in weights_of(block).items()}
    changed = {name for name, weight in scaled.items() if not torch.equal(weight, floats_before[name])}
    assert len(changed) >= 2 * 2
    if source.decoder.tied:
        assert source.decoder.embedding not in changed
        assert source.decoder.final_norm.weight not in changed
    assert all(remark.startswith(scalings) for remark in results.remarks)


def test_what_cannot_be_scaled_is_said(tied, tmp_path):
    source = Source(tmp_path / "model", "olmo2", tie_word_embeddings=True)
    remarks = quantize_model(source.emit(), WINDOWS, recipe(MSE, ("awq",)), tmp_path / "olmo2").remarks
    assert [remark.split(":")[0] for remark in remarks] == [
        "awq leaves layers.0.attention.q, layers.0.attention.k, layers.0.attention.v alone",
        "awq leaves layers.0.mlp.gate, layers.0.mlp.up alone",
        "awq leaves layers.1.attention.q, layers.1.attention.k, layers.1.attention.v alone",
        "awq leaves layers.1.mlp.gate, layers.1.mlp.up alone",
        "awq leaves lm_head alone",
    ]
    (remark,) = quantize_model(tied.emit(), WINDOWS, recipe(MSE, ("awq",)), tmp_path / "tied").remarks
    assert remark == "awq leaves lm_head alone: model.embed_tokens.weight is looked up by tokens too"
    assert quantize_model(tied.emit(), WINDOWS, recipe(MSE), tmp_path / "plain").remarks == ()


def test_a_norm_that_two_blocks_read_is_not_scaled(tied, tmp_path, calls):
    layers = tuple(replace(each, parallel=True, mlp_norm=each.attention_norm) for each in tied.decoder.layers)
    model = emit(replace(tied.decoder, layers=layers), tied.checkpoint, tied.checkpoint.read, 64)
    results = quantize_model(model, WINDOWS, recipe(MSE, ("awq",)), tmp_path)
    scaled = {m.weight: m.turn(w) for m, (w, _) in zip(quantized_nodes(model)[1:], calls.take(), strict=True)}
    scaled |= floats_in(tmp_path)
    expected = torch_logits(model, OTHERS)
    assert np.abs(torch_logits(model, OTHERS, scaled) - expected).max() < 1e-4 * np.abs(expected).max()
    assert sum("input_layernorm" in remark for remark in results.remarks) == 2 * 2


def test_rotation_then_scaling_then_rounding(tied, calls, tmp_path):
    plain, model = tied.emit(), rotate(tied.emit(), tied.decoder)
    how = recipe({"": GPTQ, "final_norm.rotation": "fp16"}, ("awq",))
    quantize_model(model, WINDOWS, how, tmp_path)
    found = [m for m in quantized_nodes(model)[1:] if m.node != "final_norm.rotation"]
    scaled = {m.weight: m.turn(w) for m, (w, _) in zip(found, calls.take(), strict=True)}
    scaled |= floats_in(tmp_path)
    expected = torch_logits(plain, OTHERS)
    assert np.abs(torch_logits(model, OTHERS, scaled) - expected).max() < 1e-4 * np.abs(expected).max()


MIXED = {
    "": GPTQ,
    "attention.k": "fp16",
    "attention.v": "fp16",
    "layers.0.mlp.up": "fp32",
    "layers.1.mlp.up": Scheme("int8", None, symmetric=False, algorithm="mse"),
    "mlp.down": Scheme("int4", 64, symmetric=False, algorithm="hqq"),  # the inputs are no multiple of 64
    "lm_head": Scheme("int8", 32),
    "embedding": Scheme("int8", 32),
}


# With all storages in one model: what is written computes what the codes and floats stand for in transformers.
@pytest.mark.parametrize(
    ("storages", "scalings"),
    [(GPTQ, ()), (MIXED, ()), (MIXED, ("awq",)), ({**MIXED, "lm_head": "fp16", "embedding": "fp16"}, ("awq",))],
    ids=["int4", "mixed", "mixed and awq", "fp16 tables and awq"],
)
@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_results_go_into_the_graph(kind, storages, scalings, tmp_path, request):
    source = request.getfixturevalue(kind)
    how, folder = recipe(storages, scalings), tmp_path / "results"
    results = quantize_model(source.emit(), WINDOWS, how, folder)
    model = source.emit()
    meant = {name: weight for block in cut(model) for name, weight in weights_of(block).items()} | floats_in(folder)
    for m in quantized_nodes(model):
        codes, weight = results.codes(m.weight), m.turn(meant[m.weight])
        storage = how.storage_of(m.node)
        assert (codes is None) == isinstance(storage, str)
        assert codes is None or codes.scheme == storage
        meant[m.weight] = dequantized(codes) if codes else weight.half().float() if storage == "fp16" else weight
    reference = transformers.AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            parameter.copy_(meant[name])
        expected = reference(torch.from_numpy(OTHERS)).logits.numpy()

    results.put_floats(model)
    known = []

    def codes(name):
        known.append(name)
        return results.codes(name)

    with Store(tmp_path / "weights.bin") as store:
        quantize_weights(model, lambda value, _: how.storage_of(matrix_name(value)), store, lambda _: None, codes)
        run = stream(model, tmp_path, threads=1)
        found = np.concatenate(list(run.logits(run.hidden(OTHERS))))
    assert np.abs(found - expected.reshape(found.shape)).max() < 1e-4 * max(1, np.abs(expected).max())
    assert max(Counter(known).values()) == 1
    assert all(results.codes(name) is not None for name in known), "nothing is rounded without its statistics"


RECIPES = {
    "gptq": recipe(),
    "awq, gptq": recipe(scalings=("awq",)),
    "smoothquant, int8": recipe(Scheme("int8", None), ("smoothquant",)),
    "autoround": recipe(Scheme("int4", 32, symmetric=True, algorithm="autoround"), steps=3),
    "mixed": recipe(MIXED, ("awq",)),
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_bytes_in_any_folder_and_with_any_number_of_threads(name, untied, tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    try:
        for folder, at_once, torch_threads in (("first", 1, 1), ("second", 4, 2)):
            monkeypatch.setattr("edgec.calibrate.flow._AT_ONCE", at_once)
            monkeypatch.setattr("edgec.calibrate.flow._TOKENS_AT_ONCE", 40)
            torch.set_num_threads(torch_threads)
            quantize_model(untied.emit(), WINDOWS, RECIPES[name], tmp_path / folder)
    finally:
        torch.set_num_threads(threads)
    assert files(tmp_path / "first") == files(tmp_path / "second")


def test_logits_of_a_whole_text_are_never_in_memory(untied, tmp_path, monkeypatch):
    tuned = []
    tune_block = block.autoround.tune_block

    def spy(runner, weights, starts: Sequence, *rest):
        tuned.append((runner.block.name, len(starts)))
        return tune_block(runner, weights, starts, *rest)

    monkeypatch.setattr(block.autoround, "tune_block", spy)
    how = recipe(Scheme("int4", 32, symmetric=True, algorithm="autoround"), steps=2)
    results = quantize_model(untied.emit(), WINDOWS, how, tmp_path)
    layers = [f"layers.{layer}.{part}" for layer in range(2) for part in ("attention", "mlp")]
    assert tuned == list(zip(layers, (4, 3, 4, 3), strict=True))
    assert results.codes("lm_head.weight") is not None


def test_the_model_is_not_changed(untied, tmp_path):
    model = untied.emit()
    before = torch_logits(model, OTHERS)
    results = quantize_model(model, WINDOWS, recipe(scalings=("awq",)), tmp_path)
    assert np.array_equal(torch_logits(model, OTHERS), before)
    assert results.codes("missing") is None
