"""What flows into each matrix: against hooks on transformers' modules, and the same bytes on any number of cores."""

import threading

import numpy as np
import pytest
import torch
import transformers
from random_models import save_random
from safetensors.numpy import load_file, save_file
from torch_logits import weights_of

from edgec.calibrate import flow as module
from edgec.calibrate.flow import Flow, measure
from edgec.checkpoint.model import read_finite
from edgec.checkpoint.open import open_checkpoint
from edgec.errors import CheckpointError
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe
from edgec.graph.blocks import cut
from edgec.graph.torch_run import TorchBlock
from edgec.quantize.matrix import by_input, matrices

TOKENS = np.random.default_rng(0).integers(3, 97, (7, 40))


def blocks_of(folder):
    checkpoint = open_checkpoint(folder)
    decoder = describe(checkpoint)
    return cut(emit(decoder, checkpoint, lambda name: read_finite(checkpoint, name), decoder.context_length))


@torch.no_grad()
def stats_of(folder, tokens=TOKENS):
    """Return the statistics of what each matrix is multiplied with, by the name of its weight."""
    blocks, flow, found = blocks_of(folder), Flow(tokens), {}
    for index, block in enumerate(blocks):
        runner, weights = TorchBlock(block), weights_of(block)
        groups = by_input(matrices(block))
        stats = measure(flow, runner, weights, list(groups), hessian=True)
        found |= {m.weight: stats[name] for name, members in groups.items() for m in members}
        if index < len(blocks) - 1:
            flow.advance(runner, weights, {name for other in blocks[index + 1 :] for name in other.inputs})
    return found


@torch.no_grad()
def hook_inputs(folder):
    """Return the inputs (tokens, cols) of each Linear, float64, by the name of its weight."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    found = {}

    def hook(name):
        def keep(_, inputs):
            found[f"{name}.weight"] = inputs[0].flatten(0, 1)

        return keep

    for name, part in model.named_modules():
        if isinstance(part, torch.nn.Linear):
            part.register_forward_pre_hook(hook(name))
    model(torch.from_numpy(TOKENS))
    return found


def close(found, expected, rtol):
    assert found.dtype == torch.float32
    difference = (found.double() - expected).abs().max()
    assert difference <= rtol * expected.abs().max()


# olmo2 multiplies what comes from other blocks, phi3 cuts one tensor into several matrices.
@pytest.mark.parametrize(
    ("kind", "tied"), [("llama", True), ("llama", False), ("olmo2", False), ("phi3", True), ("phi3", False)]
)
def test_equals_hooks_on_transformers(kind, tied, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_TOKENS_AT_ONCE", 80)  # four pieces, the last one shorter
    save_random(kind, tmp_path, tie_word_embeddings=tied)
    expected = hook_inputs(tmp_path)
    if tied:
        expected["model.embed_tokens.weight"] = expected.pop("lm_head.weight")
    found = stats_of(tmp_path)
    parts = {name: next(source for source in expected if name.startswith(source)) for name in found}
    assert set(parts.values()) == set(expected)
    for name, source in parts.items():
        x, stats = expected[source], found[name]
        close(stats.importance, x.square().mean(0), 1e-5)
        close(stats.magnitude, x.abs().mean(0), 1e-5)
        close(stats.largest, x.abs().amax(0), 1e-5)
        close(stats.hessian, x.T @ x / len(x), 1e-5)
        close(stats.hessian.diagonal(), stats.importance.double(), 1e-5)
        assert torch.equal(stats.hessian, stats.hessian.T)


def bytes_of(stats):
    return {name: [array.numpy().tobytes() for array in vars(each).values()] for name, each in stats.items()}


def test_the_number_of_threads_changes_nothing(tmp_path, monkeypatch):
    save_random("llama", tmp_path, hidden_size=256, intermediate_size=300, max_position_embeddings=512)
    tokens = np.random.default_rng(0).integers(3, 97, (12, 200))  # pieces of five windows
    threads = torch.get_num_threads()
    found = []
    try:
        for at_once, torch_threads in ((1, 1), (4, 1), (1, 2), (3, 3)):
            monkeypatch.setattr(module, "_AT_ONCE", at_once)
            torch.set_num_threads(torch_threads)
            found.append(bytes_of(stats_of(tmp_path, tokens)))
            assert torch.get_num_threads() == torch_threads
    finally:
        torch.set_num_threads(threads)
    assert all(each == found[0] for each in found[1:])


@pytest.mark.parametrize("tokens_at_once", [1, 130, 10_000])
def test_how_many_windows_at_once_changes_only_how_sums_are_rounded(tiny_llama, monkeypatch, tokens_at_once):
    expected = stats_of(tiny_llama)
    monkeypatch.setattr(module, "_TOKENS_AT_ONCE", tokens_at_once)
    for name, stats in stats_of(tiny_llama).items():
        for field, array in vars(stats).items():
            close(array, vars(expected[name])[field].double(), 1e-5)


def test_one_window_is_enough(tiny_llama):
    for stats in stats_of(tiny_llama, TOKENS[:1]).values():
        assert stats.importance.min() > 0


def test_numbers_that_overflow_are_refused(make_llama, tmp_path):
    folder = make_llama(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] *= np.float32(1e38)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="not finite") as error:
        stats_of(folder)
    assert error.value.where == "layers.1.mlp"


def test_values_are_forgotten_when_no_block_reads_them(tiny_llama):
    blocks, flow, held = blocks_of(tiny_llama), Flow(TOKENS), {}
    for index, block in enumerate(blocks[:-1]):
        later = {name for other in blocks[index + 1 :] for name in other.inputs}
        flow.advance(TorchBlock(block), weights_of(block), later)
        held[block.name] = {
            name: tuple(value.shape) for name, value in flow.values.items() if value.is_floating_point()
        }
    hidden = (7, 40, 64)
    assert held["mask"] == {}
    assert held["embedding"] == {"embedding": hidden}
    assert held["layers.1.attention"] == {"layers.1.attention_residual": hidden}
    assert held["layers.2.mlp"] == {"layers.2.mlp_residual": hidden}
    assert set(flow.values) == {"layers.2.mlp_residual"}


@pytest.mark.parametrize("at_once", [1, 3])
def test_few_pieces_are_in_memory(monkeypatch, at_once):
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    monkeypatch.setattr(module, "_TOKENS_AT_ONCE", 80)
    flow, lock, started = Flow(np.zeros((25, 40), np.int64)), threading.Lock(), []

    def work(rows):
        with lock:
            started.append(rows.tolist())
        return rows

    seen = []
    for count, rows in enumerate(flow.map(work), start=1):
        # One result is here, and one more is started for it.
        assert len(started) <= count + at_once
        seen += rows.tolist()
    assert seen == list(range(25))
    assert max(map(len, started)) == 2
    chosen = [rows.tolist() for rows in flow.map(work, np.array([3, 4, 9]))]
    assert chosen == [[3, 4], [9]]


def test_work_has_the_gradients_that_its_caller_has_and_one_thread(tiny_llama):
    flow, before = Flow(TOKENS), torch.get_num_threads()
    with torch.no_grad():
        assert set(flow.map(lambda _: (torch.is_grad_enabled(), torch.get_num_threads()))) == {(False, 1)}
    with torch.enable_grad():
        assert set(flow.map(lambda _: (torch.is_grad_enabled(), torch.get_num_threads()))) == {(True, 1)}
    assert torch.get_num_threads() == before


def test_what_goes_wrong_in_a_piece_is_raised():
    def work(rows):
        raise ArithmeticError(f"in {rows.tolist()}")

    before = torch.get_num_threads()
    with pytest.raises(ArithmeticError, match=r"in \[0, 1"):
        list(Flow(TOKENS).map(work))
    assert torch.get_num_threads() == before
