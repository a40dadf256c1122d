"""HQQ: half-quadratic quantization, no calibration. Its scales and zero points are floats; it has no symmetric mode."""

from importlib.metadata import version

import job
import torch
from hqq.core.quantize import Quantizer


def quantize(task: job.Job) -> job.Answer:
    weights, bits = {}, 0
    axis = task.options["axis"]
    for name, weight in job.matrices(job.read_weights(task.source)).items():
        # Groups are cut from the flattened matrix: where they do not divide the width, rows share one.
        codes, meta = Quantizer.quantize(
            weight,
            nbits=task.bits,
            group_size=task.group,
            axis=axis,
            optimize=True,
            compute_dtype=torch.float16,
            device="cpu",
            bitpack=False,
        )
        meta |= {key: meta[key].half().float() for key in ("scale", "zero")}  # as they are stored
        weights[name] = Quantizer.dequantize(codes, meta | {"compute_dtype": torch.float32})
        bits += weight.numel() * task.bits + meta["scale"].numel() * 2 * job.SCALE_BITS
    settings = {"axis": axis, "group": task.group, "optimize": True, "symmetric": False}
    return job.Answer(weights, bits, version("hqq"), settings)


if __name__ == "__main__":
    job.run(quantize)
