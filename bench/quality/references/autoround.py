"""Write how well AutoRound rounds an MLP, for tests/quantize/test_autoround.py to compare edgec with.

    python -m venv /tmp/auto-round && /tmp/auto-round/bin/pip install -r bench/quality/peers/auto-round.txt
    /tmp/auto-round/bin/python bench/quality/references/autoround.py tests/quantize/data/autoround.json

Its wrapper of a layer, its optimizer and its learning rates, on the CPU; of all steps the one with the lowest error on
the whole text is taken. Written is the square error of the outputs over their square, the mean of a few
seeds.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from auto_round.algorithms.quantization.sign_round.sign_sgd import SignSGD
from auto_round.wrapper import WrapperLinear

WINDOWS, TOKENS, INPUTS, HIDDEN, OUTPUTS = 12, 16, 72, 40, 24
STEPS, BATCH, SEEDS = 40, 8, 3
SCHEMES = [(4, 32, True), (4, 32, False), (3, -1, True), (3, -1, False)]


def mlp(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return inputs (windows, tokens, inputs), these as quantized blocks would give them, and the weights (in, out)."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((WINDOWS * TOKENS, INPUTS)) @ random.standard_normal((INPUTS, INPUTS)) / INPUTS**0.5
    x = (mixed + random.standard_normal((len(mixed), 1))) * np.exp(0.5 * random.standard_normal(INPUTS))
    met = x + 0.6 * random.standard_normal(x.shape) @ random.standard_normal((INPUTS, INPUTS)) / INPUTS**0.5
    matrices = random.standard_normal((INPUTS, HIDDEN)), random.standard_normal((HIDDEN, OUTPUTS))
    x, met = (each.reshape(WINDOWS, TOKENS, INPUTS) for each in (x, met))
    x, met, up, down = (torch.from_numpy(each.astype(np.float32)) for each in (x, met, *matrices))
    return x, met, up, down


def wrapped(weight: torch.Tensor, bits: int, group: int, sym: bool) -> WrapperLinear:
    layer = torch.nn.Linear(*weight.shape, bias=False)
    layer.weight.data = weight.T.contiguous()
    settings = {"bits": bits, "group_size": group, "sym": sym, "data_type": "int", "scale_dtype": torch.float16}
    for name, value in {**settings, "act_bits": 16, "act_data_type": "float", "act_sym": True}.items():
        setattr(layer, name, value)
    return WrapperLinear(layer, enable_torch_compile=False, iters=STEPS)


def tuned(seed: int, bits: int, group: int, sym: bool) -> float:
    x, met, up, down = mlp(seed)
    block = torch.nn.Sequential(wrapped(up, bits, group, sym), torch.nn.ReLU(), wrapped(down, bits, group, sym))
    target = torch.relu(x @ up) @ down
    rate = (2.0 if bits <= 3 else 1.0) / STEPS  # as its configuration has it
    optimizer = SignSGD([p for layer in (block[0], block[2]) for p in layer.params.values()], lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=STEPS)
    random, errors = np.random.default_rng(0), []
    for _ in range(STEPS):
        rows = np.sort(random.permutation(WINDOWS)[:BATCH])
        (block(met[rows]) - target[rows]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        with torch.no_grad():
            errors.append(float((block(met) - target).square().sum() / target.square().sum()))
    return min(errors)


def main() -> None:
    errors = {
        f"int{bits}/{group}/{'symmetric' if sym else 'zeros'}": float(
            np.mean([tuned(seed, bits, group, sym) for seed in range(SEEDS)])
        )
        for bits, group, sym in SCHEMES
    }
    answer = {"version": version("auto-round"), "errors": errors}
    Path(sys.argv[1]).write_text(json.dumps(answer, indent=1) + "\n")


if __name__ == "__main__":
    main()
