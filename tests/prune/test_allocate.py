"""Allocations on a model: what pruning a block alone loses, beside the whole model's logits, and what comes of it."""

import sys

import numpy as np
import pytest
import torch
from random_models import save_random
from safetensors.numpy import load_file, save_file
from torch_logits import torch_logits, weights_of

from edgec.calibrate.flow import Flow, measure
from edgec.checkpoint.open import open_checkpoint
from edgec.errors import CheckpointError, MissingRuntimeError
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe
from edgec.graph.blocks import cut, read_later
from edgec.graph.torch_run import TorchBlock
from edgec.prune import sensitivity
from edgec.prune.allocate import allocate
from edgec.prune.methods import method_of
from edgec.prune.pattern import Pattern
from edgec.prune.sensitivity import measure_losses
from edgec.quantize.matrix import matrices

WINDOWS = np.random.default_rng(0).integers(3, 97, (3, 20))


def graph(folder):
    checkpoint = open_checkpoint(folder)
    return emit(describe(checkpoint), checkpoint, checkpoint.read, 64)


def members(model):
    found = {block.name: [m for m in matrices(block) if m.node.startswith("layers.")] for block in cut(model)}
    return {name: inner for name, inner in found.items() if inner}


def losses(model, shares, folder=None, *, windows=WINDOWS, method="wanda", tick=lambda _: None):
    return measure_losses(model, members(model), shares, windows, method=method, source="", folder=folder, tick=tick)


def pruned(model, wanted, method, share):
    """Return the weights of one block, pruned by its inputs in the float model."""
    blocks, flow = cut(model), Flow(WINDOWS)
    for block, later in zip(blocks, read_later(blocks), strict=True):
        runner, weights = TorchBlock(block), weights_of(block)
        if block.name == wanted:
            inner = [m for m in matrices(block) if m.node.startswith("layers.")]
            stats = measure(flow, runner, weights, {m.input for m in inner}, hessian=False)
            prune, pattern = method_of(method).prune, Pattern(share)
            return {m.weight: m.turn(prune(m.turn(weights[m.weight]), stats[m.input], pattern).weight) for m in inner}
        flow.advance(runner, weights, later)
    raise AssertionError(wanted)


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])  # whose branches read one value, side by side
def test_a_loss_is_the_divergence_of_the_whole_model(kind, method, tmp_path):
    save_random(kind, tmp_path)
    model, shares = graph(tmp_path), (0.0, 0.3, 0.8)
    found = losses(model, shares, method=method)
    assert list(found) == [f"layers.{layer}.{part}" for layer in (0, 1) for part in ("attention", "mlp")]
    expected = torch.log_softmax(torch.from_numpy(torch_logits(model, WINDOWS)).double(), -1)
    for name, measured in found.items():
        assert measured[0] == 0
        for share, loss in zip(shares[1:], measured[1:], strict=True):
            logits = torch.from_numpy(torch_logits(model, WINDOWS, pruned(model, name, method, share))).double()
            divergence = (expected.exp() * (expected - torch.log_softmax(logits, -1))).sum(-1).mean()
            assert loss == pytest.approx(float(divergence), rel=1e-3, abs=1e-7)


def test_what_was_measured_is_found_again(tmp_path, monkeypatch):
    save_random("llama", tmp_path)
    model, kept, ticks = graph(tmp_path), tmp_path / "kept", []
    first = losses(model, (0.2, 0.5), kept, tick=ticks.append)
    assert ticks == list(first)
    assert losses(model, (0.2, 0.5), kept, tick=ticks.append) == first
    assert len(ticks) == 4
    next(kept.iterdir()).unlink()  # as after an interruption
    assert losses(model, (0.2, 0.5), kept, tick=ticks.append) == first
    assert len(ticks) == 5
    losses(model, (0.2, 0.6), kept, tick=ticks.append)
    losses(model, (0.2, 0.5), kept, windows=WINDOWS - 1, tick=ticks.append)
    assert len(ticks) == 13
    monkeypatch.setattr(sensitivity, "_TOKENS", 24)  # one window of 20 is what fits
    assert losses(model, (0.2, 0.5), kept, tick=ticks.append) != first
    assert losses(model, (0.2, 0.5), windows=WINDOWS[:1]) == losses(model, (0.2, 0.5), kept)


def test_blocks_that_change_nothing_lose_the_most_weights(tmp_path):
    save_random("llama", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][:] = 0  # an all-zero matrix
    save_file(tensors, tmp_path / "model.safetensors")
    model = graph(tmp_path)
    inner = {m.node: m for found in members(model).values() for m in found}
    found = allocate(model, inner, Pattern(0.5), "sensitivity", WINDOWS)
    assert set(found) == set(inner)
    shares = {name: pattern.sparsity for name, pattern in found.items()}
    assert {shares[f"layers.1.mlp.{part}"] for part in ("gate", "up", "down")} == {0.6}
    assert shares["layers.0.attention.q"] < 0.5
    sizes = {name: np.prod(model.graph.initializers[m.weight].shape) for name, m in inner.items()}
    zeros = sum(shares[name] * size for name, size in sizes.items())
    assert 0.5 <= zeros / sum(sizes.values()) < 0.55


@pytest.mark.parametrize("target", [0.0, 0.1, 0.99])
def test_shares_at_the_ends(target, tmp_path):
    save_random("llama", tmp_path)
    model = graph(tmp_path)
    names = [m.node for found in members(model).values() for m in found]
    found = allocate(model, names, Pattern(target), "sensitivity", WINDOWS, method="magnitude")
    assert all(0 <= pattern.sparsity <= max(target + 0.1, 0.95) for pattern in found.values())
    assert np.mean([pattern.sparsity for pattern in found.values()]) >= target - 0.1
    if target in (0.0, 0.99):  # nothing else is as sparse, or loses as little
        assert {pattern.sparsity for pattern in found.values()} == {target}


def test_without_a_solver_nothing_is_measured(tmp_path, monkeypatch):
    save_random("llama", tmp_path)
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setattr(sensitivity, "Sensitivity", None)
    model = graph(tmp_path)
    with pytest.raises(MissingRuntimeError, match="scipy"):
        allocate(model, ["layers.0.mlp.up"], Pattern(0.5), "sensitivity", WINDOWS)


def test_numbers_that_overflow_are_refused(tmp_path):
    save_random("llama", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for part in ("gate", "up"):  # each is finite, their product is not
        tensors[f"model.layers.1.mlp.{part}_proj.weight"] *= np.float32(1e38)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not finite"):
        allocate(graph(tmp_path), ["layers.1.mlp.down"], Pattern(0.5), "sensitivity", WINDOWS)
