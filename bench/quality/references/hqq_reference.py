"""Write what the package hqq makes of two small matrices, for tests/quantize/test_hqq.py to compare edgec with.

    python -m venv /tmp/hqq && /tmp/hqq/bin/pip install hqq==0.2.8.post1 torch==2.13.0
    /tmp/hqq/bin/python bench/quality/references/hqq_reference.py tests/quantize/data/hqq.npz

A float scale and zero point for each group of inputs (axis=1), on the CPU, in float32.
"""

import sys
from importlib.metadata import version

import numpy as np
import torch
from hqq.core.quantize import Quantizer

ROWS, COLS, SIZES, SCHEMES = 12, 256, (0.02, 1.0), ((4, 64), (3, 64), (8, 256))


def main() -> None:
    found = {"version": np.array(version("hqq"))}
    for size in SIZES:
        weight = size * np.random.default_rng(0).standard_t(5, (ROWS, COLS)).astype(np.float32)
        for bits, group in SCHEMES:
            codes, meta = Quantizer.quantize(
                torch.from_numpy(weight), bits, group_size=group, axis=1, bitpack=False, device="cpu"
            )
            name = f"int{bits}-{group}-{size}"
            found[f"{name}-codes"] = codes.numpy().astype(np.uint8)
            found[f"{name}-scales"] = meta["scale"].numpy()
            found[f"{name}-zeros"] = meta["zero"].numpy()
    np.savez_compressed(sys.argv[1], **found)


if __name__ == "__main__":
    main()
