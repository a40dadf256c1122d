"""AutoRound's closed-form step beside differentiation of the paper's equations, and what tuning a block gives."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from random_matrices import normal

from edgec.calibrate.flow import Flow, measure
from edgec.checkpoint.open import open_checkpoint
from edgec.frontends.decoder import emit
from edgec.frontends.families import describe
from edgec.graph.blocks import Block
from edgec.graph.torch_run import TorchBlock
from edgec.quantize.algorithms import autoround, gptq, rtn
from edgec.quantize.block import Recipe
from edgec.quantize.matrix import by_input, matrices
from edgec.quantize.scheme import Scheme
from edgec.quantize.sequential import quantize_model

SCHEMES = [
    Scheme("int4", 32),
    Scheme("int4", 32, symmetric=False),
    Scheme("int3", None),
    Scheme("int3", None, symmetric=False),
]
WINDOWS, TOKENS, INPUTS, HIDDEN = 12, 16, 72, 40  # groups of 32 divide neither inputs nor hidden values
REFERENCE = json.loads((Path(__file__).parent / "data/autoround.json").read_text())
RUN = TorchBlock(
    Block(
        "mlp",
        ir.from_onnx_text(
            """<ir_version: 11, opset_import: ["": 23]>
            mlp (float[W, T, 72] x, float[72, 40] up, float[40, 24] down) => (float[W, T, 24] y) {
                wide = MatMul(x, up)
                active = Relu(wide)
                y = MatMul(active, down)
            }"""
        ),
        ("x",),
        {"up": ir.tensor(np.zeros((72, 40), np.float32)), "down": ir.tensor(np.zeros((40, 24), np.float32))},
        ("y",),
    )
)


def short(scheme):
    return f"{scheme.dtype}-{scheme.group or 'channel'}{'' if scheme.symmetric else '-zeros'}"


class Layer:
    """A random MLP, what its outputs should be, and its inputs as quantized blocks before it would give them.

    The numbers are those of bench/quality/references/autoround.py.
    """

    def __init__(self, seed=0):
        random = np.random.default_rng(seed)
        mixed = random.standard_normal((WINDOWS * TOKENS, INPUTS)) @ random.standard_normal((INPUTS, INPUTS))
        x = mixed / INPUTS**0.5 + random.standard_normal((len(mixed), 1))
        x = x * np.exp(0.5 * random.standard_normal(INPUTS))
        met = x + 0.6 * random.standard_normal(x.shape) @ random.standard_normal((INPUTS, INPUTS)) / INPUTS**0.5
        up, down = random.standard_normal((INPUTS, HIDDEN)), random.standard_normal((HIDDEN, 24))
        x, met, up, down = (torch.from_numpy(each.astype(np.float32)) for each in (x, met, up, down))
        self.weights = {"up": up, "down": down}
        self.targets = {"y": (torch.relu(x @ up) @ down).view(WINDOWS, TOKENS, 24)}
        self.flow = Flow(np.zeros((WINDOWS, TOKENS), np.int64))
        self.flow.values["x"] = met.view(WINDOWS, TOKENS, INPUTS)

    def error(self, weights):
        return float((self.flow.outputs(RUN, weights)["y"] - self.targets["y"]).double().square().sum())

    def start(self, algorithm, scheme):
        """Return the weights as rounded one matrix after the other, and where tuning starts."""
        weights, starts = dict(self.weights), []
        for value, (matrix,) in by_input(matrices(RUN.block)).items():
            stats = measure(self.flow, RUN, weights, [value], hessian=True)[value]
            rows = matrix.turn(weights[matrix.weight])
            tensor = algorithm.quantize(rows, stats, scheme)
            starts.append((matrix, gptq.compensated(rows, stats, tensor) if algorithm is gptq else rows, tensor))
            weights[matrix.weight] = matrix.turn(tensor.dequantize())
        return weights, starts

    def tune(self, algorithm, scheme, steps):
        weights, starts = self.start(algorithm, scheme)
        tensors = autoround.tune_block(RUN, weights, starts, self.flow, self.targets, steps)
        tuned = {matrix.weight: matrix.turn(tensors[matrix.weight].dequantize()) for matrix, _, _ in starts}
        return tensors, self.error(weights), self.error({**weights, **tuned})


def straight_through(changed, x):
    return x + (changed - x).detach()


class Literal:
    """Equations 3 and 4 with one factor for both ends of the range: W~ = s clip(round(W / s + V) + z) - z, s = f s0."""

    def __init__(self, rounded, tensor):
        self.scheme, self.weight = tensor.scheme, rounded
        zeros = torch.zeros_like(tensor.scales) if tensor.zero_points is None else tensor.zero_points.float()
        self.start, self.zero = tensor.scales, self.wide(zeros)
        self.v = torch.zeros_like(rounded).requires_grad_()
        self.f = torch.ones_like(tensor.scales).requires_grad_()

    def wide(self, per_group):
        cols = self.weight.shape[1]
        return per_group.repeat_interleave(self.scheme.group or cols, 1)[:, :cols]

    def scales(self):
        s = self.start * self.f
        return straight_through(s.half().float(), s)

    def codes(self):
        raw = self.weight / self.wide(self.scales()) + self.v
        raw = straight_through(raw.round(), raw)
        return torch.clamp(raw + self.zero, self.scheme.low, self.scheme.high)

    def dequantized(self):
        return (self.codes() - self.zero) * self.wide(self.scales())

    @torch.no_grad()
    def descend(self, rate):
        """Equation 6, signed gradient descent."""
        self.v -= rate * self.v.grad.sign()
        self.f -= autoround._SLOWER * rate * self.f.grad.sign()
        self.v.clamp_(-0.5, 0.5)
        self.f.clamp_(1 - autoround._FACTOR, 1 + autoround._FACTOR)
        self.v.grad = self.f.grad = None


@pytest.mark.parametrize("scheme", SCHEMES, ids=short)
def test_one_step_goes_where_differentiation_says(scheme):
    weight, gradient = normal(16, INPUTS), normal(16, INPUTS, seed=1)
    tensor = rtn.quantize(weight, None, scheme)
    tensor = replace(tensor, scales=(0.6 * tensor.scales).half().float())
    matrix = matrices(RUN.block)[0]
    learned, literal = autoround._learn(matrix, weight, tensor), Literal(weight, tensor)
    for _ in range(3):
        (literal.dequantized() * gradient).sum().backward()
        assert (literal.v.grad == 0).float().mean() > 0.02, "none is clipped"
        learned.step(gradient, 0.4)  # far enough to meet the bounds
        literal.descend(0.4)
        assert torch.equal(learned.shift, literal.v.detach())
        assert torch.equal(learned.factor, literal.f.detach())
        assert torch.equal(learned.weight(), literal.dequantized().detach())


@pytest.mark.parametrize("scheme", SCHEMES, ids=short)
def test_some_steps_give_what_the_equations_give(scheme):
    layer, steps = Layer(), 6
    _, starts = layer.start(rtn, scheme)
    literals = {matrix.weight: Literal(rounded, tensor) for matrix, rounded, tensor in starts}
    generator = np.random.default_rng(0)
    for step in range(steps):
        rows = np.sort(generator.permutation(WINDOWS)[: autoround._BATCH])
        hidden = torch.relu(layer.flow.values["x"][rows] @ literals["up"].dequantized().T)
        made = hidden @ literals["down"].dequantized().T
        (made - layer.targets["y"][rows]).square().sum().backward()
        for literal in literals.values():
            literal.descend((1 - step / steps) / steps)
    tensors, before, after = layer.tune(rtn, scheme, steps)
    assert after < before
    for name, literal in literals.items():
        # A gradient that is nothing but rounding has any sign.
        assert (tensors[name].codes == literal.codes()).float().mean() > 0.995
        assert (tensors[name].scales == literal.scales()).float().mean() > 0.98


@pytest.mark.parametrize("scheme", SCHEMES, ids=short)
def test_tuning_brings_the_block_as_near_as_the_package_does(scheme):
    found = []
    for seed in range(3):
        layer = Layer(seed)
        tensors, before, after = layer.tune(gptq, scheme, steps=40)
        assert after < 0.75 * before
        found.append(after / float(layer.targets["y"].square().sum()))
        for tensor in tensors.values():
            assert torch.equal(tensor.scales, tensor.scales.half().float())
            assert tensor.codes.dtype == (torch.int8 if scheme.symmetric else torch.uint8)
            assert tensor.codes.min() >= scheme.low
            assert tensor.codes.max() <= scheme.high
            assert (tensor.zero_points is None) == scheme.symmetric
    name = f"{scheme.dtype}/{scheme.group or -1}/{'symmetric' if scheme.symmetric else 'zeros'}"
    assert np.mean(found) <= 1.01 * REFERENCE["errors"][name]


@pytest.mark.parametrize("scheme", SCHEMES, ids=short)
def test_the_start_is_what_gptq_gives(scheme):
    """What is tuned is as good as what was rounded, before the first step."""
    layer = Layer()
    _, starts = layer.start(gptq, scheme)
    for start in starts:
        assert torch.equal(autoround._learn(*start).result().codes, start[2].codes)
    rows = normal(8, INPUTS)
    stats = measure(layer.flow, RUN, layer.weights, ["x"], hessian=True)["x"]
    assert torch.equal(autoround.quantize(rows, stats, scheme).codes, gptq.quantize(rows, stats, scheme).codes)


class TestNeverWorse:
    def test_nothing_to_gain(self):
        layer = Layer()
        weights, starts = layer.start(gptq, SCHEMES[0])
        targets = layer.flow.outputs(RUN, weights)
        found = autoround.tune_block(RUN, weights, starts, layer.flow, targets, 10)
        assert all(found[matrix.weight] is tensor for matrix, _, tensor in starts)

    def test_than_the_start_itself(self):
        """Though what was rounded is known so badly that other codes come of it."""
        layer = Layer()
        weights, starts = layer.start(gptq, SCHEMES[0])
        vague = [(matrix, rounded + normal(*rounded.shape), tensor) for matrix, rounded, tensor in starts]
        found = autoround.tune_block(RUN, weights, vague, layer.flow, layer.targets, 2)
        assert all(found[matrix.weight] is tensor for matrix, _, tensor in starts)


def test_blocks_of_a_model_are_tuned_but_not_its_logits(make_llama, tmp_path, monkeypatch):
    checkpoint = open_checkpoint(make_llama(tmp_path / "llama", tie_word_embeddings=False, num_hidden_layers=2))
    model = emit(describe(checkpoint), checkpoint, checkpoint.read, 64)
    tuned, tune_block = [], autoround.tune_block

    def noted(runner, *given):
        tuned.append(runner.block.name)
        return tune_block(runner, *given)

    monkeypatch.setattr(autoround, "tune_block", noted)
    windows = np.random.default_rng(0).integers(3, 97, (10, 30))
    scheme = Scheme("int4", 32, algorithm="autoround")
    results = quantize_model(model, windows, Recipe("random", lambda _: scheme, steps=3), tmp_path / "results")
    assert tuned == [f"layers.{layer}.{branch}" for layer in (0, 1) for branch in ("attention", "mlp")]
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "lm_head.weight"):
        assert results.codes(name) is not None


def test_any_number_of_threads_gives_the_same_bytes():
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            tensors = Layer().tune(gptq, SCHEMES[0], steps=5)[0]
            found.append([each for name in sorted(tensors) for each in (tensors[name].codes, tensors[name].scales)])
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found))
