"""AWQ, beside its equations written out on inputs; and blocks that compute what they did once scales are folded."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from random_matrices import normal
from random_models import save_random

from edgec.calibrate.flow import Flow
from edgec.calibrate.stats import Stats
from edgec.checkpoint.open import open_checkpoint
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe
from edgec.graph.blocks import cut
from edgec.graph.torch_run import TorchBlock
from edgec.quantize.algorithms import gptq, mse, rtn
from edgec.quantize.block import Recipe
from edgec.quantize.fold import Fold, divide, find_fold
from edgec.quantize.matrix import by_input, matrices
from edgec.quantize.results import read_result
from edgec.quantize.scheme import Scheme
from edgec.quantize.sequential import quantize_model
from edgec.quantize.transforms import SCALINGS, awq, scaling_named

INT4 = Scheme("int4", 32)
WINDOWS = np.random.default_rng(0).integers(3, 97, (6, 30))
BIASED = {"attention_bias": True, "mlp_bias": True}


def inputs_of(cols, seed, spread):
    mixed = normal(200, cols, seed=seed) @ normal(cols, cols, seed=seed + 1) / cols**0.5
    return mixed * torch.exp(spread * normal(cols, seed=seed + 2))


def seen(x):
    return Stats(x.square().mean(0), hessian=x.T @ x / len(x), magnitude=x.abs().mean(0))


def loss(weights, x, s, scheme):
    """Return equation 4, the mean square error of the outputs, summed over matrices."""
    pairs = [(rtn.quantize(w * s, None, scheme).dequantize(), w) for w in weights]
    return sum(float(((x / s) @ q.T - x @ w.T).double().square().sum(1).mean()) for q, w in pairs)


def centred(s):
    return s / (s.max() * s.min()).sqrt()


def grid(weights, x, scheme, powers):
    """Return the loss of each scale: the size of what flows to one power, over that of the weights to another."""
    size = torch.cat(weights).square().mean(0).sqrt()
    scales = {(a, b): centred(x.abs().mean(0) ** a / size**b) for a, b in powers}
    return {key: (loss(weights, x, s, scheme), s) for key, s in scales.items()}


@pytest.mark.parametrize("scheme", [INT4, Scheme("int3", None, symmetric=False)], ids=["int4", "int3"])
def test_the_equations(scheme):
    best = set()
    for seed, spread in enumerate((0.0, 0.3, 1.0, 2.0)):
        x = inputs_of(72, seed, spread)
        weights = [normal(rows, 72, seed=7) * torch.exp(0.3 * normal(72, seed=seed)) for rows in (24, 40)]
        stats = seen(x)
        found = awq.scale([(w, scheme) for w in weights], stats, Fold(("norm",)))
        of_paper = grid(weights, x, scheme, [(step / 20, 0) for step in range(20)])
        for each, s in of_paper.values():
            assert sum(awq._error(w, s, stats.hessian, scheme) for w in weights) == pytest.approx(each, rel=1e-4)
        assert loss(weights, x, found, scheme) <= 1.01 * min(each for each, _ in of_paper.values())
        coarse = grid(weights, x, scheme, product(np.linspace(0, 1, 5), repeat=2))
        a, b = min(coarse, key=lambda key: coarse[key][0])
        near = [(a + i / 8, b + j / 8) for i, j in product((-1, 0, 1), repeat=2)]
        fine = coarse | grid(weights, x, scheme, [each for each in near if 0 <= min(each) <= max(each) <= 1])
        powers = min(fine, key=lambda key: fine[key][0])
        torch.testing.assert_close(found, fine[powers][1])
        best.add(powers)
    assert len(best) > 2, "searches that always end at the same place would hide mistakes"


def clipped(weight, hessian, scheme):
    """Return the weights rounded as the repository clips them: each group in the best of ten ranges, by its inputs."""
    parts = []
    for start in range(0, weight.shape[1], scheme.group):
        part = weight[:, start : start + scheme.group]
        inside = hessian[start : start + scheme.group, start : start + scheme.group]
        best, lowest = part, torch.full((len(part), 1), torch.inf)
        for step in range(10):
            limit = part.abs().amax(1, keepdim=True) * (1 - step / 20)
            tried = rtn.quantize(part.clamp(-limit, limit), None, scheme).dequantize()
            error = (((tried - part) @ inside) * (tried - part)).sum(1, keepdim=True)
            best, lowest = torch.where(error < lowest, tried, best), torch.minimum(error, lowest)
        parts.append(best)
    return torch.cat(parts, 1)


@pytest.mark.parametrize("scheme", [INT4, Scheme("int4", 64, symmetric=False), Scheme("int3", 64)], ids=str)
def test_what_rounds_afterwards_clips_no_worse_than_the_repository_does(scheme):
    for seed, spread in enumerate((0.3, 2.0)):
        x, weight = inputs_of(128, seed, spread), normal(32, 128, seed=7) * torch.exp(0.5 * normal(32, 128, seed=8))
        s = awq.scale([(weight, scheme)], seen(x), Fold(("norm",)))
        weight, stats = weight * s, seen(x / s)

        def error(rounded, hessian, weight=weight):
            return float((((rounded - weight) @ hessian) * (rounded - weight)).sum())

        alone = torch.diag(stats.importance)  # what `mse` knows of the inputs
        by_mse, by_gptq = (each.quantize(weight, stats, scheme).dequantize() for each in (mse, gptq))
        assert error(by_mse, alone) <= error(clipped(weight, alone, scheme), alone)
        # The repository clips by how the inputs of a group go together, too: `mse` cannot, `gptq` does more of it.
        theirs = error(clipped(weight, stats.hessian, scheme), stats.hessian)
        assert error(by_mse, stats.hessian) <= 1.1 * theirs
        assert error(by_gptq, stats.hessian) <= 0.5 * theirs


def test_inputs_that_share_a_number_share_their_scale():
    x, weight, fold = inputs_of(64, 0, 1.0), normal(24, 64), Fold(("v",), repeat=2, run=8)  # 4 x 2 heads of 8
    found = fold.spread(awq.scale([(weight, INT4)], seen(x), fold))
    heads = found.view(4, 2, 8)
    assert torch.equal(heads[:, 0], heads[:, 1])
    losses = [awq._error(weight, s, seen(x).hessian, INT4) for s in (found, torch.ones(64))]
    assert losses[0] < 0.8 * losses[1]


@pytest.mark.parametrize("name", SCALINGS)
def test_dead_inputs(name):
    x = inputs_of(64, 0, 1.0) * (torch.arange(64) % 5 > 0)
    stats = replace(seen(x), largest=x.abs().amax(0))
    for known in (stats, Stats(*(torch.zeros_like(each) for each in vars(stats).values()))):
        found = scaling_named(name).scale([(normal(24, 64), INT4)], known, Fold(("norm",)))
        assert (found.isfinite() & (found > 0)).all()


def model_of(folder, kind, **changes):
    save_random(kind, folder, **changes)
    checkpoint = open_checkpoint(folder)
    return emit(describe(checkpoint), checkpoint, checkpoint.read, 64)


def walk(model):
    """Yield the runner of each block, its float weights, and the flow in front of it."""
    flow, blocks = Flow(WINDOWS), cut(model)
    for index, block in enumerate(blocks):
        runner = TorchBlock(block)
        weights = {name: torch.from_numpy(np.array(each.numpy())) for name, each in block.weights.items()}
        yield runner, weights, flow
        flow.advance(runner, weights, {name for other in blocks[index + 1 :] for name in other.inputs} | {"logits"})


def scaled(runner, weights):
    """Return the weights with all inputs scaled whose scales find a place, and why others do not."""
    weights, reasons = dict(weights), {}
    for value, members in by_input(matrices(runner.block)).items():
        fold = find_fold(runner.block, value)
        if isinstance(fold, str):
            reasons[members[0].node] = fold
            continue
        rows = {m: m.turn(weights[m.weight]) for m in members}
        scale = torch.exp(normal(len(fold.shared(rows[members[0]][0]))))
        weights |= divide(fold, scale, weights)
        weights |= {m.weight: m.turn(w * fold.spread(scale)) for m, w in rows.items()}
    return weights, reasons


def differences(flow, runner, weights, others):
    """Yield how far apart the block's outputs are, over their size."""
    expected, found = (flow.outputs(runner, each) for each in (weights, others))
    for value in expected:
        if expected[value].is_floating_point():
            yield (found[value] - expected[value]).norm() / expected[value].norm()


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "changes", "left_alone"),
    [
        ("llama", BIASED, {}),
        ("llama", {"num_key_value_heads": 1}, {}),
        ("llama", {"num_key_value_heads": 4}, {}),
        ("gemma2", {"tie_word_embeddings": False}, {}),
        ("phi3", {}, {}),
        ("gpt2", {"tie_word_embeddings": False}, {"mlp.down": "computed by Gelu"}),
        ("gpt_neox", {"hidden_act": "silu"}, {"mlp.down": "computed by Mul"}),
        ("olmo2", {}, {"attention.q": "used outside of", "mlp.gate": "used outside of"}),
    ],
    ids=str,
)
def test_blocks_compute_what_they_did(kind, changes, left_alone, tmp_path):
    found = {}
    for runner, weights, flow in walk(model_of(tmp_path, kind, **changes)):
        moved, reasons = scaled(runner, weights)
        assert all(change <= 1e-5 for change in differences(flow, runner, weights, moved))
        found |= {node.removeprefix("layers.1."): why for node, why in reasons.items() if "layers.0" not in node}
    assert found.keys() == left_alone.keys()
    assert all(why in found[node] for node, why in left_alone.items())


def test_values_that_others_read_are_left_alone(tmp_path):
    blocks = {block.name: block for block in cut(model_of(tmp_path, "llama"))}
    mlp = blocks["layers.0.mlp"]
    assert "used outside of layers.0.mlp" in find_fold(mlp, "layers.0.mlp_residual")
    assert "read by more than matrices" in find_fold(mlp, "layers.0.mlp.gate")


def test_matrices_that_stay_floats_are_scaled_with_the_others(tmp_path):
    model = model_of(tmp_path / "model", "llama")
    floats = ("attention.v", "mlp.gate")

    def storage_of(node):
        return "fp32" if node.endswith(floats) else Scheme("int8", 16)

    quantize_model(model, WINDOWS, Recipe("random", storage_of, ("awq",)), tmp_path / "results")
    results = [read_result(path) for path in (tmp_path / "results").glob("*.npz")]
    tensors = {name: tensor for result in results for name, tensor in result.tensors.items()}
    changed = {name: value for result in results for name, value in result.floats.items()}
    assert sum(name.endswith(("v_proj.weight", "gate_proj.weight")) for name in changed) == 4
    with torch.no_grad():
        for runner, weights, flow in walk(model):
            turn = {m.weight: m.turn for m in matrices(runner.block)}
            rounded = {name: turn[name](tensors[name].dequantize()) for name in weights if name in tensors}
            now = {**weights, **{name: changed[name] for name in weights if name in changed}, **rounded}
            assert all(change <= 0.02 for change in differences(flow, runner, weights, now))
