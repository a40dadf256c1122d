"""Write how well GPTQModel rounds a matrix, for tests/quantize/test_gptq.py to compare edgec with.

    python -m venv /tmp/gptqmodel && /tmp/gptqmodel/bin/pip install -r bench/quality/peers/gptqmodel.txt
    /tmp/gptqmodel/bin/python bench/quality/references/gptq.py tests/quantize/data/gptqmodel.json

Its class for one layer, on the CPU, with act-order, static groups and its search of scales (`mse=2.0`). Written is
trace((W - Q) H (W - Q)^T) over that of Q = 0.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from gptqmodel import QuantizeConfig
from gptqmodel.quantization.gptq import GPTQ

ROWS, COLS, TOKENS = 48, 256, 512
SCHEMES = [(bits, group, sym) for bits in (4, 3) for group in (64, 128, -1) for sym in (True, False)]


def matrix_and_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Return a weight (rows, cols) and inputs (tokens, cols) that have much in common."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((ROWS, COLS))
    mixed = random.standard_normal((TOKENS, COLS)) @ random.standard_normal((COLS, COLS)) / COLS**0.5
    inputs = (mixed + random.standard_normal((TOKENS, 1))) * np.exp(random.standard_normal(COLS))
    return torch.from_numpy(weight.astype(np.float32)), torch.from_numpy(inputs.astype(np.float32))


def main() -> None:
    weight, inputs = matrix_and_inputs()
    errors = {}
    for bits, group, sym in SCHEMES:
        layer = torch.nn.Linear(COLS, ROWS, bias=False)
        layer.weight.data = weight.clone()
        config = QuantizeConfig(
            bits=bits,
            group_size=group,
            sym=sym,
            desc_act=True,
            static_groups=group > 0,
            mse=2.0,
            device="cpu",
            offload_to_disk=False,
        )
        rounder = GPTQ(layer, config)
        rounder.quantizer.configure(perchannel=True)
        rounder.add_batch(inputs[None], None)
        rounded = rounder.quantize()[0]
        change = (rounded - weight).double() @ inputs.T.double()
        of_zero = weight.double() @ inputs.T.double()
        errors[f"int{bits}/{group}/{'symmetric' if sym else 'zeros'}"] = float(
            change.square().sum() / of_zero.square().sum()
        )
    answer = {"version": version("gptqmodel"), "errors": errors}
    Path(sys.argv[1]).write_text(json.dumps(answer, indent=1) + "\n")


if __name__ == "__main__":
    main()
